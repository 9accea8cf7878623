"""Does `embedded/scenes` draw the same pictures in plain diffusers, without this package?

The folder is to load with diffusers 0.31 and transformers 4.46 as well as with the pinned versions.
Each version draws, in an environment of its own, from the same latents; then compare the files:

    .venv/bin/python scripts/check_old_diffusers.py draw new.safetensors
    python3 -m venv old
    old/bin/pip install torch==2.13.0
    old/bin/pip install diffusers==0.31.0 transformers==4.46.3 accelerate==1.1.1 \\
        'numpy<2.3' 'huggingface_hub<0.27' safetensors
    old/bin/python scripts/check_old_diffusers.py draw old.safetensors
    .venv/bin/python scripts/check_old_diffusers.py compare new.safetensors old.safetensors
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parents[1] / "align/embedded/scenes"
PROMPTS = [
    "a red circle to the left of a blue square",
    "three green stars",
    "a large striped yellow square",
    "a purple ring in front of a black cross",
]
TOLERANCE = 1e-3


def draw(folder: Path, file: Path) -> None:
    """Pictures [4, 64, 64, 3] in [0, 1] and their latents, with guidance and without."""
    import diffusers
    import transformers
    from diffusers import StableDiffusionPipeline

    print(f"diffusers {diffusers.__version__}, transformers {transformers.__version__}")
    pipe = StableDiffusionPipeline.from_pretrained(str(folder))
    assert "align" not in sys.modules
    parts = {name: part for name, part in pipe.components.items() if hasattr(part, "parameters")}
    for name, part in parts.items():
        kinds = {str(parameter.dtype) for parameter in part.parameters()}
        print(f"{name}: {', '.join(kinds)}")
        assert kinds == {"torch.float32"}, f"{name} is loaded as {kinds}"
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = {}
    for guidance in (1.0, 3.0):
        for kind in ("pt", "latent"):
            found[f"{kind}, guidance {guidance}"] = pipe(
                PROMPTS,
                latents=noise.clone(),
                num_inference_steps=25,
                guidance_scale=guidance,
                output_type=kind,
            ).images.contiguous()
    save_file(found, file)


def compare(one: Path, two: Path) -> bool:
    """Print the greatest absolute differences; whether all are small."""
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    worst = {name: (first[name] - second[name]).abs().max().item() for name in first}
    for name, difference in worst.items():
        print(f"{name}: greatest difference {difference:.2g}")
    return all(difference <= TOLERANCE for difference in worst.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("draw", "compare"))
    parser.add_argument("files", type=Path, nargs="+", help="draw: one; compare: two")
    parser.add_argument("--model", type=Path, default=FOLDER)
    args = parser.parse_args()
    if args.action == "draw":
        draw(args.model, args.files[0])
        return 0
    same = compare(*args.files)
    print("the same" if same else f"different by more than {TOLERANCE}")
    return not same


if __name__ == "__main__":
    sys.exit(main())
