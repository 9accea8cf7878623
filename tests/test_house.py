"""The house: a room imports only rooms below it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LADDER = (
    "config", "scenes", "runs", "language", "diffusion", "models", "rewards", "training",
    "noise_opt", "alignprop", "nar", "evaluation", "commands", "demo",
)  # fmt: skip


def imported(file: Path) -> set[tuple[str, ...]]:
    """The parts after `align` of all that a file imports, what only type checkers read left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in [n for n in ast.walk(tree) if isinstance(n, ast.If)]:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {tuple(name.split(".")[1:]) for name in found if name.split(".")[0] == "align"}


def test_no_room_reaches_upward():
    climbing = []
    for level, room in enumerate(LADDER):
        for file in (ROOT / "align" / room).rglob("*.py"):
            for parts in imported(file):
                if parts and (parts[0] not in LADDER or LADDER.index(parts[0]) > level):
                    climbing.append(f"{file.relative_to(ROOT)} imports align.{'.'.join(parts)}")
    assert not climbing, "\n".join(climbing)


def test_the_front_door_is_small():
    """Six files at the top, every folder but the weights' on the ladder."""
    files = sorted(path.name for path in (ROOT / "align").glob("*.py"))
    assert len(files) <= 6, files
    folders = {path.parent.name for path in (ROOT / "align").glob("*/__init__.py")}
    assert folders == set(LADDER)


def test_no_circles():
    """Within a room too, no two files import each other, however far around."""
    files = {}
    for path in (ROOT / "align").rglob("*.py"):
        parts = path.relative_to(ROOT / "align").with_suffix("").parts
        files[parts[:-1] if parts[-1] == "__init__" else parts] = path
    arrows = {}
    for name, path in files.items():
        targets = {parts if parts in files else parts[:-1] for parts in imported(path)}
        arrows[name] = {target for target in targets if target in files and target != name}
    waiting = {name for name in arrows if arrows[name]}
    while True:
        free = {name for name in waiting if not arrows[name] & waiting}
        if not free:
            break
        waiting -= free
    assert not waiting, sorted(".".join(name) for name in waiting)
