"""The handlers of Optimize noise and Compare: what they yield, and that they stop."""

import json
import re
import threading

import gradio as gr
import numpy as np
import pytest
import torch
from demo_helpers import alike, opened, skipped, text_of
from safetensors.torch import load_file
from tiny_detector import stored as stored

import align
from align.demo import compare_handler, optimize_handler, search
from align.demo.choices import expressions, nar_models
from align.demo.drawing import nar_pipeline
from align.demo.streaming import stop
from align.rewards.catalogue import SCENES_REWARD

PROMPT = "two green stars"
TERMS = ["scenes-clip", "scenes-detector"]


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """An empty runs folder."""
    monkeypatch.chdir(tmp_path)


def optimize(run_name="", **changes):
    sent = {
        "prompt": PROMPT, "reward": ",".join(TERMS), "weights": "category", "method": "bon",
        "budget": 6, "model": "embedded/scenes", "lora": "", "seed": 5, "randomize_seed": False,
        "num_inference_steps": 2, "guidance_scale": 3.0,
    }  # fmt: skip
    assert set(changes) <= set(sent)
    return optimize_handler.make_optimize(False)(*(sent | changes).values(), run_name)


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
    for shown, first, gallery, curve, status, why, file, seed, command, _ in optimize():
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


@pytest.fixture
def random_weights(stored):
    """The demo keeps rewards: none of these may be there before or after."""
    search.reward_of.cache_clear()
    yield
    search.reward_of.cache_clear()


def test_facts_of_the_first_and_the_best_picture_stand_side_by_side(random_weights):
    tables, pictures = [], []
    for shown, first, *_, table in optimize(budget=4, num_inference_steps=1):
        tables += [] if skipped(table) or not table else [table]
        for path in (first, shown):
            pictures += [] if skipped(path) or path is None else [opened(path)[0]]
    rows = re.findall(
        r"<tr><th scope='row'>(.*?)</th><td>(.*?)</td><td>(.*?)</td></tr>", tables[-1]
    )
    assert [row[0] for row in rows] == [
        "a green star is there", "a second green star is there", "nothing else is there",
        "no object has a stain",
    ]  # fmt: skip
    for column, picture in ((1, pictures[0]), (2, pictures[-1])):
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        (facts,) = search.facts_of("embedded/scenes", PROMPT, image)
        for row, fact in zip(rows, facts, strict=True):
            percent = int(re.search(r"(\d+)%", row[column])[1])
            assert abs(percent - 100 * fact.probability) < 3  # the file is rounded to 8 bits


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


@pytest.mark.usefixtures("unchecked")
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


def test_the_first_reward_is_what_searches_take():
    assert expressions()[0] == SCENES_REWARD
    align.load_reward(expressions()[0])
