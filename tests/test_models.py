"""Where pipelines come from, and what is said when they cannot."""

import json
import shutil

import pytest
import torch
from ldm import save_as_ldm
from safetensors.torch import save_file
from tiny import build

from align.diffusion.sample import generate
from align.models.load import EMBEDDED, load_pipeline

PROMPTS = ["a red circle", "two green stars"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("sd").save_pretrained(path)
    return path


def test_a_folder_gives_the_pipeline_that_was_saved(folder):
    pipe = load_pipeline(folder, device="cpu")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    settings = {"seed": 3, "num_inference_steps": 2}
    assert torch.equal(
        generate(pipe, PROMPTS, **settings), generate(build("sd"), PROMPTS, **settings)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64])
def test_every_part_has_the_dtype(folder, dtype):
    pipe = load_pipeline(folder, device="cpu", dtype=dtype)
    expected = torch.bfloat16 if dtype == "bfloat16" else dtype
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {expected}


@pytest.mark.parametrize("attention", ["auto", "sdpa", "math"])
def test_attention_changes_no_picture(folder, attention):
    pipe = load_pipeline(folder, device="cpu", attention=attention)
    settings = {"seed": 3, "num_inference_steps": 2}
    expected = generate(build("sd"), PROMPTS, **settings)
    torch.testing.assert_close(generate(pipe, PROMPTS, **settings), expected, atol=1e-5, rtol=0)


def test_math_attention_really_is_the_math_kernel(folder):
    pipe = load_pipeline(folder, device="cpu", attention="math")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        generate(pipe, PROMPTS, seed=0, num_inference_steps=1)
    kernels = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_attention_math" in kernels


def test_xformers_on_cpu_says_why_not(folder):
    with pytest.raises(ValueError, match=r"needs a CUDA device and the model is on cpu"):
        load_pipeline(folder, device="cpu", attention="xformers")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("embedded/nothing", FileNotFoundError, r"no embedded/nothing; embedded models:"),
        ("no/such/folder", FileNotFoundError, r"no model 'no/such/folder'; allowed: embedded/NAME"),
        ("missing.safetensors", FileNotFoundError, r"no model 'missing.safetensors'"),
    ],
)
def test_missing_models(model, error, message):
    with pytest.raises(error, match=message):
        load_pipeline(model)


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing is no local path and could not"):
        load_pipeline("nobody/nothing")


def test_folders_that_are_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model_index.json"):
        load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "LTXPipeline"}')
    with pytest.raises(ValueError, match=r"is a LTXPipeline; known pipelines: StableDiffusion"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize("named", ["beside", "after @", "as an argument"])
def test_a_single_file_gives_the_pictures_of_its_folder(folder, tmp_path, named):
    save_as_ldm(build("sd"), tmp_path / "tiny.safetensors")
    model, config = str(tmp_path / "tiny.safetensors"), None
    if named == "beside":
        # Only what a checkpoint lacks: configs and the tokenizer, no weights.
        shutil.copytree(folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("*.safetensors"))
    elif named == "after @":
        model = f"{model}@{folder}"
    else:
        config = folder
    pipe = load_pipeline(model, device="cpu", config=config)
    settings = {"seed": 3, "num_inference_steps": 2}
    expected = generate(build("sd"), PROMPTS, **settings)
    torch.testing.assert_close(generate(pipe, PROMPTS, **settings), expected, atol=1e-5, rtol=0)


def test_a_broken_single_file_is_named(folder, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"odd.safetensors is no checkpoint that diffusers"):
        load_pipeline(tmp_path / "odd.safetensors", config=folder)
    (tmp_path / "torn.safetensors").write_bytes(b"12345678 torn")
    with pytest.raises(ValueError, match=r"torn.safetensors is no checkpoint that diffusers"):
        load_pipeline(tmp_path / "torn.safetensors", config=folder)


def test_incomplete_folders_are_named(folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"model (has a damaged|is not a com)"
    ):
        load_pipeline(model)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model is not a complete model"):
        load_pipeline(model)


@pytest.mark.usefixtures("unchecked")
def test_wrong_words(folder, tmp_path):
    with pytest.raises(ValueError, match=r"dtype is 'int4'; it must be one of float32"):
        load_pipeline(folder, dtype="int4")
    with pytest.raises(ValueError, match=r"attention is 'fast'; it must be one of auto"):
        load_pipeline(folder, attention="fast")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end in .safetensors or .ckpt"):
        load_pipeline(tmp_path / "weights.bin")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "must be a JSON object"),
        ("{}", "known pipelines: StableDiffusionPipeline"),
        (
            '{"_class_name": ["StableDiffusionPipeline"]}',
            "known pipelines: StableDiffusionPipeline",
        ),
    ],
)
def test_a_damaged_index_is_named(tmp_path, text, message):
    (tmp_path / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_pipeline(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_gated_model_says_how_to_get_it():
    from huggingface_hub.errors import GatedRepoError, Response
    from huggingface_hub.utils import get_session

    from align.models.hub import reach

    def load(source):
        request = get_session().build_request("GET", f"https://huggingface.co/{source}")
        raise GatedRepoError("401", response=Response(401, request=request))

    with pytest.raises(
        FileNotFoundError, match=r"accept its licence on https://huggingface\.co/o/m"
    ):
        reach("o/m", load, "o/m")


def test_what_ships_names_no_folder_of_the_machine_that_trained_it():
    configs = sorted(EMBEDDED.rglob("*config.json"))
    assert len(configs) > 10
    for path in configs:
        assert not json.loads(path.read_text()).get("_name_or_path"), path


@pytest.mark.parametrize("fast", [True, False])
def test_a_cpu_that_emulates_bfloat16_says_so(monkeypatch, caplog, fast):
    from align.models import precision

    precision.warn_of_emulation.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast})
    load_pipeline("embedded/scenes", dtype="bfloat16", device="cpu")
    assert ("this CPU emulates bfloat16" in caplog.text) == (not fast)
