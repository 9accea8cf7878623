"""Why a score is low: facts of prompts by the rewards that can explain, `align rewards explain`."""

import inspect
import random
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detector import random_detector
from tiny_detector import stored as stored
from tiny_rewards import installed_weights

from align.cli import main
from align.rewards import REWARDS, load_reward, scenes_facts, scenes_layers, scenes_score
from align.rewards.facts import explain
from align.rewards.scenes_detector import NAME
from align.rewards.scenes_score import FIELDS, Maps, by_count
from align.runs.folder import to_pil
from align.scenes import layout, parse, render, sample
from align.scenes.grammar import CATEGORIES, COLORS, SHAPES, TEXTURES, SceneObject

installed = installed_weights
SHIPPED = (scenes_layers.EMBEDDED / "rewards" / NAME / "config.json").is_file()
needs_weights = pytest.mark.skipif(not SHIPPED, reason=f"the weights of {NAME} are not shipped yet")


def pictures(count: int) -> tuple[list[str], torch.Tensor]:
    """Prompts of every category and true pictures of them."""
    pairs = [sample(CATEGORIES[i % len(CATEGORIES)], seed=700 + i) for i in range(count)]
    arrays = np.stack([picture for _, picture in pairs])
    return [prompt for prompt, _ in pairs], torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255


PLACES = (17, 20, 23, 26)  # of a 16x16 grid, no two of them neighbours


def maps_of(objects: list[SceneObject]) -> Maps:
    """What a detector that is nearly sure says of one picture with these objects at `PLACES`; all
    other places are nothing, and there is no stain."""
    rows = torch.zeros(256, sum(FIELDS))
    presence, color, shape, texture, center, radius, depth, flaw = rows.split(FIELDS, -1)
    presence[:], flaw[:] = -20.0, -20.0
    for k, o in zip(PLACES, objects, strict=False):
        presence[k], radius[k], depth[k] = 20.0, o.r, 10.0 * (o.depth or 0)
        color[k, list(COLORS).index(o.color)] = 9.0
        shape[k, SHAPES.index(o.shape)] = 9.0
        texture[k, TEXTURES.index(o.texture or "solid")] = 9.0
        center[k] = torch.tensor([o.x, o.y])
    parts = (presence, color, shape, texture, center, radius, depth, flaw)
    return Maps(*(part.squeeze(-1)[None] for part in parts))


def facts_of(prompt: str, objects: list[SceneObject]) -> dict[str, float]:
    (facts,) = scenes_facts.explain(maps_of(objects), [prompt])
    return {fact.text: fact.probability for fact in facts}


RED = SceneObject("red", "circle", "solid", x=15, y=30, r=9)
BLUE = SceneObject("blue", "square", "striped", x=48, y=31, r=15)
CROSS = SceneObject("purple", "cross", x=30, y=55, r=8)


@pytest.mark.parametrize(
    ("prompt", "objects", "wrong", "count"),
    [
        ("a red circle to the left of a blue square", [RED, BLUE], set(), 5),
        ("a red circle to the right of a blue square", [BLUE, RED],
         {"the red circle is right of the blue square"}, 5),
        ("a small red circle and a small striped blue square", [RED, BLUE],
         {"the blue square is small"}, 7),
        ("a checkered blue square", [BLUE], {"the blue square is checkered"}, 4),
        ("a red circle", [RED, CROSS], {"nothing else is there"}, 3),
        ("an orange circle", [RED], {"an orange circle is there"}, 3),
        ("three red circles", [RED, BLUE, RED],
         {"a third red circle is there"}, 5),
        ("two red circles", [RED], {"a second red circle is there"}, 4),
        ("a red circle in front of a blue square", [BLUE, RED],
         {"the red circle is in front of the blue square"}, 5),  # they do not overlap
    ],
)  # fmt: skip
def test_facts_of_known_findings(prompt, objects, wrong, count):
    facts = facts_of(prompt, objects)
    assert len(facts) == count
    assert {text for text, p in facts.items() if p < 0.5} == wrong
    assert all(p > 0.9 or p < 0.1 for p in facts.values())


def test_notes_say_what_is_there_instead():
    (facts,) = scenes_facts.explain(maps_of([RED, CROSS]), ["an orange circle"])
    assert facts[0].note == "a red circle at (15, 30) instead"
    assert facts[1].note == "a purple cross at (30, 55)"
    assert str(facts[1]) == "0.00  nothing else is there (a purple cross at (30, 55))"
    unsure = maps_of([RED])
    unsure.presence[0, PLACES[1]] = 3.0
    unsure.color[0, PLACES[1], -1] = 9.0
    unsure.shape[0, PLACES[1], SHAPES.index("star")] = 0.5
    unsure.flaw[0, 17] = 4.0  # the second place of the second row
    ((_, rest, clean),) = scenes_facts.explain(unsure, ["a red circle"])
    assert clean.note == "something at (6, 6)"
    assert clean.probability == pytest.approx(0.029, abs=0.01)  # sigmoid(-6 tanh(4 / 6))
    assert rest.note == "something of no known colour, perhaps a star, at (0, 0)"
    ((_, rest, clean),) = scenes_facts.explain(maps_of([RED]), ["a red circle"])
    assert rest.note == clean.note == ""


def test_the_product_of_the_facts_is_the_best_assignments_score(monkeypatch):
    """All objects, relations and the rest, as one number: no fact is left out or counted twice."""
    monkeypatch.setattr(scenes_score, "FLOOR", 0.0)
    monkeypatch.setattr(scenes_score, "EXTRA", 1.0)
    prompts, images = pictures(18)
    model = random_detector()
    explained = model.explain(images, prompts)
    maps = model.maps(images)
    found, clean = scenes_score.candidates(maps), scenes_score.flawless(maps)
    for rows, stated in by_count(prompts):
        part = scenes_score.select(found, rows)
        scores = scenes_score.assignment_scores(part, stated) + clean[rows, None]
        for row, score in zip(rows.tolist(), scores.amax(1).tolist(), strict=True):
            logs = [np.log(fact.probability) for fact in explained[row]]
            assert sum(logs) == pytest.approx(score, rel=1e-4), prompts[row]


def test_facts_of_a_batch_are_those_one_by_one():
    prompts, images = pictures(9)
    model = random_detector()
    together = model.explain(images, prompts)
    for i, facts in enumerate(together):
        (alone,) = model.explain(images[i : i + 1], prompts[i : i + 1])
        assert [fact.text for fact in facts] == [fact.text for fact in alone]
        known = [fact.probability for fact in alone]
        assert [fact.probability for fact in facts] == pytest.approx(known, rel=1e-3, abs=1e-5)


def test_questions_average_to_the_score_of_scenes_vqa():
    prompts, images = pictures(9)
    reward = load_reward("scenes-vqa")
    (facts,) = explain(reward, images, prompts).values()
    means = [np.mean([np.log(fact.probability) for fact in row]) for row in facts]
    assert means == pytest.approx(reward(images, prompts).tolist(), rel=1e-4)
    assert facts[0][0].text.startswith("Is there a")


def test_questions_of_blip_make_up_its_scores(installed):
    prompts = ["a red cube", "two dogs and a cat"]
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    reward = load_reward("blip-vqa,da-score")
    found, scores = explain(reward, images, prompts), reward.terms(images, prompts)
    for name, reduce in (("blip-vqa", np.prod), ("da-score", np.mean)):
        values = [reduce([fact.probability for fact in row]) for row in found[name]]
        assert values == pytest.approx(scores[name].tolist(), rel=1e-4)
    assert [fact.text for fact in found["blip-vqa"][0]] == ["a red cube?"]


def test_those_that_can_explain_are_named():
    named = set()
    for name, reward in REWARDS.items():
        kind = inspect.signature(resolve_name(reward.load)).return_annotation
        if hasattr(kind, "explain"):
            named.add(name)
    assert named == {name for name, reward in REWARDS.items() if reward.explains}
    with pytest.raises(ValueError, match="jpeg cannot say why a score is low; scenes-detector, sc"):
        explain(load_reward("jpeg"), torch.rand(1, 3, 8, 8), ["a dog"])


def test_bad_input_of_the_detector(stored):
    reward = load_reward(NAME)
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match="cannot read 'dog' in scene prompt 'a red dog'"):
        reward(images, ["a red dog"])
    with pytest.raises(ValueError, match="cannot read 'dog' in scene prompt 'a red dog'"):
        explain(reward, images, ["a red dog"])
    many = " and ".join(["a red circle"] * 7)
    with pytest.raises(ValueError, match="has 7 objects; at most 4 fit a picture"):
        reward(images, [many])
    with pytest.raises(ValueError, match=f"states 7 objects; {NAME} compares at most 6"):
        scenes_score.assignments(7, torch.device("cpu"))
    with pytest.raises(ValueError, match="takes no argument but soft, got 'x'"):
        load_reward(f"{NAME}:x")


def test_pictures_of_other_sizes_are_resized(stored):
    reward = load_reward(NAME)
    prompts, images = pictures(3)
    large = torch.nn.functional.interpolate(images, scale_factor=2.0, mode="nearest")
    resized = torch.nn.functional.interpolate(
        large, (64, 64), mode="bilinear", antialias=True, align_corners=False
    )
    assert torch.allclose(reward(large, prompts), reward(resized, prompts), atol=1e-5)
    for large_facts, facts in zip(
        explain(reward, large, prompts)[NAME], explain(reward, resized, prompts)[NAME], strict=True
    ):
        assert [f.text for f in large_facts] == [f.text for f in facts]


def test_the_command(stored, capsys):
    prompts, images = pictures(2)
    paths = [str(stored / f"{i}.png") for i in range(2)]
    for image, path in zip(images, paths, strict=True):
        to_pil(image).save(path)
    assert main(["rewards", "explain", prompts[0], *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    score = float(load_reward(NAME)(images[:1], prompts[:1]))
    assert lines[0] == f"{paths[0]}: {NAME} {score:.3f}"
    facts = explain(load_reward(NAME), images[:1], prompts[:1])[NAME][0]
    assert lines[1 : len(facts) + 1] == [f"  {fact}" for fact in facts]
    assert lines[len(facts) + 1].startswith(paths[1])
    assert main(["rewards", "explain", "A dog sleeps.", paths[0], "--reward", "scenes-vqa"]) == 0
    assert "Is there a dog?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a red circle"], "give a prompt and pictures: align rewards explain"),
        ([" ", "a.png"], "the prompt is empty"),
        (["a red circle", "none.png"], "no picture none.png"),
        (["a red circle", "text.png"], "text.png cannot be read as a picture"),
        (["a red circle", "a.png", "--reward", "jpeg"], "jpeg cannot say why a score is low"),
        (["a red circle", "a.png", "--reward", "scenes-vqq"], "did you mean scenes-vqa"),
        (["a red dog", "a.png"], "cannot read 'dog'"),
    ],
)
def test_wrong_input_is_one_line(stored, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(stored)
    Image.new("RGB", (64, 64)).save("a.png")
    (stored / "text.png").write_text("no picture")
    assert main(["rewards", "explain", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_without_weights_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scenes_layers, "EMBEDDED", tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["rewards", "explain", "a red circle", str(tmp_path / "a.png")]) == 2
    assert f"weights of reward '{NAME}' are not installed" in capsys.readouterr().err


@needs_weights
def test_facts_of_renders_are_true():
    prompts, images = pictures(90)
    (found,) = explain(load_reward(NAME), images, prompts).values()
    facts = [fact for row in found for fact in row]
    assert np.mean([fact.probability > 0.5 for fact in facts]) > 0.95


WRONG = [
    ("a red circle", "a blue circle", "a red circle is there"),
    ("a striped blue square", "a checkered blue square", "the blue square is striped"),
    ("a large green star", "a small green star", "the green star is large"),
    ("a red circle above a blue square", "a red circle below a blue square",
     "the red circle is above the blue square"),
    ("two green stars", "three green stars", "nothing else is there"),
]  # fmt: skip


@needs_weights
@pytest.mark.parametrize(("prompt", "drawn", "wrong"), WRONG)
def test_the_fact_that_fails_is_named(prompt, drawn, wrong):
    rng = random.Random(3)
    arrays = np.stack([render(layout(parse(drawn), rng)) for _ in range(12)])
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255
    (found,) = explain(load_reward(NAME), images, [prompt] * 12).values()
    lowest = [min(row, key=lambda fact: fact.probability).text for row in found]
    assert lowest.count(wrong) >= 10
