"""What only a CUDA machine can show; left out where there is none."""

import importlib.util

import pytest
import torch
from tiny import build
from train_helpers import run

from align.diffusion.denoisers import denoiser_module
from align.diffusion.sample import generate
from align.models.load import load_pipeline
from align.models.lora import add_lora

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RUN = {"seed": 3, "num_inference_steps": 2, "height": 32, "width": 32}


def has(package):
    return importlib.util.find_spec(package) is not None


@pytest.mark.skipif(not has("xformers"), reason="needs xformers")
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux-dev", "pixart-sigma", "klein"])
def test_xformers_gives_the_pictures_and_gradients_of_sdpa(name, tmp_path):
    build(name).save_pretrained(tmp_path)
    results = []
    for attention in ("xformers", "sdpa"):
        pipe = load_pipeline(tmp_path, device="cuda", dtype="float16", attention=attention)
        torch.manual_seed(0)
        parameters = add_lora(pipe, rank=2)
        for parameter in parameters:
            parameter.data = 0.1 * torch.randn_like(parameter)
        images = generate(pipe, ["a cat"], grad_steps=1, **RUN)
        results.append([images, *torch.autograd.grad(images.mean() * 1000, parameters)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=5e-2)


@pytest.mark.skipif(not has("bitsandbytes"), reason="needs bitsandbytes")
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_quantized_base_trains_a_lora(quantize, tmp_path):
    build("flux-dev").save_pretrained(tmp_path / "model")
    pipe = load_pipeline(tmp_path / "model", device="cuda", quantize=quantize)
    result, _ = run(tmp_path, pipe=pipe, device="cuda", cache_embeddings=True)
    assert result.metrics[0]["grad_norm"] > 0
    assert denoiser_module(pipe).dtype != torch.float32


def test_half_precision_training_scales_its_losses(tmp_path):
    pipe = build("sdxl").to("cuda", torch.float16)
    result, _ = run(tmp_path, pipe=pipe, device="cuda")
    assert result.steps == 2
