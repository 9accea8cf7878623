"""The NAR tab's handler: pictures, clips, corners, LoRAs; and what may be uploaded to it."""

import base64
import json
import re
import threading

import gradio as gr
import pytest
import torch
from demo_helpers import data_url, nar_model, opened, skipped, text_of, tiny_video_nar
from PIL import Image

from align.cli import main
from align.demo import nar_handler, uploads
from align.demo.drawing import Corner, corner_ids, nar_pipeline

PROMPT = "two green stars"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """An empty runs folder."""
    monkeypatch.chdir(tmp_path)


def nar(model, run_name="", **changes):
    sent = {
        "prompt": PROMPT, "model": model, "lora": "", "seed": 5, "randomize_seed": False,
        "guidance_scale": 2.0, "temperature": 0.9, "top_k": 0, "top_p": 1.0, "num_images": 2,
        "compare": False, "picture": "", "share": 0.5,
    }  # fmt: skip
    assert set(changes) <= set(sent)
    return nar_handler.make_nar(True)(*(sent | changes).values(), run_name)


def held_pass(model, monkeypatch):
    """Hold the second pass of a model until the event is set: a tiny one ends before a look."""
    pipe, seen = nar_pipeline(model), threading.Event()
    wavefronts = pipe.wavefronts

    def held(*arguments, **settings):
        for front in wavefronts(*arguments, **settings):
            if front.index == 1:
                assert seen.wait(60)
            yield front

    monkeypatch.setattr(pipe, "wavefronts", held)
    return seen


def test_nar_pictures_are_those_of_align_nar_generate(tmp_path, monkeypatch):
    from align.commands.nar import load_nar_pipeline

    name = nar_model(tmp_path / "nar")
    gallery, statuses, seen = None, [], held_pass(name, monkeypatch)
    for shown, _, status, _, _ in nar(name, compare=True):
        statuses += [] if skipped(status) else [text_of(status)]
        if "1 of" in statuses[-1]:
            seen.set()
        if isinstance(shown, list) and shown and isinstance(shown[0], tuple):
            gallery = [opened(path) for path, _ in shown]
    pipe = load_nar_pipeline(name)
    expected = pipe(
        [PROMPT], num_images_per_prompt=2, guidance_scale=2.0, temperature=0.9, top_k=0,
        top_p=1.0, generator=[torch.Generator().manual_seed(5 + i) for i in range(2)],
    ).images  # fmt: skip
    assert [image.tobytes() for image, _ in gallery] == [image.tobytes() for image in expected]
    assert [info["seed"] for _, info in gallery] == ["5", "6"]
    passes = pipe.transformer.order.num_passes
    tokens = pipe.transformer.order.num_tokens
    assert re.search(f"2 pictures in {passes} passes and .* takes {tokens} passes", statuses[-1])
    assert any(f"of {passes}" in text for text in statuses)


def test_an_aligned_nar_draws_as_the_policy_it_was_trained_as(tmp_path):
    from align.nar.load import load_nar_pipeline

    name, run = nar_model(tmp_path / "nar"), tmp_path / "runs/aligned"
    command = ["nar", "align", "--model", name, "--reward", "jpeg-complexity", "--out", str(run)]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--steps", "2", "--device", "cpu"]
    command += ["--batch-size", "2", "--group-size", "2", "--learning-rate", "0.05"]
    command += ["--temperature", "0.8", "--tracker", "none", "--sample-every", "0"]
    command += ["--mixed-precision", "no"]
    (tmp_path / "prompts.txt").write_text(PROMPT)
    assert main(command) == 0
    choices = [value for _, value in nar_handler.model_defaults(name)[2]["choices"]]
    assert choices == ["", "runs/aligned"]
    chosen = nar_handler.lora_settings(name, "runs/aligned", False)
    assert [one["value"] for one in chosen] == [1.0, 0.8, 0, 1.0]
    own = [one["value"] for one in nar_handler.lora_settings(name, "", False)]
    assert own[:2] == [one["value"] for one in nar_handler.model_defaults(name)[:2]]
    with pytest.raises(gr.Error, match="The LoRA is 'elsewhere'; allowed"):
        nar_handler.lora_settings(name, "elsewhere", False)

    drawn = {}
    for lora in ("", "runs/aligned"):
        for shown, *_ in nar(name, lora=lora, guidance_scale=1.0, temperature=0.8):
            if isinstance(shown, list) and shown and isinstance(shown[0], tuple):
                drawn[lora] = [opened(path) for path, _ in shown]
    pipe = load_nar_pipeline(name, "cpu", lora=str(run))
    generators = [torch.Generator().manual_seed(5 + i) for i in range(2)]
    expected = pipe([PROMPT], num_images_per_prompt=2, generator=generators).images
    pixels = [image.tobytes() for image, _ in drawn["runs/aligned"]]
    assert pixels == [image.tobytes() for image in expected]
    assert pixels != [image.tobytes() for image, _ in drawn[""]]
    _, info = drawn["runs/aligned"][0]
    assert any("runs/aligned" in said for said in info.values())


def test_a_model_for_clips_gives_gifs_and_continues_no_picture(tmp_path, monkeypatch):
    pipe = tiny_video_nar()
    pipe.save_pretrained(tmp_path / "video")
    clips, previews, statuses, seen = [], [], [], held_pass(str(tmp_path / "video"), monkeypatch)
    for shown, _, status, _, _ in nar(str(tmp_path / "video"), compare=True):
        statuses += [] if skipped(status) else [text_of(status)]
        if isinstance(shown, list) and shown:
            if isinstance(shown[0], tuple):
                for path, _ in shown:
                    with Image.open(path) as clip:
                        clips.append((clip.format, clip.size, clip.n_frames))
            else:
                previews.append(shown[0].size)
                seen.set()
    passes = pipe.transformer.order.num_passes
    assert re.search(f"2 clips in {passes} passes and .* takes 8 passes", statuses[-1])
    assert clips == [("GIF", (8, 8), 4)] * 2
    assert previews  # the frames side by side
    assert all(width > 4 * 8 - 1 and height == 8 for width, height in previews)
    with pytest.raises(gr.Error, match="draws clips"):
        list(nar(str(tmp_path / "video"), picture=data_url(Image.new("RGB", (9, 9)))))


def test_outpainting_keeps_the_corner_of_the_picture(tmp_path):
    pipe = nar_pipeline(nar_model(tmp_path / "nar"))
    rows, columns = pipe.transformer.grid_shape
    own = Image.new("RGB", (200, 120), (220, 30, 30))
    given = corner_ids(pipe, Corner(own, 0.5)).view(rows, columns)
    assert bool((given[: rows // 2, : columns // 2] >= 0).all())
    assert bool((given[rows // 2 :] == -1).all())
    assert bool((given[:, columns // 2 :] == -1).all())
    *_, last = pipe.wavefronts([PROMPT], given_ids=given.view(1, -1))
    kept = given >= 0
    assert torch.equal(last.ids.view(rows, columns)[kept], given[kept])
    shown = None
    name = nar_model(tmp_path / "nar")
    for update in nar(name, picture=data_url(own), num_images=1):
        shown = update[0] if isinstance(update[0], list) and update[0] else shown
        if shown and isinstance(shown[0], tuple):
            with Image.open(shown[0][0]) as image:
                assert json.loads(image.info["settings"])["corner_kept"] == 0.5
            shown = "seen"
    assert shown == "seen"


def test_uploads_are_pictures_of_a_sane_size():
    red = Image.new("RGB", (40, 30), "red")
    for kind in ("PNG", "JPEG", "WEBP"):
        assert uploads.picture(data_url(red, kind)).size == (40, 30)
    turned = Image.Exif()
    turned[0x0112] = 6  # rotated by a right angle
    assert uploads.picture(data_url(red, "JPEG", exif=turned)).size == (30, 40)
    assert uploads.picture("") is None
    assert uploads.picture(None) is None
    half = base64.b64decode(data_url(Image.effect_noise((64, 64), 50)).partition(",")[2])[:2000]
    huge = data_url(Image.new("1", (6000, 6000)))
    for value, text in (
        (3, "data: address"),
        ({"path": "/etc/passwd"}, "data: address"),
        ("/etc/passwd", "base64"),
        ("data:image/png;base64,@@@", "base64"),
        (base64.b64encode(b"GIF89a" + bytes(50)).decode(), "no picture"),
        (data_url(red, "GIF"), "no picture"),
        (data_url(red, "TIFF"), "no picture"),
        (base64.b64encode(b"<svg/>").decode(), "no picture"),
        (base64.b64encode(half).decode(), "damaged"),
        (huge, "at most 20 million"),
        ("A" * 14_000_000, "more than 10 MB"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(text)):
            uploads.picture(value)
