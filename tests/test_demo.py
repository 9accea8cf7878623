"""The demo's handlers: what they yield, that they stop, and that they trust no value."""

import asyncio
import json
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest
import torch
from PIL import Image
from tiny import build
from tiny_detector import stored as stored

from align.config.commands import GenerateConfig
from align.demo import app, choices, handlers, messages, parts
from align.demo.streaming import Stopped, stop, stream
from align.diffusion.sample import generate
from align.models.lora import add_lora, save_lora
from align.runs.folder import to_pil

PROMPT = "red"  # the tiny tokenizer spells every letter


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random Stable Diffusion on disk."""
    folder = tmp_path_factory.mktemp("model") / "sd"
    build("sd").save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """An empty runs folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def values(model, **changes):
    """What the page sends, in the order of the handler's arguments."""
    sent = {
        "prompt": PROMPT,
        "negative_prompt": "",
        "model": model,
        "lora": "",
        "seed": 3,
        "randomize_seed": False,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "num_images": 2,
        "width": 0,
        "height": 0,
    }
    assert set(changes) <= set(sent)
    return list((sent | changes).values())


def run(model, *, allow_any_model=True, **changes):
    """All updates; pictures are opened while they are there. Skipped values are None."""
    updates = []
    for gallery, *others in handlers.make_generate(allow_any_model)(*values(model, **changes)):
        pictures = gallery
        if isinstance(gallery, list) and gallery and isinstance(gallery[0], tuple):
            pictures = [(Image.open(path).copy(), caption, path) for path, caption in gallery]
            for (image, _, path), (_, _) in zip(pictures, gallery, strict=True):
                with Image.open(path) as file:
                    image.info = dict(file.info)
        updates.append((pictures, *others))
    return updates


def is_skip(value):
    return isinstance(value, dict) and value.get("__type__") == "update"


def test_pictures_are_those_of_align_generate_and_say_how_they_were_made(model):
    pictures, seed, status, findings, command = run(model)[-1]
    expected = generate(
        build("sd"), [PROMPT] * 2, seed=3, num_inference_steps=2, guidance_scale=3.0
    )
    assert [image.tobytes() for image, _, _ in pictures] == [
        to_pil(image).tobytes() for image in expected
    ]
    assert seed == 3
    assert "2 pictures in" in status
    assert findings == ""  # the verifier has no say about this model
    assert command.startswith("align generate red")
    for index, (image, caption, path) in enumerate(pictures):
        assert caption == str(index + 1)
        assert image.info["prompt"] == PROMPT
        assert image.info["seed"] == str(3 + index)
        assert image.info["model"] == model
        assert json.loads(image.info["settings"])["num_inference_steps"] == 2
        assert not path.exists()  # the page has copies, nothing is left behind


def test_a_randomized_seed_is_returned_and_used(model):
    seeds = []
    for _ in range(2):
        updates = run(model, randomize_seed=True, num_images=1, num_inference_steps=1)
        assert updates[0][1] == updates[-1][1]
        assert updates[-1][0][0][0].info["seed"] == str(updates[-1][1])
        seeds.append(updates[-1][1])
    assert seeds[0] != seeds[1]


def test_previews_and_time_left_come_before_the_pictures(model, monkeypatch):
    from align.demo import pictures

    monkeypatch.setattr(pictures, "PREVIEW_EVERY", 0.0)
    monkeypatch.setattr(pictures, "PREVIEW_SHARE", 1.0)
    told, generate_batch = queue.SimpleQueue(), pictures.generate_batch

    def waiting(*arguments, on_step, **settings):
        """Each step waits until the page was told of the one before."""

        def step(index, *parts):
            while index and f"Step {index} of 6" not in told.get(timeout=60):
                pass
            on_step(index, *parts)

        return generate_batch(*arguments, on_step=step, **settings)

    monkeypatch.setattr(pictures, "generate_batch", waiting)
    updates = []
    for update in handlers.make_generate(True)(*values(model, num_inference_steps=6)):
        updates.append(update)
        told.put(str(update[2]))
    previews = [gallery for gallery, *_ in updates[:-1] if isinstance(gallery, list)]
    assert len(previews) == 5
    assert {len(images) for images in previews} == {2}
    assert all(image.size == (16, 16) for images in previews for image in images)
    texts = [status for _, _, status, _, _ in updates[:-1] if not is_skip(status)]
    assert sum("of 6" in text and "s left" in text for text in texts) >= 5


def slowed(function, steps=None):
    """The function with a pause in each step, as a model of a common size has; counts them."""

    def slow(*arguments, on_step=None, **settings):
        def step(index, *parts):
            time.sleep(0.05)
            if steps is not None:
                steps.append(index)
            on_step(index, *parts)

        return function(*arguments, on_step=step, **settings)

    return slow


def test_closing_the_handler_stops_the_work_within_one_step(model, monkeypatch):
    from align.demo import pictures

    steps = []
    monkeypatch.setattr(pictures, "generate_batch", slowed(pictures.generate_batch, steps))
    job = handlers.make_generate(True)(*values(model, num_inference_steps=100))
    for _, _, status, _, _ in job:
        if not is_skip(status) and "Step" in status:
            break
    job.close()
    reached = len(steps)
    workers = [t for t in threading.enumerate() if t.name == "align-demo-work"]
    for worker in workers:
        worker.join(timeout=120)
    assert not any(worker.is_alive() for worker in workers)
    assert len(steps) <= reached + 1
    assert len(steps) < 100
    assert not pictures.SLOT.locked()


def test_a_stopped_run_says_so_last_and_others_go_on(model, monkeypatch):
    from align.demo import pictures

    steps = []
    monkeypatch.setattr(pictures, "generate_batch", slowed(pictures.generate_batch, steps))
    texts = []
    for _, _, status, _, _ in handlers.make_generate(True)(
        *values(model, num_inference_steps=100), "mine"
    ):
        if not is_skip(status):
            texts.append(status)
        if "Step" in texts[-1]:
            stop("mine")
    assert len(steps) < 100
    assert texts[-1] == messages.status("Stopped.")
    stop("queued")  # before its turn has come
    queued = list(handlers.make_generate(True)(*values(model), "queued"))
    assert queued[-1][2] == messages.status("Stopped.")
    other = list(handlers.make_generate(True)(*values(model), "other"))
    assert "2 pictures in" in other[-1][2]
    for odd in ("", None, 3, ["a"]):
        stop(odd)
    assert "2 pictures in" in run(model)[-1][2]


def test_a_stream_gives_the_newest_report_and_what_the_work_raises():
    def work(report):
        for number in range(5):
            report(number)
        raise ValueError("no more")

    given = []
    with pytest.raises(ValueError, match="no more"):
        given.extend(stream(work))
    assert given[-1] == 4


def test_a_closed_stream_ends_the_work_at_its_next_report():
    ended = threading.Event()

    def work(report):
        try:
            while True:
                report(1)
                time.sleep(0.01)
        except Stopped:
            ended.set()
            raise

    job = stream(work)
    next(job)
    job.close()
    assert ended.wait(120)


BAD = [
    ({"prompt": ""}, "The prompt is empty"),
    ({"prompt": "  "}, "The prompt is empty"),
    ({"prompt": None}, "The prompt is empty"),
    ({"prompt": 3}, "must be text"),
    ({"prompt": "a" * 1001}, "1001 characters"),
    ({"negative_prompt": ["a"]}, "must be text"),
    ({"model": "/no/such/model"}, "/no/such/model"),
    ({"model": None}, "no model is chosen"),
    ({"lora": "/no/such/lora"}, "/no/such/lora"),
    ({"seed": -1}, "seed is -1; it must be from 0"),
    ({"seed": float("nan")}, "seed is nan"),
    ({"seed": 1.5}, "whole number"),
    ({"seed": True}, "must be a number"),
    ({"randomize_seed": "yes"}, "true or false"),
    ({"num_inference_steps": 0}, "steps is 0; it must be from 1 to 100"),
    ({"num_inference_steps": 10**9}, "must be from 1 to 100"),
    ({"guidance_scale": float("inf")}, "guidance is inf"),
    ({"guidance_scale": "3"}, "must be a number"),
    ({"num_images": 9}, "must be from 1 to 8"),
    ({"num_images": {"a": "b" * 500}}, "must be a number"),
    ({"width": 17}, "multiple of 2"),
    ({"height": 4096}, "at most 32 here"),
    ({"width": []}, "must be a number"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("changes", "text"), BAD)
def test_bad_values_give_one_sentence(model, changes, text):
    with pytest.raises(gr.Error) as caught:
        run(**{"model": model, **changes})
    message = caught.value.message
    assert text.lower() in message.lower()
    assert len(message) < 400
    assert "\n" not in message
    assert "Traceback" not in message
    assert not caught.value.print_exception


def test_only_listed_models_and_loras_are_taken_unless_told_otherwise(model, monkeypatch):
    monkeypatch.setattr(choices, "models", lambda: ["embedded/scenes"])
    with pytest.raises(gr.Error, match="embedded/scenes"):
        run(model, allow_any_model=False)
    monkeypatch.setattr(choices, "models", lambda: [model])
    with pytest.raises(gr.Error, match="none yet"):
        run(model, allow_any_model=False, lora="/etc/passwd")


def test_trained_loras_are_listed_and_change_the_pictures(model, runs):
    for name, trained_on in (("a", model), ("b", "another/model")):
        pipe = build("sd")
        for parameter in add_lora(pipe, rank=2):
            torch.nn.init.normal_(parameter, std=0.5)
        save_lora(pipe, runs / name / "lora")
        config = {"model": trained_on, "reward": "jpeg"}
        (runs / name / "run.json").write_text(json.dumps({"config": config}))
    assert choices.loras(model) == [("none", ""), ("a (jpeg)", "runs/a")]
    assert {value for _, value in choices.loras()} == {"", "runs/a", "runs/b"}
    base, tuned = (run(model, lora=lora)[-1] for lora in ("", "runs/a"))
    assert base[0][0][0].tobytes() != tuned[0][0][0].tobytes()
    assert "--lora runs/a" in tuned[4]
    assert json.loads(tuned[0][0][0].info["settings"])["lora"] == ["runs/a"]


def test_words_the_model_does_not_read_are_named(model):
    _, _, status, _, _ = run(model, prompt="red circle <b>above</b> a square")[-1]
    assert "cut off from" in status
    assert "<b>" not in status  # escaped


def test_the_verifier_speaks_about_pictures_of_the_embedded_world():
    from align.demo.pictures import judge
    from align.scenes import parse, sample

    prompt, picture = sample("color", seed=1)
    right = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    wrong = torch.full_like(right, 0.9)
    verdicts = judge("embedded/scenes", prompt, torch.cat([right, wrong]))
    assert [v.exact for v in verdicts] == [True, False]
    assert all(o.color in verdicts[0].sees for o in parse(prompt).objects)
    assert verdicts[1].sees == "nothing"
    config = GenerateConfig(prompt=(prompt,), seed=5)
    text = handlers.findings(verdicts, config)
    assert "1 of 2" in text
    assert "seed 6" in text
    assert judge("embedded/scenes", "a dog", right) == []
    assert judge("some/model", prompt, right) == []


@pytest.fixture
def random_weights(stored):
    """The demo keeps rewards: none of these may be there before or after."""
    from align.demo.pictures import reward_of

    reward_of.cache_clear()
    yield stored
    reward_of.cache_clear()


def test_facts_stand_under_a_picture_where_the_detector_is_installed(random_weights, monkeypatch):
    from align.demo import pictures
    from align.rewards import scenes_layers
    from align.scenes import sample

    arrays = [sample("2d_spatial", seed=seed)[1] for seed in (1, 2)]
    image = torch.stack([torch.from_numpy(one).permute(2, 0, 1) / 255 for one in arrays])
    prompt = "a red circle to the left of a blue square"
    verdicts = pictures.judge("embedded/scenes", prompt, image)
    text = handlers.findings(verdicts, GenerateConfig(prompt=(prompt,)))
    assert text.count("<details>") == 2
    for verdict in verdicts:
        relation = verdict.facts[2]
        assert relation.text == "the red circle is left of the blue square"
        mark = "✓" if relation.probability >= 0.5 else "✗"
        assert f"<li>{mark} {relation.probability:.0%} {relation.text}</li>" in text
    pictures.reward_of.cache_clear()
    monkeypatch.setattr(scenes_layers, "EMBEDDED", random_weights / "nowhere")
    without = pictures.judge("embedded/scenes", prompt, image)
    assert [v.facts for v in without] == [(), ()]
    assert "<details>" not in handlers.findings(without, GenerateConfig(prompt=(prompt,)))


def test_the_page_has_the_endpoint_and_examples_of_seen_combinations():
    from align.scenes import is_heldout

    async def build_page():  # outside a loop Gradio opens one that nobody closes
        return app.build()

    with ThreadPoolExecutor(1) as thread:  # Playwright leaves a running loop in this one
        page = thread.submit(asyncio.run, build_page()).result()
    names = page.get_api_info()["named_endpoints"]
    work = ["generate", "optimize", "nar", "compare"]
    assert set(names) == {f"/{name}" for name in (*work, "train", "training", "stop_training")}
    assert not any(is_heldout(text) for text in parts.EXAMPLES)
    jobs = {f.api_name: f for f in page.fns.values()}
    assert {(jobs[name].concurrency_id, jobs[name].concurrency_limit) for name in work} == {
        ("gpu", 1)
    }
    for name in names:  # every endpoint says what it does and takes named values
        assert names[name]["description"]
        assert all(one["parameter_name"] for one in names[name]["parameters"])
