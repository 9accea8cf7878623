"""Gradients by the noise: finite differences, one backward pass a step, every family of models."""

import pytest
import torch
from tiny import build
from transformers import Gemma2Model

import align
from align.config.budget import Purse
from align.diffusion.sample import make_noise
from align.noise_opt.evaluate import Evaluator, clipped
from align.noise_opt.objective import Objective, parts_of
from align.noise_opt.paint import make_painter

PROMPT = "a red circle left of a blue square"
FOUR = "scenes-clip=0.7,scenes-vqa=1.2,scenes-detector,scenes-preference=0.4"
ONE_STEP = ("sd-turbo", "lcm", "sdxl-turbo", "pixart-dmd", "flux-schnell", "sana-sprint")


def double(name):
    """A float64 pipeline whose pictures have little contrast, so that the clamp does not act."""
    pipe = build(name)
    for part in pipe.components.values():
        # Gemma's attention mask overflows in float64.
        if isinstance(part, torch.nn.Module) and not isinstance(part, Gemma2Model):
            part.double()
    last = [m for m in pipe.vae.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    last.weight.data *= 0.1
    return pipe


def evaluator(pipe, reward, steps=1, clip=0.0, **settings):
    paint = make_painter(pipe, PROMPT, num_inference_steps=steps, seed=3, **settings)
    objective = Objective(reward, parts_of(reward))
    return Evaluator(paint, objective, PROMPT, None, Purse(steps=steps), 8, clip)


def brightness(images, prompts):
    weights = torch.linspace(-1, 2, images[0].numel(), dtype=images.dtype).view(images[0].shape)
    return 10 * (images.sin() * weights).flatten(1).mean(1)


def check_differences(evaluate, noise, pull, tolerance, step=1e-5):
    gradient = evaluate(noise, pull).gradients[0]
    # Partly along the gradient, so that the difference is well above float32's rounding.
    direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(7)).to(noise)
    direction += gradient * direction.norm() / gradient.norm()
    ahead, behind = (evaluate(noise + s * direction).totals for s in (step, -step))
    measured = (ahead - behind) / (2 * step)
    expected = -(gradient * direction).flatten(1).sum(1)
    assert measured.abs().min() > 1e-6
    torch.testing.assert_close(expected, measured, rtol=tolerance, atol=0)


@pytest.fixture(scope="module")
def four():
    return align.load_reward(FOUR).double()


@pytest.mark.parametrize(("steps", "guidance"), [(1, None), (3, 2.5)])
def test_objective_of_four_rewards_against_finite_differences(four, steps, guidance):
    evaluate = evaluator(double("sd-v"), four, steps, guidance_scale=guidance)
    noise = make_noise(double("sd-v"), [0, 1]).double()
    images = evaluate(noise).images
    assert 0 < images.min() < images.max() < 1, "the clamp must not act in this check"
    check_differences(evaluate, noise, "image", 1e-4)


def test_every_way_back_to_the_noise_gives_the_same_gradient(four):
    pipe = double("sd-v")  # DDIM: other samplers compute in float32
    noise = make_noise(pipe, [0, 1, 2]).double()
    evaluate = evaluator(pipe, four)
    weights = torch.tensor([part.weight for part in evaluate.objective.pulled], dtype=noise.dtype)
    results = []
    for pull, backwards in (("sum", 3), ("image", 3), ("exact", 12), ("per-term", 12)):
        before = evaluate.purse.generator_backwards
        gradients = evaluate(noise, pull).gradients
        assert evaluate.purse.generator_backwards - before == backwards
        results.append(
            gradients[0] if len(gradients) == 1 else torch.tensordot(weights, gradients, 1)
        )
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", ["reno", "carinox"])
def test_one_generator_backward_an_iteration_with_four_rewards(method):
    pipe, calls = build("sd-turbo"), []
    pipe.unet.conv_out.register_full_backward_hook(lambda *_: calls.append(1))
    config = align.OptimizeConfig(method=method, iterations=4, seeds=3)
    steps = list(align.optimize(pipe, PROMPT, FOUR, config))
    assert len(calls) == 3  # the last iteration only looks
    assert steps[-1].generator_backwards == sum(len(s.totals) for s in steps[-4:-1])


def test_the_published_scheme_takes_a_backward_for_each_reward():
    pipe, calls = build("sd-turbo"), []
    pipe.unet.conv_out.register_full_backward_hook(lambda *_: calls.append(1))
    config = align.OptimizeConfig(method="carinox-paper", iterations=4, seeds=1)
    steps = list(align.optimize(pipe, PROMPT, FOUR, config))
    assert len(calls) == steps[-1].generator_backwards == 12


@pytest.mark.usefixtures("float64_stays")
@pytest.mark.parametrize("name", ONE_STEP)
def test_every_one_step_family_gives_the_noise_its_gradient(name):
    """tests/test_families.py has the families of several steps."""
    side = 32 if name.startswith("sana") else 16
    size = {"height": side, "width": side}
    pipe = double(name)
    evaluate = evaluator(pipe, align.load_reward(brightness), 1, **size)
    noise = make_noise(pipe, [0, 1], **size).double()
    check_differences(evaluate, noise, "image", 1e-3, step=1e-6)


def test_fewer_grad_steps_take_the_steps_before_as_the_identity():
    pipe, reward = double("sd"), align.load_reward(brightness)
    noise = make_noise(pipe, [0]).double()
    whole, cut = (evaluator(pipe, reward, 3, grad_steps=k) for k in (3, 1))
    assert torch.equal(whole(noise).images, cut(noise).images)
    torch.testing.assert_close(whole(noise).images, cut(noise, "sum").images, rtol=0, atol=1e-12)
    gradients = [e(noise, "sum").gradients[0].flatten() for e in (whole, cut)]
    assert not torch.allclose(*gradients)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.3


def test_fewer_grad_steps_are_refused_where_the_sampler_remembers():
    with pytest.raises(ValueError, match="grad_steps is 1 of 3 steps; with DPMSolverMultistep"):
        make_painter(build("pixart-alpha"), "a", num_inference_steps=3, grad_steps=1)


def test_each_terms_gradient_is_clipped_on_the_image():
    weights = torch.linspace(0, 1, 768, dtype=torch.float64).view(3, 16, 16)

    def large(images, prompts):
        return 1e4 * (images * weights).flatten(1).sum(1)

    pipe = double("sd-v")
    noise = make_noise(pipe, [0, 1]).double()
    free = evaluator(pipe, align.load_reward(large))(noise, "image").gradients
    bound = evaluator(pipe, align.load_reward(large), clip=0.1)(noise, "image").gradients
    factor = 0.1 / (1e4 * weights.norm())
    torch.testing.assert_close(bound, free * factor, rtol=1e-6, atol=0)


def test_clipping_equals_torchs():
    rows = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = clipped(rows, 0.5)
    for row, mine in zip(rows, ours, strict=True):
        leaf = torch.zeros_like(row, requires_grad=True)
        leaf.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([leaf], 0.5)
        torch.testing.assert_close(mine, leaf.grad)
    assert torch.equal(clipped(rows, 0), rows)
