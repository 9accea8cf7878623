"""Models in the forms in which people have them, and what is said of parts that are not there."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from ldm import save_as_ldm
from safetensors.torch import load_file, save_file
from tiny import build

from align.cli import main
from align.diffusion.sample import generate
from align.models.load import load_pipeline

RUN = {"seed": 3, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("sd").save_pretrained(path)
    return path


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_a_folder_with_a_variant_alone_loads_by_itself(variant, safe, tmp_path):
    build("sd").save_pretrained(tmp_path, variant=variant, safe_serialization=safe)
    pipe = load_pipeline(tmp_path, device="cpu")
    assert torch.equal(generate(pipe, ["a"], **RUN), generate(build("sd"), ["a"], **RUN))


def test_parts_with_and_without_a_variant(folder, tmp_path):
    """Plain weights beside a variant are taken; a part that has the variant alone is too."""
    shutil.copytree(folder, tmp_path / "m")
    unet = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    vae = tmp_path / "m" / "vae" / "diffusion_pytorch_model.non_ema.safetensors"
    save_file({"odd": torch.zeros(1)}, vae)
    pipe = load_pipeline(tmp_path / "m", device="cpu")
    assert torch.equal(generate(pipe, ["a"], **RUN), generate(build("sd"), ["a"], **RUN))


def test_what_a_single_file_lacks_may_be_a_variant(tmp_path):
    build("sd").save_pretrained(tmp_path / "config", variant="fp16")
    save_as_ldm(build("sd"), tmp_path / "all.safetensors")
    tensors = load_file(tmp_path / "all.safetensors")
    part = {k: v for k, v in tensors.items() if not k.startswith("cond_stage_model.")}
    save_file(part, tmp_path / "part.safetensors")
    pipe = load_pipeline(f"{tmp_path / 'part.safetensors'}@{tmp_path / 'config'}", device="cpu")
    expected = generate(build("sd"), ["a"], **RUN)
    torch.testing.assert_close(generate(pipe, ["a"], **RUN), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_tokenizer_without_its_words_is_named(folder, tmp_path, left):
    shutil.copytree(folder, tmp_path / "m")
    for file in (tmp_path / "m" / "tokenizer").iterdir():
        if file.name not in left:
            file.unlink()
    with pytest.raises(FileNotFoundError, match=r"m is not a complete model: its tokenizer .*voca"):
        load_pipeline(tmp_path / "m", device="cpu")
    shutil.rmtree(tmp_path / "m" / "tokenizer")
    with pytest.raises(FileNotFoundError, match=r"m is not a complete model: .*tokenizer"):
        load_pipeline(tmp_path / "m", device="cpu")


def test_a_tokenizer_without_its_length_takes_that_of_its_encoder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "tokenizer" / "tokenizer_config.json").unlink()
    pipe = load_pipeline(tmp_path / "m", device="cpu")
    assert pipe.tokenizer.model_max_length == 16
    assert generate(pipe, ["a"], **RUN).isfinite().all()


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "scheduler"])
def test_a_part_that_is_missing_is_named(folder, tmp_path, part):
    shutil.copytree(folder, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / part)
    with pytest.raises(FileNotFoundError, match=rf"m is not a complete model: .*{part}"):
        load_pipeline(tmp_path / "m", device="cpu")


def test_suffixes_in_capitals(folder, tmp_path):
    save_as_ldm(build("sd"), tmp_path / "A.SAFETENSORS")
    pipe = load_pipeline(f"{tmp_path / 'A.SAFETENSORS'}@{folder}", device="cpu")
    expected = generate(build("sd"), ["a"], **RUN)
    torch.testing.assert_close(generate(pipe, ["a"], **RUN), expected, atol=1e-5, rtol=0)
    (tmp_path / "B.SAFETENSORS").write_bytes(b"torn")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/B\.SAFETENSORS is no checkpoint"):
        load_pipeline(f"{tmp_path / 'B.SAFETENSORS'}@{folder}", device="cpu")


class ModelCheckpoint:
    """What Lightning leaves in its files."""


def test_a_checkpoint_with_a_trainers_objects_says_why_and_what_to_do(folder, tmp_path):
    save_as_ldm(build("sd"), tmp_path / "a.safetensors")
    state = {"state_dict": load_file(tmp_path / "a.safetensors"), "global_step": 3}
    torch.save(state, tmp_path / "good.ckpt")
    pipe = load_pipeline(f"{tmp_path / 'good.ckpt'}@{folder}", device="cpu")
    assert generate(pipe, ["a"], **RUN).isfinite().all()
    torch.save(state | {"callbacks": {ModelCheckpoint: 1}}, tmp_path / "bad.ckpt")
    with pytest.raises(
        ValueError,
        match=r"bad\.ckpt holds more than plain tensors \([\w.]*ModelCheckpoint\).*"
        r"weights_only=False.*safetensors\.torch\.save_file",
    ):
        load_pipeline(f"{tmp_path / 'bad.ckpt'}@{folder}", device="cpu")


# --- pictures that are not finite ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "value", "where"),
    [
        ("unet", float("nan"), r"unet\.[\w.]+weight of the model"),
        ("vae", float("inf"), r"vae\.[\w.]+weight of the model"),
        ("text_encoder", float("nan"), r"text_encoder\.[\w.]+weight of the model"),
    ],
)
def test_damaged_weights_draw_nothing(component, value, where, tmp_path, capsys):
    pipe = build("sd")
    module = pipe.vae.decoder if component == "vae" else getattr(pipe, component)
    next(p for n, p in module.named_parameters() if "weight" in n).data += value
    with pytest.raises(ValueError, match=where):
        generate(pipe, ["a"], **RUN)
    if component == "unet":
        pipe.save_pretrained(tmp_path / "m")
        command = ["generate", "a", "--model", str(tmp_path / "m"), "--out", str(tmp_path / "out")]
        assert main([*command, "--num-inference-steps", "1", "--device", "cpu"]) == 2
        assert "the pictures are not finite, as unet." in capsys.readouterr().err.splitlines()[-1]
        assert not list(tmp_path.glob("out/**/*.png"))


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_an_overflow_says_where_and_in_which_precision(component):
    """An output too large for float16, as SDXL's autoencoder has; clamped it would be white."""
    pipe = build("sd")
    module = getattr(pipe, component)
    last = module.conv_out if component == "unet" else module.decoder.conv_out
    last.weight.data.fill_(60000.0)
    last.bias.data.fill_(60000.0)
    pipe.vae.register_to_config(force_upcast=False)  # else it is decoded in float32
    pipe.to(dtype=torch.float16)
    part = {"unet": "denoiser", "vae": "autoencoder"}[component]
    with pytest.raises(ValueError, match=rf"the {part} overflows in float16; float32 may hold"):
        generate(pipe, ["a"], **RUN)


# --- the network that the demo stands in ---------------------------------------------------------


PAGE = """
import os
from align.config.commands import DemoConfig
from align.demo.network import own_address_without_proxy
before = dict(os.environ)
with own_address_without_proxy("127.0.0.1", share=False):
    import gradio as gr
    import httpx
    from align.demo import serve
    with gr.Blocks() as page:
        gr.Markdown("here")
    _, address = serve._launch(page, DemoConfig())
    print(httpx.get(address).status_code, os.environ["no_proxy"])
changed = {k: v for k, v in os.environ.items() if before.get(k) != v}
print(*sorted(changed.keys() & {"http_proxy", "all_proxy"}), flush=True)
os._exit(0)
"""


def test_the_demo_asks_its_own_address_without_a_proxy():
    """In a process of its own: Gradio's server leaves its sockets to the end of it."""
    plain = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    proxies = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", PAGE],
        env=plain | proxies | {"no_proxy": "intern.example"},
        capture_output=True,
        text=True,
        check=True,
    )
    status, changed = done.stdout.split("\n")[-3:-1]
    assert status == "200 intern.example,localhost,127.0.0.1,::1"
    assert changed == ""  # the proxies are as they were


def test_a_public_link_through_socks_says_what_it_needs(monkeypatch):
    from align.demo import network

    monkeypatch.setattr(network.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")
    with (
        pytest.raises(ValueError, match=r"SOCKS proxy of all_proxy, which needs `pip install"),
        network.own_address_without_proxy("127.0.0.1", share=True),
    ):
        pass


def test_the_hub_through_socks_says_what_it_needs():
    from align.models.hub import reach

    def load(source):
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    with pytest.raises(FileNotFoundError, match=r"o/m could not .* SOCKS, which needs `pip inst"):
        reach("o/m", load, "o/m")


def test_a_repository_with_a_variant_alone_is_found_in_its_copy_here(tmp_path, monkeypatch):
    """As `from_pretrained` keeps one; nothing is asked of the Hub."""
    from align.models.parts import only_variant

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--o--m" / "snapshots" / ("0" * 40)
    build("sd").save_pretrained(snapshot, variant="bf16")
    (tmp_path / "models--o--m" / "refs").mkdir()
    (tmp_path / "models--o--m" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    index = json.loads((snapshot / "model_index.json").read_text())
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    assert only_variant(snapshot, parts) == "bf16"
