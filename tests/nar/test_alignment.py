"""`align nar align` as a whole: it raises the reward, resumes bit for bit, and refuses nonsense."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import align
from align.arguments import parse
from align.cli import main
from align.config.checks import REMOVED
from align.config.nar import NarAlignConfig
from align.models.lora import add_lora, load_lora, save_lora
from align.nar.load import load_nar_pipeline
from align.nar.training.align import align_nar, open_session
from align.runs.folder import read_metrics
from align.training.seeding import image_seed
from tests.nar.align_helpers import (
    PROMPTS,
    brightness,
    randomize,
    run,
    small_config,
    tiny_pipe,
    weights,
)

CHILD = Path(__file__).with_name("align_child.py")
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def code_share(images, prompts):
    """How much of the picture is darker than half; what the policy can raise by its choice."""
    return (images.mean(1) < 0.5).float().flatten(1).mean(1)


@pytest.mark.parametrize(("method", "precision"), [("grpo", "no"), ("dpo", "no"), ("grpo", "bf16")])
def test_the_reward_rises(tmp_path, method, precision):
    """A bandit: six tokens of nine codes decide how dark the picture is."""
    settings = {"steps": 25, "batch_size": 32, "group_size": 16, "micro_batch_size": None}
    result, _ = run(
        tmp_path, reward=code_share, method=method, learning_rate=0.02, kl_weight=0.0, beta=0.5,
        pipe=tiny_pipe(text=False), prompts=["cat", "dog"], mixed_precision=precision, **settings,
    )  # fmt: skip
    rewards = [record["reward"] for record in result.metrics]
    first, last = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    deviation = result.metrics[0]["reward_std"]
    assert last - first > 1.5 * deviation, rewards
    assert result.metrics[-1]["grad_norm"] > 0
    report = json.loads((result.out / "report.json").read_text())
    pictures = report["pictures"]
    assert pictures["after"]["code_share"] > pictures["before"]["code_share"]


def test_without_a_gradient_the_reward_stays(tmp_path):
    """What `test_the_reward_rises` would show of an update that learns nothing."""
    settings = {"steps": 12, "batch_size": 32, "group_size": 16, "micro_batch_size": None}
    result, _ = run(
        tmp_path, reward=code_share, learning_rate=1e-9, prompts=["cat", "dog"],
        pipe=tiny_pipe(text=False), **settings,
    )  # fmt: skip
    rewards = [record["reward"] for record in result.metrics]
    rise = abs(sum(rewards[-3:]) - sum(rewards[:3])) / 3
    assert rise < result.metrics[0]["reward_std"]


def test_the_divergence_holds_the_policy_back(tmp_path):
    kls = []
    for weight in (1e-6, 30.0):
        result, _ = run(tmp_path / str(weight), steps=8, kl_weight=weight, learning_rate=0.02)
        kls.append(result.metrics[-1]["kl"])
    assert 0 <= kls[1] < 0.5 * kls[0]


def test_killed_and_resumed_is_bit_exact(tmp_path):
    done = subprocess.run(
        [sys.executable, str(CHILD), "kill", str(tmp_path), "6"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"] * 4  # the kills came in time
    for kind in ("grpo-no", "grpo-bf16", "dpo-no", "dpo-bf16"):
        runs = [tmp_path / kind / name / "run" for name in ("whole", "killed")]
        whole, killed = (load_file(run / "lora" / LORA) for run in runs)
        assert whole.keys() == killed.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, killed[name]), name
        for one, other in zip(*map(read_metrics, runs), strict=True):
            assert one | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(CHILD), "run", str(tmp_path / "two"), "grpo"],
        capture_output=True, text=True, timeout=300,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = {"checkpoint_every": 1, "learning_rate": 0.01}
    run(tmp_path / "one", method="grpo", warmup_steps=2, **settings)
    one, two = (load_file(tmp_path / name / "run/lora" / LORA) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3)
    rewards = [[r["reward"] for r in read_metrics(tmp_path / n / "run")] for n in ("one", "two")]
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-5)


def test_images_depend_on_their_index_alone(tmp_path):
    """Drawn in other company, by any batch, an image is the same."""
    session = open_session(small_config(tmp_path), reward=brightness, pipe=tiny_pipe())
    seeds = [image_seed("picture", 0, 0, index) for index in range(3)]
    together = session.sampler.draw(PROMPTS, seeds)
    alone = torch.cat([session.sampler.draw([p], [s]) for p, s in zip(PROMPTS, seeds, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_reward_that_compares_gets_whole_groups(tmp_path):
    """Those of one prompt too are told apart."""
    sizes = []

    def spread(images, prompts):
        sizes.append(len(images))
        means = images.flatten(1).mean(1)
        return (means - means.mean()).abs()

    spread.wants_group, spread.differentiable = True, False
    run(tmp_path, reward=spread, steps=1, prompts=["a star"])
    assert sizes == [4, 4]


def test_the_run_folder_and_the_judge(tmp_path):
    heldout = tmp_path / "held.txt"
    heldout.write_text("a star\na red circle")
    result, pipe = run(
        tmp_path, judge="jpeg", judge_prompts=str(heldout), judge_images=4, judge_every=2, steps=4,
        checkpoint_every=2, sample_every=2, learning_rate=0.01, group_size=2,
    )  # fmt: skip
    for name in ("run.json", "metrics.jsonl", "report.json", "lora/README.md", "images/after.png"):
        assert (result.out / name).is_file(), name
    assert (result.out / "lora-best" / LORA).is_file()
    judged = [record["step"] for record in result.metrics if "judge" in record]
    assert judged == [2, 4]
    assert {"reward", "terms", "kl", "grad_norm", "lr"} <= result.metrics[0].keys()
    assert json.loads((result.out / "run.json").read_text())["command"] == "nar align"
    assert "GRPO" in (result.out / "lora/README.md").read_text()
    assert weights(pipe).abs().sum() > 0


def test_hacking_is_warned_of(tmp_path, caplog):
    """The reward wants dark pictures, the judge light ones."""
    judge = tmp_path / "judge.py"
    judge.write_text("def light(images, prompts):\n    return images.flatten(1).mean(1)\n")
    heldout = tmp_path / "held.txt"
    heldout.write_text("cat\ndog\n" * 4)
    result, _ = run(
        tmp_path, reward=code_share, judge=f"{judge}:light", judge_prompts=str(heldout),
        judge_images=16, judge_every=15, steps=15, batch_size=32, group_size=16, kl_weight=0.0,
        learning_rate=0.03, micro_batch_size=None, pipe=tiny_pipe(text=False),
        prompts=["cat", "dog"],
    )  # fmt: skip
    assert "it may be being hacked" in result.metrics[-1]["warning"]
    assert json.loads((result.out / "report.json").read_text())["warnings"]


def test_the_lora_loads_everywhere(tmp_path):
    base = tiny_pipe()
    base.save_pretrained(tmp_path / "model")
    result, trained = run(tmp_path, learning_rate=0.05, steps=2)
    loaded = align.nar.NARPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    loaded.load_lora(str(result.out))
    through = load_nar_pipeline(str(tmp_path / "model"), "cpu", lora=[f"{result.lora}=1.0"])

    def logits(pipe):
        condition, mask = pipe.conditions(PROMPTS, None, 1)
        ids = torch.arange(6).repeat(3, 1)
        return pipe.transformer(ids, condition, mask)

    with torch.no_grad():
        torch.testing.assert_close(logits(loaded), logits(trained), atol=1e-5, rtol=0)
        torch.testing.assert_close(logits(through), logits(trained), atol=1e-5, rtol=0)
        assert (logits(base) - logits(trained)).abs().max() > 1e-3
    command = ["nar", "generate", "a star", "--model", str(tmp_path / "model"), "--device", "cpu"]
    place = ["--out", str(tmp_path / "pictures"), "--lora", str(result.out)]
    assert main([*command, *place]) == 0
    assert (tmp_path / "pictures/images/0000.png").is_file()


def test_loras_of_the_other_kind_are_refused(tmp_path):
    from tiny import build

    from align.models.lora import add_lora, load_lora

    result, _ = run(tmp_path, steps=1)
    diffusion = build("sd")
    with pytest.raises(ValueError, match="is a LoRA of another model: it changes transformer"):
        load_lora(diffusion, str(result.out))
    add_lora(diffusion, 2)
    randomize(diffusion)
    save_lora(diffusion, tmp_path / "diffusion")
    with pytest.raises(ValueError, match=r"is a LoRA of another model: it changes unet.*NARPip"):
        tiny_pipe().load_lora(str(tmp_path / "diffusion"))
    with pytest.raises(ValueError, match="is a LoRA of another model"):
        run(tmp_path / "b", steps=1, lora=(str(tmp_path / "diffusion"),))
    other = {name: torch.ones(3, 3) for name in ("lora_unet_x.lora_down.weight",)}
    save_file(other, tmp_path / "kohya.safetensors")
    with pytest.raises(ValueError, match="is no LoRA of a NARPipeline"):
        tiny_pipe().load_lora(str(tmp_path / "kohya.safetensors"))


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_in_a_sentence(tmp_path):
    def refused(message, error=ValueError, reward=brightness, **changes):
        with pytest.raises(error, match=message):
            run(tmp_path, reward=reward, **changes)

    refused("group_size is 1; it must be at least 2", group_size=1)
    refused("batch_size is 7; it must be a multiple of group_size", batch_size=7)
    refused("guidance_scale is 0.5; it must be at least 1", guidance_scale=0.5)
    refused("method is 'ppo'", method="ppo")
    refused("no layer is called 'to_q'", lora_targets=("to_q",))
    refused(r"must be callable as f\(images, prompts\)", TypeError, reward=lambda prompts: 1.0)
    refused("is a judge, not a training signal", reward="verifier")
    refused(
        "in none of 3 updates did the reward tell two images of a prompt apart",
        reward=lambda images, prompts: torch.ones(len(images)),
    )
    refused("heldout-b is kept for the final", judge="jpeg", judge_prompts="scenes-heldout-b",
            out=str(tmp_path / "judged"))  # fmt: skip
    with pytest.raises(ValueError, match="is no NAR pipeline: it is a StableDiffusionPipeline"):
        align_nar(NarAlignConfig(model="embedded/scenes", device="cpu", out=str(tmp_path / "x")))
    with pytest.raises(FileNotFoundError, match="there is no model 'embedded/nothing'"):
        align_nar(NarAlignConfig(model="embedded/nothing", device="cpu"))


def test_a_run_of_the_other_method_is_not_resumed(tmp_path):
    result, _ = run(tmp_path, steps=1, checkpoint_every=1)
    with pytest.raises(ValueError, match="was trained with method 'grpo', not 'dpo'"):
        run(tmp_path, out=None, resume=str(result.out), method="dpo")


def test_a_run_of_before_settings_were_removed_goes_on_if_they_were_left_alone(tmp_path):
    whole = weights(run(tmp_path / "whole", steps=3)[1])
    result, _ = run(tmp_path, steps=2)
    described = result.out / "run.json"
    state = result.out / "checkpoints" / "step-2" / "checkpoint.json"

    def name_removed(**values):
        for file, key in ((described, "config"), (state, "settings")):
            saved = json.loads(file.read_text())
            file.write_text(json.dumps(saved | {key: saved[key] | values}))

    again = {"out": None, "resume": str(result.out)}
    name_removed(gae_lambda=0.8)
    with pytest.raises(ValueError, match=r"gae_lambda is 0\.8, but that setting was removed"):
        run(tmp_path, steps=3, **again)
    with pytest.raises(ValueError, match="only a run that left it at None can be loaded"):
        parse(NarAlignConfig, ["--resume", str(result.out)], "nar align")
    name_removed(**REMOVED["NarAlignConfig"])
    assert torch.equal(weights(run(tmp_path, steps=3, **again)[1]), whole)


def test_a_score_that_is_not_finite_ends_the_run_and_keeps_what_was_reached(tmp_path):
    calls = []

    def breaks(images, prompts):
        calls.append(1)
        scores = brightness(images, prompts)
        return scores * float("nan") if len(calls) > 3 else scores  # the pictures are the first

    with pytest.raises(ArithmeticError, match="stopped at step 3: reward breaks is nan"):
        run(tmp_path, reward=breaks, steps=9)
    assert (tmp_path / "run/checkpoints/step-2").is_dir()
    assert (tmp_path / "run/lora" / LORA).is_file()


def test_sampling_is_that_of_the_policy_after_loading(tmp_path):
    tiny_pipe().save_pretrained(tmp_path / "model")
    result, _ = run(tmp_path, steps=1, temperature=0.8, guidance_scale=1.5)
    pipe = load_nar_pipeline(str(tmp_path / "model"), "cpu", lora=str(result.out))
    config = pipe.scheduler.config
    assert (config.temperature, config.guidance_scale, config.top_k) == (0.8, 1.5, 0)


@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_an_update_of_equal_scores_is_passed_over_at_first_too(tmp_path, method):
    batches = []

    def late(images, prompts):
        batches.append(len(images))
        told = len(batches) > 2  # the fixed pictures, and those of the first update
        return brightness(images, prompts) if told else torch.zeros(len(images))

    result, pipe = run(tmp_path, reward=late, method=method)
    flat = [record["flat_groups"] for record in result.metrics]
    assert flat[0] == 1
    assert min(flat) < 1
    assert weights(pipe).abs().max() > 0


def test_the_reference_keeps_the_lora_that_the_pipeline_had(tmp_path):
    start = tiny_pipe()
    add_lora(start, 2, targets=["attention.qkv"])
    randomize(start)
    save_lora(start, tmp_path / "start")
    pipe = tiny_pipe()
    load_lora(pipe, str(tmp_path / "start"))
    result, _ = run(tmp_path / "beside", pipe=pipe, steps=1)
    assert result.metrics[0]["kl"] == pytest.approx(0, abs=1e-9)
    started, _ = run(tmp_path / "further", steps=1, lora=(str(tmp_path / "start"),))
    assert started.metrics[0]["kl"] > 1e-4  # its reference is the model without START
