"""The denoising loop: the pipelines' own images, defaults, errors. Gradients: test_gradients."""

import logging

import diffusers
import pytest
import torch
from tiny import SIZE, build, tiny_pipeline, with_scheduler

from align.diffusion.denoisers import encode_prompts, make_denoiser
from align.diffusion.pixels import decode
from align.diffusion.sample import generate, make_noise, sample
from align.models.load import EMBEDDED, load_pipeline

PROMPTS = ["a red circle", "two green stars"]
SCHEDULERS = [
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
]


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def same_as_own(pipe, own=None, **settings):
    """Compare with the pipeline's `__call__`; `own` are arguments that it names differently."""
    actual = generate(pipe, PROMPTS, generator=seeded(7, 8), **settings)
    settings = {k: v for k, v in settings.items() if k != "negative_prompts"} | (own or {})
    expected = pipe(PROMPTS, generator=seeded(7, 8), output_type="pt", **settings).images
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert actual.std() > 0.01
    assert (actual[0] - actual[1]).abs().max() > 0.01
    return actual


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["sd", "sd-v"])
def test_same_images_as_the_pipeline(name, scheduler, guidance_scale):
    pipe = with_scheduler(tiny_pipeline(name), scheduler)
    latents = make_noise(pipe, [5, 6])
    same_as_own(pipe, latents=latents, num_inference_steps=4, guidance_scale=guidance_scale)


@pytest.mark.parametrize("scheduler", SCHEDULERS[:4])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.skipif(
    not (EMBEDDED / "scenes" / "model_index.json").is_file(), reason="embedded/scenes is absent"
)
@pytest.mark.parametrize("name", ["embedded/scenes", "embedded/scenes-turbo"])
def test_same_images_as_the_shipped_pipeline(name, scheduler, guidance_scale):
    pipe = with_scheduler(load_pipeline(name, device="cpu"), scheduler)
    latents = make_noise(pipe, [5, 6])
    same_as_own(pipe, latents=latents, num_inference_steps=4, guidance_scale=guidance_scale)


def test_generators_alone_give_the_same_images():
    same_as_own(tiny_pipeline("sd"), num_inference_steps=3)
    one = with_scheduler(tiny_pipeline("sd"), "EulerAncestralDiscreteScheduler")
    expected = one(PROMPTS, generator=seeded(3)[0], output_type="pt", num_inference_steps=3).images
    actual = generate(one, PROMPTS, generator=seeded(3)[0], num_inference_steps=3)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_full_noise_is_finite_where_the_first_step_has_no_signal():
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    settings |= {"prediction_type": "v_prediction"}
    pipe = with_scheduler(tiny_pipeline("sd"), "DDIMScheduler", **settings)
    for steps in range(2, 12):  # rounding decides
        images = generate(pipe, PROMPTS, seed=0, num_inference_steps=steps, eta=1.0)
        assert images.isfinite().all()


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta(eta):
    pipe = tiny_pipeline("sd")
    noisy = same_as_own(pipe, num_inference_steps=3, eta=eta)
    plain = generate(pipe, PROMPTS, generator=seeded(7, 8), num_inference_steps=3)
    assert (noisy - plain).abs().max() > 1e-3


def test_negative_prompts():
    pipe, steps = tiny_pipeline("sd"), {"num_inference_steps": 2}
    one = same_as_own(pipe, {"negative_prompt": ["blue"] * 2}, negative_prompts="blue", **steps)
    two = {"negative_prompt": ["blue", "grey"]}
    each = same_as_own(pipe, two, negative_prompts=["blue", "grey"], **steps)
    assert torch.equal(one[0], each[0])
    assert (one[1] - each[1]).abs().max() > 1e-4


@pytest.mark.parametrize(("height", "width"), [(24, 16), (8, 32)])
def test_other_sizes(height, width):
    images = same_as_own(tiny_pipeline("sd"), num_inference_steps=2, height=height, width=width)
    assert images.shape == (2, 3, height, width)


def test_defaults_are_the_pipelines_own():
    seen = []
    generate(tiny_pipeline("sd"), "a star", seed=0, on_step=lambda *step: seen.append(step))
    assert len(seen) == 50
    pipe = tiny_pipeline("sd")
    same_as_own(pipe)


def test_distilled_models_take_one_step_without_guidance():
    pipe, seen = tiny_pipeline("sd-turbo"), []
    images = generate(pipe, PROMPTS, seed=4, on_step=lambda *step: seen.append(step))
    assert len(seen) == 1
    own = {"num_inference_steps": 1, "guidance_scale": 0.0, "output_type": "pt"}
    expected = pipe(PROMPTS, generator=seeded(4, 5), **own).images
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_seed_makes_image_i_from_its_own_generator():
    pipe = tiny_pipeline("sd")
    both = generate(pipe, PROMPTS, seed=10, num_inference_steps=2, eta=1.0)
    second = generate(pipe, PROMPTS[1], seed=11, num_inference_steps=2, eta=1.0)
    torch.testing.assert_close(both[1:], second, atol=1e-5, rtol=0)
    latents = make_noise(pipe, [10, 11])
    steps = {"num_inference_steps": 2}
    from_latents = generate(pipe, PROMPTS, latents=latents, **steps)
    assert torch.equal(from_latents, generate(pipe, PROMPTS, seed=10, **steps))


def test_on_step_sees_every_step_and_nothing_stays_in_the_scheduler():
    pipe, seen = with_scheduler(tiny_pipeline("sd"), "EulerDiscreteScheduler"), []
    pipe.scheduler.set_timesteps(7)
    before = pipe.scheduler.timesteps.clone()
    images = generate(
        pipe, PROMPTS, seed=0, num_inference_steps=3, on_step=lambda *step: seen.append(step)
    )
    assert [index for index, _, _ in seen] == [0, 1, 2]
    assert torch.equal(pipe.scheduler.timesteps, before)
    assert pipe.scheduler.step_index is None
    assert torch.equal(decode(pipe, seen[-1][2]), images)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_parts_make_the_whole(scheduler):
    pipe = with_scheduler(tiny_pipeline("sd"), scheduler)
    denoise = make_denoiser(pipe, PROMPTS)
    run = {"num_inference_steps": 4}
    whole = sample(denoise, pipe.scheduler, make_noise(pipe, [0, 1]), **run)
    middle = sample(denoise, pipe.scheduler, make_noise(pipe, [0, 1]), stop=3, **run)
    assert torch.equal(sample(denoise, pipe.scheduler, middle, start=3, **run), whole)


def test_cached_embeddings_stand_in_for_prompts_and_encoders():
    pipe = build("sd")
    expected = generate(pipe, PROMPTS, seed=0, num_inference_steps=2)
    cache = encode_prompts(pipe, PROMPTS[::-1])
    pipe.text_encoder = pipe.tokenizer = None
    rows = {name: value[[1, 0]] for name, value in cache.items()}
    denoise = make_denoiser(pipe, None, prompt_embeds=rows)
    with torch.no_grad():
        latents = sample(denoise, pipe.scheduler, make_noise(pipe, [0, 1]), num_inference_steps=2)
    torch.testing.assert_close(decode(pipe, latents), expected, atol=1e-5, rtol=0)


def test_half_precision_images_are_float32():
    pipe = build("sd").to(dtype=torch.bfloat16)
    images = generate(pipe, PROMPTS, seed=0, num_inference_steps=2)
    assert images.dtype == torch.float32
    expected = generate(tiny_pipeline("sd"), PROMPTS, seed=0, num_inference_steps=2)
    assert (images - expected).abs().mean() < 0.02


def test_a_useless_negative_prompt_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        generate(
            tiny_pipeline("sd"),
            PROMPTS,
            negative_prompts="blue",
            guidance_scale=1.0,
            num_inference_steps=1,
        )
    assert "negative prompt has no effect: there is no guidance" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, r"num_inference_steps is 0; it must be at least 1"),
        ({"num_inference_steps": -3}, r"num_inference_steps is -3"),
        ({"height": 17}, r"height is 17; Stable Diffusion .* needs a positive multiple of 2"),
        ({"width": 0}, r"width is 0"),
        ({"height": -16}, r"height is -16"),
        ({"eta": 1.5}, r"eta is 1.5; it must be from 0 to 1"),
        ({"grad_steps": 9, "num_inference_steps": 3}, r"grad_steps is 9; .* which is 3"),
        ({"grad_steps": "some"}, r"grad_steps is 'some'; it must be 'all' or a count"),
        ({"negative_prompts": ["a", "b", "c"]}, r"3 negative prompts for 2 prompts"),
        ({"seed": 0, "generator": torch.Generator()}, r"seed and generator are both given"),
        ({"generator": seeded(1)}, r"1 generators for 2 prompts"),
        ({"latents": torch.zeros(2, 4, 9, 9)}, r"shape \(2, 4, 9, 9\); this run needs \(2, 4, 8"),
        ({"max_sequence_length": 99}, r"always reads 16 tokens"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        generate(tiny_pipeline("sd"), PROMPTS, **settings)


def test_no_prompts_and_unknown_pipelines():
    with pytest.raises(ValueError, match=r"no prompts were given"):
        generate(tiny_pipeline("sd"), [])
    parts = tiny_pipeline("sd").components
    other = diffusers.DDIMPipeline(parts["unet"], parts["scheduler"])
    with pytest.raises(ValueError, match=r"DDIMPipeline is not a known kind .* StableDiffusionPip"):
        generate(other, PROMPTS)


def test_noise_has_the_latents_shape_and_unit_variance():
    noise = make_noise(tiny_pipeline("sd"), range(200), SIZE, 2 * SIZE)
    assert noise.shape == (200, 4, SIZE // 2, SIZE)
    assert abs(noise.std() - 1) < 0.01
    assert torch.equal(noise[7:8], make_noise(tiny_pipeline("sd"), [7], SIZE, 2 * SIZE))
