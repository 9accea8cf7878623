"""Pipelines as the single files that their makers publish, beside `ldm.py`'s Stable Diffusion."""

import re

import torch
from ldm import unet_name, vae_name
from safetensors.torch import save_file

from align.models.lora_names import original_layers

OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
NORMS = {
    "FluxTransformer2DModel": {
        r"transformer_blocks\.(\d+)\.attn\.norm_(q|k)": r"double_blocks.\1.img_attn.norm.\2_norm",
        r"transformer_blocks\.(\d+)\.attn\.norm_added_(q|k)": (
            r"double_blocks.\1.txt_attn.norm.\2_norm"
        ),
        r"single_transformer_blocks\.(\d+)\.attn\.norm_(q|k)": r"single_blocks.\1.norm.\2_norm",
    },
    "SD3Transformer2DModel": {
        r"transformer_blocks\.(\d+)\.(attn2?)\.norm_(q|k)": r"joint_blocks.\1.x_block.\2.ln_\3",
        r"transformer_blocks\.(\d+)\.attn\.norm_added_(q|k)": (
            r"joint_blocks.\1.context_block.attn.ln_\2"
        ),
        r"transformer_blocks\.(\d+)\.norm1_context\.linear": (
            r"joint_blocks.\1.context_block.adaLN_modulation.1"
        ),
    },
    "SanaTransformer2DModel": {
        r"caption_norm": "attention_y_norm",
        r"transformer_blocks\.(\d+)\.scale_shift_table": r"blocks.\1.scale_shift_table",
        r"scale_shift_table": "final_layer.scale_shift_table",
    },
    "QwenImageTransformer2DModel": {},
    "Krea2Transformer2DModel": {
        r"(.+)\.attn\.norm_(q|k)": r"\1.attn.qknorm.\2norm.scale",
        r"(.+)\.norm1": r"\1.prenorm.scale",
        r"(.+)\.norm2": r"\1.postnorm.scale",
        r"txt_in\.norm": "txtmlp.0.scale",
        r"final_layer\.norm": "last.norm.scale",
    },
    "ZImageTransformer2DModel": {
        r"(.+)\.attention\.norm_(q|k)": r"\1.attention.\2_norm",
        r"all_(x_embedder|final_layer)\.2-1(.*)": r"\1\2",
    },
}


NORMS["Flux2Transformer2DModel"] = NORMS["FluxTransformer2DModel"]


def save_sdxl(pipe, path) -> None:
    """UNet, autoencoder, CLIP and OpenCLIP in one file, as SDXL is published."""
    tensors, layers = {}, pipe.unet.config.layers_per_block
    for name, value in pipe.unet.state_dict().items():
        embedding = re.fullmatch(r"add_embedding\.linear_(\d)\.(\w+)", name)
        if embedding:
            key = f"label_emb.0.{2 * int(embedding[1]) - 2}.{embedding[2]}"
        else:
            key = unet_name(name, layers, pipe.unet)
        tensors[f"model.diffusion_model.{key}"] = value
    tensors |= vae_tensors(pipe.vae, "first_stage_model.")
    for name, value in pipe.text_encoder.state_dict().items():
        name = f"text_model.{name.removeprefix('text_model.')}"
        tensors[f"conditioner.embedders.0.transformer.{name}"] = value
    for name, value in open_clip_tensors(pipe.text_encoder_2).items():
        tensors[f"conditioner.embedders.1.model.{name}"] = value
    write(tensors, path)


def open_clip_tensors(encoder) -> dict:
    tensors, stacked = {}, {}
    for name, value in encoder.state_dict().items():
        name = name.removeprefix("text_model.")
        part = re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if part:
            key = f"{part[1]}.attn.in_proj_{part[3]}"
            stacked.setdefault(key, {})[part[2]] = value
        elif name == "text_projection.weight":
            tensors["text_projection"] = value.T
        else:
            tensors[name] = value
    tensors |= {key: torch.cat([part[c] for c in "qkv"]) for key, part in stacked.items()}
    for ours, theirs in OPEN_CLIP.items():
        tensors = {name.replace(ours, theirs): value for name, value in tensors.items()}
    return tensors


def vae_tensors(vae, prefix: str) -> dict:
    tensors, levels = {}, len(vae.config.block_out_channels)
    for name, value in vae.state_dict().items():
        key = vae_name(name, levels)
        square = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key)
        tensors[prefix + key] = value[..., None, None] if square else value
    return tensors


def save_transformer(pipe, path, *, prefix="model.diffusion_model.", vae=False) -> None:
    """The transformer under its original names, and the autoencoder where it comes along."""
    write(
        {prefix + name: value for name, value in transformer_tensors(pipe.transformer).items()}
        | (vae_tensors(pipe.vae, "first_stage_model.") if vae else {}),
        path,
    )


def transformer_tensors(transformer) -> dict:
    kind, state, tensors = type(transformer).__name__, transformer.state_dict(), {}
    for original, parts in original_layers(transformer).items():
        for end in ("weight", "bias"):
            if f"{parts[0]}.{end}" in state:
                values = [state.pop(f"{part}.{end}") for part in parts]
                tensors[f"{original}.{end}"] = torch.cat(values)
    if kind.startswith("Krea"):
        return tensors | {krea_name(name): krea_value(name, v) for name, v in state.items()}
    last = getattr(transformer.config, "num_layers", 0) - 1
    for name in list(state):
        layer, _, end = name.rpartition(".")
        if layer == "norm_out.linear" or (
            kind.startswith("SD3") and layer == f"transformer_blocks.{last}.norm1_context.linear"
        ):
            scale, shift = state[name].chunk(2)
            state[name] = torch.cat([shift, scale])
        for ours, theirs in NORMS[kind].items():
            whole = name if "scale_shift_table" in ours else layer
            if re.fullmatch(ours, whole):
                new = re.sub(ours, theirs, whole)
                if kind.startswith("Flux"):
                    new = new.replace(".q_norm", ".query_norm").replace(".k_norm", ".key_norm")
                    end = "scale"
                tensors[new if whole is name else f"{new}.{end}"] = state.pop(name)
                break
        else:
            if layer == "norm_out.linear":
                tensors[f"final_layer.adaLN_modulation.1.{end}"] = state.pop(name)
    if kind.startswith("SD3"):
        tensors["pos_embed"] = state.pop("pos_embed.pos_embed")
    if kind.startswith("Sana"):  # two tensors that the original has and diffusers leaves unread
        tensors |= {"pos_embed": torch.zeros(1), "y_embedder.y_embedding": torch.zeros(1)}
    if kind.startswith("ZImage"):  # the rest has one name
        tensors |= {name: state.pop(name) for name in list(state)}
    assert not state, f"no original name for {', '.join(state)}"
    return tensors


def krea_name(name: str) -> str:
    if name.endswith("scale_shift_table"):
        layer = name.removesuffix(".scale_shift_table")
        return {"final_layer": "last.modulation.lin"}.get(layer, f"{layer[12:]}.mod.lin")
    for ours, theirs in NORMS["Krea2Transformer2DModel"].items():
        name = re.sub(rf"^{ours}\.weight$", theirs, name)
    return name.replace("text_fusion", "txtfusion").replace("transformer_blocks", "blocks")


def krea_value(name: str, value):
    flat = name.startswith("transformer_blocks") and name.endswith("scale_shift_table")
    return value.flatten() if flat else value


def write(tensors: dict, path) -> None:
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)
