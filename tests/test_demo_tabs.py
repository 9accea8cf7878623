"""The handlers of Optimize noise, NAR and Compare: what they yield, and that they stop."""

import base64
import io
import json
import re
import threading

import gradio as gr
import numpy as np
import pytest
import torch
from demo_helpers import nar_model, tiny_video_nar
from PIL import Image
from safetensors.torch import load_file

import align
from align.cli import main
from align.demo import compare_handler, nar_handler, optimize_handler, uploads
from align.demo.choices import expressions, nar_models
from align.demo.drawing import Corner, corner_ids, nar_pipeline
from align.demo.streaming import stop

PROMPT = "two green stars"
TERMS = ["scenes-clip", "scenes-count"]


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """An empty runs folder."""
    monkeypatch.chdir(tmp_path)


def skipped(value):
    return isinstance(value, dict) and value.get("__type__") == "update" and len(value) == 1


def opened(path):
    """(picture, what its PNG says), the file closed."""
    with Image.open(path) as image:
        return image.copy(), dict(image.info)


def alike(picture, image):
    """Whether they differ by a rounding at most: the search draws four at a time."""
    difference = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - image
    return float(difference.abs().max()) < 1.01 / 255


def text_of(update):
    return "" if skipped(update) else re.sub("<[^>]+>", "", update)


def optimize(run_name="", **changes):
    sent = {
        "prompt": PROMPT, "reward": ",".join(TERMS), "weights": "category", "method": "bon",
        "budget": 6, "model": "embedded/scenes", "lora": "", "seed": 5, "randomize_seed": False,
        "num_inference_steps": 2, "guidance_scale": 3.0,
    }  # fmt: skip
    assert set(changes) <= set(sent)
    return optimize_handler.make_optimize(False)(*(sent | changes).values(), run_name)


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


def compare(run_name="", **changes):
    sent = {
        "prompt": PROMPT, "chosen": ["base", "bon"], "budget": 4, "reward": ",".join(TERMS),
        "model": "embedded/scenes", "lora": "", "seed": 5, "randomize_seed": False,
        "num_inference_steps": 2, "guidance_scale": 3.0,
    }  # fmt: skip
    assert set(changes) <= set(sent)
    return compare_handler.make_compare(False)(*(sent | changes).values(), run_name)


def test_a_search_is_that_of_align_optimize_and_its_noise_gives_the_picture():
    last, best, noise, initial, path = {}, None, None, None, []
    for shown, first, gallery, curve, status, why, file, seed, command in optimize():
        if not skipped(shown) and shown is not None:
            noise, (best, said) = load_file(file["value"])["noise"], opened(shown)
        if not skipped(first) and first is not None:
            initial, _ = opened(first)
        path = path if skipped(gallery) else [score for _, score in gallery]
        last |= {"curve": curve} if not skipped(curve) else {}
        last |= {"why": why} if not skipped(why) else {}
        last |= {"seed": seed, "command": command} if not skipped(seed) else {}
        last |= {"status": status} if not skipped(status) else {}
    pipe = align.load_pipeline("embedded/scenes")
    config = align.OptimizeConfig(
        method="bon", budget="6images", weights="category", num_inference_steps=2,
        guidance_scale=3.0, batch_size=4, seed=5,
    )  # fmt: skip
    *_, step = align.optimize(pipe, PROMPT, ",".join(TERMS), config)
    assert torch.equal(noise[0], step.best_noise)
    again = align.generate(pipe, [PROMPT], latents=noise, num_inference_steps=2, guidance_scale=3.0)
    assert alike(best, again[0])
    first = align.generate(pipe, [PROMPT], seed=5, num_inference_steps=2, guidance_scale=3.0)
    assert alike(initial, first[0])
    assert said["prompt"] == PROMPT
    assert json.loads(said["settings"])["method"] == "bon"
    assert path[-1] == f"{step.best_total:.3f}"
    assert f"→ {step.best_total:.3f} in 6 images" in text_of(last["status"])
    assert "tab=optimize" in last["status"]
    assert all(term in last["why"] and term in last["curve"] for term in TERMS)
    assert "numeracy 100%" in last["why"].lower()
    assert last["command"].startswith("align optimize ")
    assert "'two green stars'" in last["command"]


def test_a_stopped_search_keeps_its_best():
    statuses, shown = [], None
    for update in optimize("to-stop", budget=200, method="carinox", num_inference_steps=8):
        shown = shown if skipped(update[0]) else update[0]
        statuses += [] if skipped(update[4]) else [text_of(update[4])]
        if "best" in statuses[-1]:
            stop("to-stop")
    assert statuses[-1].startswith("Stopped. Weighted score")
    assert shown is not None
    for worker in [t for t in threading.enumerate() if t.name == "align-demo-work"]:
        worker.join(timeout=120)
        assert not worker.is_alive()


def test_nar_pictures_are_those_of_align_nar_generate(tmp_path, monkeypatch):
    from align.nar.commands import load_nar_pipeline

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
    with pytest.raises(gr.Error, match="The LoRA is 'elsewhere'; those in runs/ are"):
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


def test_a_comparison_scores_each_method_at_its_budget():
    table, statuses, gallery, seed = "", [], [], None
    for shown, scores, status, used, _ in compare(chosen=["base", "bon", "carinox"]):
        table = table if skipped(scores) else scores
        gallery = gallery if skipped(shown) else [caption for _, caption in shown]
        seed = seed if skipped(used) else used
        statuses += [] if skipped(status) else [text_of(status)]
    assert [caption[:4] for caption in gallery] == ["Base", "Best", "Opti"]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    cells = [re.findall("<td>(.*?)</td>", row) for _, row in rows]
    assert [int(row[2]) for row in cells] == [1, 4, 4]  # images made
    pipe = align.load_pipeline("embedded/scenes")
    image = align.generate(pipe, [PROMPT], seed=5, num_inference_steps=2, guidance_scale=3.0)
    terms = align.load_reward(",".join(TERMS)).terms(image, [PROMPT])
    shown = [float(re.sub("</?b>", "", cell)) for cell in cells[0][:2]]
    assert shown == [round(float(terms[name][0]), 3) for name in TERMS]
    assert "3 methods at a budget of 4 images each" in statuses[-1]


@pytest.mark.skipif(not nar_models(), reason="no NAR model is shipped")
def test_nar_in_a_comparison_is_its_own_picture(tmp_path):
    from align.evaluation.nar_methods import draw_nar

    gallery = None
    for shown, *_ in compare(chosen=["base", "nar"]):
        if not skipped(shown) and shown:
            gallery = [(opened(path)[0], caption) for path, caption in shown]
    assert [caption[:4] for _, caption in gallery] == ["Base", "NAR "]
    expected = draw_nar(nar_pipeline(nar_models()[0]), PROMPT, [5])
    assert alike(gallery[1][0], expected[0])
    assert not alike(gallery[0][0], expected[0])


def test_a_stopped_comparison_keeps_what_it_has():
    statuses, gallery = [], []
    for shown, _, status, _, _ in compare("stop-it", chosen=["base", "carinox"], budget=64):
        gallery = gallery if skipped(shown) else shown
        statuses += [] if skipped(status) else [text_of(status)]
        if "Optimized" in statuses[-1]:
            stop("stop-it")
    assert statuses[-1].startswith("Stopped. 1 method at a budget of 64 images")
    assert len(gallery) == 1


BAD = [
    (optimize, {"prompt": " "}, "the prompt is empty"),
    (optimize, {"reward": "verifier"}, "the reward is 'verifier'"),
    (optimize, {"reward": "/tmp/evil.py:f"}, "the reward is"),
    (optimize, {"reward": "scenes-clip:x"}, "the reward is 'scenes-clip:x'"),
    (optimize, {"reward": "min(" * 60}, "reward expression"),
    (optimize, {"reward": "a" * 400}, "at most"),
    (optimize, {"reward": ""}, "no reward"),
    (optimize, {"reward": ["scenes-clip"]}, "must be text"),
    (optimize, {"weights": "/etc/passwd"}, "weights is '/etc/passwd'"),
    (optimize, {"method": "magic"}, "method is 'magic'"),
    (optimize, {"method": ["bon"]}, "method is"),
    (optimize, {"budget": 10**9}, "must be from 1 to 200"),
    (optimize, {"budget": float("nan")}, "budget is nan"),
    (optimize, {"model": "../scenes"}, "the model is"),
    (optimize, {"num_inference_steps": 51}, "steps is 51"),
    (compare, {"chosen": []}, "choose at least one"),
    (compare, {"chosen": "base"}, "choose at least one"),
    (compare, {"chosen": ["base", "rm"]}, "methods is 'rm'"),
    (compare, {"chosen": ["lora"]}, "a LoRA is to be compared"),
    (compare, {"budget": 65}, "from 1 to 64"),
    (compare, {"lora": "/etc"}, "the LoRA is"),
    (compare, {"guidance_scale": None}, "must be a number"),
]


@pytest.mark.parametrize(("handler", "changes", "text"), BAD)
def test_bad_values_give_one_sentence(handler, changes, text):
    refused(lambda: list(handler(**changes)), text)


def refused(call, text):
    with pytest.raises(gr.Error) as caught:
        call()
    message = caught.value.message
    assert text.lower() in message.lower()
    assert "Traceback" not in message
    assert "\n" not in message
    assert len(message) < 500
    assert not caught.value.print_exception


def data_url(image, kind="PNG", **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


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


def test_the_first_reward_is_all_of_the_embedded_ones():
    assert expressions()[0].count(",") == 3
    align.load_reward(expressions()[0])
