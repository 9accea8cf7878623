"""Names of a UNet's layers in the original code (latent-diffusion), as kohya's SDXL LoRAs have."""

from typing import Any

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_name(layer: str, unet: Any) -> str | None:
    """The original name of a layer of a UNet2DConditionModel; None where it has none."""
    if layer in ENDS:
        return ENDS[layer]
    kind, *path = layer.split(".")
    if kind == "mid_block" and len(path) > 2:
        number = 1 if path[0] == "attentions" else 2 * int(path[1])
        return f"middle_block.{number}.{_inside(path[0], path[2:])}"
    if kind not in ("down_blocks", "up_blocks") or len(path) < 4:
        return None
    block, part, index = int(path[0]), path[1], int(path[2])
    layers = unet.config.layers_per_block + 1
    if part == "downsamplers":
        return f"input_blocks.{(block + 1) * layers}.0.op"
    if part == "upsamplers":
        place = 2 if hasattr(unet.up_blocks[block], "attentions") else 1
        return f"output_blocks.{(block + 1) * layers - 1}.{place}.conv"
    side, first = ("input", 1) if kind == "down_blocks" else ("output", 0)
    place = 0 if part == "resnets" else 1
    return f"{side}_blocks.{first + block * layers + index}.{place}.{_inside(part, path[3:])}"


def _inside(part: str, path: list[str]) -> str:
    name = ".".join(path)
    return RESNET.get(name, name) if part == "resnets" else name
