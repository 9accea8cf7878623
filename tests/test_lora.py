"""LoRA: identity at the start, plain diffusers reads it, deltas mix exactly, layouts convert."""

import json

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny import build, tiny_pipeline
from torch import nn

from align.diffusion.denoisers import denoiser_module
from align.diffusion.sample import generate
from align.models import lora_files
from align.models.load import load_pipeline
from align.models.lora import (
    add_lora,
    export_lora,
    load_lora,
    lora_disabled,
    lora_factors,
    lora_merged,
    merge_lora,
    save_lora,
    trained_parameters,
)
from align.models.lora_files import mix
from align.models.lora_sources import lora_layers
from align.rewards import provenance

PROMPTS = ["a red circle", "two green stars"]
RUN = {"seed": 3, "num_inference_steps": 2}


def trained(name="sd", seed=0, **settings):
    """A pipeline with a LoRA whose weights are as after some training."""
    pipe = build(name)
    torch.manual_seed(seed)
    for parameter in add_lora(pipe, **settings):
        parameter.data = torch.randn_like(parameter) * 0.3
    return pipe


def weights_with(pipe):
    """The denoiser's weights with its LoRA merged in, as float64."""
    merge_lora(pipe)
    return {k: v.double() for k, v in denoiser_module(pipe).state_dict().items()}


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """Two saved LoRAs, a of rank 4 and scale 2, b of rank 2."""
    root = tmp_path_factory.mktemp("loras")
    save_lora(trained(seed=1, rank=4, alpha=8), root / "a")
    save_lora(trained(seed=2, rank=2), root / "b")
    return root


def test_a_new_lora_changes_nothing_and_alone_is_trainable():
    pipe = build("sd")
    expected = generate(tiny_pipeline("sd"), PROMPTS, **RUN)
    parameters = add_lora(pipe, rank=4)
    assert torch.equal(generate(pipe, PROMPTS, **RUN), expected)
    everything = [p for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()]
    assert {id(p) for p in everything if p.requires_grad} == {id(p) for p in parameters}
    assert len(parameters) == 2 * 4 * 2 * 4  # factors, layers, attentions, transformer blocks


def test_half_precision_models_get_float32_loras():
    pipe = build("sd").to(dtype=torch.bfloat16)
    parameters = add_lora(pipe)
    assert {p.dtype for p in parameters} == {torch.float32}
    images = generate(pipe, PROMPTS, **RUN, grad_steps=1)
    images.mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


def test_plain_diffusers_loads_it_with_the_same_picture(tmp_path):
    pipe = trained(rank=3, alpha=6)
    expected = generate(pipe, PROMPTS, **RUN)
    base = generate(tiny_pipeline("sd"), PROMPTS, **RUN)
    assert (expected - base).abs().max() > 0.05
    save_lora(pipe, tmp_path)
    plain = build("sd")
    plain.load_lora_weights(str(tmp_path))
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    images = plain(PROMPTS, generator=generators, num_inference_steps=2, output_type="pt").images
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_loading_gives_the_same_picture_and_weights_scale_the_delta(tmp_path, loras):
    source = trained(seed=1, rank=4, alpha=8)
    pipe = build("sd")
    load_lora(pipe, str(loras / "a"))
    torch.testing.assert_close(
        generate(pipe, PROMPTS, **RUN), generate(source, PROMPTS, **RUN), atol=1e-5, rtol=0
    )
    base = denoiser_module(tiny_pipeline("sd")).state_dict()
    full, half = weights_with(pipe), build("sd")
    load_lora(half, f"{loras / 'a'}=0.5")
    for name, weight in weights_with(half).items():
        expected = base[name].double() + 0.5 * (full[name] - base[name].double())
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("c", [0.3, 1.5, -0.4])
def test_mixing_is_the_mix_of_deltas(tmp_path, loras, c):
    base = {k: v.double() for k, v in denoiser_module(tiny_pipeline("sd")).state_dict().items()}
    a, b = weights_with(trained(seed=1, rank=4, alpha=8)), weights_with(trained(seed=2, rank=2))
    mix([f"{loras / 'a'}={c}", f"{loras / 'b'}={1 - c}"], tmp_path)
    pipe, both = build("sd"), build("sd")
    load_lora(pipe, str(tmp_path))
    load_lora(both, [f"{loras / 'a'}={c}", f"{loras / 'b'}={1 - c}"])
    together = weights_with(both)
    for name, weight in weights_with(pipe).items():
        expected = base[name] + c * (a[name] - base[name]) + (1 - c) * (b[name] - base[name])
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(together[name], expected, atol=1e-5, rtol=0)


def test_kohya_layout_and_back_through_diffusers(tmp_path, loras):
    path = export_lora(build("sd"), str(loras / "a"), tmp_path / "a.safetensors")
    tensors = load_file(path)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert tensors[f"{name}.lora_down.weight"].shape == (4, 16)
    assert tensors[f"{name}.lora_up.weight"].shape == (16, 4)
    assert tensors[f"{name}.alpha"] == 4
    expected = generate(trained(seed=1, rank=4, alpha=8), PROMPTS, **RUN)
    plain, ours = build("sd"), build("sd")
    plain.load_lora_weights(str(path))
    torch.testing.assert_close(generate(plain, PROMPTS, **RUN), expected, atol=1e-4, rtol=0)
    load_lora(ours, str(path))
    torch.testing.assert_close(generate(ours, PROMPTS, **RUN), expected, atol=1e-4, rtol=0)


def test_kohya_alpha_and_text_encoder_layers_are_read(tmp_path, loras):
    tensors = load_file(export_lora(build("sd"), str(loras / "a"), tmp_path / "a.safetensors"))
    for key in tensors:
        if key.endswith(".alpha"):
            tensors[key] = torch.tensor(1.0)  # a scale of 1/4
    for layer in ("q_proj", "k_proj", "v_proj", "out_proj"):
        te = f"lora_te_text_model_encoder_layers_0_self_attn_{layer}"
        tensors |= {f"{te}.lora_down.weight": torch.randn(2, 16), f"{te}.alpha": torch.tensor(2.0)}
        tensors |= {f"{te}.lora_up.weight": torch.randn(16, 2)}
    save_file(tensors, tmp_path / "b.safetensors")
    plain, ours = build("sd"), build("sd")
    plain.load_lora_weights(str(tmp_path / "b.safetensors"))
    load_lora(ours, str(tmp_path / "b.safetensors"))
    expected = generate(plain, PROMPTS, **RUN)
    torch.testing.assert_close(generate(ours, PROMPTS, **RUN), expected, atol=1e-4, rtol=0)
    assert any(layer.startswith("text_encoder.") for layer in lora_factors(ours))


def test_diffusers_own_files_with_alpha_in_the_metadata(tmp_path):
    pipe = build("sd")
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=["to_q", "to_v"]))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    expected = generate(pipe, PROMPTS, **RUN)
    layers = get_peft_model_state_dict(pipe.unet)
    config = pipe.unet.peft_config["default"].to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    pipe.save_lora_weights(tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=config)
    ours = build("sd")
    load_lora(ours, str(tmp_path))
    torch.testing.assert_close(generate(ours, PROMPTS, **RUN), expected, atol=1e-5, rtol=0)


def test_training_starts_from_a_lora_and_keeps_its_rank(tmp_path, loras):
    expected = generate(trained(seed=1, rank=4, alpha=8), PROMPTS, **RUN)
    pipe = build("sd")
    add_lora(pipe, rank=2, alpha=1, start=str(loras / "a"))
    torch.testing.assert_close(generate(pipe, PROMPTS, **RUN), expected, atol=1e-5, rtol=0)
    path = save_lora(pipe, tmp_path)
    assert {v.shape[0] for k, v in load_file(path).items() if "lora_A" in k} == {4}
    other = build("sd")
    add_lora(other, rank=8, start=str(loras / "a"))
    torch.testing.assert_close(generate(other, PROMPTS, **RUN), expected, atol=1e-5, rtol=0)
    assert {p.shape[0] for n, p in trained_parameters(other).items() if "lora_A" in n} == {8}


def test_training_on_top_of_a_loaded_lora_saves_their_sum(tmp_path, loras):
    pipe = build("sd")
    load_lora(pipe, str(loras / "b"))
    parameters = add_lora(pipe, rank=2)
    for parameter in parameters:
        parameter.data = torch.randn_like(parameter) * 0.3
    trainable = [p for p in pipe.unet.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in parameters}
    expected = generate(pipe, PROMPTS, **RUN)
    save_lora(pipe, tmp_path)
    again = build("sd")
    load_lora(again, str(tmp_path))
    torch.testing.assert_close(generate(again, PROMPTS, **RUN), expected, atol=1e-5, rtol=0)


def test_targets_are_ends_of_names_or_patterns_of_whole_ones():
    pipe = build("sd")
    add_lora(pipe, rank=2, targets=["up_blocks.*.attentions.*", "conv_out"])
    names = {name.split(".lora_")[0] for name in trained_parameters(pipe)}
    kinds = nn.Linear | nn.Conv2d
    plain = build("sd").unet.named_modules()
    everything = {name for name, module in plain if isinstance(module, kinds)}
    attentions = {n for n in everything if n.startswith("up_blocks.") and ".attentions." in n}
    assert attentions
    assert names == attentions | {"conv_out"}
    with pytest.raises(ValueError, match=r"no layer is called 'down_block\.\*'"):
        add_lora(build("sd"), targets=["down_block.*"])


def test_disabled_is_the_base_model_and_leaves_no_trace():
    pipe = trained()
    before, trainable = generate(pipe, PROMPTS, **RUN), set(trained_parameters(pipe))
    with lora_disabled(pipe):
        base = generate(pipe, PROMPTS, **RUN)
    assert torch.equal(base, generate(tiny_pipeline("sd"), PROMPTS, **RUN))
    assert torch.equal(generate(pipe, PROMPTS, **RUN), before)
    now = {n for n, p in pipe.unet.named_parameters() if p.requires_grad}
    assert now == trainable


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_merged_for_a_while_is_the_same_model_without_adapters_and_comes_back_exactly(kind):
    pipe = build(kind)
    targets = ["to_q", "to_v", "conv1"] if kind == "sd" else ["to_q", "to_v"]
    for parameter in add_lora(pipe, rank=2, alpha=3.0, targets=targets):
        parameter.data = torch.randn_like(parameter) * 0.3
    denoiser = denoiser_module(pipe)
    names = [n for n, p in denoiser.named_parameters() if p.requires_grad]
    before = {n: p.detach().clone() for n, p in denoiser.named_parameters()}
    expected = generate(pipe, PROMPTS, **RUN)
    with lora_merged(pipe):
        merged = generate(pipe, PROMPTS, **RUN)
        for parameter in trained_parameters(pipe).values():
            parameter.data = torch.full_like(parameter, torch.nan)  # nobody reads them
        assert torch.equal(generate(pipe, PROMPTS, **RUN), merged)
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=0)
    after = dict(denoiser.named_parameters())
    assert [n for n, p in after.items() if p.requires_grad] == names
    assert all(torch.equal(after[n], p) for n, p in before.items() if ".align." not in n)


def test_merged_for_a_while_leaves_packed_weights_alone():
    pipe = trained()
    expected = generate(pipe, PROMPTS, **RUN)
    layer = next(m for m in pipe.unet.modules() if isinstance(m, LoraLayer))
    packed = layer.get_base_layer()
    plain = packed.weight
    packed.weight = nn.Parameter(torch.zeros(1, dtype=torch.uint8), requires_grad=False)
    with lora_merged(pipe):
        assert not layer.disable_adapters
        packed.weight = plain
        torch.testing.assert_close(generate(pipe, PROMPTS, **RUN), expected, atol=1e-4, rtol=0)


def test_merged_pipelines_are_plain_folders_with_the_same_picture(tmp_path):
    pipe = trained()
    expected = generate(pipe, PROMPTS, **RUN)
    merge_lora(pipe)
    assert not any("lora" in name for name, _ in pipe.unet.named_parameters())
    pipe.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path, device="cpu")
    torch.testing.assert_close(generate(again, PROMPTS, **RUN), expected, atol=1e-5, rtol=0)


def test_run_folders_and_weights_in_load_pipeline(tmp_path, loras):
    build("sd").save_pretrained(tmp_path / "model")
    (tmp_path / "run").mkdir()
    (loras / "a").rename(tmp_path / "run" / "lora")
    try:
        pipe = load_pipeline(tmp_path / "model", device="cpu", lora=f"{tmp_path / 'run'}=0.5")
        assert lora_factors(pipe)
    finally:
        (tmp_path / "run" / "lora").rename(loras / "a")


def test_loras_of_other_models(tmp_path, loras):
    tensors = load_file(loras / "a" / "pytorch_lora_weights.safetensors")
    other = {k.replace("unet.", "transformer."): v for k, v in tensors.items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"of another model: it changes transformer\."):
        load_lora(build("sd"), str(tmp_path / "other.safetensors"))
    wide = {k: torch.zeros(4, 99) if "lora_A" in k else v for k, v in tensors.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"from 99 to 16 features, here it is 16 to 16"):
        load_lora(build("sd"), str(tmp_path / "wide.safetensors"))
    save_file({"weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"is no LoRA of a StableDiffusionPipeline"):
        load_lora(build("sd"), str(tmp_path / "none.safetensors"))


def test_bad_input(tmp_path, loras):
    pipe = build("sd")
    with pytest.raises(FileNotFoundError, match=r"there is no LoRA 'nothing'"):
        load_lora(pipe, "nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no pytorch_lora_weights.safetensors"):
        load_lora(pipe, str(tmp_path))
    with pytest.raises(ValueError, match=r"ends in 'much'; a LoRA's weight is a number"):
        load_lora(pipe, "a=much")
    (tmp_path / "torn.safetensors").write_bytes(b"12345678 torn")
    with pytest.raises(ValueError, match=r"torn.safetensors cannot be read as weights"):
        load_lora(pipe, str(tmp_path / "torn.safetensors"))
    with pytest.raises(ValueError, match=r"no layer is called 'to_p'; layer names end in .*to_q"):
        add_lora(pipe, targets=["to_p"])
    with pytest.raises(ValueError, match=r"rank is 0"):
        add_lora(pipe, rank=0)
    with pytest.raises(ValueError, match=r"format is 'peft'; it must be one of kohya"):
        export_lora(pipe, str(loras / "a"), tmp_path / "x", layout="peft")
    with pytest.raises(ValueError, match=r"there is no LoRA to write"):
        save_lora(build("sd"), tmp_path)


def test_pickles_are_read_as_plain_tensors_only(tmp_path, loras):
    tensors = load_file(loras / "a" / "pytorch_lora_weights.safetensors")
    torch.save(tensors, tmp_path / "a.bin")
    pipe = build("sd")
    load_lora(pipe, str(tmp_path / "a.bin"))
    torch.save({"code": json.JSONDecoder}, tmp_path / "b.bin")
    with pytest.raises(ValueError, match=r"holds more than plain tensors"):
        load_lora(build("sd"), str(tmp_path / "b.bin"))


def test_a_lora_that_ships_is_named_like_an_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setattr(lora_files, "SHIPPED", tmp_path)
    monkeypatch.setattr(provenance, "SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'embedded/mine' here; those that ship are: none"):
        lora_files.find_lora("embedded/mine")
    (tmp_path / "mine" / "lora").mkdir(parents=True)
    file = tmp_path / "mine" / "lora" / lora_files.FILE_NAME
    save_file({"unet.a.lora_A.weight": torch.zeros(1, 2)}, file)
    config = {"model": "embedded/scenes", "reward": "scenes-clip=2"}
    (tmp_path / "mine" / "run.json").write_text(json.dumps({"config": config}))
    assert lora_files.find_lora("embedded/mine") == file
    assert lora_files.shipped_loras() == {"embedded/mine": "embedded/scenes"}
    assert provenance.trained_terms(["embedded/mine=0.5"]) == ["scenes-clip"]
    with pytest.raises(FileNotFoundError, match=r"those that ship are: embedded/mine"):
        lora_files.find_lora("embedded/b")


@pytest.mark.parametrize("name", lora_files.shipped_loras())
def test_every_lora_that_ships_fits_its_model_and_has_a_card(name):
    folder = lora_files.SHIPPED / name.removeprefix("embedded/")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"--lora {name}" in card
    assert lora_files.find_lora(name).stat().st_size <= 3e6
    pipe = load_pipeline(lora_files.shipped_loras()[name], lora=name)
    assert lora_layers(pipe)
