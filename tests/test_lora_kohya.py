"""kohya's layout of every family: written, read again, and read by plain diffusers."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import build, tiny_pipeline

from align.cli import main
from align.diffusion.sample import generate
from align.models.lora import add_lora, export_lora, load_lora, lora_factors, save_lora
from align.models.lora_names import original_layers

PROMPTS = ["a red circle", "two green stars"]
NEWER = ["z-image", "klein", "flux2-dev", "qwen-image", "krea2", "chroma", "lumina2"]
OLDER = ["pixart-alpha", "pixart-sigma", "sd3", "sd3.5", "flux-dev", "sana", "sana-sprint"]
TRANSFORMERS = [*OLDER, *NEWER]
READ_BY_DIFFUSERS = ("sd", "lcm", "sdxl", "z-image", "klein", "flux2-dev", "qwen-image")
EVERYWHERE = {
    "flux-dev": ("to_q", "add_k_proj", "proj_mlp", "proj_out", "norm1.linear", "x_embedder"),
    "sd3.5": ("to_v", "add_q_proj", "attn2.to_q", "ff.net.2", "norm1.linear"),
    "sana": ("attn1.to_q", "attn2.to_v", "conv_inverted", "linear_1"),
    "z-image": ("to_q", "to_v", "feed_forward.w2", "adaLN_modulation.0", "cap_embedder.1"),
    "klein": ("to_q", "add_k_proj", "to_qkv_mlp_proj", "ff_context.linear_in", "to_out"),
    "qwen-image": ("to_q", "add_v_proj", "img_mlp.net.2", "img_mod.1"),
    "krea2": ("to_q", "to_gate", "ff.down", "projector"),
    "chroma": ("to_q", "add_k_proj", "proj_mlp", "proj_out", "x_embedder"),
    "lumina2": ("to_q", "to_v", "feed_forward.linear_2", "norm1.linear"),
}


def run_of(name):
    size = 32 if name.startswith(("sana", "lumina")) else 16
    return {"seed": 3, "num_inference_steps": 2, "height": size, "width": size}


def trained(name, **settings):
    pipe = build(name)
    torch.manual_seed(1)
    for parameter in add_lora(pipe, rank=2, **settings):
        parameter.data = 0.5 * torch.randn_like(parameter)
    return pipe


@pytest.mark.parametrize("name", ["sd", "lcm", "sdxl", *TRANSFORMERS])
def test_every_family_is_written_and_read(name, tmp_path):
    pipe, run = trained(name, alpha=4), run_of(name)
    expected = generate(pipe, PROMPTS, **run)
    assert (expected - generate(tiny_pipeline(name), PROMPTS, **run)).abs().max() > 1e-3
    save_lora(pipe, tmp_path)
    path = export_lora(build(name), str(tmp_path), tmp_path / "kohya.safetensors")
    assert all(key.startswith("lora_unet_") for key in load_file(path))
    again = build(name)
    load_lora(again, str(path))
    torch.testing.assert_close(generate(again, PROMPTS, **run), expected, atol=1e-4, rtol=0)
    if name in READ_BY_DIFFUSERS:
        plain = build(name)
        plain.load_lora_weights(str(path))
        torch.testing.assert_close(generate(plain, PROMPTS, **run), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_stacked_and_other_layers_keep_their_deltas(name, tmp_path):
    pipe = trained(name, targets=EVERYWHERE[name])
    deltas = {k: (up.flatten(1) @ down.flatten(1)) for k, (down, up) in lora_factors(pipe).items()}
    save_lora(pipe, tmp_path)
    path = export_lora(build(name), str(tmp_path), tmp_path / "kohya.safetensors")
    again = build(name)
    load_lora(again, str(path))
    factors = lora_factors(again)
    assert factors.keys() == deltas.keys()
    for layer, (down, up) in factors.items():
        assert len(down) == 2  # the ranks of the other parts of a stack are not dragged along
        torch.testing.assert_close(up.flatten(1) @ down.flatten(1), deltas[layer])


def test_one_lora_over_a_stack_and_its_alpha_are_read(tmp_path):
    """As kohya trains FLUX: one pair of factors for queries, keys and values together."""
    pipe = build("flux-dev")
    tensors = {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.randn(3, 16),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.randn(48, 3),
        "lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(1.5),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    load_lora(pipe, str(tmp_path / "a.safetensors"))
    down, up, _ = tensors.values()
    for part, rows in zip("qkv", (up @ down / 2).split(16), strict=True):
        one = lora_factors(pipe)[f"transformer.transformer_blocks.0.attn.to_{part}"]
        torch.testing.assert_close(one[1] @ one[0], rows)
    dotted = {
        f"diffusion_model.double_blocks.0.img_attn.qkv.{end}": value
        for end, value in zip(
            ("lora_A.weight", "lora_B.weight", "alpha"), tensors.values(), strict=True
        )
    }
    save_file(dotted, tmp_path / "b.safetensors")
    again = build("flux-dev")
    load_lora(again, str(tmp_path / "b.safetensors"))
    for layer, (down, up) in lora_factors(pipe).items():
        assert torch.equal(lora_factors(again)[layer][1] @ lora_factors(again)[layer][0], up @ down)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_original_names_exist_for_what_is_trained_by_default(name):
    transformer = tiny_pipeline(name).transformer
    named = {part for parts in original_layers(transformer).values() for part in parts}
    layers = {layer.removeprefix("transformer.") for layer in lora_factors(trained(name))}
    assert layers <= named


def test_of_another_family_and_without_a_name(tmp_path):
    save_lora(trained("flux-dev"), tmp_path)
    path = export_lora(build("flux-dev"), str(tmp_path), tmp_path / "flux.safetensors")
    for other in ("sd3", "pixart-sigma", "sdxl"):
        with pytest.raises(ValueError, match=r"flux.safetensors .*no LoRA"):
            load_lora(build(other), str(path))
    save_lora(trained("flux-dev", targets=["norm_out.linear"]), tmp_path)
    with pytest.raises(ValueError, match=r"kohya's layout has no name for norm_out.linear"):
        export_lora(build("flux-dev"), str(tmp_path), tmp_path / "flux.safetensors")


def test_on_the_command_line(tmp_path, capsys):
    save_lora(trained("sd3"), tmp_path / "lora")
    build("sd3").save_pretrained(tmp_path / "model")
    arguments = ["--format", "kohya", "--model", str(tmp_path / "model")]
    assert (
        main(["lora", "export", str(tmp_path / "lora"), *arguments, "--out", f"{tmp_path}/k"]) == 0
    )
    path = capsys.readouterr().out.strip()
    assert "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight" in load_file(path)
