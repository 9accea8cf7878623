"""Wan: the four ideas with a time axis. Parity, gradients, LoRA, training, files, refusals."""

import json

import pytest
import torch
from PIL import Image
from tiny import build, tiny_pipeline
from train_helpers import train

from align.alignprop.frozen import recompute_blocks, spare_decoder
from align.alignprop.memory import plan
from align.cli import main
from align.config.train import TrainConfig
from align.diffusion.denoisers import refuse_videos
from align.diffusion.sample import decode, generate, make_noise
from align.models.load import load_pipeline
from align.models.lora import add_lora, export_lora, load_lora, save_lora
from align.noise_opt.search import optimize
from align.rewards import load_reward
from align.rewards.frames import frame_terms

PROMPTS = ["a red circle", "two green stars over a quiet lake"]
SIZE = {"height": 16, "width": 32, "num_frames": 5}
RUN = {"num_inference_steps": 2, **SIZE}


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def own_videos(pipe, **settings):
    """(b, t, 3, height, width), as the pipeline itself draws them."""
    return pipe(prompt=list(PROMPTS), output_type="pt", max_sequence_length=64, **settings).frames


def brightness(images, prompts):
    return images.square().mean((1, 2, 3))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_same_videos_as_the_pipeline(guidance_scale, num_frames):
    settings = RUN | {"guidance_scale": guidance_scale, "num_frames": num_frames}
    pipe = tiny_pipeline("wan")
    expected = own_videos(pipe, generator=seeded(7, 8), **settings)
    actual = generate(pipe, PROMPTS, generator=seeded(7, 8), max_sequence_length=64, **settings)
    assert actual.shape == (2, num_frames, 3, 16, 32)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert (actual[0] - actual[1]).abs().max() > 0.01
    if num_frames > 1:
        assert (actual[:, 0] - actual[:, -1]).abs().max() > 0.01


def test_negative_prompts_and_own_latents():
    pipe, noise = tiny_pipeline("wan"), make_noise(tiny_pipeline("wan"), [1, 2], **SIZE)
    assert noise.shape == (2, 4, 3, 8, 16)
    own = {"latents": noise, "guidance_scale": 4.0, **RUN}
    expected = own_videos(pipe, negative_prompt=["blue", "grey"], **own)
    actual = generate(
        pipe, PROMPTS, negative_prompts=["blue", "grey"], max_sequence_length=64, **own
    )
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("float64_stays")
def test_gradients_to_lora_and_noise():
    pipe = build("wan")
    for part in (pipe.text_encoder, pipe.transformer, pipe.vae):
        part.double()
    convolutions = [m for m in pipe.vae.decoder.modules() if isinstance(m, torch.nn.Conv3d)]
    convolutions[-1].weight.data *= 0.1  # little contrast, so that the clamp does not act
    torch.manual_seed(1)
    parameters = add_lora(pipe, rank=2)
    for parameter in parameters:
        parameter.data = 0.2 * torch.randn_like(parameter)
    noise = make_noise(pipe, [0, 1], **SIZE).requires_grad_(True)
    assert noise.dtype == torch.float64
    leaves = [noise, *parameters]
    directions = [torch.randn_like(leaf) for leaf in leaves]

    def score(**settings):
        settings |= {"latents": noise, "guidance_scale": 2.0, "max_sequence_length": 32, **RUN}
        videos = generate(pipe, PROMPTS, **settings)
        assert 0 < videos.min() < videos.max() < 1
        weights = torch.linspace(-1, 1, videos.numel(), dtype=videos.dtype)
        return (weights * videos.sin().flatten()).sum()

    grads = torch.autograd.grad(score(grad_steps="all", checkpointing=True), leaves)
    recompute_blocks(pipe.transformer, True)
    spare_decoder(pipe.vae, True)
    again = torch.autograd.grad(score(grad_steps="all"), leaves)
    for plain, recomputed in zip(grads, again, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-9, rtol=1e-7)
    step = 1e-6
    for part in (slice(0, 1), slice(1, None)):
        values = []
        for sign in (1, -2, 1):
            for leaf, direction in zip(leaves[part], directions[part], strict=True):
                leaf.data += sign * step * direction
            values.append(score().item())
        measured = (values[0] - values[1]) / (2 * step)
        pairs = zip(grads[part], directions[part], strict=True)
        assert sum((g * d).sum().item() for g, d in pairs) == pytest.approx(measured, rel=1e-3)
        assert abs(measured) > 1e-6


def test_overexposed_frames_can_return():
    pipe = build("wan")
    pipe.vae.decoder.conv_out.bias.data += 3
    latents = make_noise(pipe, [0], **SIZE).requires_grad_()
    videos = decode(pipe, latents)
    assert videos.min() == 1
    (gradient,) = torch.autograd.grad(videos.sum(), latents)  # a loss: pixels are to fall
    assert gradient.abs().amax((0, 1, 3, 4)).min() > 0  # in every frame of the latents


def test_a_lora_loads_in_plain_diffusers_and_comes_back_from_kohya_s_layout(tmp_path):
    pipe = build("wan")
    torch.manual_seed(1)
    for parameter in add_lora(pipe, rank=2, alpha=4):
        parameter.data = 0.5 * torch.randn_like(parameter)
    settings = {"max_sequence_length": 64, **RUN}
    expected = generate(pipe, PROMPTS, seed=3, **settings)
    plain_videos = generate(tiny_pipeline("wan"), PROMPTS, seed=3, **settings)
    assert (expected - plain_videos).abs().max() > 1e-3
    save_lora(pipe, tmp_path)
    plain = build("wan")
    plain.load_lora_weights(str(tmp_path))
    videos = own_videos(plain, generator=seeded(3, 4), **RUN)
    torch.testing.assert_close(videos, expected, atol=1e-4, rtol=0)
    again = build("wan")
    load_lora(again, str(export_lora(build("wan"), str(tmp_path), tmp_path / "k.safetensors")))
    torch.testing.assert_close(
        generate(again, PROMPTS, seed=3, **settings), expected, atol=1e-4, rtol=0
    )


def test_a_reward_of_a_video_is_the_mean_over_every_nth_frame():
    reward, videos = load_reward(brightness), torch.rand(2, 5, 3, 8, 8)
    (scores,) = frame_terms(reward, videos, PROMPTS, every=2).values()
    torch.testing.assert_close(scores, videos[:, [0, 2, 4]].square().mean((1, 2, 3, 4)))
    (scores,) = frame_terms(reward, videos[:, 0], PROMPTS).values()
    torch.testing.assert_close(scores, videos[:, 0].square().mean((1, 2, 3)))


@pytest.mark.parametrize("grad_window", ["1", "all"])
def test_two_updates_through_the_window(grad_window, tmp_path):
    config = TrainConfig(
        **RUN,
        steps=2, batch_size=2, prompts="animals", device="cpu", grad_window=grad_window,
        reward_every=2, tracker="none", learning_rate=0.05, scheduler=None, vae_tiling=True,
        judge="jpeg", judge_prompts="scenes-heldout-a", judge_images=4, judge_every=2,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    result = train(config, reward=brightness, pipe=build("wan"))
    assert [record["step"] for record in result.metrics] == [1, 2]
    assert all(record["grad_norm"] > 0 for record in result.metrics)
    assert "judge" in result.metrics[-1]
    pipe = build("wan")
    load_lora(pipe, str(result.out))
    with Image.open(result.out / "images" / "after.gif") as clip:
        assert clip.n_frames == 5
    assert (result.out / "images" / "after.png").is_file()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wan") / "tiny-wan"
    build("wan").save_pretrained(path)
    return path


def test_the_command_writes_videos(folder, tmp_path):
    words = ["generate", *PROMPTS, "--model", str(folder), "--num-inference-steps", "2"]
    words += ["--height", "16", "--width", "32", "--num-frames", "5", "--reward", "jpeg"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "images" / "0001.gif") as clip:
        assert clip.n_frames == 5
        assert json.loads(clip.info["comment"])["prompt"] == PROMPTS[1]
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["images/0000.gif", "images/0001.gif"]
    assert (tmp_path / "out" / "grid.png").is_file()


def test_memory_is_estimated_and_grows_with_the_frames(folder):
    totals = []
    for frames in (1, 9):
        config = TrainConfig(
            model=str(folder), prompts="animals", reward="jpeg", device="cpu", batch_size=1,
            height=16, width=32, num_frames=frames,
        )  # fmt: skip
        totals.append(plan(config)[1].parts["activations"])
    assert totals[0] < totals[1]


def test_bad_input_is_one_sentence(folder, capsys, tmp_path):
    pipe = tiny_pipeline("wan")
    with pytest.raises(ValueError, match=r"^num_frames is 4; Wan needs 1 and a multiple of 2$"):
        generate(pipe, PROMPTS, **RUN | {"num_frames": 4})
    with pytest.raises(ValueError, match=r"^num_frames is 5; Stable Diffusion 1.x/2.x draws pict"):
        generate(tiny_pipeline("sd"), PROMPTS, num_frames=5)
    with pytest.raises(
        ValueError, match=r"^evaluate is for pictures, and WanPipeline draws videos"
    ):
        refuse_videos(pipe, "evaluate")
    with pytest.raises(ValueError, match=r"^optimize is for pictures"):
        optimize(pipe, "a red circle", brightness)
    words = ["optimize", "a red circle", "--model", str(folder), "--reward", "jpeg"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "WanPipeline draws videos; take `align generate`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    two = build("wan")
    two.register_modules(transformer_2=two.transformer)
    with pytest.raises(ValueError, match=r"is a Wan 2\.2; of Wan the text-to-video models of 2\.1"):
        generate(two, PROMPTS, **RUN)


def test_a_folder_loads_again(folder):
    pipe, settings = load_pipeline(folder, device="cpu"), {"seed": 1, **RUN}
    expected = generate(tiny_pipeline("wan"), PROMPTS, **settings)
    torch.testing.assert_close(generate(pipe, PROMPTS, **settings), expected, atol=1e-5, rtol=0)
