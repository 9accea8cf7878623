"""What the reward models are trained on: labels from scene truth, near misses, seen scenes only."""

import random
import sys
from pathlib import Path

import pytest
import torch

from align.language.assertions import scene_assertions
from align.language.decompose import decompose
from align.scenes import CATEGORIES, Scene, SceneObject, is_heldout, layout, parse
from align.scenes.dataset import random_stated_scene
from align.scenes.grammar import describe, heldout_combinations

SCRIPTS = Path(__file__).parents[1] / "scripts/train_embedded"


@pytest.fixture(scope="module")
def scripts():
    """The modules of the training scripts that make data and labels."""
    sys.path.insert(0, str(SCRIPTS))
    import imperfect
    import near_misses
    import preference
    import truth
    import vqa

    yield {"imperfect": imperfect, "near_misses": near_misses, "truth": truth, "vqa": vqa,
           "preference": preference}  # fmt: skip
    sys.path.remove(str(SCRIPTS))


def drawn(*objects) -> Scene:
    placed = tuple(
        SceneObject(color, shape, texture, None, x, y, r, depth)
        for depth, (color, shape, texture, x, y, r) in enumerate(objects)
    )
    return Scene(placed, background=235)


PICTURE = drawn(
    ("red", "circle", "striped", 15.0, 30.0, 13.0),
    ("blue", "square", "solid", 48.0, 32.0, 9.0),
    ("blue", "square", "solid", 48.0, 10.0, 8.0),
)


@pytest.mark.parametrize(
    ("prompt", "answers"),
    [
        ("a red circle left of a green square", "yes yes yes no no"),
        ("a large striped red circle", "yes yes yes yes"),
        ("a small checkered red circle", "yes yes no no"),
        ("two blue squares", "yes yes yes"),
        ("three blue squares", "yes yes no"),
        ("two small blue squares", "yes yes yes yes"),
        ("two striped blue squares", "yes yes no yes"),
        ("a red circle right of a blue square", "yes yes yes yes no"),
        ("a red circle to the left of a blue square", "yes yes yes yes yes"),
        ("a red circle in front of a blue square", "yes yes yes yes no"),
    ],
)
def test_answers_to_assertions(scripts, prompt, answers):
    holds = scripts["truth"].assertion_holds
    found = ["yes" if holds(a, PICTURE) else "no" for a in decompose(prompt)]
    assert " ".join(found) == answers


def test_depth_and_overlap_decide_3d_relations(scripts):
    rear_first = drawn(
        ("red", "circle", "solid", 25.0, 30.0, 12.0), ("blue", "star", "solid", 38.0, 30.0, 12.0)
    )
    satisfies = scripts["truth"].satisfies
    assert satisfies(parse("a red circle behind a blue star"), rear_first)
    assert satisfies(parse("a blue star covering a red circle"), rear_first)
    assert not satisfies(parse("a red circle in front of a blue star"), rear_first)


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_drawn_scene_satisfies_its_own_prompt_only(scripts, category):
    truth, near = scripts["truth"], scripts["near_misses"]
    rng = random.Random(category)
    for _ in range(40):
        said = random_stated_scene(category, rng)
        picture = layout(said, rng)
        assert truth.satisfies(said, picture)
        assert all(truth.assertion_holds(a, picture) for a in scene_assertions(said))
        changed = near.vary(said, rng)
        assert not heldout_combinations(changed)
        assert parse(describe(changed, rng))
        placed = near.try_layout(changed, rng)
        if placed is not None:
            assert truth.satisfies(changed, placed)
            # a near miss that no longer says the same is not true of the old picture, or less
            facts = scene_assertions(said)
            held = sum(truth.assertion_holds(a, placed) for a in facts)
            assert (
                held < len(facts)
                or truth.satisfies(said, placed)
                or len(placed.objects) != len(picture.objects)
            )


def test_the_truth_matrix_finds_prompts_that_happen_to_hold(scripts):
    said = [parse("a red circle"), parse("a striped red circle"), parse("a red ring")]
    rng = random.Random(1)
    pictures = [layout(scene, rng) for scene in said]
    matrix = scripts["truth"].truth_matrix(said, pictures)
    assert matrix.diag().all()
    assert matrix[1, 0]
    assert not matrix[:2, 2].any()


def test_no_training_question_or_prompt_is_held_out(scripts):
    rng = random.Random(3)
    said, _ = scripts["near_misses"].draw_groups(rng, 60)
    assert not any(is_heldout(describe(scene, rng)) for scene in said)
    said, drawn_scenes, shares = scripts["preference"].draw_rankings(rng, 10)
    for scene in (*said, *drawn_scenes):
        assert not heldout_combinations(scene)
    assert (shares[:, 0] == 1).all()
    assert (shares[:, 3] < 1).float().mean() > 0.8


def test_questions_are_answered_in_balance(scripts):
    rng = random.Random(4)
    said, pictures = scripts["near_misses"].draw_groups(rng, 40, group=2)
    for i in range(40):
        asked = scripts["vqa"].ask(said[i], pictures[i], said[i - 2], rng)
        assert sum(answer for _, answer in asked) == len(asked) // 2


def test_a_fifth_of_the_preference_labels_is_flipped(scripts):
    shares = torch.tensor([[1.0, 0.75, 0.5, 0.0]]).repeat(200, 1)
    pairs = scripts["preference"].noisy_pairs(shares, random.Random(0))
    assert len(pairs) == 200 * 6
    flipped = (pairs[:, 1] > pairs[:, 2]).float().mean().item()
    assert flipped == pytest.approx(0.2, abs=0.04)


def test_degraded_pictures_stay_recognisable_and_repeatable(scripts):
    rng = random.Random(5)
    _, scenes = scripts["near_misses"].draw_groups(rng, 32)
    first = scripts["imperfect"].pictures(scenes, random.Random(0), seed=7)
    again = scripts["imperfect"].pictures(scenes, random.Random(0), seed=7)
    assert torch.equal(first, again)
    assert first.min() >= 0
    assert first.max() <= 1
    clean = torch.stack(
        [torch.from_numpy(scripts["imperfect"].render(s)) for s in scenes]
    ).permute(0, 3, 1, 2) / 255  # fmt: skip
    error = (first - clean).square().mean((1, 2, 3)).sqrt()
    assert (error < 0.01).float().mean() > 0.1
    assert 0.02 < error.median() < 0.15
