"""A Stable Diffusion pipeline as the one checkpoint file that original (LDM) tools exchange."""

import re

from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def save_as_ldm(pipe, path) -> None:
    """Write the pipeline's UNet, autoencoder and text encoder under their original names."""
    tensors = {}
    layers = pipe.unet.config.layers_per_block
    for name, value in pipe.unet.state_dict().items():
        tensors[f"model.diffusion_model.{unet_name(name, layers, pipe.unet)}"] = value
    levels = len(pipe.vae.config.block_out_channels)
    for name, value in pipe.vae.state_dict().items():
        key = vae_name(name, levels)
        is_attention = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key)
        tensors[f"first_stage_model.{key}"] = value[..., None, None] if is_attention else value
    for name, value in pipe.text_encoder.state_dict().items():
        name = f"text_model.{name.removeprefix('text_model.')}"
        tensors[f"cond_stage_model.transformer.{name}"] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def unet_name(name: str, layers: int, unet) -> str:
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    kind, rest = name.split(".", 1)
    if kind == "mid_block":
        part, index, rest = rest.split(".", 2)
        place = f"middle_block.{1 if part == 'attentions' else 2 * int(index)}"
        return f"{place}.{resnet_name(rest) if part == 'resnets' else rest}"
    block, part, index, rest = rest.split(".", 3)
    block, index = int(block), int(index)
    if kind == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
        place = f"input_blocks.{1 + block * (layers + 1) + index}"
    else:
        if part == "upsamplers":
            place = f"output_blocks.{block * (layers + 1) + layers}"
            return f"{place}.{2 if hasattr(unet.up_blocks[block], 'attentions') else 1}.{rest}"
        place = f"output_blocks.{block * (layers + 1) + index}"
    return f"{place}.0.{resnet_name(rest)}" if part == "resnets" else f"{place}.1.{rest}"


def resnet_name(name: str) -> str:
    layer, end = name.rsplit(".", 1)
    return f"{RESNET[layer]}.{end}"


def vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("mid_block.resnets.0", "mid.block_1").replace(
        "mid_block.resnets.1", "mid.block_2"
    )
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name
    )
    return re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name
    )
