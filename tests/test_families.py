"""Every family: the pipelines' own images, gradients, LoRA in plain diffusers."""

import logging
import shutil

import pytest
import torch
from tiny import build, tiny_pipeline, with_scheduler
from transformers import Gemma2Model

from align.alignprop.frozen import recompute_blocks, spare_decoder
from align.diffusion import denoisers
from align.diffusion.denoisers import (
    default_guidance,
    default_steps,
    denoiser_module,
    encode_prompts,
    family_of,
    image_size,
    make_denoiser,
)
from align.diffusion.families.family import cat_rows
from align.diffusion.sample import decode, generate, make_noise, sample
from align.models.attention import set_attention
from align.models.hub import pipeline_class
from align.models.load import load_pipeline
from align.models.lora import add_lora, load_lora, save_lora

PROMPTS = ["a red circle", "two green stars over a quiet lake"]  # of very different lengths
FAMILIES = [
    "lcm",
    "sdxl",
    "pixart-alpha",
    "pixart-sigma",
    "sd3",
    "sd3.5",
    "flux-dev",
    "flux-schnell",
    "sana",
    "sana-sprint",
    "z-image",
    "klein",
    "flux2-dev",
    "qwen-image",
    "krea2",
    "chroma",
    "lumina2",
]
NO_BINNING = ("pixart", "sana")  # sizes are never binned here, as they are there by default
NEWER = (
    "z-image",
    "klein",
    "flux2-dev",
    "qwen-image",
    "krea2",
    "chroma",
    "lumina2",
)  # the families of 2025 on
# Tokens to read, where the pipeline can be told; room for a chat template and both prompts.
LONG_TEXT = (
    dict.fromkeys(("pixart", "sd3", "flux-", "sana"), 16)
    | dict.fromkeys(NEWER, 64)
    | {"flux2-dev": 512, "lumina2": 256}
)
NOT_GUIDED = ("lcm", "flux", "sana-sprint")  # their guidance scale is an input of the model


def size_of(name):
    """Small sides that the family's pipeline accepts, square and not."""
    return (
        {"height": 32, "width": 32}
        if name.startswith(("sana", "lumina"))
        else {"height": 16, "width": 16}
    )


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def own_images(pipe, name, **settings):
    if name.startswith(NO_BINNING):
        settings["use_resolution_binning"] = False
    if name == "qwen-image":  # guides only where it is given a negative prompt
        settings["true_cfg_scale"] = settings.pop("guidance_scale", 4.0)
        if settings["true_cfg_scale"] > 1:
            settings.setdefault("negative_prompt", [" "] * len(PROMPTS))
    prompts = list(PROMPTS)  # Z-Image writes its template into the list
    return pipe(prompt=prompts, output_type="pt", **settings).images


@pytest.mark.parametrize("stretch", [1, 2])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_same_images_as_the_pipeline(name, guidance_scale, stretch):
    pipe, size = tiny_pipeline(name), size_of(name)
    size["width"] *= stretch
    settings = {"num_inference_steps": 2, "guidance_scale": guidance_scale, **size}
    for beginning, length in LONG_TEXT.items():
        if name.startswith(beginning):
            settings["max_sequence_length"] = length
    expected = own_images(pipe, name, generator=seeded(7, 8), **settings)
    actual = generate(pipe, PROMPTS, generator=seeded(7, 8), **settings)
    assert actual.shape == (2, 3, size["height"], size["width"])
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert actual.std() > 0.01
    assert (actual[0] - actual[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["z-image", "krea2"])
def test_a_scale_of_zero_is_where_guidance_ends(name):
    settings = {"num_inference_steps": 2, "guidance_scale": 0.0, **size_of(name)}
    expected = own_images(tiny_pipeline(name), name, generator=seeded(7, 8), **settings)
    actual = generate(tiny_pipeline(name), PROMPTS, generator=seeded(7, 8), **settings)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NEWER)
def test_the_prompt_matters_and_rows_do_not_depend_on_each_other(name):
    pipe = tiny_pipeline(name)
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, **size_of(name)}
    noise = make_noise(pipe, [1, 1], **size_of(name))
    both = generate(pipe, PROMPTS, latents=noise, **settings)
    assert (both[0] - both[1]).abs().max() > 2e-4
    embeds = [encode_prompts(pipe, prompt, guidance_scale=2.0) for prompt in PROMPTS]
    denoise = make_denoiser(
        pipe, None, prompt_embeds=cat_rows(embeds), guidance_scale=2.0, **size_of(name)
    )
    joined = decode(pipe, sample(denoise, pipe.scheduler, noise, num_inference_steps=2))
    torch.testing.assert_close(joined, both, atol=1e-5, rtol=0)
    alone = generate(pipe, PROMPTS[0], latents=noise[:1], **settings)
    torch.testing.assert_close(alone, both[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NEWER)
def test_own_latents(name):
    pipe, settings = tiny_pipeline(name), {"num_inference_steps": 2, **size_of(name)}
    noise = make_noise(pipe, [1, 2], **size_of(name))
    packed = noise
    if family_of(pipe).unpack_latents is not None:
        packed = pipe._pack_latents(noise, *noise.shape)
    expected = own_images(pipe, name, latents=packed, **settings)
    for latents in (noise, packed):
        actual = generate(pipe, PROMPTS, latents=latents, **settings)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "sdxl",
        "pixart-alpha",
        "pixart-sigma",
        "sd3",
        "sana",
        "z-image",
        "qwen-image",
        "krea2",
        "chroma",
        "lumina2",
    ],
)
def test_negative_prompts(name):
    pipe, size = tiny_pipeline(name), size_of(name)
    settings = {"num_inference_steps": 2, "guidance_scale": 4.0, **size}
    negative = ["blue", "grey"]
    own = {**settings, "negative_prompt": list(negative)}  # Z-Image writes into it
    expected = own_images(pipe, name, generator=seeded(7, 8), **own)
    actual = generate(pipe, PROMPTS, generator=seeded(7, 8), negative_prompts=negative, **settings)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["lcm", "flux-dev", "sana-sprint", "klein"])
def test_families_without_negative_prompts_say_so(name, caplog):
    with caplog.at_level(logging.WARNING):
        generate(
            tiny_pipeline(name),
            PROMPTS,
            negative_prompts="blue",
            num_inference_steps=1,
            **size_of(name),
        )
    assert "The negative prompt has no effect" in caplog.text


@pytest.mark.parametrize(
    ("name", "steps"), [("z-image-turbo", 8), ("klein-distilled", 4), ("krea2-turbo", 8)]
)
def test_distilled_models_take_few_steps_without_guidance(name, steps):
    pipe = tiny_pipeline(name)
    settings = {"num_inference_steps": steps, "guidance_scale": 0.0, **size_of(name)}
    expected = own_images(pipe, name, generator=seeded(7, 8), **settings)
    actual = generate(pipe, PROMPTS, seed=7, **size_of(name))
    assert (default_steps(pipe), default_guidance(pipe)) == (steps, 0.0)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "effect"), [("klein-distilled", "leaves it out"), ("z-image-turbo", "turn harsh")]
)
def test_guidance_of_a_distilled_model_is_spoken_of(name, effect, caplog):
    denoisers._warn.cache_clear()
    settings = {"num_inference_steps": 1, "guidance_scale": 4.0, **size_of(name)}
    with caplog.at_level(logging.WARNING, logger="align.diffusion.denoisers"):
        actual = generate(tiny_pipeline(name), PROMPTS, generator=seeded(7, 8), **settings)
    steps = default_steps(tiny_pipeline(name))
    assert f"scale is 4, but the model was distilled to {steps} steps" in caplog.text
    assert effect in caplog.text
    expected = own_images(tiny_pipeline(name), name, generator=seeded(7, 8), **settings)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["sdxl-turbo", "pixart-dmd"])
def test_distilled_models_take_one_step_without_guidance(name):
    pipe, size, seen = tiny_pipeline(name), size_of(name), []
    settings = {"num_inference_steps": 1, "guidance_scale": 0.0, **size}
    if name == "pixart-dmd":
        settings["timesteps"] = [400]
    expected = own_images(pipe, name, generator=seeded(7, 8), **settings)
    actual = generate(pipe, PROMPTS, seed=7, on_step=lambda *step: seen.append(step), **size)
    assert len(seen) == 1
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "scheduler", "changes"),
    [
        ("sd3", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("sd3", "FlowMatchHeunDiscreteScheduler", {}),
        ("flux-dev", "FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("sana", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("z-image", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("chroma", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("lumina2", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("qwen-image", "FlowMatchEulerDiscreteScheduler", {"shift_terminal": None}),
        ("sdxl", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("pixart-sigma", "EulerAncestralDiscreteScheduler", {}),
    ],
)
def test_other_schedulers(name, scheduler, changes):
    pipe = with_scheduler(tiny_pipeline(name), scheduler, **changes)
    settings = {"num_inference_steps": 3, **size_of(name)}
    expected = own_images(pipe, name, generator=seeded(7, 8), **settings)
    actual = generate(pipe, PROMPTS, generator=seeded(7, 8), **settings)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_one_step_of_a_schedule_that_is_stretched_is_refused():
    with pytest.raises(ValueError, match=r"with shift_terminal 0.02 needs at least 2"):
        generate(tiny_pipeline("qwen-image"), PROMPTS, num_inference_steps=1, height=16, width=16)


def test_overexposed_pixels_of_a_video_autoencoder_can_return():
    """Its own `decode` clamps hard: there they would get no gradient."""
    pipe = build("qwen-image")
    pipe.vae.decoder.conv_out.bias.data += 3
    latents = make_noise(pipe, [0], 16, 16).requires_grad_()
    images = decode(pipe, latents)
    assert images.min() == 1
    (gradient,) = torch.autograd.grad(images.sum(), latents)  # a loss: pixels are to fall
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sana_sprint_takes_few_steps(steps):
    pipe = tiny_pipeline("sana-sprint")
    settings = {"num_inference_steps": steps, **size_of("sana")}
    own = {} if steps == 2 else {"intermediate_timesteps": None}
    expected = own_images(pipe, "sana", generator=seeded(7, 8), **settings, **own)
    actual = generate(pipe, PROMPTS, generator=seeded(7, 8), **settings)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_flux_takes_packed_latents_as_its_pipeline_does():
    pipe, settings = tiny_pipeline("flux-dev"), {"num_inference_steps": 2, **size_of("flux")}
    noise = make_noise(pipe, [1, 2], 16, 16)
    packed = pipe._pack_latents(noise, 2, 4, 8, 8)
    expected = own_images(pipe, "flux", latents=packed, **settings)
    for latents in (noise, packed):
        actual = generate(pipe, PROMPTS, latents=latents, **settings)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("float64_stays")
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_to_lora_and_noise(name):
    pipe = build(name)
    for part in pipe.components.values():
        # Gemma's attention mask overflows in float64; SANA casts the embeddings anyway.
        if isinstance(part, torch.nn.Module) and not isinstance(part, Gemma2Model):
            part.double()
    kinds = torch.nn.Conv2d | torch.nn.Conv3d
    last = [m for m in pipe.vae.decoder.modules() if isinstance(m, kinds)][-1]
    last.weight.data *= 0.1  # little contrast, so that the clamp does not act
    torch.manual_seed(1)
    parameters = add_lora(pipe, rank=2)
    for parameter in parameters:
        parameter.data = 0.2 * torch.randn_like(parameter)
    noise = make_noise(pipe, [0, 1], **size_of(name)).requires_grad_(True)
    assert noise.dtype == torch.float64
    leaves = [noise, *parameters]
    directions = [torch.randn_like(leaf) for leaf in leaves]

    def score(**settings):
        images = generate(
            pipe,
            PROMPTS,
            latents=noise,
            generator=seeded(3, 4),
            num_inference_steps=2,
            guidance_scale=2.0,
            **size_of(name),
            **settings,
        )
        assert 0 < images.min() < images.max() < 1
        weights = torch.linspace(-1, 1, images.numel(), dtype=images.dtype)
        return (weights * images.sin().flatten()).sum()

    grads = torch.autograd.grad(score(grad_steps="all", checkpointing=True), leaves)
    recompute_blocks(denoiser_module(pipe), True)
    spare_decoder(pipe.vae, True)
    again = torch.autograd.grad(score(grad_steps="all"), leaves)
    for plain, recomputed in zip(grads, again, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-9, rtol=1e-7)
    step = 1e-6
    for part in (slice(0, 1), slice(1, None)):
        values = []
        for sign in (1, -2, 1):
            for leaf, direction in zip(leaves[part], directions[part], strict=True):
                leaf.data += sign * step * direction
            values.append(score().item())
        measured = (values[0] - values[1]) / (2 * step)
        expected = sum(
            (g * d).sum().item() for g, d in zip(grads[part], directions[part], strict=True)
        )
        assert abs(measured) > 1e-6
        assert expected == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_loads_in_plain_diffusers(name, tmp_path):
    pipe, size = build(name), size_of(name)
    torch.manual_seed(1)
    for parameter in add_lora(pipe, rank=2, alpha=4):
        parameter.data = 0.5 * torch.randn_like(parameter)
    run = {"num_inference_steps": 2, **size}
    expected = generate(pipe, PROMPTS, seed=3, **run)
    assert (expected - generate(tiny_pipeline(name), PROMPTS, seed=3, **run)).abs().max() > 1e-3
    save_lora(pipe, tmp_path)
    plain = build(name)
    if name.startswith("pixart"):  # diffusers' PixArt pipelines load no LoRA; PEFT does
        load_with_peft(plain.transformer, tmp_path)
    else:
        plain.load_lora_weights(str(tmp_path))
    images = own_images(plain, name, generator=seeded(3, 4), **run)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    again = build(name)
    load_lora(again, str(tmp_path))
    torch.testing.assert_close(generate(again, PROMPTS, seed=3, **run), expected, atol=1e-5, rtol=0)


def load_with_peft(transformer, folder):
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(folder / "pytorch_lora_weights.safetensors")
    tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    layers = sorted({key.split(".lora_")[0] for key in tensors})
    config = LoraConfig(r=2, lora_alpha=2, target_modules=layers)
    inject_adapter_in_model(config, transformer)
    assert not set_peft_model_state_dict(transformer, tensors).unexpected_keys


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux-dev", "sana", "pixart-sigma", *NEWER])
def test_folders_load_again(name, tmp_path):
    build(name).save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, device="cpu")
    run = {"seed": 1, "num_inference_steps": 2, **size_of(name)}
    expected = generate(tiny_pipeline(name), PROMPTS, **run)
    torch.testing.assert_close(generate(pipe, PROMPTS, **run), expected, atol=1e-5, rtol=0)


def test_a_lora_of_another_family_is_refused(tmp_path):
    pipe = build("sd3")
    add_lora(pipe, rank=2)
    save_lora(pipe, tmp_path)
    with pytest.raises(
        ValueError, match=r"of another model: it changes transformer\..* which this"
    ):
        load_lora(build("sdxl"), str(tmp_path))
    with pytest.raises(ValueError, match=r"keys that fit no layer of a FluxPipeline"):
        load_lora(build("flux-dev"), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "own", "unit"),
    [("sdxl", 16, 2), ("pixart-alpha", 256, 4), ("flux-dev", 256, 4), ("sana", 1024, 2)],
)
def test_sizes(name, own, unit):
    pipe = tiny_pipeline(name)
    assert image_size(pipe, None, None) == (own, own)
    with pytest.raises(ValueError, match=rf"needs a positive multiple of {unit}"):
        image_size(pipe, 32, 33)


def test_half_precision_vae_that_overflows_is_upcast_for_decoding():
    pipe = build("sdxl")
    assert pipe.vae.config.force_upcast
    expected = generate(pipe, PROMPTS, seed=1, num_inference_steps=1)
    pipe.vae.half()
    torch.testing.assert_close(
        generate(pipe, PROMPTS, seed=1, num_inference_steps=1), expected, atol=1e-2, rtol=0
    )
    assert pipe.vae.dtype == torch.float16
    assert denoiser_module(pipe) is pipe.unet


@pytest.mark.parametrize("name", ["z-image", "qwen-image", "krea2", "chroma", "lumina2"])
def test_masked_attention_stays_with_sdpa(name):
    family, cpu = family_of(tiny_pipeline(name)), torch.device("cpu")
    assert family.masked_attention
    denoiser = denoiser_module(tiny_pipeline(name))
    with pytest.raises(ValueError, match=r"would misread the masks .*; use auto, sdpa or math"):
        set_attention(denoiser, "xformers", cpu, torch.float32, masked=family.masked_attention)


@pytest.mark.parametrize(
    ("kind", "nearest"),
    [
        ("QwenImageEditPipeline", "QwenImagePipeline"),
        ("QwenImageEditPlusPipeline", "QwenImagePipeline"),
        ("StableDiffusionXLInpaintPipeline", "StableDiffusionXLPipeline"),
        ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3Pipeline"),
        ("FluxKontextPipeline", "FluxPipeline"),
        ("ZImageInpaintPipeline", "ZImagePipeline"),
        ("WanImageToVideoPipeline", "WanPipeline"),
    ],
)
def test_a_pipeline_that_draws_from_pictures_is_told_the_nearest_that_does_not(kind, nearest):
    sentence = rf"m is a {kind}; it draws from a picture, not .*, the nearest {nearest}$"
    with pytest.raises(ValueError, match=sentence):
        pipeline_class("m", {"_class_name": kind})
    other = type(kind, (), {})()
    with pytest.raises(ValueError, match=rf"^{kind} is not .* it draws .*, the nearest {nearest}$"):
        family_of(other)


@pytest.mark.parametrize("name", [*NEWER, "wan"])
def test_a_folder_without_its_text_encoder_says_so(name, tmp_path):
    build(name).save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "text_encoder")
    with pytest.raises(FileNotFoundError, match=r"is not a complete model: .*no text_encoder/"):
        load_pipeline(tmp_path, device="cpu")


def test_rows_of_different_lengths_are_padded():
    short, long = (
        {"prompt_embeds": torch.ones(1, n, 2, 3), "prompt_embeds_mask": torch.ones(1, n).bool()}
        for n in (2, 5)
    )
    joined = cat_rows([short, long])
    assert joined["prompt_embeds"].shape == (2, 5, 2, 3)
    assert joined["prompt_embeds"][0, 2:].eq(0).all()
    assert joined["prompt_embeds_mask"].tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert torch.equal(cat_rows([long, long])["prompt_embeds"], torch.ones(2, 5, 2, 3))
    for row in (short, long):
        del row["prompt_embeds_mask"]
    with pytest.raises(ValueError, match=r"differ in length, up to 5 tokens, and have no mask"):
        cat_rows([short, long])


def test_a_lora_leaves_layers_alone_that_no_picture_depends_on():
    pipe = build("qwen-image")
    parameters = add_lora(pipe, rank=2)
    images = generate(pipe, PROMPTS, num_inference_steps=2, grad_steps=1, **size_of("qwen-image"))
    assert all(g is not None for g in torch.autograd.grad(images.mean(), parameters))
    with pytest.raises(ValueError, match=r"no picture depends on the LoRA's targets, to_add_out"):
        add_lora(build("qwen-image"), targets=["to_add_out"])
