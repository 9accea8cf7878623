"""Gradients through the loop against finite differences in float64, and where they must be zero."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import build, with_scheduler

from align.diffusion.denoisers import make_denoiser
from align.diffusion.pixels import clamp01, decode
from align.diffusion.sample import generate, make_noise, sample
from align.models.lora import add_lora

PROMPTS = ["a red circle", "two green stars"]
STEPS = 3


def interior(name):
    """A float64 pipeline whose pictures have little contrast, so that the clamp does not act."""
    pipe = build(name).to(dtype=torch.float64)
    pipe.vae.decoder.conv_out.weight.data *= 0.2
    return pipe


@pytest.fixture(scope="module", params=["sd", "sd-v"])
def pipe(request):
    """One with a LoRA that already does something."""
    pipe = interior(request.param)
    torch.manual_seed(1)
    for parameter in add_lora(pipe, rank=2):
        parameter.data = 0.2 * torch.randn_like(parameter)
    return pipe


def parameters_of(pipe):
    return [p for p in pipe.unet.parameters() if p.requires_grad]


def score(images):
    """A smooth number that weighs every pixel differently."""
    assert 0 < images.min() < images.max() < 1, "the clamp must not act in these checks"
    weights = torch.linspace(-1, 1, images.numel(), dtype=images.dtype).reshape(images.shape)
    return (weights * images.sin()).sum()


def run(pipe, noise, **settings):
    settings = {"num_inference_steps": STEPS, "guidance_scale": 2.0} | settings
    return generate(pipe, PROMPTS, latents=noise, **settings)


def gradients(pipe, noise, **settings):
    images = run(pipe, noise, **settings)
    return torch.autograd.grad(score(images), parameters_of(pipe))


def moved(pipe, directions, step):
    for parameter, direction in zip(parameters_of(pipe), directions, strict=True):
        parameter.data += step * direction


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("grad_steps", [1, 2, "all"])
def test_lora_gradients_through_the_last_steps(pipe, grad_steps, eta):
    noise = make_noise(pipe, [0, 1])
    torch.manual_seed(2)
    directions = [torch.randn_like(p) for p in parameters_of(pipe)]

    def generator():
        return torch.Generator().manual_seed(5)

    settings = {"eta": eta, "grad_steps": grad_steps}
    grads = gradients(pipe, noise, generator=generator(), **settings)
    expected = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    constant = 0 if grad_steps == "all" else STEPS - grad_steps  # steps without gradient
    values, step = [], 1e-5
    for signed in (step, -step):
        # The LoRA is moved only after the steps that are held constant.
        def move(index, *_, signed=signed):
            if index == constant - 1:
                moved(pipe, directions, signed)

        if constant == 0:
            moved(pipe, directions, signed)
        with torch.no_grad():
            images = run(pipe, noise, eta=eta, generator=generator(), on_step=move)
        values.append(score(images))
        moved(pipe, directions, -signed)
    measured = (values[0] - values[1]) / (2 * step)
    assert measured.abs() > 1e-6
    torch.testing.assert_close(expected, measured, rtol=1e-4, atol=0)


def test_noise_gradient_through_all_steps(pipe):
    noise = make_noise(pipe, [0, 1]).requires_grad_(True)
    (grad,) = torch.autograd.grad(score(run(pipe, noise, grad_steps="all")), noise)
    torch.manual_seed(3)
    direction, step = torch.randn_like(noise), 1e-5
    with torch.no_grad():
        ahead, behind = (score(run(pipe, noise + s * direction)) for s in (step, -step))
    measured = (ahead - behind) / (2 * step)
    torch.testing.assert_close((grad * direction).sum(), measured, rtol=1e-4, atol=0)
    assert measured.abs() > 1e-3


@pytest.mark.parametrize("detach_uncond", [False, True])
@pytest.mark.parametrize("grad_steps", [2, "all"])
def test_checkpointing_changes_nothing(pipe, grad_steps, detach_uncond):
    noise, results = make_noise(pipe, [0, 1]), []
    for checkpointing in (False, True):
        denoise = make_denoiser(
            pipe, PROMPTS, checkpointing=checkpointing, detach_uncond=detach_uncond
        )
        latents = sample(
            denoise, pipe.scheduler, noise, num_inference_steps=STEPS, grad_steps=grad_steps
        )
        loss = score(decode(pipe, latents, checkpointing=checkpointing))
        results.append((loss, *torch.autograd.grad(loss, parameters_of(pipe))))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_detached_guidance_keeps_the_picture_and_drops_one_branch(pipe):
    noise, results = make_noise(pipe, [0, 1]), []
    for detach in (False, True):
        denoise = make_denoiser(pipe, PROMPTS, guidance_scale=2.0, detach_uncond=detach)
        latents = sample(
            denoise, pipe.scheduler, noise, num_inference_steps=STEPS, grad_steps="all"
        )
        results.append((latents, torch.autograd.grad(latents.sum(), parameters_of(pipe))[0]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-9)
    assert (results[0][1] - results[1][1]).abs().max() > 1e-6


def test_all_steps_equal_a_plain_loop_without_truncation(pipe):
    noise = make_noise(pipe, [0, 1])
    grads = gradients(pipe, noise, grad_steps="all")
    same = gradients(pipe, noise, grad_steps=STEPS)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    denoise, latents = make_denoiser(pipe, PROMPTS, guidance_scale=2.0), noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(denoise(latents, timestep), timestep, latents).prev_sample
    plain = torch.autograd.grad(score(decode(pipe, latents)), parameters_of(pipe))
    for ours, counted, theirs in zip(grads, same, plain, strict=True):
        assert torch.equal(ours, counted)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grad_steps", [0, 1, 2, 3])
def test_early_steps_have_no_graph(pipe, grad_steps):
    outputs, denoise = [], make_denoiser(pipe, PROMPTS)

    def watched(latents, timestep):
        outputs.append(denoise(latents, timestep))
        return outputs[-1]

    latents = sample(
        watched,
        pipe.scheduler,
        make_noise(pipe, [0, 1]),
        num_inference_steps=STEPS,
        grad_steps=grad_steps,
    )
    kept = [output.requires_grad for output in outputs]
    assert kept == [index >= STEPS - grad_steps for index in range(STEPS)]
    assert latents.requires_grad == (grad_steps > 0)


# NumPy's next rules for torch tensors, which some of diffusers' schedulers break.
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "HeunDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "DEISMultistepScheduler",
        "DDPMScheduler",
        "LCMScheduler",
        "TCDScheduler",
    ],
)
def test_other_schedulers_give_gradients_too(name):
    # Several of them compute in float32 inside: the step is large, the bound wider.
    pipe = with_scheduler(interior("sd"), name)
    noise = make_noise(pipe, [0, 1]).requires_grad_(True)
    torch.manual_seed(3)
    direction, step = torch.randn_like(noise), 1e-3

    def scored(noise, **settings):
        generator = torch.Generator().manual_seed(5)
        return score(run(pipe, noise, generator=generator, num_inference_steps=4, **settings))

    (grad,) = torch.autograd.grad(scored(noise, grad_steps="all"), noise)
    with torch.no_grad():
        ahead, behind = scored(noise + step * direction), scored(noise - step * direction)
    measured = (ahead - behind) / (2 * step)
    torch.testing.assert_close((grad * direction).sum(), measured, rtol=5e-3, atol=0)


class DetachedScheduler(DDIMScheduler):
    """A scheduler as samplers for inference only are written."""

    @torch.no_grad()
    def step(self, *arguments, **settings):
        return super().step(*arguments, **settings)


def test_a_scheduler_without_gradient_is_named():
    pipe = build("sd")
    pipe.scheduler = DetachedScheduler.from_config(pipe.scheduler.config)
    noise = make_noise(pipe, [0, 1])
    assert generate(pipe, PROMPTS, latents=noise, num_inference_steps=1).isfinite().all()
    with pytest.raises(ValueError, match=r"DetachedScheduler cannot be differentiated .* use grad"):
        generate(pipe, PROMPTS, latents=noise, num_inference_steps=2, grad_steps=1)


def test_noise_that_wants_a_gradient_is_not_cut_off(pipe):
    noise = make_noise(pipe, [0, 1]).requires_grad_(True)
    with pytest.raises(ValueError, match=r"grad_steps is 2 of 3 steps and would cut it off"):
        run(pipe, noise, grad_steps=2)
    with torch.no_grad():
        assert not run(pipe, noise, grad_steps=2).requires_grad


def test_clamp_lets_pixels_return_and_never_leave():
    pixels = torch.tensor([-0.5, -0.5, 0.0, 0.4, 1.0, 1.5, 1.5], requires_grad=True)
    images = clamp01(pixels)
    assert torch.equal(images, torch.tensor([0.0, 0.0, 0.0, 0.4, 1.0, 1.0, 1.0]))
    # Descent moves a pixel by minus the gradient.
    images.backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0]))
    assert torch.equal(pixels.grad, torch.tensor([0.0, -1.0, 1.0, 1.0, -1.0, 1.0, 0.0]))


def test_descent_brings_overexposed_pixels_back():
    pixels = torch.tensor([3.0, -2.0], requires_grad=True)
    optimizer = torch.optim.SGD([pixels], lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        (clamp01(pixels) - 0.5).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(pixels.detach(), torch.tensor([0.5, 0.5]), atol=1e-2, rtol=0)
