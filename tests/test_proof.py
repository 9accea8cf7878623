"""No recipe and no preset claims more proof than its committed record: docs/recipes/proof."""

import json
import re

import pytest
from doc_blocks import ROOT

from align.config.presets import PRESETS

RECIPES = ROOT / "docs" / "recipes"
PAGES = sorted(page.stem for page in RECIPES.glob("*.md") if page.stem != "README")
README = (RECIPES / "README.md").read_text(encoding="utf-8")
COMMON = {"command", "machine", "date", "seconds"}
# A level, from the least, and what its record has to say.
LEVELS = {
    "written": set(),
    "rehearsed": COMMON | {"architecture", "depth", "left_out", "estimated_gib"},
    "measured": COMMON | {"curve", "judge", "memory_gib"},
}


def claimed(name):
    """The level of a preset, in the table of the recipes; of a recipe, there and on its page."""
    pattern = (
        rf"^\| `{name}` \| (\w+)" if name in PRESETS else rf"\]\({name}\.md\).*\| (\w+)[^|]*\|$"
    )
    (level,) = re.findall(pattern, README, re.MULTILINE)
    if name not in PRESETS:
        text = (RECIPES / f"{name}.md").read_text(encoding="utf-8")
        assert re.findall(r"(?:\| proof \|\s|Proof: )\*\*(\w+)\*\*", text) == [level], name
    return level


def proved(name):
    """The level of the record; written where there is none. Fails where it is incomplete."""
    path = RECIPES / "proof" / f"{name}.json"
    if not path.is_file():
        return "written"
    record = json.loads(path.read_text(encoding="utf-8"))
    missing = {key for key in LEVELS[record["level"]] if not record.get(key)}
    assert not missing, f"{path.name} lacks {missing}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    if record["level"] == "measured":
        assert len(record["curve"]) == PRESETS[name]["steps"], "the curve is the whole run's"
        assert record["judge"]["held_out"] is True
        assert {"before", "after"} <= record["judge"].keys()
    return record["level"]


@pytest.mark.parametrize("name", [*PAGES, *PRESETS])
def test_the_claim_is_the_record_s(name):
    ranks = list(LEVELS)
    assert ranks.index(claimed(name)) <= ranks.index(proved(name)), "it claims more than is proved"


def test_every_record_belongs_to_a_recipe_or_a_preset():
    records = {path.stem for path in (RECIPES / "proof").glob("*.json")}
    assert records <= {*PAGES, *PRESETS}


def test_a_claim_without_record_would_be_seen(monkeypatch):
    """A line that says measured, of a preset that has no record."""
    import test_proof

    changed = README.replace("| `drtune` | written |", "| `drtune` | measured |")
    monkeypatch.setattr(test_proof, "README", changed)
    with pytest.raises(AssertionError, match="claims more"):
        test_the_claim_is_the_record_s("drtune")
