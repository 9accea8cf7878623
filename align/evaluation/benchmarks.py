"""Prompt sets to evaluate on: built-in ones, and benchmarks' own files with their categories.

| benchmark | file | prompt | category |
| --- | --- | --- | --- |
| T2I-CompBench++ | a folder of `*_val.txt`, or one of them | line | the file's name |
| GenEval, GenEval 2 | JSONL | `prompt` | `tag`; `atom_count` |
| HRS-Bench | a folder of CSV files, or one of them | `original_prompts`, … | the file's name |
| DSG-1k, DPG-Bench | CSV, a row a question | `text` | the file's name |
| PartiPrompts | TSV | `Prompt` | `Category` |
| DrawBench | CSV | `Prompts` | `Category` |
| TIFA, GenAI-Bench | JSON, a list or an object of entries | `caption`, `prompt` | `source`, … |
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config.checks import one_of
from align.language.prompt_files import SUFFIXES, read_prompts
from align.language.prompts import PromptSet, builtin_names, load_prompts
from align.language.questions import gather, joined

CATEGORY_COLUMNS = (
    "category",
    "tag",
    "atom_count",
    "category_broad",
    "skills",
    "basic_skills",
    "source",
)


def load_benchmark(name_or_path: str) -> PromptSet:
    """Prompts in which every one has a `category` in its metadata; each prompt comes once.

    Raises FileNotFoundError for a missing file, ValueError for an empty one, one without a column
    of prompts, a row without a prompt, or a category that is empty.
    """
    path = Path(name_or_path)
    if name_or_path in builtin_names() or not path.exists():
        return _with_categories(load_prompts(name_or_path), "animals")
    if not path.is_dir():
        return _with_categories(_merged(name_or_path, read_prompts(path)), _stem(path))
    files = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")  # macOS' `._` files
    )
    if not files:
        raise ValueError(f"folder {path} has no prompt files ({', '.join(SUFFIXES)})")
    merged = [_merged(str(file), read_prompts(file)) for file in files]
    parts = [_with_categories(m, _stem(file)) for m, file in zip(merged, files, strict=True)]
    prompts = [prompt for part in parts for prompt in part.prompts]
    return PromptSet(name_or_path, prompts, [row for part in parts for row in part.metadata])


def choose(prompts: PromptSet, categories: str | None, per_category: int | None) -> PromptSet:
    """Only these categories (joined by commas), and of each the first `per_category` prompts.

    Raises ValueError for a category that has no prompts.
    """
    known = list(dict.fromkeys(row["category"] for row in prompts.metadata))
    wanted = known if categories is None else [name.strip() for name in categories.split(",")]
    for name in wanted:
        if name not in known:
            raise ValueError(f"category {name!r} of {prompts.name} is empty; {one_of(name, known)}")
    rows = []
    for name in wanted:
        mine = [i for i, row in enumerate(prompts.metadata) if row["category"] == name]
        rows += mine[:per_category]
    return PromptSet(
        prompts.name, [prompts.prompts[i] for i in rows], [prompts.metadata[i] for i in rows]
    )


def _merged(name: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> PromptSet:
    """Each prompt once. Where it has several rows, as DSG-1k and DPG-Bench have one for every
    question, a column that differs between them holds the list of its values, row by row."""
    if not rows:
        raise ValueError(f"prompt file {name} has no prompts, so its category is empty")
    grouped: dict[str, list[dict[str, Any]]] = {}
    for prompt, metadata in gather(rows):
        if metadata not in grouped.setdefault(prompt, []):
            grouped[prompt].append(metadata)
    return PromptSet(name, list(grouped), [joined(mine) for mine in grouped.values()])


def _with_categories(prompts: PromptSet, fallback: str) -> PromptSet:
    """The same with a `category` for each: its own, else that of a scenes prompt, else fallback.

    A list of several is of the parts of a prompt (its questions, its skills) and none of its own.
    """
    metadata = []
    for number, (prompt, row) in enumerate(zip(prompts.prompts, prompts.metadata, strict=True), 1):
        lower = {str(key).lower(): value for key, value in row.items()}
        column = next((k for k in CATEGORY_COLUMNS if k in lower and not _several(lower[k])), None)
        value = lower[column] if column else _scenes_category(prompt) or fallback
        value = value[0] if isinstance(value, list) and value else value
        value = str(value) if isinstance(value, int) else value
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"prompt {number} of {prompts.name} ({prompt!r}) has no {column}")
        metadata.append(row | {"category": value.strip()})
    return PromptSet(prompts.name, prompts.prompts, metadata)


def _several(value: Any) -> bool:
    return isinstance(value, list) and len(set(map(str, value))) > 1


def _scenes_category(prompt: str) -> str | None:
    from align.scenes import category

    try:
        return category(prompt)
    except ValueError:
        return None


def _stem(path: Path) -> str:
    """`color_val.txt` -> color, `counting_prompts.csv` -> counting."""
    stem = path.stem.lower()
    for ending in ("_val", "_train", "_test", "_prompts"):
        stem = stem.removesuffix(ending)
    return stem
