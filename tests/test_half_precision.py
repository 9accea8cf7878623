"""bfloat16 and float16: finite pictures and gradients from every family, and overflows named."""

import math

import pytest
import torch
from test_families import size_of
from test_pretend_device_training import REFUSED, SETTINGS
from test_train_pairs import write_pairs
from tiny import BUILDERS, build
from tiny_rewards import PROMPTS as PHOTOS
from tiny_rewards import installed_weights as installed_weights
from train_helpers import run, weights

import align
from align.config.optimize import SEARCHES
from align.diffusion.pixels import decode, encode
from align.diffusion.sample import generate
from align.nar.load import load_nar_pipeline
from align.rewards import load_reward
from align.training.stopping import Diverged

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
halves = pytest.mark.parametrize("dtype", HALVES)


def crossed(usual, names, others):
    """These pairs in the suite, all others of the two tables slow."""
    rest = [(name, other) for name in names for other in others if (name, other) not in usual]
    return [*usual, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in rest)]


@halves
@pytest.mark.parametrize(
    ("name", "method"),
    crossed([("qwen-image", "nft")], BUILDERS, SETTINGS),
)
def test_two_updates_and_a_picture(tmp_path, name, method, dtype):
    pipe = build(name).to(HALVES[dtype])
    settings = SETTINGS[method] | size_of(name) | {"method": method.removesuffix("-pairs")}
    if method in ("sft", "dpo-pairs"):
        settings |= {"pairs": write_pairs(tmp_path / "pairs"), "prompts": None}
    whole = {"offload": True, "cache_embeddings": method != "alignprop"}
    try:
        result, _ = run(tmp_path, pipe=pipe, reward="jpeg", **settings | whole)
    except ValueError as error:
        if any(part in str(error) for part in REFUSED.split("|")):
            pytest.skip(str(error))
        raise
    for record in result.metrics:
        assert math.isfinite(record.get("reward", record.get("loss")))
        assert 0 < record["grad_norm"] < math.inf
    assert weights(pipe).dtype == torch.float32
    assert weights(pipe).isfinite().all()
    if method == "alignprop":
        images = generate(pipe, ["a"], seed=1, num_inference_steps=2, **size_of(name))
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1


@halves
@pytest.mark.parametrize(
    "method",
    ["carinox", *(pytest.param(m, marks=pytest.mark.slow) for m in SEARCHES if m != "carinox")],
)
def test_searches(method, dtype):
    pipe = build("sd-turbo").to(HALVES[dtype])
    config = align.OptimizeConfig(method=method, iterations=2, seeds=2, backward_cost=1.0)
    *_, last = align.optimize(pipe, "two dogs", "jpeg", config)
    assert math.isfinite(last.best_total)
    assert last.best_noise.dtype == torch.float32
    again = generate(pipe, ["two dogs"], latents=last.best_noise[None], seed=config.seed)
    torch.testing.assert_close(again[0], last.best_image, atol=2e-2, rtol=0)


@halves
def test_pictures_of_halves_are_judged_in_single_precision(dtype):
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    reward = load_reward("jpeg,scenes-clip")
    scores = reward(pictures.to(HALVES[dtype]).float(), ["two green stars", "a red circle"])
    torch.testing.assert_close(
        scores, reward(pictures, ["two green stars", "a red circle"]), atol=0.1, rtol=0.05
    )


def test_vqascore_in_bfloat16_as_on_a_card(installed_weights):
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pictures.requires_grad_()
    reward = load_reward("vqascore")
    expected = reward(pictures, list(PHOTOS))
    scores = reward.bfloat16()(pictures, list(PHOTOS))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=0, rtol=0.1)
    (slope,) = torch.autograd.grad(scores.sum(), pictures)
    assert slope.isfinite().all()
    assert slope.any()


@halves
def test_nar_draws(dtype):
    pipe = load_nar_pipeline("embedded/nar-scenes", "cpu", dtype)
    drawn = pipe(["two green stars"], generator=torch.Generator().manual_seed(0), output_type="pt")
    assert drawn.images.isfinite().all()
    assert drawn.images.std() > 0.01


# --- autoencoders that overflow in float16 ----------------------------------------------------


def overflowing(name, upcast):
    """A pipeline whose decoder makes values that float16 does not hold, though its pictures are
    fine in float32: large ones, which its last layer scales down."""
    pipe = build(name)
    decoder = pipe.vae.decoder
    decoder.conv_in.weight.data *= 1e5  # the norms after it take the factor away again
    if upcast is not None:
        pipe.vae.register_to_config(force_upcast=upcast)
    return pipe.to(torch.float16)


def test_an_autoencoder_that_says_so_is_decoded_in_float32():
    pipe = overflowing("sd", upcast=True)
    images = generate(pipe, ["a"], seed=1, num_inference_steps=2)
    assert images.std() > 0.01
    assert decode(pipe, encode(pipe, images)).isfinite().all()
    assert pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("name", ["sd", "qwen-image"])  # that of Qwen-Image has no such setting
def test_any_other_is_named_in_one_sentence(name, tmp_path):
    settings = size_of(name)
    pipe = overflowing(name, upcast=False if name == "sd" else None)
    with pytest.raises(ValueError, match="the autoencoder overflows in float16; float32 may hold"):
        generate(pipe, ["a"], seed=1, num_inference_steps=2, **settings)
    with pytest.raises(Diverged, match=r"no longer finite.*autoencoder.*float16"):
        run(tmp_path, pipe=pipe, reward="jpeg", num_inference_steps=2, **settings)
    config = align.OptimizeConfig(method="bon", seeds=2, num_inference_steps=2, **settings)
    with pytest.raises(RuntimeError, match="try another dtype"):
        list(align.optimize(pipe, "a", "jpeg", config))
