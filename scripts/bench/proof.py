"""Proof of a recipe or a preset, as a committed record: docs/recipes/proof/NAME.json.

    python scripts/bench/proof.py taste                 # a preset of the models inside: measured
    python scripts/bench/proof.py z-image-turbo-24gb    # a recipe: rehearsed
    python scripts/bench/proof.py draft-1               # a preset for Stable Diffusion: rehearsed

Measured is the whole run, with a judge on prompts that are held out: its curve, seconds and memory.
Rehearsed are two updates on the CPU of the real architecture's configuration with random weights,
one block of each kind and small pictures, by a reward that needs no weights; memory is estimated
from the whole one. What has neither record is written.
"""

import argparse
import datetime
import json
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import GIB, RECIPES, brightness

from align.models.precision import fast_bfloat16
from align.runs.files import write_json

FOLDER = Path(__file__).parents[2] / "docs" / "recipes" / "proof"
INSIDE = {"taste": "embedded/scenes", "embedded": "embedded/scenes"}
INSIDE |= {"embedded-dpo": "embedded/scenes", "embedded-turbo": "embedded/scenes-turbo"}
SHALLOW = {
    "UNet2DConditionModel": {"layers_per_block": 1, "transformer_layers_per_block": 1},
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "Flux2Transformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "ZImageTransformer2DModel": {"n_layers": 1, "n_refiner_layers": 1},
    "SD3Transformer2DModel": {"num_layers": 2},
    "AutoencoderKL": {"layers_per_block": 1},
    "AutoencoderKLFlux2": {"layers_per_block": 1},
}


def machine() -> str:
    """The processor and how much of it the run had."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.partition(": ")[2] for line in lines if line.startswith("model name")}
    return f"{' / '.join(names) or platform.machine()}, 1 thread, shared with other work"


def measured(name: str) -> dict:
    words = ["--preset", name, "--model", INSIDE[name], "--prompts", "scenes"]
    words += ["--judge", "verifier", "--judge-prompts", "scenes-heldout-a"]
    words += ["--dtype", "bfloat16"] if fast_bfloat16("cpu") else []
    words += ["--judge-every", "10000", "--judge-images", "128"]
    with tempfile.TemporaryDirectory() as folder:
        out, began = Path(folder) / "run", time.monotonic()
        command = [sys.executable, "-m", "align", "train", *words, "--out", str(out)]
        subprocess.run(command, check=True)
        seconds = time.monotonic() - began
        lines = (out / "metrics.jsonl").read_text().splitlines()
        report = json.loads((out / "report.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "level": "measured",
        "command": f"align train {shlex.join(words)}",
        "curve": [round(json.loads(line)["reward"], 4) for line in lines],
        "judge": {"name": "verifier", **report["judge"]},
        "seconds": round(seconds),
        "memory_gib": round(peak / GIB, 2),
    }


def rehearsed(name: str) -> dict:
    import torch
    from architectures import without_weights

    from align.alignprop import memory
    from align.alignprop.session import open_session
    from align.alignprop.update import figures, losses
    from align.config.presets import PRESETS
    from align.config.train import TrainConfig
    from align.training.loop import fit

    architecture, changes = RECIPES.get(name, ("sd15", {"preset": name, "memory": "24gb"}))
    given = TrainConfig(model=architecture, prompts="animals", dry_run=True, **changes)
    hps = torch.nn.Linear(986_109_441, 1, bias=False, device="meta")
    needs = memory.Needs(given, reward=hps, pipe=without_weights(architecture))
    planned, estimate = memory.plan(given, needs=needs)
    preset = PRESETS[changes["preset"]]
    size = planned.group_size if planned.compares else 1
    kept = {k: v for k, v in (preset | changes).items() if k not in ("memory", "quantize")}
    kept |= {"batch_size": size, "micro_batch_size": size, "steps": 2, "sample_every": 0}
    kept |= {"height": 64, "width": 64, "dtype": "float32", "tracker": "none", "device": "cpu"}
    kept |= {"model": architecture, "prompts": "animals"}
    kept |= {"block_checkpointing": planned.block_checkpointing}
    kept = {k: v for k, v in kept.items() if k not in ("reward", "preset")}
    torch.manual_seed(0)
    pipe, depth = shallow(without_weights(architecture))
    norms: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(**kept, out=f"{folder}/r")
        run, began = open_session(config, reward=brightness, pipe=pipe), time.monotonic()
        fit(run, losses, figures, on_step=lambda record: norms.append(record["grad_norm"]))
        run.accelerator.end_training()
    assert min(norms) > 0
    return {
        "level": "rehearsed",
        "command": f"python scripts/bench/proof.py {name}",
        "settings": changes,
        "architecture": architecture,
        "depth": depth,
        "left_out": [k for k in ("quantize", "memory") if k in changes] + ["the reward's weights"],
        "gradient_norms": norms,
        "seconds": round(time.monotonic() - began),
        "estimated_gib": round(estimate.total / GIB, 1),
    }


def shallow(pipe):
    """The pipeline with one block of each kind, random weights, and how deep its parts were."""
    import torch
    from transformers import PreTrainedModel

    depth = {}
    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        if isinstance(part, PreTrainedModel):
            config = part.config
            # Klein reads the 9th, 18th and 27th layer: the same one in all places.
            repeats = 27 if type(part).__name__ == "Qwen3ForCausalLM" else 1
            depth[name] = f"{config.num_hidden_layers} layers, here 1"
            config.num_hidden_layers, config.use_cache = 1, False
            config.layer_types = getattr(config, "layer_types", None) and config.layer_types[:1]
            module = type(part)(config)
            if repeats > 1:
                config.num_hidden_layers = repeats
                module.model.layers = torch.nn.ModuleList([*module.model.layers] * repeats)
        else:
            changes = SHALLOW[type(part).__name__]
            depth[name] = {k: f"{part.config[k]}, here {v}" for k, v in changes.items()}
            module = type(part).from_config(part.config, **changes)
        setattr(pipe, name, module.eval().requires_grad_(False))
    return pipe, depth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", help="recipes (a page's name) or presets")
    for name in parser.parse_args().names:
        record = measured(name) if name in INSIDE else rehearsed(name)
        record |= {"machine": machine(), "date": datetime.date.today().isoformat()}
        FOLDER.mkdir(exist_ok=True)
        write_json(FOLDER / f"{name}.json", record)
        print(f"{name}: {record['level']}", flush=True)


if __name__ == "__main__":
    main()
