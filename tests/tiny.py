"""Tiny random pipelines of every family, from diffusers' and transformers' own classes.

Nothing is downloaded: tokenizers are built in memory, weights are drawn from a seed. Each
builder returns a new pipeline in float32; `tiny_pipeline(name)` shares one per session, so
whoever changes a pipeline (LoRA, dtype) builds their own with `build(name)`.
"""

import functools

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 16  # of the text embeddings
SIZE = 16  # pixels a side, where a family has no smaller floor
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build(name: str):
    """A new tiny pipeline, the same weights every time. `name` is a key of `BUILDERS`."""
    torch.manual_seed(0)
    pipe = BUILDERS[name]()
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


@functools.cache
def tiny_pipeline(name: str):
    """The session's own pipeline of this name; leave it as it is."""
    return build(name)


def with_scheduler(pipe, name: str, **changes):
    """A pipeline of the same parts with a scheduler of this class."""
    scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
    checker = {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}
    other = type(pipe)(**pipe.components | {"scheduler": scheduler}, **checker)
    other.set_progress_bar_config(disable=True)
    return other


def clip_tokenizer(max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer that spells every word in letters."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_length)


def clip_config(tokenizer: CLIPTokenizer, **changes) -> CLIPTextConfig:
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**settings | changes)


def vae(latent_channels: int = 4, **changes) -> AutoencoderKL:
    """An autoencoder that halves each side."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=SIZE,
        **changes,
    )


def unet(**changes) -> UNet2DConditionModel:
    settings = {
        "sample_size": SIZE // 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**settings | changes)


def stable_diffusion(scheduler=None) -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer()
    scheduler = scheduler or DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_v() -> StableDiffusionPipeline:
    """SD 2.x at 768: v-prediction; here with zero terminal SNR, as the embedded model has."""
    return stable_diffusion(
        DDIMScheduler(
            **BETAS,
            steps_offset=1,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )
    )


def sd_turbo() -> StableDiffusionPipeline:
    pipe = stable_diffusion(
        EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="trailing")
    )
    pipe.register_to_config(_name_or_path="stabilityai/sd-turbo")
    return pipe


def lcm():
    parts = stable_diffusion().components | {"unet": unet(time_cond_proj_dim=8)}
    parts["scheduler"] = diffusers.LCMScheduler(**BETAS)
    del parts["image_encoder"]
    return diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def sdxl(name: str | None = None, second_width: int = WIDTH):
    tokenizer = clip_tokenizer()
    second = {"hidden_size": second_width, "projection_dim": second_width}
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, **second)),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=WIDTH + second_width,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + second_width,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1),
        add_watermarker=False,
    )
    if name:
        pipe.register_to_config(_name_or_path=name)
    return pipe


def spelling() -> list[str]:
    """The characters that T5 and Gemma tokenizers spell prompts in."""
    return ["\u2581", "\n", *(chr(code) for code in range(33, 127))]


def t5(width: int = WIDTH) -> dict:
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(character, -2.0) for character in spelling()]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=32)
    config = T5Config(
        vocab_size=len(vocab), d_model=width, d_ff=width, d_kv=8, num_layers=2, num_heads=2
    )
    return {"tokenizer": tokenizer, "text_encoder": T5EncoderModel(config)}


def pixart_transformer(sample_size: int):
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,  # a width of 24: a third each for height, width and aspect ratio
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=sample_size,
        caption_channels=WIDTH,
    )


def pixart_alpha(scheduler=None):
    return diffusers.PixArtAlphaPipeline(
        **t5(),
        vae=vae(),
        transformer=pixart_transformer(128),  # the one that is told the picture's size
        scheduler=scheduler or diffusers.DPMSolverMultistepScheduler(**BETAS),
    )


def pixart_dmd():
    pipe = pixart_alpha(diffusers.DDPMScheduler(**BETAS, clip_sample=False))
    pipe.register_to_config(_name_or_path="PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512")
    return pipe


def pixart_sigma():
    return diffusers.PixArtSigmaPipeline(
        **t5(),
        vae=vae(),
        transformer=pixart_transformer(SIZE // 2),
        scheduler=diffusers.DPMSolverMultistepScheduler(**BETAS),
    )


def sd3(**changes):
    tokenizer = clip_tokenizer()
    third = t5(2 * WIDTH)
    projected = clip_config(tokenizer, projection_dim=WIDTH)
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(projected),
        text_encoder_2=CLIPTextModelWithProjection(projected),
        text_encoder_3=third["text_encoder"],
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=third["tokenizer"],
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=SIZE // 2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=16,
            **changes,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def sd35():
    return sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def flux(guidance_embeds: bool = True):
    tokenizer, second = clip_tokenizer(), t5()
    return diffusers.FluxPipeline(
        vae=vae(shift_factor=0.11, scaling_factor=0.36, use_quant_conv=False),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=second["text_encoder"],
        tokenizer_2=second["tokenizer"],
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
    )


def gemma(layers: int = 1) -> dict:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *spelling()]
    tokenizer = GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    config = Gemma2Config(
        vocab_size=len(tokens),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return {"tokenizer": tokenizer, "text_encoder": Gemma2Model(config)}


def sana_vae():
    # Attention over ReLU features jumps where all of a query's are zero: wide heads, here and in
    # the transformer, keep that from happening.
    blocks = ("ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=16,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )


def sana(kind=diffusers.SanaPipeline, scheduler=None, **changes):
    return kind(
        **gemma(),
        vae=sana_vae(),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=8,
            sample_size=16,
            **changes,
        ),
        scheduler=scheduler
        or diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def sana_sprint():
    return sana(
        diffusers.SanaSprintPipeline,
        diffusers.SCMScheduler(),
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
        timestep_scale=1000.0,
    )


# One token each in Qwen's tokenizers; Qwen-Image's template is 34 of them before a prompt.
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
QWEN_WORDS = [
    *("system", "user", "assistant", "Describe", "the", "image", "by", "detailing", "color"),
    *("shape", "size", "texture", "quantity", "text", "spatial", "relationships", "of"),
    *("objects", "and", "background"),
]
CHAT = """{%- for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer that spells prompts in bytes, with a short chat template."""
    letters = sorted(ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*letters, *QWEN_SPECIAL])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=2048,
    )
    tokenizer.add_tokens(QWEN_SPECIAL[1:], special_tokens=True)
    tokenizer.add_tokens([*QWEN_WORDS[:4], *(f" {w}" for w in QWEN_WORDS[4:])])
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen_config(tokenizer, layers: int, width: int = WIDTH) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }


def z_image(name: str | None = None):
    tokenizer = qwen_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[640, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # zeros by default, which would hide where they stand
    pipe = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.11, scaling_factor=0.36, use_quant_conv=False),
        text_encoder=Qwen3Model(Qwen3Config(**qwen_config(tokenizer, layers=3))),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    if name:
        pipe.register_to_config(_name_or_path=name)
    return pipe


def flux2_parts(layers: int) -> dict:
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2)
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": autoencoder,
        "tokenizer": qwen_tokenizer(),
        "transformer": diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=layers == 30,
        ),
    }


def klein(is_distilled: bool = False):
    parts = flux2_parts(27)
    config = qwen_config(parts["tokenizer"], layers=27, width=8)
    encoder = Qwen3ForCausalLM(Qwen3Config(**config))
    return diffusers.Flux2KleinPipeline(**parts, text_encoder=encoder, is_distilled=is_distilled)


def flux2_dev():
    """With a plain tokenizer in the place of Pixtral's processor."""
    parts = flux2_parts(30)
    text = qwen_config(parts["tokenizer"], layers=30, width=8) | {"model_type": "mistral"}
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "image_size": 28}
    config = Mistral3Config(text_config=text, vision_config=vision)
    return diffusers.Flux2Pipeline(**parts, text_encoder=Mistral3ForConditionalGeneration(config))


def qwen_vae():
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[-0.7, 0.1, 0.5, -0.2],
        latents_std=[2.8, 1.4, 2.3, 1.6],
    )


def rope(sections: list[int]) -> dict:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}


def qwen_vision() -> dict:
    return {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }


def qwen_image():
    tokenizer = qwen_tokenizer()
    text = qwen_config(tokenizer, layers=2) | {"rope_parameters": rope([1, 1, 2])}
    del text["head_dim"]
    config = Qwen2_5_VLConfig(text_config=text, vision_config=qwen_vision())
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift_terminal=0.02
        ),
        vae=qwen_vae(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(2, 2, 4),
        ),
    )


def krea2(is_distilled: bool = False):
    tokenizer = qwen_tokenizer()
    text = qwen_config(tokenizer, layers=2) | {"rope_parameters": rope([2, 1, 1])}
    vision = qwen_vision() | {"deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=text, vision_config=vision)
    return diffusers.Krea2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=Qwen3VLModel(config),
        tokenizer=tokenizer,
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=16,
            timestep_embed_dim=8,
            text_hidden_dim=WIDTH,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        ),
        text_encoder_select_layers=(1, 2),
        is_distilled=is_distilled,
    )


def chroma():
    return diffusers.ChromaPipeline(
        **t5(),
        vae=vae(shift_factor=0.11, scaling_factor=0.36, use_quant_conv=False),
        transformer=diffusers.ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def lumina2():
    return diffusers.Lumina2Pipeline(
        **gemma(layers=2),
        vae=AutoencoderKL(  # the pipeline takes it for one that halves each side three times
            block_out_channels=(4, 4, 4, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
            shift_factor=0.11,
            scaling_factor=0.36,
            use_quant_conv=False,
        ),
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=4,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(300, 32, 32),
            cap_feat_dim=8,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def wan():
    config = UMT5Config(
        vocab_size=3 + len(spelling()), d_model=WIDTH, d_ff=WIDTH, d_kv=8, num_layers=2, num_heads=2
    )
    return diffusers.WanPipeline(
        tokenizer=t5()["tokenizer"],
        text_encoder=UMT5EncoderModel(config),
        vae=diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[-0.7, 0.1, 0.5, -0.2],
            latents_std=[2.8, 1.4, 2.3, 1.6],
            scale_factor_temporal=2,
            scale_factor_spatial=2,
        ),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=16,
            num_layers=1,
        ),
    )


BUILDERS = {
    "sd": stable_diffusion,
    "sd-v": stable_diffusion_v,
    "sd-turbo": sd_turbo,
    "lcm": lcm,
    "sdxl": sdxl,
    "sdxl-turbo": functools.partial(sdxl, "stabilityai/sdxl-turbo"),
    "pixart-alpha": pixart_alpha,
    "pixart-dmd": pixart_dmd,
    "pixart-sigma": pixart_sigma,
    "sd3": sd3,
    "sd3.5": sd35,
    "flux-dev": flux,
    "flux-schnell": functools.partial(flux, guidance_embeds=False),
    "sana": sana,
    "sana-sprint": sana_sprint,
    "z-image": z_image,
    "klein": klein,
    "klein-distilled": functools.partial(klein, is_distilled=True),
    "flux2-dev": flux2_dev,
    "qwen-image": qwen_image,
    "krea2": krea2,
    "krea2-turbo": functools.partial(krea2, is_distilled=True),
    "chroma": chroma,
    "lumina2": lumina2,
    "wan": wan,
    "z-image-turbo": functools.partial(z_image, "Tongyi-MAI/Z-Image-Turbo"),
}
