"""Hopeless noises are dropped by the x_0 that is predicted after a few steps."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from tiny import build, tiny_pipeline

import align
from align.diffusion.sample import candidate_seeds, generate, make_noise
from align.noise_opt.paint import make_painter, preview_steps

PROMPT = "two dogs"
STEPS, AT = 10, 3  # denoising steps, and those of a preview


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def search(budget: str, pipe=None, **settings):
    config = align.OptimizeConfig(
        method="carinox", budget=budget, num_inference_steps=STEPS, backward_cost=2.0, **settings
    )
    return list(align.optimize(pipe or tiny_pipeline("sd"), PROMPT, brightness, config))


def test_a_preview_is_the_pipelines_own_prediction_of_x0():
    pipe = build("sd").to(dtype=torch.float64)
    noise, found = make_noise(pipe, [0, 1]).double(), {}
    step = pipe.scheduler.step

    def spy(*arguments, **settings):
        settings["return_dict"] = True
        result = step(*arguments, **settings)
        found[len(found)] = result.pred_original_sample
        return (result.prev_sample,)

    pipe.scheduler.step = spy
    pipe(
        [PROMPT] * 2, latents=noise, num_inference_steps=STEPS, guidance_scale=3.0,
        output_type="latent",
    )  # fmt: skip
    del pipe.scheduler.step
    clean = found[AT - 1] / pipe.vae.config.scaling_factor
    expected = (pipe.vae.decode(clean).sample / 2 + 0.5).clamp(0, 1)
    paint = make_painter(pipe, PROMPT, num_inference_steps=STEPS, guidance_scale=3.0)
    with torch.no_grad():
        assert torch.allclose(paint(noise, AT), expected, atol=1e-6)


def test_the_best_of_the_previews_are_drawn_in_full():
    pipe = tiny_pipeline("sd")
    steps = search("100nfe", pipe)
    assert steps[0].phase == "explore"
    first = generate(pipe, [PROMPT], seed=0, num_inference_steps=STEPS)
    assert torch.allclose(steps[0].images, first, atol=1e-5)
    looked = [step for step in steps if step.phase == "preview"]
    noises = torch.cat([step.noises for step in looked])
    totals = torch.cat([step.totals for step in looked])
    seeds = candidate_seeds(0, 1, len(noises))
    assert torch.equal(noises, make_noise(pipe, seeds))
    drawn = torch.cat([step.noises for step in steps[1:] if step.phase == "explore"])
    order = totals.argsort(descending=True)[: len(drawn)]
    assert torch.equal(drawn, noises[order])
    assert not any(step.improved for step in looked)
    best = max((s for s in steps if s.phase == "explore"), key=lambda s: float(s.totals.max()))
    assert steps[-1].best_total == pytest.approx(float(best.totals.max()))


@pytest.mark.parametrize("budget", ["55nfe", "100nfe", "300nfe", "12images"])
def test_previews_are_paid_for(budget):
    steps = search(budget)
    whole = steps[-1].generator_forwards
    looked = sum(len(step.totals) for step in steps if step.phase == "preview")
    assert looked >= 4
    spent = whole + looked * AT / STEPS
    allowed = 12 if budget == "12images" else int(budget[:-3]) / STEPS
    assert allowed - 1 < spent <= allowed + 1e-6


@pytest.mark.parametrize(
    ("pipe", "steps", "expected"),
    [("sd", 10, 3), ("sd", 25, 8), ("sd", 4, 0), ("sd-turbo", 1, 0), ("sd3", 10, 3)],
)
def test_samplers_of_few_steps_have_none(pipe, steps, expected):
    assert preview_steps(tiny_pipeline(pipe), steps) == expected


def test_a_sampler_with_a_memory_explores_in_full():
    pipe = build("sd")
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    phases = {step.phase for step in search("60nfe", pipe, explore_share=1.0)}
    assert phases == {"explore"}
