"""Published architectures with random weights or none, for measurements without a download.

The numbers are those of the models' own config files; of FLUX.2 klein and the Qwen encoders they
are from model cards, and the parameters add up to what the names say. Tokenizers spell every word
in letters, with the real lengths, so memory and time are as with the real ones.
"""

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def clip_large(**changes) -> CLIPTextConfig:
    settings = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
    }
    return CLIPTextConfig(**settings | changes)


def clip_big_g() -> CLIPTextConfig:
    return clip_large(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    )


def t5_xxl() -> dict:
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocab += [(chr(code), -2.0) for code in range(33, 127)]
    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_ff=10240,
        d_kv=64,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
    return {"tokenizer": tokenizer, "text_encoder": T5EncoderModel(config)}


def vae(latent_channels: int = 4, width: int = 128, **changes) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=latent_channels,
        **changes,
    )


def scheduler(name: str, **settings):
    """A scheduler; its tables have to be real, also where the weights are not."""
    with torch.device("cpu"):
        return getattr(diffusers, name)(**settings)


def stable_diffusion_15(width: int = 320) -> diffusers.StableDiffusionPipeline:
    return diffusers.StableDiffusionPipeline(
        vae=vae(width=width * 2 // 5, sample_size=512),
        text_encoder=CLIPTextModel(clip_large()),
        tokenizer=clip_tokenizer(),
        unet=diffusers.UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            cross_attention_dim=768,
        ),
        scheduler=scheduler("DDIMScheduler", **BETAS, steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> diffusers.StableDiffusionXLPipeline:
    unet = diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(sample_size=1024, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(clip_large()),
        text_encoder_2=CLIPTextModelWithProjection(clip_big_g()),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler("EulerDiscreteScheduler", **BETAS, steps_offset=1),
        add_watermarker=False,
    )


def sd3_medium() -> diffusers.StableDiffusion3Pipeline:
    third = t5_xxl()
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(16, sample_size=1024, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_large()),
        text_encoder_2=CLIPTextModelWithProjection(clip_big_g()),
        text_encoder_3=third["text_encoder"],
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=third["tokenizer"],
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=192,
        ),
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
    )


def flux_dev() -> diffusers.FluxPipeline:
    second = t5_xxl()
    return diffusers.FluxPipeline(
        vae=vae(16, sample_size=1024, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(clip_large()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=second["text_encoder"],
        tokenizer_2=second["tokenizer"],
        transformer=diffusers.FluxTransformer2DModel(guidance_embeds=True),
        scheduler=scheduler(
            "FlowMatchEulerDiscreteScheduler", shift=3.0, use_dynamic_shifting=True
        ),
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    letters = {letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}
    return Qwen2Tokenizer(vocab=letters, merges=[])


def qwen3(width: int, inner: int, tied: bool = True) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
    )


def z_image() -> diffusers.ZImagePipeline:
    """Z-Image-Turbo: the base differs in its scheduler's shift alone."""
    return diffusers.ZImagePipeline(
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
        vae=vae(16, sample_size=1024, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=Qwen3Model(qwen3(2560, 9728)),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.ZImageTransformer2DModel(),
    )


def klein(big: bool, is_distilled: bool = True) -> diffusers.Flux2KleinPipeline:
    width, inner = (4096, 12288) if big else (2560, 9728)
    return diffusers.Flux2KleinPipeline(
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLFlux2(),
        text_encoder=Qwen3ForCausalLM(qwen3(width, inner, tied=not big)),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.Flux2Transformer2DModel(
            num_layers=8 if big else 5,
            num_single_layers=24 if big else 20,
            num_attention_heads=32 if big else 24,
            joint_attention_dim=3 * width,
            guidance_embeds=False,
        ),
        is_distilled=is_distilled,
    )


def qwen_image() -> diffusers.QwenImagePipeline:
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    }
    vision = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "out_hidden_size": 3584}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return diffusers.QwenImagePipeline(
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLQwenImage(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=qwen_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(),
    )


ARCHITECTURES = {
    "sd15": stable_diffusion_15,
    "sd15-half": lambda: stable_diffusion_15(width=160),  # for machines with little memory
    "sdxl": sdxl,
    "sd3-medium": sd3_medium,
    "flux-dev": flux_dev,
    "z-image-turbo": z_image,
    "klein-4b": lambda: klein(big=False),
    "klein-9b": lambda: klein(big=True),
    "qwen-image": qwen_image,
}


def without_weights(name: str):
    """The pipeline on the `meta` device."""
    with torch.device("meta"):
        return ARCHITECTURES[name]()


def with_random_weights(name: str, dtype: torch.dtype = torch.float32):
    """The pipeline with weights drawn from a seed, frozen, on the CPU, made in this precision."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        pipe = ARCHITECTURES[name]()
    finally:
        torch.set_default_dtype(before)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe
