"""Random objects, colours and clauses, for GenEval's rule and its reference."""

import random

CLASSES = ("dog", "cat", "bench")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")
COUNT = 500


def scene(seed: int) -> tuple[dict, dict]:
    """Found things by class, each (box with score, its colour), the surest first; what is asked."""
    rng = random.Random(f"geneval {seed}")
    found = {}
    for name in CLASSES:
        things = []
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 4))):
            x, y = rng.randint(0, 180), rng.randint(0, 180)
            box = [x, y, x + rng.randint(1, 90), y + rng.randint(1, 90)]
            things.append(([float(side) for side in box] + [1.0], rng.choice(COLOURS[:3])))
        if things:
            found[name] = things
    include = []
    for at in range(rng.choice((1, 2, 2, 2, 3))):
        clause = {"class": rng.choice(CLASSES), "count": rng.choice((1, 1, 1, 2, 3))}
        if rng.random() < 0.4:
            clause["color"] = rng.choice(COLOURS[:2])
        if at and rng.random() < 0.7:
            clause["position"] = [rng.choice(POSITIONS), rng.randrange(at)]
        include.append(clause)
    asked = {"tag": "x", "include": include}
    if rng.random() < 0.3:
        asked["exclude"] = [{"class": rng.choice(CLASSES), "count": rng.randint(1, 4)}]
    return found, asked
