"""Every training method on a device that refuses what a CUDA device refuses, and goes on there."""

import pytest
import torch
from pretend_device import device as device
from test_families import size_of
from test_train_pairs import write_pairs
from tiny import BUILDERS, build
from train_helpers import run, weights

from align.config.train import METHODS, parse_window

GROUPS = {"group_size": 2, "batch_size": 4, "pair_timesteps": 2, "num_inference_steps": 2}
SETTINGS = {
    "alignprop": {"num_inference_steps": 2},
    "dpo": GROUPS,
    "nft": GROUPS | {"old_decay": 0.5},
    "grpo": GROUPS | {"grad_window": "1"},
    "sft": {"batch_size": 2, "pair_timesteps": 2},
    "dpo-pairs": {"batch_size": 2, "pair_timesteps": 2},
}
# A few in the suite, the others slow.
USUAL = [("flux-dev", "nft"), ("sd3", "dpo-pairs")]
CASES = [
    *USUAL,
    *(
        pytest.param(name, method, marks=pytest.mark.slow)
        for name in BUILDERS
        for method in SETTINGS
        if (name, method) not in USUAL
    ),
]
# What the same settings are refused with on any device.
REFUSED = "use alignprop|give --scheduler|cannot be encoded|cannot be differentiated"
EVERYTHING = {
    "kl_weight": 0.1,
    "normalize_rewards": True,
    "term_gradients": True,
    "ema_decay": 0.5,
    "eta": 0.5,
    "max_step_grad_norm": 1.0,
    "block_checkpointing": True,
    "vae_tiling": True,
    "sample_every": 1,
}


def test_every_method_is_tried():
    assert {method.removesuffix("-pairs") for method in SETTINGS} == set(METHODS)


def trained(folder, name, method, place, **changes):
    """The records of a run of two updates, and the pipeline it has trained."""
    settings = SETTINGS[method] | size_of(name) | {"method": method.removesuffix("-pairs")}
    if method in ("sft", "dpo-pairs"):
        settings |= {"pairs": write_pairs(folder / "pairs"), "prompts": None}
    pipe = build(name).to(place)
    try:
        result, _ = run(folder, pipe=pipe, reward="jpeg", device=None, **settings | changes)
    except ValueError as error:
        if any(part in str(error) for part in REFUSED.split("|")):
            pytest.skip(str(error))
        raise
    return result.metrics, pipe


@pytest.mark.parametrize(("name", "method"), CASES)
def test_two_updates_offloaded_with_cached_embeddings(device, tmp_path, name, method):
    records, pipe = trained(tmp_path, name, method, device, offload=True, cache_embeddings=True)
    assert len(records) == 2
    assert all(record["grad_norm"] > 0 for record in records)
    assert weights(pipe).device == device


@pytest.mark.parametrize("name", ["sd", pytest.param("flux-dev", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["nft", pytest.param("alignprop", marks=pytest.mark.slow)])
def test_resumed_it_ends_as_on_the_cpu(device, tmp_path, name, method):
    expected, _ = trained(tmp_path / "cpu", name, method, "cpu")
    settings = {"checkpoint_every": 1, "offload": True}
    trained(tmp_path, name, method, device, steps=1, **settings)
    resumed = {"resume": str(tmp_path / "run"), **settings}
    records, _ = trained(tmp_path, name, method, device, **resumed)
    assert [record["step"] for record in records] == [1, 2]
    for here, there in zip(records, expected, strict=True):
        for figure in ("reward", "grad_norm"):
            assert here[figure] == pytest.approx(there[figure], rel=1e-2)


@pytest.mark.slow
def test_all_that_a_run_measures(device, tmp_path):
    judged = {"judge": "scenes-clip,jpeg=0.1", "judge_prompts": "scenes-heldout-a"}
    few = {"judge_images": 2, "judge_every": 1, "steps": 1}
    records, _ = trained(tmp_path, "sd", "alignprop", device, **EVERYTHING | judged | few)
    assert {"judge", "kl", "term_grad_norms"} <= set(records[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "window", ["1", "random", "random-per-sample", "draft-lv:2", "refl", "drtune:2", "sparse:2"]
)
def test_windows(device, tmp_path, window):
    assert parse_window(window, 3)
    changes = {"grad_window": window, "num_inference_steps": 3}
    records, _ = trained(tmp_path, "sd", "alignprop", device, **changes)
    assert records[-1]["grad_norm"] > 0


def test_a_mixture_in_training_is_caught(device, tmp_path, monkeypatch):
    planted = lambda scores, *_: torch.zeros(len(scores))  # noqa: E731
    monkeypatch.setattr("align.alignprop.nft.error_weight", planted)
    with pytest.raises((RuntimeError, TypeError)):
        trained(tmp_path, "sd", "nft", device)
