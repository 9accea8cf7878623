"""Clips: tokenizer, pipeline, files and `align nar generate` on a tiny model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from align.cli import main
from align.nar import NARScheduler, NARTransformer3DModel, NARVideoPipeline, VideoTokenizer
from align.nar.load import load_nar_pipeline
from align.nar.text import learn_words, small_encoder
from align.runs.clips import save_clip

PROMPTS = ["a red circle moving right", "a blue star moving up"]


def tokenizer(**changes):
    settings = {"num_frames": 4, "image_size": (8, 12), "widths": (8, 8, 8), "levels": (5, 3)}
    torch.manual_seed(1)
    made = VideoTokenizer(**settings | changes).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    words = learn_words(PROMPTS, 8)
    model = NARTransformer3DModel(
        grid_shape=(2, 2, 3), vocab_size=15, width=24, num_layers=1, num_heads=2, ffn_width=16,
        condition="text", condition_width=16, num_condition_tokens=8, use_condition_mask=False,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    encoder = small_encoder(words, 16, 8).eval()
    made = NARVideoPipeline(model, tokenizer(), NARScheduler(), words, encoder)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_token_is_a_block_of_time_and_place():
    """What changes in one block changes that token alone, whatever lies around it."""
    made = tokenizer()
    torch.manual_seed(2)
    clips = torch.rand(1, 4, 3, 8, 12)
    before = made.encode(clips)
    assert before.shape == (1, 12)
    changed = clips.clone()
    changed[:, 2:, :, 4:, 8:] = 1 - changed[:, 2:, :, 4:, 8:]  # the last block in all three axes
    after = made.encode(changed)
    # the first convolution looks a pixel beyond the block: its neighbours may change too
    same = (before == after).view(2, 2, 3)
    assert same[0].all()
    assert same[1, 0, 0]
    assert not same[1, 1, 2]


def test_tokenizer_learns_a_clip_and_keeps_time_apart():
    """Frames of one token differ, so both of them have to come back."""
    torch.manual_seed(0)
    made = VideoTokenizer(num_frames=4, image_size=(8, 8), widths=(8, 16, 16), levels=(8, 5, 5))
    shades = torch.tensor([0.1, 0.9, 0.9, 0.1]).view(1, 4, 1, 1, 1).expand(1, 4, 3, 8, 8)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for _ in range(60):
        loss = (made(shades) - shades).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rebuilt = made.decode(made.encode(shades))
    assert rebuilt.shape == shades.shape
    assert (rebuilt - shades).abs().mean() < 0.1


def test_tokenizer_refuses_other_sizes():
    with pytest.raises(ValueError, match="3 frames: must be a multiple of 2"):
        tokenizer(num_frames=3)
    with pytest.raises(ValueError, match="image size 8x10: must be multiples of 4"):
        tokenizer(image_size=(8, 10))
    with pytest.raises(ValueError, match=r"takes clips \[batch, 4, 3, 8, 12\], got \[1, 4, 3, 8,"):
        tokenizer().encode(torch.zeros(1, 4, 3, 8, 8))
    with pytest.raises(ValueError, match="5 tokens do not fill the grid"):
        tokenizer().decode(torch.zeros(1, 5, dtype=torch.long))


def test_a_4x16x16_clip_takes_34_passes():
    from align.nar.grid import wavefront_order

    assert wavefront_order((4, 16, 16)).num_passes == 34


def test_output_types_and_shapes(pipe):
    def draw(**settings):
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        return pipe(PROMPTS, generator=generators, **settings)

    ids = draw(output_type="latent").frames
    assert ids.shape == (2, 12)
    tensor = draw(output_type="pt").frames
    assert tensor.shape == (2, 4, 3, 8, 12)
    torch.testing.assert_close(tensor, pipe.video_tokenizer.decode(ids))
    array = draw(output_type="np").frames
    np.testing.assert_allclose(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    pictures = draw().frames
    assert [len(clip) for clip in pictures] == [4, 4]
    assert pictures[0][0].size == (12, 8)


def test_stream_ends_in_the_clip_and_shows_what_is_known(pipe):
    steps = list(pipe.stream(PROMPTS[0], generator=torch.Generator().manual_seed(1)))
    assert [step.index for step in steps] == list(range(5))  # 2 + 2 + 3 - 2 passes
    known = [(step.ids >= 0).sum().item() for step in steps]
    assert known == sorted(known)
    assert known[0] == 1
    assert (steps[0].frames[:, 2:] == 0.5).all()  # later frames are still grey
    assert steps[0].image.shape == (1, 3, 8, 48)
    once = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(1), output_type="pt").frames
    assert torch.equal(steps[-1].frames, once)
    assert torch.equal(steps[-1].image[..., 12:24], once[:, 1])


def test_saved_and_loaded_it_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    loaded = load_nar_pipeline(str(tmp_path / "model"), "cpu")
    assert isinstance(loaded, NARVideoPipeline)
    one, other = (
        p(PROMPTS, generator=torch.Generator().manual_seed(3), output_type="latent").frames
        for p in (pipe, loaded)
    )
    assert torch.equal(one, other)


def test_command_writes_clips(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "model")
    command = ["nar", "generate", *PROMPTS, "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main([*command, "--grid", "2x2x3", "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out/images/0001.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (4, (12, 8), 120)
        facts = json.loads(gif.info["comment"])
    assert (facts["prompt"], facts["seed"]) == (PROMPTS[1], 1)
    with Image.open(tmp_path / "out/grid.png") as sheet:
        assert sheet.size == (48, 18)  # two strips of four frames
    capsys.readouterr()
    for option, complaint in (
        (["--num-frames", "16"], "a clip of 16 frames of 8x12 was asked for; this model draws 4"),
        (["--height", "64"], "a clip of 4 frames of 64x12 was asked for; this model draws 4"),
        (["--grid", "4x4"], "draws 2x2x3 tokens"),
    ):
        assert main([*command, "--overwrite", "--out", str(tmp_path / "out"), *option]) == 2
        assert complaint in capsys.readouterr().err


def test_a_gif_keeps_its_pixels(tmp_path):
    frames = torch.zeros(3, 3, 4, 5)
    for time in range(3):
        frames[time, time] = 1.0  # red, green, blue
    save_clip(tmp_path / "a.gif", frames, fps=4, prompt="x")
    with Image.open(tmp_path / "a.gif") as gif:
        for time in range(3):
            gif.seek(time)
            pixel = gif.convert("RGB").getpixel((2, 2))
            assert pixel == tuple(255 * (channel == time) for channel in range(3))


def test_mp4_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("align.runs.clips._installed", lambda name: False)
    with pytest.raises(ValueError, match="mp4 needs PyAV"):
        save_clip(tmp_path / "a.mp4", torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="clips are written as gif or mp4, not 'webm'"):
        save_clip(tmp_path / "a.webm", torch.zeros(2, 3, 4, 4))


def test_parts_that_do_not_fit_are_refused(pipe):
    with pytest.raises(ValueError, match="does not match the video tokenizer's"):
        NARVideoPipeline(pipe.transformer, tokenizer(num_frames=8), NARScheduler())
    with pytest.raises(ValueError, match="output_type 'gif': must be one of"):
        pipe(PROMPTS, output_type="gif")
    with pytest.raises(ValueError, match="the prompt is empty"):
        pipe(" ")


def test_best_of_prefers_the_better_clip(pipe):
    from align.commands.nar import draw
    from align.rewards import load_reward

    reward = load_reward(lambda images, prompts: images.flatten(1).mean(1))
    one = draw(pipe, PROMPTS, [1, 2], reward=reward)
    best = draw(pipe, PROMPTS, [1, 2], reward=reward, best_of=4)
    assert (best.scores["reward"] >= one.scores["reward"]).all()
    assert (best.scores["reward"] > one.scores["reward"]).any()
    torch.testing.assert_close(best.images.flatten(1).mean(1), best.scores["reward"])


def test_a_training_batch_follows_from_its_step(monkeypatch):
    monkeypatch.syspath_prepend("scripts/train_embedded")
    from nar_video_tokenizer import draw_clips

    prompts, clips = draw_clips("s", 3, 2)
    again, same = draw_clips("s", 3, 2)
    assert prompts == again
    assert torch.equal(clips, same)
    assert clips.shape == (2, 8, 3, 32, 32)
    assert not torch.equal(draw_clips("s", 4, 2)[1], clips)
