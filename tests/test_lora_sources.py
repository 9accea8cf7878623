"""LoRAs as other people's tools write them: the delta that their own rule gives, or a sentence."""

import json
import re

import pytest
import torch
from ldm import unet_name
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.loha import LoHaConfig
from peft.tuners.lokr import LoKrConfig
from safetensors.torch import save_file
from tiny import build
from torch import nn

from align.diffusion.denoisers import denoiser_module
from align.diffusion.sample import generate
from align.evaluation.judging import trained_reward
from align.evaluation.methods import parse_methods
from align.evaluation.nar_methods import nar_source
from align.models.lora import (
    add_lora,
    load_lora,
    lora_factors,
    lora_merged,
    merge_lora,
    save_lora,
)
from align.models.lora_files import mix, parse_lora
from align.models.lora_names import original_layers
from align.rewards import parse_expression

TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv2"
RUN = {"seed": 3, "num_inference_steps": 2}


def kohya(layer):
    return f"lora_unet_{layer.replace('.', '_')}"


def weight_of(pipe, layer):
    return denoiser_module(pipe).get_submodule(layer).weight


def loaded_delta(name, tensors, path, layer, save=save_file):
    """What loading a file adds to a layer's weight, after it is merged."""
    save({k: v.contiguous() for k, v in tensors.items()}, path)
    pipe = build(name)
    before = weight_of(pipe, layer).clone()
    load_lora(pipe, str(path))
    merge_lora(pipe)
    return weight_of(pipe, layer) - before


def draw(*shape):
    return torch.randn(*shape)


def pair(out=16, inside=16, rank=2):
    down, up = draw(rank, inside), draw(out, rank)
    return down, up, up @ down


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# --- LyCORIS -------------------------------------------------------------------------------------


def lycoris(kind):
    """(pieces, delta) of a layer of 16 to 16 features, or of a convolution of 8 to 8 channels."""
    a1, b1, a2, b2 = draw(16, 3), draw(3, 16), draw(16, 3), draw(3, 16)
    w1, w2 = draw(4, 2), draw(4, 8)
    if kind == "loha":
        pieces = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
        return TO_Q, pieces | {"alpha": torch.tensor(1.5)}, (a1 @ b1) * (a2 @ b2) * 0.5
    if kind == "lokr":  # without a rank its alpha counts for nothing
        return TO_Q, {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(9.0)}, torch.kron(w1, w2)
    if kind == "lokr-low-rank":
        a, b = draw(4, 2), draw(2, 8)
        pieces = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(1.0)}
        return TO_Q, pieces, torch.kron(w1, a @ b) * 0.5
    if kind == "diff":
        delta = draw(16, 16)
        return TO_Q, {"diff": delta}, delta
    if kind == "diff-conv":
        delta = draw(8, 8, 3, 3)
        return CONV, {"diff": delta}, delta
    if kind == "mid":
        down, mid, up = draw(2, 8, 1, 1), draw(2, 2, 3, 3), draw(8, 2, 1, 1)
        delta = torch.einsum("or,rshw,si->oihw", up.flatten(1), mid, down.flatten(1))
        names = ("lora_down.weight", "lora_mid.weight", "lora_up.weight", "alpha")
        pieces = dict(zip(names, (down, mid, up, torch.tensor(6.0)), strict=True))
        return CONV, pieces, delta * 3
    if kind == "loha-conv":
        a1, b1, a2, b2 = draw(8, 2), draw(2, 72), draw(8, 2), draw(2, 72)
        pieces = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
        return CONV, pieces, ((a1 @ b1) * (a2 @ b2)).view(8, 8, 3, 3)
    assert kind == "lokr-conv"
    w1, w2 = draw(2, 4), draw(4, 2, 3, 3)
    return CONV, {"lokr_w1": w1, "lokr_w2": w2}, torch.kron(w1[..., None, None], w2)


KINDS = ["loha", "lokr", "lokr-low-rank", "diff", "diff-conv", "mid", "loha-conv", "lokr-conv"]


@pytest.mark.parametrize("kind", KINDS)
def test_lycoris_files_are_their_weight_deltas(kind, tmp_path):
    layer, pieces, delta = lycoris(kind)
    tensors = {f"{kohya(layer)}.{name}": value for name, value in pieces.items()}
    found = loaded_delta("sd", tensors, tmp_path / "a.safetensors", layer)
    torch.testing.assert_close(found, delta, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=3, alpha=2, target_modules=["conv2"], use_effective_conv2d=True),
        LoKrConfig(
            r=2, alpha=3, target_modules=["conv2"], use_effective_conv2d=True, decompose_both=True
        ),
    ],
    ids=["loha", "lokr"],
)
def test_a_folder_of_peft_has_its_alpha_in_a_file_beside(config, tmp_path):
    """The oracle is PEFT's own delta of a convolution in Tucker form."""
    config.init_weights = False
    unet = inject_adapter_in_model(config, build("sd").unet)
    delta = unet.get_submodule(CONV).get_delta_weight("default").detach()
    tensors = {
        f"base_model.model.{name.removesuffix('.default')}": value.detach().contiguous()
        for name, value in unet.named_parameters()
        if ".default" in name
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": config.r, "alpha": config.alpha})
    )
    pipe = build("sd")
    before = weight_of(pipe, CONV).clone()
    load_lora(pipe, str(tmp_path))
    merge_lora(pipe)
    torch.testing.assert_close(weight_of(pipe, CONV) - before, delta, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "factor"),
    [({}, 1), ({"lora_alpha": 6, "r": 2}, 3), ({"lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5)],
)
def test_a_lora_of_peft_has_its_alpha_in_a_file_beside(config, factor, tmp_path):
    down, up, delta = pair()
    tensors = {f"base_model.model.{TO_Q}.lora_A.weight": down}
    tensors[f"base_model.model.{TO_Q}.lora_B.weight"] = up
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = loaded_delta("sd", tensors, tmp_path / "adapter_model.safetensors", TO_Q)
    torch.testing.assert_close(found, delta * factor)


# --- names of layers -----------------------------------------------------------------------------

OLD = TO_Q.replace(".to_q", ".processor.to_q_lora")
FORMS = {
    "raw PEFT": (f"unet.{TO_Q}.lora_A.default.weight", f"unet.{TO_Q}.lora_B.default.weight"),
    "no prefix": (f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"),
    "AlignProp's": (f"{OLD}.down.weight", f"{OLD}.up.weight"),
    "with unet.": (f"unet.{OLD}.down.weight", f"unet.{OLD}.up.weight"),
    "lora.down": (f"unet.{TO_Q}.lora.down.weight", f"unet.{TO_Q}.lora.up.weight"),
    "lora_linear_layer": (
        f"unet.{TO_Q}.lora_linear_layer.down.weight",
        f"unet.{TO_Q}.lora_linear_layer.up.weight",
    ),
    "kohya's": (f"{kohya(TO_Q)}.lora_down.weight", f"{kohya(TO_Q)}.lora_up.weight"),
    "lycoris_": (
        f"lycoris_{TO_Q.replace('.', '_')}.lora_down.weight",
        f"lycoris_{TO_Q.replace('.', '_')}.lora_up.weight",
    ),
    "original": (
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_up.weight",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_every_form_of_a_name(form, suffix, tmp_path):
    down, up, delta = pair()
    names = FORMS[form]
    save = save_file if suffix == ".safetensors" else torch.save
    tensors = dict(zip(names, (down, up), strict=True))
    found = loaded_delta("sd", tensors, tmp_path / f"a{suffix}", TO_Q, save)
    torch.testing.assert_close(found, delta)


@pytest.mark.parametrize("form", ["raw PEFT", "kohya's", "with unet."])
def test_an_alpha_beside_any_form(form, tmp_path):
    down, up, delta = pair()
    names = FORMS[form]
    stem = re.sub(r"(_lora\.down|\.lora_down|\.lora_A\.default)\.weight$", "", names[0])
    tensors = dict(zip(names, (down, up), strict=True)) | {f"{stem}.alpha": torch.tensor(6.0)}
    found = loaded_delta("sd", tensors, tmp_path / "a.safetensors", TO_Q)
    torch.testing.assert_close(found, delta * 3)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_every_layer_of_a_unet_by_its_original_name(name, tmp_path):
    """The names are those of `ldm.py`, by which the single-file tests write checkpoints."""
    unet = build(name).unet
    tensors, expected = {}, {}
    for layer, module in unet.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if layer.startswith("add_embedding"):
            original = f"label_emb.0.{2 * int(layer[-1]) - 2}"
        else:
            original = unet_name(f"{layer}.weight", unet.config.layers_per_block, unet)
            original = original.removesuffix(".weight")
        shape = module.weight.shape
        down, up = draw(1, *shape[1:]), draw(len(module.weight), 1, *[1] * (len(shape) - 2))
        stem = f"lora_unet_{original.replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        expected[f"unet.{layer}"] = up.flatten(1) @ down.flatten(1)
    save_file(tensors, tmp_path / "a.safetensors")
    pipe = build(name)
    load_lora(pipe, str(tmp_path / "a.safetensors"))
    factors = lora_factors(pipe)
    assert factors.keys() == expected.keys()
    for layer, (down, up) in factors.items():
        torch.testing.assert_close(up.flatten(1) @ down.flatten(1), expected[layer])


@pytest.mark.parametrize("wrapped", ["text_model.", ""])
@pytest.mark.parametrize("form", ["{}.lora_A.weight", "{}.lora_linear_layer.down.weight"])
def test_text_encoders_before_and_after_transformers_5(wrapped, form, tmp_path):
    down, up, delta = pair()
    layer = "encoder.layers.0.self_attn.q_proj"
    key = form.format(f"text_encoder.{wrapped}{layer}")
    other = key.replace("lora_A", "lora_B").replace(".down.", ".up.")
    unet = {f"unet.{TO_Q}.lora_A.weight": draw(2, 16), f"unet.{TO_Q}.lora_B.weight": draw(16, 2)}
    save_file({key: down, other: up, **unet}, tmp_path / "a.safetensors")
    pipe = build("sd")
    load_lora(pipe, str(tmp_path / "a.safetensors"))
    mine = [f for name, f in lora_factors(pipe).items() if name.endswith(layer)]
    assert len(mine) == 1
    torch.testing.assert_close(mine[0][1] @ mine[0][0], delta)
    plain = build("sd")
    plain.load_lora_weights(str(tmp_path / "a.safetensors"))
    torch.testing.assert_close(generate(pipe, ["a"], **RUN), generate(plain, ["a"], **RUN))


def test_a_mix_of_files_from_before_and_after(tmp_path):
    deltas, layer = [], "encoder.layers.0.self_attn.q_proj"
    for index, wrapped in enumerate(("text_model.", "")):
        down, up, delta = pair()
        key = f"text_encoder.{wrapped}{layer}"
        file = tmp_path / f"{index}.safetensors"
        save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, file)
        deltas.append(delta)
    mix([str(tmp_path / "0.safetensors"), f"{tmp_path / '1.safetensors'}=-2"], tmp_path / "mixed")
    pipe = build("sd")
    load_lora(pipe, str(tmp_path / "mixed"))
    (factors,) = lora_factors(pipe).values()
    torch.testing.assert_close(factors[1] @ factors[0], deltas[0] - 2 * deltas[1])


# --- transformers --------------------------------------------------------------------------------


def modulation(pipe, layer):
    module = pipe.transformer.get_submodule(layer)
    return module.weight.shape


@pytest.mark.parametrize(
    ("name", "key", "layer", "swapped"),
    [
        (
            "sd3.5",
            "joint_blocks_0_context_block_adaLN_modulation_1",
            "transformer_blocks.0.norm1_context.linear",
            False,
        ),
        (
            "sd3.5",
            "joint_blocks_1_context_block_adaLN_modulation_1",
            "transformer_blocks.1.norm1_context.linear",
            True,
        ),
        ("sd3.5", "final_layer_adaLN_modulation_1", "norm_out.linear", True),
        ("flux-dev", "final_layer_adaLN_modulation_1", "norm_out.linear", True),
    ],
)
def test_modulations_that_sd_scripts_trains(name, key, layer, swapped, tmp_path):
    out, inside = modulation(build(name), layer)
    down, up, delta = pair(out, inside)
    stem = next(iter(original_layers(build(name).transformer)))  # one more layer, not alone
    parts = original_layers(build(name).transformer)[stem]
    rows = sum(modulation(build(name), part)[0] for part in parts)
    inner = weight_of(build(name), parts[0])[0].numel()
    tensors = {
        f"lora_unet_{key}.lora_down.weight": down,
        f"lora_unet_{key}.lora_up.weight": up,
        f"lora_unet_{key}.alpha": torch.tensor(2.0),
        f"lora_unet_{stem.replace('.', '_')}.lora_down.weight": draw(2, inner),
        f"lora_unet_{stem.replace('.', '_')}.lora_up.weight": draw(rows, 2),
    }
    found = loaded_delta(name, tensors, tmp_path / "a.safetensors", layer)
    # The original has shift above scale where diffusers has scale above shift.
    expected = torch.cat(list(delta.chunk(2))[::-1]) if swapped else delta
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sd3.5", "flux-dev", "sd"])
def test_keys_that_fit_nowhere_are_named(name, tmp_path):
    layer, _ = next(
        (n, m)
        for n, m in denoiser_module(build(name)).named_modules()
        if isinstance(m, nn.Linear) and n.endswith("to_q")
    )
    out, inside = weight_of(build(name), layer).shape
    down, up, _ = pair(out, inside)
    good = {f"{kohya(layer)}.lora_down.weight": down, f"{kohya(layer)}.lora_up.weight": up}
    odd = {f"lora_unet_mystery_{i}.lora_{end}.weight": down for i in (1, 2) for end in ("A", "B")}
    save_file(good | {k: v.clone() for k, v in odd.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"4 of 6 keys that fit no layer .*mystery_1.*and 1 more"):
        load_lora(build(name), str(tmp_path / "a.safetensors"))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_magnitude_vector": draw(16)}, r"is a DoRA.*it has lora_unet_.*magnitude"),
        ({"dora_scale": draw(16)}, r"is a DoRA"),
        ({"oft_blocks": draw(2, 4, 4)}, r"is an OFT.*oft_blocks"),
        ({"lora_up.bias": draw(16)}, r"1 of 3 keys that fit no layer .*lora_up\.bias"),
        ({"diff_b": draw(16)}, r"1 of 3 keys that fit no layer .*diff_b"),
        ({"lora_down.weight": torch.full((2, 16), float("nan"))}, r"not finite, in unet\.down_blo"),
        ({"lora_up.weight": torch.full((16, 2), float("inf"))}, r"not finite"),
        ({"lora_A.other.weight": draw(2, 16)}, r"has two values for one layer"),
        ({"lora_up.weight": None}, r"is incomplete: lora_unet_.*lacks 'lora_up'"),
    ],
)
def test_what_no_delta_holds_is_refused_with_its_keys(changes, message, tmp_path):
    down, up, _ = pair()
    tensors = {"lora_down.weight": down, "lora_up.weight": up} | changes
    named = {f"{kohya(TO_Q)}.{k}": v for k, v in tensors.items() if v is not None}
    save_file(named, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        load_lora(build("sd"), str(tmp_path / "a.safetensors"))


def test_a_file_of_nothing_known_says_its_keys_and_leaves_the_pipeline_alone(tmp_path):
    pipe = build("sd")
    expected = generate(pipe, ["a"], **RUN)
    for stem in ("mystery.lora_A", "unet.mystery.lora_A", "double_blocks.0.img_attn.lora_K"):
        save_file({f"{stem}.weight": draw(2, 16)}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=rf"no LoRA of a StableDiff.*{re.escape(stem)}\.weigh"):
            load_lora(pipe, str(tmp_path / "a.safetensors"))
        assert torch.equal(generate(pipe, ["a"], **RUN), expected)


def with_adapter(config, name="user"):
    pipe = build("sd")
    inject_adapter_in_model(config, pipe.unet, adapter_name=name)
    torch.manual_seed(1)
    for key, parameter in pipe.unet.named_parameters():
        if f".{name}" in key:
            parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
        parameter.requires_grad_(False)
    return pipe


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (LoraConfig(r=2, target_modules=["to_q"], use_dora=True), "a DoRA"),
        (LoraConfig(r=2, target_modules=["to_out.0"], lora_bias=True), "a LoRA with a bias"),
        (LoHaConfig(r=2, target_modules=["to_q"]), "a loha layer"),
    ],
    ids=["dora", "bias", "loha"],
)
def test_adapters_that_are_more_than_two_factors(config, kind, tmp_path):
    pipe = with_adapter(config)
    expected = generate(pipe, ["a"], **RUN)
    assert (expected - generate(build("sd"), ["a"], **RUN)).abs().max() > 1e-4
    for act in (
        lambda: save_lora(pipe, tmp_path),
        lambda: merge_lora(pipe),
        lambda: add_lora(pipe),
    ):
        with pytest.raises(ValueError, match=rf"adapter 'user' is {kind}.* merge it into the w"):
            act()
    assert not list(tmp_path.iterdir())
    with lora_merged(pipe):
        torch.testing.assert_close(generate(pipe, ["a"], **RUN), expected, atol=1e-6, rtol=0)


# --- where files are -----------------------------------------------------------------------------


def write_lora(path, scale=1.0, save=save_file):
    path.parent.mkdir(parents=True, exist_ok=True)
    down, up, _ = pair()
    save({f"{OLD}.down.weight": down, f"{OLD}.up.weight": up * scale}, path)


def test_a_checkpoint_folder_of_alignprop(tmp_path):
    run = tmp_path / "checkpoints"
    for step in (1, 2):
        write_lora(run / f"checkpoint_{step}" / "pytorch_lora_weights.bin", save=torch.save)
        torch.save({"step": step}, run / f"checkpoint_{step}" / "optimizer.bin")
    pipe = build("sd")
    load_lora(pipe, str(run / "checkpoint_2"))
    assert list(lora_factors(pipe)) == [f"unet.{TO_Q}"]
    with pytest.raises(FileNotFoundError, match=r"some below it, in checkpoint_1, checkpoint_2"):
        load_lora(build("sd"), str(run))
    write_lora(tmp_path / "many" / "a.safetensors")
    write_lora(tmp_path / "many" / "b.SAFETENSORS")
    with pytest.raises(FileNotFoundError, match=r"2 files of weights; name one: a.safetensors, b"):
        load_lora(build("sd"), str(tmp_path / "many"))
    load_lora(build("sd"), str(tmp_path / "many" / "b.SAFETENSORS"))


def test_what_exists_is_a_path_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, folder = "sweep/style-epoch=9.safetensors", "sweep/lr=0.001"
    write_lora(tmp_path / file)
    write_lora(tmp_path / folder / "lora" / "pytorch_lora_weights.safetensors")
    for path in (file, folder, f"{folder}/lora"):
        assert parse_lora(path) == (path, 1.0)
        assert parse_lora(f"{path}=-0.5") == (path, -0.5)
        (method,) = parse_methods(f"lora={path}=2")
        assert method.loras == (f"{path}=2",)
        pipe, double = build("sd"), build("sd")
        load_lora(pipe, path)
        load_lora(double, f"{path}=2")
        (one,), (two,) = lora_factors(pipe).values(), lora_factors(double).values()
        torch.testing.assert_close(2 * (one[1] @ one[0]), two[1] @ two[0])
    write_lora(tmp_path / "sweep" / "lr" / "pytorch_lora_weights.safetensors", scale=50)
    assert parse_lora(folder) == (folder, 1.0)  # not sweep/lr at a weight of 0.001
    for value in ("none=much", "none=nan", "none=inf"):
        with pytest.raises(ValueError, match=r"no LoRA 'none=.*a LoRA's weight is a number"):
            parse_lora(value)


def test_runs_of_such_names_are_known_by_their_run_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, reward in (("lr", "jpeg"), ("lr=1", "scenes-vqa")):
        write_lora(tmp_path / name / "lora" / "pytorch_lora_weights.safetensors")
        facts = {"command": "nar align", "config": {"reward": reward, "model": name}}
        (tmp_path / name / "run.json").write_text(json.dumps(facts))
    assert trained_reward("lr=1") == trained_reward("lr=1/lora=0.5") == "scenes-vqa"
    assert trained_reward("lr=0.5") == "jpeg"
    assert nar_source("lr=1") == ("lr=1", ("lr=1",))
    assert nar_source("lr=0.5") == ("lr", ("lr=0.5",))


def test_separators_in_the_name_of_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "c+d", "e,f=1"):
        write_lora(tmp_path / name / "pytorch_lora_weights.safetensors")
    methods = parse_methods("base,lora=a,b,lora=c+d=0.5+bon=4,lora=e,f=1,bon=2")
    assert [method.loras for method in methods] == [
        (), ("a,b",), ("c+d=0.5",), ("e,f=1",), (),
    ]  # fmt: skip
    assert [method.count for method in methods] == [None, None, 4, None, 2]


def test_rewards_in_files_of_such_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v=2.py").write_text("def f(images, prompts): return images.mean((1, 2, 3))\n")
    (tmp_path / "clip=3").mkdir()
    found = parse_expression("v=2.py:f,v=2.py:f=0.5,clip:clip=3,clip:clip=3=2,clip:other=3")
    assert [weight for _, weight in found.items] == [1, 0.5, 1, 2, 3]
    assert [(term.name, term.argument) for term, _ in found.items] == [
        ("v=2.py", "f"), ("v=2.py", "f"), ("clip", "clip=3"), ("clip", "clip=3"), ("clip", "other"),
    ]  # fmt: skip
