"""Exported names against ComfyUI's own key map: `fixtures/comfyui.json`, which says how it is made.

For every stem the map has the weight that ComfyUI changes; for every layer of a transformer in
diffusers it has the place in these weights. What is written for a weight has to be the deltas of
the layers that lie there.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from ldm import unet_name
from safetensors.torch import load_file
from tiny import build
from torch import nn

from align.diffusion.denoisers import denoiser_module
from align.models.lora import add_lora, export_lora, load_lora, lora_factors, save_lora
from align.models.lora_files import write_diffusers
from align.models.lora_names import original_layers

COMFYUI = json.loads((Path(__file__).parent / "fixtures" / "comfyui.json").read_text())
# A tiny pipeline and what makes its denoiser's blocks those of the fixture's config.
MODELS = {
    "sd15": (
        "sd",
        {
            "block_out_channels": (8, 16, 32, 32),
            "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            "layers_per_block": 2,
        },
    ),
    "sdxl": (
        "sdxl",
        {
            "block_out_channels": (8, 16, 32),
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
            "transformer_layers_per_block": (1, 1, 2),
            "layers_per_block": 2,
        },
    ),
    "sd3": ("sd3", {"attention_head_dim": 64, "caption_projection_dim": 128}),
    "sd3.5": ("sd3.5", {"attention_head_dim": 64, "caption_projection_dim": 128}),
    "flux-dev": ("flux-dev", {"num_layers": 2, "num_single_layers": 3}),
    "flux-schnell": ("flux-schnell", {"num_layers": 2, "num_single_layers": 3}),
    "pixart-alpha": ("pixart-alpha", {}),
    "pixart-sigma": ("pixart-sigma", {}),
    "z-image": ("z-image", {"n_layers": 2}),
    "klein": ("klein", {"num_layers": 2, "num_single_layers": 3}),
    "flux2-dev": ("flux2-dev", {"num_layers": 2, "num_single_layers": 3}),
    "qwen-image": ("qwen-image", {"num_layers": 2}),
    "krea2": (
        "krea2",
        {"num_layers": 2, "num_layerwise_text_blocks": 2, "num_refiner_text_blocks": 2},
    ),
    "chroma": ("chroma", {"num_layers": 2, "num_single_layers": 3}),
    "lumina2": ("lumina2", {"num_layers": 2}),
    "wan": ("wan", {"num_layers": 2}),
}
TRANSFORMERS = [name for name in MODELS if "layers" in COMFYUI["models"][name]]
NEWER = ("z-image", "klein", "flux2-dev", "qwen-image", "krea2", "chroma", "lumina2", "wan")
# ComfyUI has a name for these; ours leave them out, as diffusers swaps rows of the last block's.
UNNAMED = {f"sd3{end}": {"transformer_blocks.0.norm1_context.linear"} for end in ("", ".5")}
SWAPPED = "final_layer.adaLN_modulation.1"  # FLUX.2's, for which diffusers has the rows swapped
# Where layers of Lumina 2 lie, which ComfyUI's map has under Z-Image's names: by its JointAttention
# and FeedForward. Queries are 24 rows here, keys and values 12.
LUMINA = {
    "attn.to_q": ("attention.qkv", 0),
    "attn.to_k": ("attention.qkv", 24),
    "attn.to_v": ("attention.qkv", 36),
    "attn.to_out.0": ("attention.out", 0),
    "feed_forward.linear_1": ("feed_forward.w1", 0),
    "feed_forward.linear_2": ("feed_forward.w2", 0),
    "feed_forward.linear_3": ("feed_forward.w3", 0),
}
# Likewise of Wan, of which it has no map: its WanSelfAttention and WanAttentionBlock.
WAN = {
    f"attn{number}.{layer}": f"{kind}_attn.{weight}"
    for number, kind in ((1, "self"), (2, "cross"))
    for layer, weight in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
} | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
LINEAR = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
)  # fmt: skip
FIRST = re.compile(r"layers\.0\.|block\.0\.layer\.0\.SelfAttention")
TEXT_ENCODERS = {
    "sd": ("sd15", ["clip_l"]),
    "sd-v": ("sd2", ["clip_h"]),
    "sdxl": ("sdxl", ["clip_l", "clip_g"]),
    "sd3": ("sd3", ["clip_l", "clip_g", "t5xxl"]),
    "flux-dev": ("flux", ["clip_l", "t5xxl"]),
}


def pipeline(name):
    base, changes = MODELS[name]
    pipe = build(base)
    part = denoiser_module(pipe)
    torch.manual_seed(0)
    other = type(part).from_config(part.config, **changes)
    pipe.register_modules(**{"unet" if "unet" in pipe.components else "transformer": other})
    return pipe


def places(name, denoiser):
    """{layer of diffusers': (weight of ComfyUI's, first row)}, as their names have it."""
    there = {layer for layer, part in denoiser.named_modules() if hasattr(part, "weight")}
    if name == "wan":
        return {
            f"blocks.{block}.{layer}": (f"blocks.{block}.{weight}", 0)
            for block in (0, 1)
            for layer, weight in WAN.items()
        }
    if name == "lumina2":
        blocks = [f"{above}.0" for above in ("noise_refiner", "context_refiner", "layers")]
        return {
            f"{block}.{layer}": (f"{block}.{weight}", row)
            for block in (*blocks, "layers.1")
            for layer, (weight, row) in LUMINA.items()
        }
    if name in TRANSFORMERS:
        layers = COMFYUI["models"][name]["layers"]
        return {
            layer: (weight, rows[0] if rows else 0)
            for layer, (weight, *rows) in layers.items()
            if layer in there
        }
    wide = nn.Linear | nn.Conv2d
    layers = [layer for layer, module in denoiser.named_modules() if isinstance(module, wide)]
    return {layer: (original_of(layer, denoiser), 0) for layer in layers}


def original_of(layer, denoiser):
    embedding = re.fullmatch(r"add_embedding\.linear_([12])", layer)
    if embedding:
        return f"label_emb.0.{2 * int(embedding[1]) - 2}"
    return unet_name(f"{layer}.weight", 2, denoiser).removesuffix(".weight")


def written_deltas(path):
    """{stem: alpha / rank * up @ down} of a file in kohya's layout."""
    tensors, deltas = load_file(path), {}
    for stem in {key.split(".")[0] for key in tensors}:
        down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        delta = up.flatten(1) @ down.flatten(1)
        deltas[stem] = delta * tensors[f"{stem}.alpha"] / len(down)
    return deltas


def targets_of(name, which, denoiser):
    if which == "default":
        return None
    layers = list(places(name, denoiser).keys() - UNNAMED.get(name, set()))
    if which == "every":
        return layers
    return [end for end in LINEAR if any(f".{layer}".endswith(f".{end}") for layer in layers)]


@pytest.mark.parametrize("which", ["default", "linear", "every"])
@pytest.mark.parametrize("name", MODELS)
def test_a_stem_holds_the_deltas_of_the_layers_in_its_weight(name, which, tmp_path):
    pipe = pipeline(name)
    denoiser = denoiser_module(pipe)
    place = places(name, denoiser)
    for parameter in add_lora(pipe, rank=2, alpha=3, targets=targets_of(name, which, denoiser)):
        parameter.data = torch.randn_like(parameter)
    left = {
        layer.partition(".")[2]: up.flatten(1) @ down.flatten(1)
        for layer, (down, up) in lora_factors(pipe).items()
    }
    save_lora(pipe, tmp_path)
    written = written_deltas(export_lora(pipeline(name), str(tmp_path), tmp_path / "k.safetensors"))
    weights = COMFYUI["models"][name]["stems"]
    assert written.keys() <= weights.keys()
    for stem, delta in written.items():
        covered = 0
        for layer in [layer for layer in place if place[layer][0] == weights[stem]]:
            first, height = place[layer][1], len(denoiser.get_submodule(layer).weight)
            expected = left.pop(layer, torch.zeros(height, delta.shape[1]))
            torch.testing.assert_close(delta[first : first + height], expected)
            covered += height
        assert covered == len(delta)
    assert not left


@pytest.mark.parametrize("name", NEWER)
def test_each_weight_of_comfyui_has_a_name_and_each_name_a_weight(name):
    named = original_layers(pipeline(name).transformer)
    weights = set(COMFYUI["models"][name]["stems"].values())
    swapped = {SWAPPED} if name in ("klein", "flux2-dev") else set()
    assert weights - named.keys() == swapped
    norms = {original for original in named.keys() - weights if "norm" in original}
    assert named.keys() - norms <= weights


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_comfyui_takes_the_run_s_own_file(name, tmp_path):
    """But for Lumina 2 and Wan, whose layers it knows under their original names alone."""
    pipe = pipeline(name)
    add_lora(pipe, rank=2)
    tensors = load_file(save_lora(pipe, tmp_path))
    layers = {key.removeprefix("transformer.").split(".lora_")[0] for key in tensors}
    assert len(tensors) == 2 * len(layers)
    assert (layers <= COMFYUI["models"][name]["layers"].keys()) == (name not in ("lumina2", "wan"))


@pytest.mark.parametrize("name", sorted(set(TRANSFORMERS) - set(NEWER)))
def test_each_layer_that_comfyui_knows_has_its_original_name(name):
    named = original_layers(pipeline(name).transformer)
    layers = COMFYUI["models"][name]["layers"]
    parts = {part for parts in named.values() for part in parts}
    assert parts == layers.keys() - UNNAMED.get(name, set())
    for original, parts in named.items():
        assert {layers[part][0] for part in parts} == {original}


def first_layers(pipe, encoders):
    """{layer of diffusers': (weight of ComfyUI's, linear layer)} of the text encoders' block 0."""
    found = {}
    for number, encoder in enumerate(encoders, start=1):
        component = f"text_encoder_{number}".removesuffix("_1")
        for layer, part in getattr(pipe, component).named_modules():
            if isinstance(part, nn.Linear) and FIRST.search(layer):
                inside = layer.removeprefix("text_model.")
                above = "" if encoder == "t5xxl" else "text_model."
                found[f"{component}.{layer}"] = f"{encoder}.transformer.{above}{inside}", part
    return found


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_a_stem_holds_the_delta_of_its_layer_in_a_text_encoder(name, tmp_path):
    pipe, (table, encoders) = build(name), TEXT_ENCODERS[name]
    factors, expected = {}, {}
    for layer, (weight, part) in first_layers(pipe, encoders).items():
        down, up = torch.randn(2, part.in_features), torch.randn(part.out_features, 2)
        factors[layer], expected[weight] = (down, up), up @ down
    write_diffusers(factors, tmp_path, None)
    path = export_lora(pipe, str(tmp_path), tmp_path / "k.safetensors")
    weights = COMFYUI["text_encoders"][table]["stems"]
    written = {weights[stem]: delta for stem, delta in written_deltas(path).items()}
    assert written.keys() == expected.keys()
    for weight, delta in written.items():
        torch.testing.assert_close(delta, expected[weight])
    if "unet" in pipe.components:
        load_lora(pipe, str(path))
        assert lora_factors(pipe).keys() == factors.keys()
