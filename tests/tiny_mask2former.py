"""A tiny Mask2Former, in transformers' layout and in that of mmdet's checkpoint."""

import re

import torch
from tiny_rewards import filled
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

LABELS = 80


def mask2former() -> Mask2FormerForUniversalSegmentation:
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=3, mlp_ratio=2.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=48,
        encoder_layers=2, decoder_layers=3, num_attention_heads=8, dim_feedforward=40,
        num_queries=7, id2label={i: str(i) for i in range(LABELS)},
    )  # fmt: skip
    return filled(Mask2FormerForUniversalSegmentation(config))


# transformers' names (as patterns) and mmdet's, written from mmdet's side: its modules are
# backbone (a Swin), and panoptic_head with pixel_decoder, transformer_decoder and embeddings.
RULES = (
    (r"encoder\.swin\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.projection"),
    (r"encoder\.swin\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r"encoder\.swin\.encoder\.layers\.(\d)\.downsample", r"backbone.stages.\1.downsample"),
    (r"encoder\.swin\.encoder\.layers\.(\d)\.blocks\.(\d)", r"backbone.stages.\1.blocks.\2"),
    (r"attention\.relative_position_bias", "attn.w_msa"),
    (r"attention\.o_proj", "attn.w_msa.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"mlp\.fc1", "ffn.layers.0.0"),
    (r"mlp\.fc2", "ffn.layers.1"),
    (r"encoder\.hidden_states_norms\.stage1", "backbone.norm0"),
    (r"encoder\.hidden_states_norms\.stage2", "backbone.norm1"),
    (r"encoder\.hidden_states_norms\.stage3", "backbone.norm2"),
    (r"encoder\.hidden_states_norms\.stage4", "backbone.norm3"),
    (r"^decoder\.input_projections\.(\d)\.0", r"P.input_convs.\1.conv"),
    (r"^decoder\.input_projections\.(\d)\.1", r"P.input_convs.\1.gn"),
    (r"^decoder\.adapter_1\.0", "P.lateral_convs.0.conv"),
    (r"^decoder\.adapter_1\.1", "P.lateral_convs.0.gn"),
    (r"^decoder\.layer_1\.0", "P.output_convs.0.conv"),
    (r"^decoder\.layer_1\.1", "P.output_convs.0.gn"),
    (r"^decoder\.mask_projection", "P.mask_feature"),
    (r"^decoder\.level_embed$", "P.level_encoding.weight"),
    (r"^decoder\.encoder\.layers\.(\d)\.self_attn\.", r"P.encoder.layers.\1.attentions.0."),
    (r"^decoder\.encoder\.layers\.(\d)\.fc1", r"P.encoder.layers.\1.ffns.0.layers.0.0"),
    (r"^decoder\.encoder\.layers\.(\d)\.fc2", r"P.encoder.layers.\1.ffns.0.layers.1"),
    (r"^decoder\.encoder\.layers\.(\d)\.self_attn_layer_norm", r"P.encoder.layers.\1.norms.0"),
    (r"^decoder\.encoder\.layers\.(\d)\.final_layer_norm", r"P.encoder.layers.\1.norms.1"),
    (
        r"^T\.decoder\.layers\.(\d)\.cross_attn\.",
        r"H.transformer_decoder.layers.\1.attentions.0.attn.",
    ),
    (
        r"^T\.decoder\.layers\.(\d)\.self_attn\.",
        r"H.transformer_decoder.layers.\1.attentions.1.attn.",
    ),
    (r"^T\.decoder\.layers\.(\d)\.fc1", r"H.transformer_decoder.layers.\1.ffns.0.layers.0.0"),
    (r"^T\.decoder\.layers\.(\d)\.fc2", r"H.transformer_decoder.layers.\1.ffns.0.layers.1"),
    (
        r"^T\.decoder\.layers\.(\d)\.cross_attn_layer_norm",
        r"H.transformer_decoder.layers.\1.norms.0",
    ),
    (
        r"^T\.decoder\.layers\.(\d)\.self_attn_layer_norm",
        r"H.transformer_decoder.layers.\1.norms.1",
    ),
    (r"^T\.decoder\.layers\.(\d)\.final_layer_norm", r"H.transformer_decoder.layers.\1.norms.2"),
    (r"^T\.decoder\.layernorm", "H.transformer_decoder.post_norm"),
    (r"^T\.queries_embedder", "H.query_embed"),
    (r"^T\.queries_features", "H.query_feat"),
    (r"^T\.level_embed", "H.level_embed"),
    (r"^T\.decoder\.mask_predictor\.mask_embedder\.0\.0", "H.mask_embed.0"),
    (r"^T\.decoder\.mask_predictor\.mask_embedder\.1\.0", "H.mask_embed.2"),
    (r"^T\.decoder\.mask_predictor\.mask_embedder\.2\.0", "H.mask_embed.4"),
    (r"^class_predictor", "H.cls_embed"),
)
UNUSED = ("encoder.swin.layernorm", "criterion.empty_weight")


def to_mmdet(model: Mask2FormerForUniversalSegmentation) -> dict[str, torch.Tensor]:
    """The model's tensors as mmdet has them."""
    made: dict[str, torch.Tensor] = {}
    thirds: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in model.state_dict().items():
        name = key.removeprefix("model.pixel_level_module.")
        name = name.replace("model.transformer_module.", "T.")
        if name.startswith(UNUSED):
            continue
        for pattern, other in RULES:
            name = re.sub(pattern, other, name)
        name = name.replace("P.", "panoptic_head.pixel_decoder.").replace("H.", "panoptic_head.")
        # Swin's q, k, v are one matrix, and so are those of torch's attention.
        found = re.fullmatch(r"(.*)\.attention\.([qkv])_proj\.(weight|bias)", name)
        if found:
            thirds.setdefault(f"{found[1]}.attn.w_msa.qkv.{found[3]}", {})[found[2]] = value
            continue
        found = re.fullmatch(r"(.*attentions\.1\.attn)\.([qkv])_proj\.(weight|bias)", name)
        if found:
            thirds.setdefault(f"{found[1]}.in_proj_{found[3]}", {})[found[2]] = value
            continue
        made[name] = unfolded(value) if ".downsample." in name else value
    made |= {name: torch.cat([parts[c] for c in "qkv"]) for name, parts in thirds.items()}
    return made


def unfolded(value: torch.Tensor) -> torch.Tensor:
    """Inputs of a merge in the order of torch's Unfold: channel by channel, row by row."""
    channels = value.shape[-1] // 4
    order = [(0, 0), (1, 0), (0, 1), (1, 1)]  # transformers'
    index = [order.index((i, j)) * channels + c
             for c in range(channels) for i in (0, 1) for j in (0, 1)]  # fmt: skip
    return value[..., index]
