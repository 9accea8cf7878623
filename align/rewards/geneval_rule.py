"""GenEval's rule (arXiv 2310.11513): whether the objects that were found are those asked for.

`judge` is the original's decision, `judge_strictly` the same with exact numbers everywhere, `grade`
the share that flow_grpo's training takes. Objects come the surest first; colours of some objects
of a class are asked for only where they count.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.rewards.mask2former import Thing

NEAR = 0.1  # of both sizes: what is nearer has no relation
ASIDE = 0.5
Objects = Mapping[str, Sequence[Thing]]
Colours = Callable[[Sequence[Thing], str], list[str]]
Box = tuple[float, float, float, float]


def relations(a: Box, b: Box) -> set[str]:
    """Where box a (x0, y0, x1, y1) lies, seen from box b: two relations may hold, or none."""
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    apart = [
        max(abs(o) - NEAR * size, 0) * (1 if o > 0 else -1)
        for o, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(one) < 1e-3 for one in apart):
        return set()
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    dx, dy = (one / length for one in apart)
    held = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, value in held.items() if value > ASIDE}


def judge(objects: Objects, asked: Mapping[str, Any], colours: Colours) -> list[str]:
    """What is wrong, empty where all is right: `few`, `color`, `target`, `position`, `many`."""
    faults: list[str] = []
    groups: list[Sequence[Thing] | None] = []
    for clause in asked.get("include", ()):
        name, count = clause["class"], clause["count"]
        taken = objects.get(name, ())[:count]
        fault = ["few"] if len(taken) < count else _fault(clause, taken, groups, colours)
        faults += fault
        groups.append(None if fault else taken)
    for clause in asked.get("exclude", ()):
        if len(objects.get(clause["class"], ())) >= clause["count"]:
            faults.append("many")
    return faults


def judge_strictly(objects: Objects, asked: Mapping[str, Any], colours: Colours) -> list[str]:
    """As `judge`, and a number that differs in any way is `few` or `many`."""
    faults: list[str] = []
    groups: list[Sequence[Thing] | None] = []
    for clause in asked.get("include", ()):
        taken, count = objects.get(clause["class"], ()), clause["count"]
        fault: list[str] = ["few" if len(taken) < count else "many"]
        if len(taken) == count:
            fault = _fault(clause, taken, groups, colours)
        faults += fault
        groups.append(None if fault else taken)
    return faults


def _fault(
    clause: Mapping[str, Any],
    taken: Sequence[Thing],
    groups: Sequence[Sequence[Thing] | None],
    colours: Colours,
) -> list[str]:
    """What is wrong with the colours and positions of objects that are enough."""
    if "color" in clause:
        right = colours(taken, clause["class"]).count(clause["color"])
        if right < clause["count"]:
            return ["color"]
    if "position" in clause:
        relation, earlier = clause["position"]
        targets = groups[earlier]
        if targets is None:
            return ["target"]
        if any(relation not in relations(a.box, b.box) for a in taken for b in targets):
            return ["position"]
    return []


def grade(objects: Objects, asked: Mapping[str, Any], colours: Colours) -> float:
    """flow_grpo's dense reward, at most 1, below 0 where far too many are there.

    Its mean over entries has a 1 after every position that was compared, held or not: kept.
    """
    entries: list[float] = []
    groups: list[Sequence[Thing] | None] = []
    for clause in asked.get("include", ()):
        found, count = objects.get(clause["class"], ()), clause["count"]
        entries.append(1 - abs(count - len(found)) / count)
        held = len(found) == count
        if not held and ("color" in clause or "position" in clause):
            entries.append(0.0)
        if held and "color" in clause:
            right = colours(found, clause["class"]).count(clause["color"])
            entries.append(1 - abs(count - right) / count)
            held = right == count
        if held and "position" in clause:
            relation, earlier = clause["position"]
            targets = groups[earlier]
            held = targets is not None and all(
                relation in relations(a.box, b.box) for a in found for b in targets
            )
            entries += [0.0] * (not held) + [1.0] * (targets is not None)
        groups.append(found if held else None)
    return sum(entries) / len(entries) if entries else 0.0
