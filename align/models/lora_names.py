"""LoRA layers of transformers under their original names, as kohya's scripts and ComfyUI have them.

A kohya key is `lora_unet_` and the layer's name in the model's original code, dots as underscores.
UNets need no table: there the same tools also take diffusers' names. Originals stack some layers
(queries, keys and values) into one; a stacked LoRA has the parts' `down` factors one below the
other and a block-diagonal `up`, which says exactly the same.
"""

import re
from typing import Any

import torch
from torch import Tensor

from align.models.lora_files import Factors

# Original layer: diffusers' layers, stacked along the output. A number stands for every block.
# Layers whose rows diffusers reorders (the last normalization's scale and shift) are not here.
FLUX = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "double_blocks.0.img_mod.lin": "transformer_blocks.0.norm1.linear",
    "double_blocks.0.txt_mod.lin": "transformer_blocks.0.norm1_context.linear",
    "double_blocks.0.img_attn.qkv": "transformer_blocks.0.attn.to_q to_k to_v",
    "double_blocks.0.txt_attn.qkv": "transformer_blocks.0.attn.add_q_proj add_k_proj add_v_proj",
    "double_blocks.0.img_attn.proj": "transformer_blocks.0.attn.to_out.0",
    "double_blocks.0.txt_attn.proj": "transformer_blocks.0.attn.to_add_out",
    "double_blocks.0.img_mlp.0": "transformer_blocks.0.ff.net.0.proj",
    "double_blocks.0.img_mlp.2": "transformer_blocks.0.ff.net.2",
    "double_blocks.0.txt_mlp.0": "transformer_blocks.0.ff_context.net.0.proj",
    "double_blocks.0.txt_mlp.2": "transformer_blocks.0.ff_context.net.2",
    "single_blocks.0.modulation.lin": "single_transformer_blocks.0.norm.linear",
    "single_blocks.0.linear1": "single_transformer_blocks.0.attn.to_q to_k to_v .proj_mlp",
    "single_blocks.0.linear2": "single_transformer_blocks.0.proj_out",
    "final_layer.linear": "proj_out",
}
SD3 = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "joint_blocks.0.x_block.adaLN_modulation.1": "transformer_blocks.0.norm1.linear",
    "joint_blocks.0.x_block.attn.qkv": "transformer_blocks.0.attn.to_q to_k to_v",
    "joint_blocks.0.x_block.attn.proj": "transformer_blocks.0.attn.to_out.0",
    "joint_blocks.0.x_block.attn2.qkv": "transformer_blocks.0.attn2.to_q to_k to_v",
    "joint_blocks.0.x_block.attn2.proj": "transformer_blocks.0.attn2.to_out.0",
    "joint_blocks.0.x_block.mlp.fc1": "transformer_blocks.0.ff.net.0.proj",
    "joint_blocks.0.x_block.mlp.fc2": "transformer_blocks.0.ff.net.2",
    "joint_blocks.0.context_block.attn.qkv": (
        "transformer_blocks.0.attn.add_q_proj add_k_proj add_v_proj"
    ),
    "joint_blocks.0.context_block.attn.proj": "transformer_blocks.0.attn.to_add_out",
    "joint_blocks.0.context_block.mlp.fc1": "transformer_blocks.0.ff_context.net.0.proj",
    "joint_blocks.0.context_block.mlp.fc2": "transformer_blocks.0.ff_context.net.2",
    "final_layer.linear": "proj_out",
}
_CROSS = {
    "blocks.0.attn.qkv": "transformer_blocks.0.attn1.to_q to_k to_v",
    "blocks.0.attn.proj": "transformer_blocks.0.attn1.to_out.0",
    "blocks.0.cross_attn.q_linear": "transformer_blocks.0.attn2.to_q",
    "blocks.0.cross_attn.kv_linear": "transformer_blocks.0.attn2.to_k to_v",
    "blocks.0.cross_attn.proj": "transformer_blocks.0.attn2.to_out.0",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
}
PIXART = _CROSS | {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "blocks.0.mlp.fc1": "transformer_blocks.0.ff.net.0.proj",
    "blocks.0.mlp.fc2": "transformer_blocks.0.ff.net.2",
}
SANA = _CROSS | {
    "x_embedder.proj": "patch_embed.proj",
    "t_embedder.mlp.0": "time_embed.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_embed.emb.timestep_embedder.linear_2",
    "t_block.1": "time_embed.linear",
    "blocks.0.mlp.inverted_conv.conv": "transformer_blocks.0.ff.conv_inverted",
    "blocks.0.mlp.depth_conv.conv": "transformer_blocks.0.ff.conv_depth",
    "blocks.0.mlp.point_conv.conv": "transformer_blocks.0.ff.conv_point",
}
_ZIMAGE_BLOCK = {
    "attention.qkv": "attention.to_q to_k to_v",
    "attention.out": "attention.to_out.0",
} | {
    layer: layer
    for layer in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")
}
ZIMAGE = {
    f"{blocks}.0.{original}": f"{blocks}.0.{written}"
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for original, written in _ZIMAGE_BLOCK.items()
} | {layer: layer for layer in ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")}
FLUX2 = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "double_blocks.0.img_mlp.0": "transformer_blocks.0.ff.linear_in",
    "double_blocks.0.img_mlp.2": "transformer_blocks.0.ff.linear_out",
    "double_blocks.0.txt_mlp.0": "transformer_blocks.0.ff_context.linear_in",
    "double_blocks.0.txt_mlp.2": "transformer_blocks.0.ff_context.linear_out",
    "single_blocks.0.linear1": "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    "single_blocks.0.linear2": "single_transformer_blocks.0.attn.to_out",
    "final_layer.linear": "proj_out",
} | {original: written for original, written in FLUX.items() if "_attn." in original}
_KREA2_BLOCK = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
KREA2 = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    "last.linear": "final_layer.linear",
} | {
    f"{above}.0.{original}": f"{written_above}.0.{written}"
    for above, written_above in (
        ("blocks", "transformer_blocks"),
        ("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks"),
        ("txtfusion.refiner_blocks", "text_fusion.refiner_blocks"),
    )
    for original, written in _KREA2_BLOCK.items()
}
_LUMINA2_BLOCK = {
    "attention.qkv": "attn.to_q to_k to_v",
    "attention.out": "attn.to_out.0",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
    "adaLN_modulation.1": "norm1.linear",
}
LUMINA2 = {
    f"{blocks}.0.{original}": f"{blocks}.0.{written}"
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for original, written in _LUMINA2_BLOCK.items()
}
TABLES = {
    "FluxTransformer2DModel": FLUX,
    "SD3Transformer2DModel": SD3,
    "PixArtTransformer2DModel": PIXART,
    "SanaTransformer2DModel": SANA,
    "ZImageTransformer2DModel": ZIMAGE,
    "Flux2Transformer2DModel": FLUX2,
    "QwenImageTransformer2DModel": {},  # its original names are diffusers' own
    "Krea2Transformer2DModel": KREA2,
    "ChromaTransformer2DModel": FLUX,
    "Lumina2Transformer2DModel": LUMINA2,
}
COMPONENT = "transformer"


def original_layers(transformer: Any) -> dict[str, tuple[str, ...]]:
    """Original layer names of a diffusers transformer, each with the layers stacked in it.

    Raises ValueError for a transformer without a table.
    """
    kind = type(transformer).__name__
    if kind not in TABLES:
        raise ValueError(f"kohya's layout has no names for a {kind}; known: {', '.join(TABLES)}")
    there, table = {name for name, _ in transformer.named_modules()}, TABLES[kind]
    if not table:
        plain = (n for n in there if hasattr(transformer.get_submodule(n), "weight"))
        return {name: (name,) for name in plain if not re.search(r"\.(lora_|base_layer)", name)}
    found = {}
    for original, written in table.items():
        blocks, counted, _ = written.partition(".0.")
        numbers = ["0"]
        if counted:
            below = {name.rpartition(".")[::2] for name in there}
            numbers = sorted((n for b, n in below if b == blocks and n.isdigit()), key=int)
        for number in numbers:
            parts = _parts(written.replace(".0.", f".{number}.", 1))
            if all(part in there for part in parts):
                found[original.replace(".0.", f".{number}.", 1) if counted else original] = parts
    return found


def _parts(written: str) -> tuple[str, ...]:
    """("a.b.to_q", "a.b.to_k", "a.proj") of "a.b.to_q to_k .proj"."""
    first, *others = written.split(" ")
    parent, parts = first.rpartition(".")[0], [first]
    for other in others:
        above = parent.rpartition(".")[0] if other.startswith(".") else parent
        parts.append(f"{above}.{other.lstrip('.')}")
    return tuple(parts)


def to_original(factors: Factors, transformer: Any) -> Factors:
    """A LoRA with the transformer's layers under original names, stacked as there.

    Raises ValueError naming a layer that has no original name.
    """
    prefix = f"{COMPONENT}."
    left = {k.removeprefix(prefix): v for k, v in factors.items() if k.startswith(prefix)}
    renamed = {k: v for k, v in factors.items() if not k.startswith(prefix)}
    for original, parts in original_layers(transformer).items():
        if any(part in left for part in parts):
            pairs = [left.pop(part, None) for part in parts]
            renamed[prefix + original] = _stack(pairs, parts, transformer)
    if left:
        raise ValueError(f"kohya's layout has no name for {next(iter(left))}; export without it")
    return renamed


def _stack(
    pairs: list[tuple[Tensor, Tensor] | None], parts: tuple[str, ...], transformer: Any
) -> tuple[Tensor, Tensor]:
    if len(pairs) == 1 and pairs[0] is not None:
        return pairs[0]
    rows = [transformer.get_submodule(part).weight.shape[0] for part in parts]
    down = torch.cat([pair[0] for pair in pairs if pair is not None])
    up, row, column = down.new_zeros(sum(rows), len(down)), 0, 0
    for pair, height in zip(pairs, rows, strict=True):
        if pair is not None:
            width = len(pair[0])
            up[row : row + height, column : column + width] = pair[1]
            column += width
        row += height
    return down, up


def reversed_layers(denoiser: Any) -> dict[str, str]:
    """Layers whose two halves (shift, then scale) diffusers has the other way round, with their
    original names: read, but never written."""
    kind, found = type(denoiser).__name__, {}
    if kind not in ("FluxTransformer2DModel", "SD3Transformer2DModel", "Flux2Transformer2DModel"):
        return found
    for name, module in denoiser.named_modules():
        if type(module).__name__ == "AdaLayerNormContinuous":
            block = re.fullmatch(r"transformer_blocks\.(\d+)\.norm1_context", name)
            place = f"joint_blocks.{block[1]}.context_block" if block else "final_layer"
            found[f"{name}.linear"] = f"{place}.adaLN_modulation.1"
    return found


def context_modulations(transformer: Any) -> dict[str, tuple[str, ...]]:
    """SD3's modulations of the prompt by their original names, where the rows are the same."""
    return {
        f"joint_blocks.{name.split('.')[1]}.context_block.adaLN_modulation.1": (f"{name}.linear",)
        for name, module in transformer.named_modules()
        if re.fullmatch(r"transformer_blocks\.\d+\.norm1_context", name)
        and type(module).__name__ == "AdaLayerNormZero"
    }
