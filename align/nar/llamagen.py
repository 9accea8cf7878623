"""LlamaGen's VQ-16 and VQ-8 image tokenizers (arXiv 2406.06525) in diffusers' VQ autoencoder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, VQModel
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor

from align.nar.reference import check_keys, check_shapes, read_checkpoint, unwrap

_PARTS = (
    (r"\.mid\.0\.", ".mid_block.resnets.0."),
    (r"\.mid\.1\.", ".mid_block.attentions.0."),
    (r"\.mid\.2\.", ".mid_block.resnets.1."),
    (r"^encoder\.conv_blocks\.", "encoder.down_blocks."),
    (r"^decoder\.conv_blocks\.", "decoder.up_blocks."),
    (r"\.res\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.downsample\.conv\.", ".downsamplers.0.conv."),
    (r"\.upsample\.conv\.", ".upsamplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


class LlamaGenTokenizer(ModelMixin, ConfigMixin):
    """Pictures to token ids and back; takes the same calls as `ImageTokenizer`.

    Args:
        image_size: (height, width) in pixels, multiples of `2 ** (len(widths) - 1)`.
        widths: channels per resolution (VQ-16: 128, 128, 256, 256, 512).
        latent_channels, codebook_size, code_width: of the quantizer.

    Raises:
        ValueError: a size that does not divide.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        image_size: Sequence[int] = (256, 256),
        widths: Sequence[int] = (128, 128, 256, 256, 512),
        latent_channels: int = 256,
        codebook_size: int = 16384,
        code_width: int = 8,
    ):
        super().__init__()
        patch, plain = 2 ** (len(widths) - 1), len(widths) - 1
        height, width = image_size
        if height % patch or width % patch:
            raise ValueError(f"image size {height}x{width}: must be multiples of {patch} pixels")
        self.grid_shape = (height // patch, width // patch)
        self.codebook_size = codebook_size
        self.vq = VQModel(
            down_block_types=(*["DownEncoderBlock2D"] * plain, "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * plain),
            block_out_channels=tuple(widths),
            layers_per_block=2,
            latent_channels=latent_channels,
            num_vq_embeddings=codebook_size,
            vq_embed_dim=code_width,
        )

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """Token ids, raster order, of pictures in [0, 1]: the nearest code by cosine."""
        codebook = self.vq.quantize.embedding.weight
        latent = self.vq.quant_conv(self.vq.encoder(images.to(codebook.dtype) * 2 - 1))
        latent = F.normalize(latent.flatten(2).transpose(1, 2), dim=-1)
        return (latent @ F.normalize(codebook, dim=-1).T).argmax(-1)

    def decode(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1] (float32) of token ids in raster order."""
        rows, columns = self.grid_shape
        if ids.shape[1] != rows * columns:
            raise ValueError(f"{ids.shape[1]} tokens do not fill the grid {self.grid_shape}")
        codes = F.normalize(self.vq.quantize.embedding(ids), dim=-1)  # (b, n, code_width)
        codes = codes.transpose(1, 2).unflatten(2, (rows, columns))
        images = self.vq.decoder(self.vq.post_quant_conv(codes))
        return ((images.float() + 1) / 2).clamp(0, 1)


def load_llamagen_tokenizer(
    path_or_state_dict: str | Path | dict[str, Any], *, image_size: tuple[int, int] = (256, 256)
) -> LlamaGenTokenizer:
    """Load `vq_ds16_c2i.pt` and its like; sizes are read from the tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: keys or shapes that differ (the first ones are named).
    """
    if not isinstance(path_or_state_dict, dict):
        path_or_state_dict = read_checkpoint(path_or_state_dict)
    source = unwrap(path_or_state_dict)
    names = {key: _our_name(key) for key in source}
    needed = {"quantize.embedding.weight", "quant_conv.weight"}
    check_keys(source, {**names, **{key: key for key in needed}})
    codebook, latent = source["quantize.embedding.weight"], source["quant_conv.weight"]
    widths = []
    while (key := f"encoder.conv_blocks.{len(widths)}.res.0.conv2.weight") in source:
        widths.append(source[key].shape[0])
    model = LlamaGenTokenizer(
        image_size=image_size,
        widths=tuple(widths),
        latent_channels=latent.shape[1],
        codebook_size=codebook.shape[0],
        code_width=codebook.shape[1],
    )
    own = model.state_dict()
    theirs = {ours: key for key, ours in names.items()}
    check_keys(source, {theirs.get(key, key.removeprefix("vq.")): key for key in own})
    mapped = {names[key]: value for key, value in source.items()}
    for key, value in mapped.items():
        # the attention projections are 1x1 convolutions there and linear layers here
        if value.ndim == 4 and own[key].ndim == 2:
            mapped[key] = value[:, :, 0, 0]
    check_shapes(mapped, own, theirs)
    model.load_state_dict(mapped)
    return model.eval()


def _our_name(key: str) -> str:
    for pattern, replacement in _PARTS:
        key = re.sub(pattern, replacement, key)
    return f"vq.{key}"
