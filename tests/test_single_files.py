"""Single files of SDXL and of the transformers: the pictures of the folder they came from."""

import pytest
import torch
from diffusers.loaders import single_file_utils
from originals import save_sdxl, save_transformer
from tiny import build, sdxl

from align.diffusion.sample import generate
from align.models.empty import empty_pipeline
from align.models.load import load_pipeline

PROMPTS = ["a red circle", "two green stars"]
RUN = {"seed": 3, "num_inference_steps": 2, "height": 32, "width": 32}


def assert_same_pictures(file, config, pipe):
    loaded = load_pipeline(f"{file}@{config}", device="cpu")
    expected = generate(pipe, PROMPTS, **RUN)
    assert expected.std() > 0.01
    torch.testing.assert_close(generate(loaded, PROMPTS, **RUN), expected, atol=1e-5, rtol=0)
    return loaded


def test_sdxl_with_both_text_encoders(tmp_path):
    torch.manual_seed(0)
    pipe = sdxl(second_width=24)  # diffusers tells the two encoders apart by their widths
    save_sdxl(pipe, tmp_path / "xl.safetensors")
    pipe.save_pretrained(tmp_path / "config")
    for weights in (tmp_path / "config").rglob("*.safetensors"):
        weights.unlink()  # all of them are in the file
    assert_same_pictures(tmp_path / "xl.safetensors", tmp_path / "config", pipe)


@pytest.mark.parametrize("name", ["sd3", "sd3.5"])
def test_sd3_without_text_encoders_takes_them_from_the_folder(name, tmp_path):
    """As sd3_medium.safetensors is published: transformer and autoencoder only."""
    pipe = build(name)
    save_transformer(pipe, tmp_path / "sd3.safetensors", vae=True)
    pipe.save_pretrained(tmp_path / "config")
    for part in ("transformer", "vae"):
        (tmp_path / "config" / part / "diffusion_pytorch_model.safetensors").unlink()
    assert_same_pictures(tmp_path / "sd3.safetensors", tmp_path / "config", pipe)


def test_sana_holds_the_transformer_alone(tmp_path):
    pipe = build("sana")
    save_transformer(pipe, tmp_path / "sana.safetensors", prefix="")
    pipe.save_pretrained(tmp_path / "config")
    (tmp_path / "config" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert_same_pictures(tmp_path / "sana.safetensors", tmp_path / "config", pipe)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", ["z-image", "klein", "flux2-dev", "qwen-image", "krea2"])
def test_newer_transformers_with_and_without_comfyuis_prefix(name, prefix, tmp_path):
    pipe = build(name)
    save_transformer(pipe, tmp_path / "a.safetensors", prefix=prefix)
    pipe.save_pretrained(tmp_path / "config")
    (tmp_path / "config" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert_same_pictures(tmp_path / "a.safetensors", tmp_path / "config", pipe)


@pytest.mark.parametrize("name", ["flux-dev", "flux-schnell"])
def test_flux_holds_the_transformer_alone(name, tmp_path, monkeypatch):
    """As flux1-dev.safetensors is published."""
    pipe = build(name)
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    code = convert.__code__  # it has the real model's width, 3072, as a constant
    narrow = tuple(16 if value == 3072 else value for value in code.co_consts)
    monkeypatch.setattr(convert, "__code__", code.replace(co_consts=narrow))
    save_transformer(pipe, tmp_path / "flux.safetensors", prefix="")
    pipe.save_pretrained(tmp_path / "config")
    (tmp_path / "config" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert_same_pictures(tmp_path / "flux.safetensors", tmp_path / "config", pipe)


def test_without_a_config_and_the_hub_it_says_what_to_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_transformer(build("sd3"), tmp_path / "sd3.safetensors", vae=True)
    with pytest.raises(FileNotFoundError, match=r"has no configs .* name a diffusers folder"):
        load_pipeline(tmp_path / "sd3.safetensors", device="cpu")


@pytest.mark.parametrize(("name", "kind"), [("klein", "FLUX.2"), ("qwen-image", "Qwen-Image")])
def test_files_that_could_be_several_models_need_a_config(name, kind, tmp_path):
    save_transformer(build(name), tmp_path / "a.safetensors")
    for load in (load_pipeline, lambda file: empty_pipeline(str(file), torch.float32)):
        with pytest.raises(ValueError, match=rf"a transformer of {kind}, .* as .*a.safetensors@"):
            load(tmp_path / "a.safetensors")


def test_pixart_files_are_refused(tmp_path):
    build("pixart-sigma").save_pretrained(tmp_path / "config")
    (tmp_path / "pixart.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"reads no single files of a PixArtSigmaPipeline"):
        load_pipeline(f"{tmp_path / 'pixart.safetensors'}@{tmp_path / 'config'}", device="cpu")
