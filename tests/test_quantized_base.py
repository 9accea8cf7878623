"""A frozen base in 8 or 4 bits, and the 8-bit optimizer, by bitsandbytes' CPU operators.

diffusers quantizes while loading only where it finds a GPU, which test_gpu.py is for; here the
layers are exchanged as it does, and all that follows is what a card would run.
"""

import bitsandbytes as bnb
import diffusers
import pytest
import torch
from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear
from tiny import build
from torch import nn
from train_helpers import run, weights

from align.diffusion.denoisers import denoiser_module
from align.diffusion.sample import generate
from align.training.checkpoints import list_checkpoints

BITS = {
    "8bit": {"load_in_8bit": True},
    "4bit": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.float32,
    },
}


def quantize(denoiser, bits):
    stored = denoiser.state_dict()
    config = diffusers.BitsAndBytesConfig(**BITS[bits])
    denoiser = replace_with_bnb_linear(denoiser, [], quantization_config=config)
    for name, layer in denoiser.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.weight = bnb.nn.Params4bit(
                stored[f"{name}.weight"], requires_grad=False, quant_type="nf4"
            )
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            layer.weight = bnb.nn.Int8Params(
                stored[f"{name}.weight"], requires_grad=False, has_fp16_weights=False
            )
        if isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt) and layer.bias is not None:
            layer.bias = nn.Parameter(stored[f"{name}.bias"], requires_grad=False)
    return denoiser.to("cpu")  # moving is what quantizes


@pytest.mark.parametrize(("bits", "stored"), [("8bit", torch.int8), ("4bit", torch.uint8)])
@pytest.mark.parametrize("family", ["sd", "flux-dev"])
def test_a_lora_trains_on_quantized_layers(family, bits, stored, tmp_path):
    pipe = build(family)
    settings = {"seed": 3, "num_inference_steps": 2, "height": 32, "width": 32}
    before = generate(pipe, ["a cat"], **settings)
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(pipe, name, quantize(denoiser_module(pipe), bits))
    layers = [m for m in getattr(pipe, name).modules() if isinstance(m, nn.Linear)]
    assert stored in {layer.weight.dtype for layer in layers}
    assert (generate(pipe, ["a cat"], **settings) - before).abs().max() < 0.1
    result, pipe = run(tmp_path, pipe=pipe, height=32, width=32)
    assert all(record["grad_norm"] > 0 for record in result.metrics)
    assert weights(pipe).dtype == torch.float32
    assert weights(pipe).isfinite().all()


def test_the_8_bit_optimizer_resumes_bit_for_bit(tmp_path):
    # of 4096 numbers and more it keeps its state in 8 bits
    settings = {"optimizer": "adamw8bit", "steps": 4, "checkpoint_every": 1, "lora_rank": 256}
    _, whole = run(tmp_path / "whole", **settings)
    run(tmp_path / "cut", on_step=lambda record: record["step"] == 2, **settings)
    again = {"out": None, "resume": str(tmp_path / "cut" / "run")}
    _, resumed = run(tmp_path / "cut", **settings | again)
    newest = list_checkpoints(tmp_path / "cut" / "run")[0]
    states = torch.load(newest / "optimizer.pt", weights_only=True)["state"].values()
    moments = [v for state in states for v in leaves(state) if v.dtype == torch.uint8]
    assert moments
    assert torch.equal(weights(whole), weights(resumed))


def leaves(state):
    for value in state.values():
        if isinstance(value, dict):
            yield from leaves(value)
        elif isinstance(value, torch.Tensor):
            yield value
