"""`align train --method grpo`: the Gaussian steps, the loss by its definition, whole runs."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny import build
from train_helpers import run, small_config, small_session, weights

from align.alignprop.grpo import draw_moves, policy_loss
from align.diffusion.denoisers import make_denoiser
from align.diffusion.sample import make_noise, prepare_scheduler, sample
from align.diffusion.stochastic_steps import log_probability, stochastic_step
from align.models.lora import trained_parameters
from align.training.seeding import image_seed

GRPO = {"method": "grpo", "group_size": 4, "batch_size": 8, "num_inference_steps": 4}


def light(images, prompts):
    with torch.no_grad():
        return images.double().flatten(1).mean(1)


light.differentiable = False


def flow(steps, shift=1.0):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_log_probability_is_the_gaussians_mean_over_elements():
    after, mean = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    expected = torch.distributions.Normal(mean, 0.3).log_prob(after).flatten(1).mean(1)
    torch.testing.assert_close(log_probability(after, mean, 0.3), expected)


@pytest.mark.parametrize("step", ["sde", "cps"])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_without_noise_it_is_the_samplers_own_step(index, step):
    scheduler = flow(5, shift=3.0)
    latents, output = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    timestep = scheduler.timesteps[index]
    mean, deviation = stochastic_step(scheduler, index, timestep, latents, output, 0.0, step)
    own = scheduler.step(output, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(mean, own, atol=1e-6, rtol=0)
    assert deviation == 0


def test_the_noise_level_is_kept():
    """Of Gaussian images the right denoiser is known, so the variance of the latents is too: after
    every step that of (1 - sigma) x_0 + sigma e. The SDE's is exact in the limit of small steps,
    and its noise has no limit at sigma 1."""
    count, image_variance, level = 2000, 0.5, 0.7
    scheduler = flow(count)
    sigmas = scheduler.sigmas.double().tolist()
    begin = count // 10
    variance = (1 - sigmas[begin]) ** 2 * image_variance + sigmas[begin] ** 2
    for index, timestep in enumerate(scheduler.timesteps[begin:], begin):
        sigma = sigmas[index]
        total = (1 - sigma) ** 2 * image_variance + sigma**2
        slope = (sigma - (1 - sigma) * image_variance) / total  # of e - x_0, given the latents
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        mean, deviation = stochastic_step(scheduler, index, timestep, one, slope * one, level)
        variance = mean.item() ** 2 * variance + deviation**2
        after = sigmas[index + 1]
        assert variance == pytest.approx((1 - after) ** 2 * image_variance + after**2, rel=0.02)


def test_cps_keeps_the_noise_exactly():
    """With the very image and noise, at any step length."""
    scheduler, clean, noise = flow(4, shift=2.0), normal(1, 2, 4, 4), normal(1, 2, 4, 4, seed=1)
    for index, timestep in enumerate(scheduler.timesteps):
        sigma, after = scheduler.sigmas[index].double(), scheduler.sigmas[index + 1].double()
        latents = (1 - sigma) * clean + sigma * noise
        mean, deviation = stochastic_step(
            scheduler, index, timestep, latents, noise - clean, 0.8, "cps"
        )
        of_noise = ((mean - (1 - after) * clean) / noise).mean().item()
        assert of_noise**2 + deviation**2 == pytest.approx(after.item() ** 2, abs=1e-9)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("index", [0, 1, 3])
def test_with_noise_prediction_it_is_ddims(index, zero_snr):
    scheduler = DDIMScheduler(
        clip_sample=False, rescale_betas_zero_snr=zero_snr, timestep_spacing="trailing",
        prediction_type="v_prediction",
    )  # fmt: skip
    scheduler.set_timesteps(4)
    latents, output, noise = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), normal(2, 3, 4, 4)
    timestep = scheduler.timesteps[index]
    mean, deviation = stochastic_step(scheduler, index, timestep, latents, output, 0.6)
    own = scheduler.step(output, timestep, latents, eta=0.6, variance_noise=noise)[0]
    torch.testing.assert_close(mean + deviation * noise, own, atol=1e-6, rtol=1e-6)


def test_steps_outside_the_window_are_the_samplers(tmp_path):
    session = small_session(tmp_path, reward=light, grad_window="sparse:1", **GRPO)
    drawn, moves, draw = draw_moves(session, 3, range(8))
    index = int(draw.label.removeprefix("steps "))
    assert [move.index for move in moves] == [index]
    seeds = [image_seed("noise", 0, 3, i) for i in range(8)]
    denoise = session.sampler.denoiser(drawn.embeds)
    scheduler, settings = session.pipe.scheduler, {"num_inference_steps": 4}
    with torch.no_grad():
        start = make_noise(session.pipe, seeds)
        before = sample(denoise, scheduler, start, stop=index, **settings) if index else start
        after = sample(denoise, scheduler, moves[0].after, start=index + 1, **settings)
    torch.testing.assert_close(moves[0].before, before, atol=1e-9, rtol=0)
    torch.testing.assert_close(drawn.latents, after, atol=1e-9, rtol=0)
    whole = sample(denoise, scheduler, start, **settings)
    assert (whole - drawn.latents).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_the_gradient_is_advantage_times_that_of_the_log_probability(tmp_path, name):
    """Made anew image by image and step by step."""
    pipe = build(name).to(torch.float64)
    folder = tmp_path / name
    folder.mkdir()
    from train_helpers import randomize

    from align.alignprop.session import open_session

    config = small_config(folder, kl_weight=0.3, advantage="group", **GRPO)
    session = open_session(config, reward=light, pipe=pipe)
    randomize(pipe)
    part = policy_loss(session, 2, range(8))
    part.loss.backward()
    trained = trained_parameters(pipe)
    found = {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}
    for parameter in trained.values():
        parameter.grad = None

    drawn, moves, _ = draw_moves(session, 2, range(8))
    assert [move.index for move in moves] == [0, 1, 2]
    scores = light(drawn.images, []).view(2, 4)
    spread = scores.std(1, correction=0, keepdim=True)
    advantage = ((scores - scores.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()
    total = 0.0
    module = pipe.unet if name == "sd" else pipe.transformer
    for image in range(8):
        row = {key: value[image : image + 1] for key, value in drawn.embeds.items()}
        denoise = make_denoiser(pipe, None, prompt_embeds=row, guidance_scale=2.0)
        scheduler, schedule = prepare_scheduler(denoise, pipe.scheduler, 4, torch.device("cpu"))
        for move in moves:
            before = move.before[image : image + 1]
            after = move.after[image : image + 1]
            output = denoise(before, schedule[move.index])
            module.disable_adapters()
            with torch.no_grad():
                base = denoise(before, schedule[move.index])
            module.enable_adapters()
            mean, deviation = stochastic_step(
                scheduler, move.index, schedule[move.index], before, output, 0.7
            )
            log = torch.distributions.Normal(mean, deviation).log_prob(after).mean()
            total = total - advantage[image] * log / 24 + 0.3 * (output - base).square().mean() / 24
    torch.testing.assert_close(part.loss.detach(), total.detach(), rtol=1e-6, atol=1e-9)
    total.backward()
    assert found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, trained[name].grad, rtol=1e-4, atol=1e-9)


def test_the_split_a_stop_and_a_resume_change_nothing(tmp_path):
    settings = GRPO | {"steps": 3, "checkpoint_every": 1, "learning_rate": 0.01}
    settings |= {"grad_window": "sparse:2", "num_inference_steps": 3}
    whole = run(tmp_path / "whole", dtype=torch.float64, reward=light, **settings)[1]
    split = run(
        tmp_path / "split", dtype=torch.float64, reward=light, micro_batch_size=4, **settings
    )[1]
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-7, rtol=0)
    stop = lambda record: record["step"] == 1  # noqa: E731
    run(tmp_path / "stopped", dtype=torch.float64, reward=light, on_step=stop, **settings)
    resumed = settings | {"out": None, "resume": str(tmp_path / "stopped" / "run")}
    again = run(tmp_path / "stopped", dtype=torch.float64, reward=light, **resumed)[1]
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_inference_steps": 1}, "num_inference_steps is 1; grpo needs at least 2"),
        ({"grad_window": "refl"}, "grad_window is 'refl' and eta 0.0; grpo takes all, K"),
        ({"eta": 0.5}, "noise_level in place of eta"),
        ({"noise_level": 0.0}, "noise_level is 0.0"),
        ({"grad_window": "4"}, "it must keep from 1 to 3 steps"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_do_not_fit(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small_config(tmp_path, **GRPO | changes)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("sd", {"noise_level": 1.5}, "noise_level is 1.5; with DDIM and cps it must be at most 1"),
        ("sd", {"scheduler": "EulerDiscreteScheduler"}, "the model's sampler is EulerDiscrete"),
        ("sd3", {"noise_level": 1.2, "stochastic_step": "cps"}, "must be at most 1"),
    ],
)
def test_a_sampler_that_is_no_gaussian(tmp_path, name, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "x", reward=light, pipe=build(name), **GRPO | changes)
    assert not (tmp_path / "x" / "run").exists()
