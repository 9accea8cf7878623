"""What `scenes-detector` finds of a prompt's facts in a picture, fact by fact.

Stated objects are given to candidates as in the assignment that adds most to the score. Facts are
taken as independent, as there: their probabilities' product is that assignment's share of it, but
for the floor under each fact.
"""

from collections import Counter

import torch
from jaxtyping import Float, Int
from torch import Tensor

from align.language.assertions import identify, with_article
from align.rewards import scenes_score
from align.rewards.facts import Fact
from align.rewards.scenes_score import Maps, Stated
from align.scenes.grammar import COLORS, SHAPES, Scene, SceneObject, parse

ORDINALS = ("", "second ", "third ", "fourth ")
SURE = 0.5  # of a note: less probable facts get one, and what it names is at least so probable


def explain(maps: Maps, prompts: list[str]) -> list[list[Fact]]:
    """The facts of each picture: every object and what is said of it, relations, nothing else, no
    stain. Raises ValueError for a prompt outside the grammar."""
    found, clean = scenes_score.candidates(maps), scenes_score.flawless(maps).exp().tolist()
    facts: list[list[Fact]] = [[] for _ in prompts]
    for rows, stated in scenes_score.by_count(prompts, found.presence.device):
        part = scenes_score.select(found, rows)
        chosen = best_assignment(part, stated)
        sure = probabilities(part, stated)
        for i, row in enumerate(rows.tolist()):
            one = {name: values[i] for name, values in sure.items()}
            candidates = scenes_score.select(part, torch.tensor([i], device=chosen.device))
            facts[row] = [
                *_facts(parse(prompts[row]), chosen[i].tolist(), one, candidates),
                Fact("no object has a stain", clean[row], _stain(maps, row, clean[row])),
            ]
    return facts


def best_assignment(found: Maps, stated: Stated) -> Int[Tensor, "b n"]:
    """The candidate of each stated object in the assignment that adds most to the score."""
    ways = scenes_score.assignments(stated.color.shape[1], stated.color.device)
    return ways[scenes_score.assignment_scores(found, stated).argmax(1)]


def probabilities(found: Maps, stated: Stated) -> dict[str, Float[Tensor, "b ..."]]:
    """Of each candidate that something is there (`present` [b, k]), of the stated objects at each
    candidate (`object`, `texture`, `size`, [b, n, k]) and of all relations [b, k, k, r]."""
    present = scenes_score.bounded(found.presence).sigmoid()
    kinds = {name: _unfloored(f) for name, f in scenes_score.object_facts(found, stated).items()}
    return {
        "present": present,
        "object": present[:, None] * kinds["color"] * kinds["shape"],
        "texture": kinds["texture"],
        "size": kinds["size"],
        "relation": _unfloored(scenes_score.relation_facts(found)),
    }


def _unfloored(log_p: Tensor) -> Tensor:
    """The probability p behind `floored`."""
    return ((log_p.exp() - scenes_score.FLOOR) / (1 - scenes_score.FLOOR)).clamp(0, 1)


def _facts(scene: Scene, chosen: list[int], sure: dict[str, Tensor], found: Maps) -> list[Fact]:
    looks = Counter((o.color, o.shape) for o in scene.objects)
    names = [str(identify(o, looks)) for o in scene.objects]
    if not scene.relations and len(set(scene.objects)) == 1:  # the surest of them comes first
        chosen = sorted(chosen, key=lambda k: -float(sure["object"][0, k]))
    facts, seen = [], Counter[tuple[str, str]]()
    for i, (o, k) in enumerate(zip(scene.objects, chosen, strict=True)):
        nth = ORDINALS[seen[o.color, o.shape]]
        seen[o.color, o.shape] += 1
        p, there = float(sure["object"][i, k]), float(sure["present"][k])
        note = f"{_look(found, k)} instead" if p < SURE <= there else ""
        facts.append(Fact(f"{with_article(nth + _noun(o))} is there", p, note))
        for kind, said in (("texture", o.texture), ("size", o.size)):
            if said:
                facts.append(Fact(f"the {nth}{_noun(o)} is {said}", float(sure[kind][i, k])))
    for relation in scene.relations:
        a, b = relation.first, relation.second
        kind = scenes_score.RELATIONS.index(relation.kind)
        text = f"the {names[a]} is {relation.kind} the {names[b]}"
        facts.append(Fact(text, float(sure["relation"][chosen[a], chosen[b], kind])))
    return [*facts, _nothing_else(sure["present"], chosen, found)]


def _noun(o: SceneObject) -> str:
    return f"{o.color} {o.shape}"


def _nothing_else(present: Float[Tensor, " k"], chosen: list[int], found: Maps) -> Fact:
    others = [k for k in range(len(present)) if k not in chosen]
    most = max(others, key=lambda k: float(present[k]))
    p = float((1 - present[others]).prod())
    return Fact("nothing else is there", p, _look(found, most) if p < SURE else "")


def _stain(maps: Maps, row: int, clean: float) -> str:
    """Where the likeliest stain of a picture is; nothing where there hardly is one."""
    side = round(maps.flaw.shape[1] ** 0.5)
    x, y = scenes_score.cell_centers(side, side)[int(maps.flaw[row].argmax())].tolist()
    return f"something at ({x:.0f}, {y:.0f})" if clean < SURE else ""


def _look(found: Maps, k: int) -> str:
    """What one candidate looks like: "a purple cross at (x, y)", or "something purple, perhaps a
    cross, at (x, y)" where that is not sure."""
    color, shape = (maps[0, k].softmax(-1) for maps in (found.color, found.shape))
    c, s = int(color.argmax()), int(shape.argmax())
    x, y = (round(value) for value in found.center[0, k].tolist())
    if c < len(COLORS) and s < len(SHAPES) and min(float(color[c]), float(shape[s])) >= SURE:
        return f"{with_article(f'{[*COLORS][c]} {SHAPES[s]}')} at ({x}, {y})"
    look = [*COLORS, "of no known colour"][c]
    name = f"perhaps {with_article(SHAPES[s])}" if s < len(SHAPES) else "of no known shape"
    return f"something {look}, {name}, at ({x}, {y})"
