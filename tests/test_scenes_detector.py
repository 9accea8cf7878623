"""`scenes-detector`: its score against a plain twin, its losses, and what it tells apart."""

import itertools
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from align.rewards import load_reward, scenes_score
from align.rewards import scenes_detector as detector
from align.scenes import CATEGORIES, describe, parse, render
from align.scenes.dataset import random_stated_scene
from align.scenes.grammar import COLORS, SHAPES, SIZES, TEXTURES, heldout_combinations
from align.scenes.render import layout

SCRIPTS = Path(__file__).parents[1] / "scripts/train_embedded"
PROMPTS = [
    "a red circle",
    "two green stars",
    "a small red circle left of a large striped blue square",
    "a black cross behind a cyan ring",
    "a checkered red square above a blue ring above a small green star",
    "four yellow triangles",
]


@pytest.fixture(scope="module")
def scripts():
    """The modules of the training scripts."""
    sys.path.insert(0, str(SCRIPTS))
    import attacks
    import detector as training
    import detector_data
    import near_misses
    import odd_objects
    import truth

    yield {"attacks": attacks, "training": training, "data": detector_data,
           "near_misses": near_misses, "odd": odd_objects, "truth": truth}  # fmt: skip
    sys.path.remove(str(SCRIPTS))


def random_maps(pictures: int, seed: int = 0) -> scenes_score.Maps:
    """Findings at 256 places, as an untrained network might have them, in float64."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return 3 * torch.randn(pictures, 256, *shape, generator=draw, dtype=torch.float64)

    centers = scenes_score.cell_centers(16, 16).double() + normal(2) / 3
    return scenes_score.Maps(
        normal(), normal(len(COLORS) + 1), normal(len(SHAPES) + 1), normal(len(TEXTURES)),
        centers, 12 + normal(), normal(), normal(),
    )  # fmt: skip


def floored(p: float) -> float:
    return math.log(scenes_score.FLOOR + (1 - scenes_score.FLOOR) * p)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bounded(x: float) -> float:
    return scenes_score.MOST_ODDS * math.tanh(x / scenes_score.MOST_ODDS)


def local_maxima(values: torch.Tensor, count: int) -> list[int]:
    """Places of a 16x16 map that no neighbour exceeds, greatest first."""
    grid = values.view(16, 16)
    found = []
    for y, x in itertools.product(range(16), range(16)):
        around = grid[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        if grid[y, x] == around.max():
            found.append((-float(grid[y, x]), 16 * y + x))
    return [place for _, place in sorted(found)[:count]]


def plain_score(maps: scenes_score.Maps, row: int, prompt: str) -> float:
    """The score by loops over assignments, straight from the module's docstring."""
    scene = parse(prompt)
    m = {name: value[row] for name, value in vars(maps).items()}
    places = local_maxima(m["presence"], scenes_score.CANDIDATES)

    def holds(kind: str, a: int, b: int) -> float:
        (ax, ay), (bx, by) = m["center"][a].tolist(), m["center"][b].tolist()
        right, down = bx - ax, by - ay
        if kind in ("in front of", "behind"):
            near = float(m["depth"][a] - m["depth"][b]) * (1 if kind == "in front of" else -1)
            gap = float(m["radius"][a] + m["radius"][b]) - math.hypot(right, down) - 2
            return sigmoid(near) * sigmoid(gap)
        along, across = {
            "left of": (right, down), "right of": (-right, down),
            "above": (down, right), "below": (-down, right),
        }[kind]  # fmt: skip
        return sigmoid(along - 5.5) * sigmoid(along - abs(across) + 0.5)

    exact = 0.0
    for chosen in itertools.permutations(places, len(scene.objects)):
        total = 0.0
        for o, k in zip(scene.objects, chosen, strict=True):
            total += math.log(sigmoid(bounded(float(m["presence"][k]))))
            total += floored(float(m["color"][k].softmax(0)[list(COLORS).index(o.color)]))
            total += floored(float(m["shape"][k].softmax(0)[SHAPES.index(o.shape)]))
            if o.texture is not None:
                total += floored(float(m["texture"][k].softmax(0)[TEXTURES.index(o.texture)]))
            if o.size is not None:
                larger = sigmoid((float(m["radius"][k]) - 12) / 0.7)
                total += floored(larger if SIZES.index(o.size) == 1 else 1 - larger)
        for relation in scene.relations:
            total += floored(holds(relation.kind, chosen[relation.first], chosen[relation.second]))
        others = [k for k in places if k not in chosen]
        absent = [math.log(sigmoid(-bounded(float(m["presence"][k])))) for k in others]
        exact += math.exp(total + scenes_score.EXTRA * sum(absent))
    flaws = local_maxima(m["flaw"], scenes_score.FLAWS)
    clean = sum(math.log(sigmoid(-bounded(float(m["flaw"][k])))) for k in flaws)
    if scene.counted:  # exchanging alike objects is no other way to show them
        exact /= math.factorial(len(scene.objects))
    return math.log(exact) + scenes_score.FLAW * clean


def test_the_score_is_that_of_a_loop_over_assignments():
    maps = random_maps(len(PROMPTS))
    scores = scenes_score.score(maps, PROMPTS)
    expected = [plain_score(maps, row, prompt) for row, prompt in enumerate(PROMPTS)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-9)
    assert (scores <= 0).all()


def test_candidates_are_local_maxima_strongest_first():
    maps = random_maps(3)
    places = scenes_score.peaks(maps.presence, 6)
    for row in range(3):
        assert places[row].tolist() == local_maxima(maps.presence[row], 6)


def labels_of(scripts, *rows) -> torch.Tensor:
    labels = torch.full((1, 6, 7), torch.nan)
    labels[0, : len(rows)] = torch.tensor(rows)
    return labels


def test_places_belong_to_the_nearest_object(scripts):
    labels = labels_of(scripts, (0, 0, 0, 10.0, 10.0, 9.0, 0), (1, 1, 0, 18.0, 10.0, 9.0, 1))
    targets = scripts["training"].assign(labels)
    centers = scenes_score.cell_centers(16, 16)
    for place, (x, y) in enumerate(centers.tolist()):
        distances = [math.hypot(x - 10, y - 10), math.hypot(x - 18, y - 10)]
        assert bool(targets.near[0, place]) == (min(distances) < 3)
        assert bool(targets.about[0, place]) == (min(distances) < 4.5)
        if targets.about[0, place]:
            assert int(targets.owner[0, place]) == int(np.argmin(distances))


def test_the_loss_falls_to_nothing_where_everything_is_found(scripts):
    labels = labels_of(scripts, (2, 3, 1, 21.0, 30.0, 13.0, 0), (5, 0, 0, 30.0, 40.0, 12.0, 1))
    training = scripts["training"]
    targets = training.assign(labels)
    rows = labels.gather(1, targets.owner[..., None].expand(-1, -1, 7))[0]
    sure = 20.0

    def one_hot(column: int, classes: int) -> torch.Tensor:
        return sure * torch.nn.functional.one_hot(rows[:, column].long(), classes)[None].float()

    depth = torch.where(targets.owner == 1, sure, -sure)
    none = torch.zeros(1, 256, dtype=torch.bool)
    maps = scenes_score.Maps(
        sure * (2 * targets.near.float() - 1), one_hot(0, 9), one_hot(1, 7), one_hot(2, 3),
        rows[None, :, 3:5], rows[None, :, 5], depth.float(), torch.full((1, 256), -sure),
    )  # fmt: skip
    loss, _ = training.detection_loss(maps, labels, (none, ~none))
    assert float(loss[0]) < 1e-4
    wrong = scenes_score.Maps(**(vars(maps) | {"depth": -maps.depth}))
    loss, _ = training.detection_loss(wrong, labels, (none, ~none))
    assert float(loss[0]) == pytest.approx(2 * sure, rel=1e-3)


def test_a_stain_is_a_flaw_and_a_shifted_picture_has_none(scripts):
    rng = random.Random(0)
    clean, _, _ = scripts["data"].draw_clean(rng, 6, odd=0.0)
    drawn = scripts["data"].as_float(clean)
    flaw, known = scripts["training"].flaw_targets(drawn.roll((1, -2), (2, 3)), drawn)
    inner = torch.zeros(16, 16, dtype=torch.bool)
    inner[1:-1, 1:-1] = True  # what was rolled in at the border was never drawn
    assert not flaw[:, inner.flatten()].any()
    assert known.all(1).any()
    stained = drawn.clone()
    stained[:, :, 28:34, 36:42] = torch.tensor([0.9, 0.1, 0.9])[:, None, None]
    flaw, _ = scripts["training"].flaw_targets(stained, drawn)
    at = scenes_score.cell_centers(16, 16)
    inside = ((at - torch.tensor([39.0, 31.0])).abs() <= 3).all(1)
    assert flaw[:, inside].any(1).all()
    assert not flaw[:, (at - torch.tensor([39.0, 31.0])).norm(dim=1) > 12].any()
    _, known = scripts["training"].flaw_targets(drawn, drawn * torch.nan)
    assert not known.any()


def test_altered_labels_say_one_false_thing(scripts):
    rng = random.Random(1)
    _, labels, _ = scripts["data"].draw_clean(rng, 64, odd=0.0)
    false = scripts["attacks"].altered(labels, rng)
    same = (labels == false) | (labels.isnan() & false.isnan())
    assert ((~same).any(-1).sum(1) <= 1).all()
    assert (~same).flatten(1).any(1).float().mean() > 0.8


def test_mirrored_labels_stay_on_their_objects(scripts):
    rng = random.Random(2)
    data = scripts["data"].fresh(rng, 24)
    clean = scripts["data"].Labelled(data.drawn, data.labels, data.drawn)
    moved = scripts["data"].mirrored(clean, rng)
    for image, rows in zip(moved.images, moved.labels, strict=True):
        for color, shape, texture, x, y, _, _ in rows[rows[:, 0].isfinite()].tolist():
            if shape == SHAPES.index("ring") or texture != 0 or color >= len(COLORS):
                continue
            column, row = round(x - 0.5), round(y - 0.5)
            over = [o for o in rows.tolist() if math.hypot(o[3] - x, o[4] - y) < 1.25 * o[5] + 1]
            if len(over) == 1 and shape < len(SHAPES):
                paint = torch.tensor(list(COLORS.values())[int(color)]) / 255
                assert (image[:, row, column] - paint).abs().max() < 0.1


def test_odd_colours_and_shapes_are_none(scripts):
    odd, rng = scripts["odd"], random.Random(3)
    rows: list[tuple] = []
    for _ in range(40):
        image, own = np.full((64, 64, 3), 235, np.uint8), []
        odd.add_odd(image, own, rng)
        rows += own
        if own:
            assert (image != 235).any()
    assert rows
    assert all(color == odd.NO_COLOR or shape == odd.NO_SHAPE for color, shape, *_ in rows)


def test_the_training_draws_nothing_that_is_held_out(scripts):
    rng = random.Random(4)
    for _ in range(200):
        assert not heldout_combinations(scripts["data"].draw_scene(rng))


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_render_with_one_fact_wrong_scores_lower(scripts, category):
    near, rng = scripts["near_misses"], random.Random(f"facts-{category}")
    reward, right, wrong, prompts = load_reward("scenes-detector"), [], [], []
    while len(prompts) < 100:
        scene = random_stated_scene(category, rng)
        true, false = near.try_layout(scene, rng), near.try_layout(near.vary(scene, rng), rng)
        if true and false and not scripts["truth"].satisfies(scene, false):
            prompts.append(describe(scene, rng))
            right.append(render(true))
            wrong.append(render(false))
    images = [torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2) / 255 for x in (right, wrong)]
    true, false = (reward(x, prompts) for x in images)
    assert float((true > false).float().mean()) >= 0.97


def test_a_prompt_outside_the_grammar_is_refused():
    with pytest.raises(ValueError, match="cannot read 'dog'"):
        load_reward("scenes-detector")(torch.rand(1, 3, 64, 64), ["a red dog"])


def test_the_soft_score_is_a_bounded_form_of_the_score_whose_slope_is_in_the_middle():
    torch.manual_seed(0)
    renders = np.stack([render(layout(parse(p), random.Random(0))) for p in PROMPTS])
    drawn = torch.from_numpy(renders).permute(0, 3, 1, 2).float() / 255
    images = torch.cat([drawn, torch.rand_like(drawn)])
    prompts = PROMPTS * 2
    score, soft = load_reward("scenes-detector"), load_reward("scenes-detector:soft")
    expected = [4 / (1 + math.exp(-(value + 3) / 2)) for value in score(images, prompts).tolist()]
    assert soft(images, prompts).tolist() == pytest.approx(expected, abs=1e-5)
    assert detector.load(None, "cpu").soft is False  # loading the one leaves the other as it is
