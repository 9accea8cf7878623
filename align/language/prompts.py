"""Prompts: files, built-in sets, the seeded choice of a training update's prompts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.config.checks import one_of
from align.language.geneval import geneval_prompts
from align.language.prompt_files import read_prompts
from align.language.questions import gather

# The 45 common animals on which DDPO (2305.13301) and AlignProp (2310.03739) train.
ANIMALS: str = (
    "cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox "
    "wolf lizard beetle ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle "
    "frog chicken duck goose bee pig turkey fly llama camel bat gorilla hedgehog kangaroo"
)


# Final figures are measured on it: nothing is trained on it, and nothing chosen by it.
RESERVED = "scenes-heldout-b"


@dataclass(frozen=True)
class PromptSet:
    """Prompts and, for each of them, what else the file says about it (handed to rewards)."""

    name: str
    prompts: list[str]
    metadata: list[dict[str, Any]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.prompts)

    def pick(self, rows: Sequence[int], times: int = 1) -> tuple[list[str], list[dict]]:
        """The prompts of these rows and their metadata, each so many times, one after the other."""
        rows = [row for row in rows for _ in range(times)]
        return [self.prompts[row] for row in rows], [self.metadata[row] for row in rows]


def builtin_names() -> tuple[str, ...]:
    """The names of the built-in sets."""
    from align.scenes.dataset import PROMPT_SETS

    return (*PROMPT_SETS, "animals", "geneval")


def default_prompts(model: str) -> str:
    """The set that a model takes when none is named; raises ValueError where it has none."""
    if model.startswith("embedded/"):
        return "scenes"
    raise ValueError(
        f"--prompts is needed with {model}: a file or one of {', '.join(builtin_names())}"
    )


def training_prompts(config: Any) -> PromptSet:
    """The prompts that a run trains on. Raises ValueError for those kept for the measurement."""
    prompts = load_prompts(config.prompts or default_prompts(config.model))
    refuse_reserved(prompts, "prompts", "train on another set, such as scenes-heldout-a")
    return prompts


def refuse_reserved(prompts: PromptSet, what: str, instead: str) -> None:
    """Raise ValueError where any of the prompts is one of those kept for the final measurement,
    whatever its file is called and whatever else is in it."""
    from align.scenes.dataset import prompt_set

    if prompts.name != RESERVED and prompts.name in builtin_names():
        return
    kept = {_plain(prompt) for prompt in prompt_set(RESERVED)}
    found = [prompt for prompt in prompts.prompts if _plain(prompt) in kept]
    if found:
        raise ValueError(
            f"{what} is {prompts.name!r}; {RESERVED} is kept for the final measurement, and "
            f"{len(found)} of these prompts are of it, such as {found[0]!r}; {instead}"
        )


def _plain(prompt: str) -> str:
    """A prompt without what does not change it: capitals, spaces, a full stop."""
    return " ".join(prompt.casefold().split()).rstrip(" .")


def load_prompts(name_or_path: str | Path) -> PromptSet:
    """A built-in set, a text file with one prompt a line, or a table or JSON with a `prompt`.

    Formats are those of `align.language.prompt_files.read_prompts`: CSV, TSV, JSON and JSON lines,
    whose other columns become each prompt's metadata. Blank lines are skipped.
    Raises FileNotFoundError for a missing file; ValueError for an unknown set (naming near ones),
    an empty file, an unknown suffix, one that is not UTF-8, or a row without a prompt.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name == "animals":
        prompts = ANIMALS.split()
        return PromptSet(name, prompts, [{} for _ in prompts])
    if name == "geneval":
        rows = geneval_prompts()
        return PromptSet(name, [row.pop("prompt") for row in rows], rows)
    if name in builtin_names():
        from align.scenes.dataset import prompt_categories, prompt_set

        prompts = list(prompt_set(name))
        return PromptSet(name, prompts, [{"category": c} for c in prompt_categories(prompts)])
    if not path.is_file():
        if path.suffix or path.parent != Path():
            raise FileNotFoundError(f"no prompt file {name}")
        raise ValueError(f"no prompt set or file {name!r}; {one_of(name, builtin_names())}")
    rows = gather(read_prompts(path))
    if not rows:
        raise ValueError(f"prompt file {name} has no prompts; write at least one")
    return PromptSet(name, [prompt for prompt, _ in rows], [metadata for _, metadata in rows])


def draw_prompts(count: int, *, seed: int, update: int, indices: Sequence[int]) -> list[int]:
    """Which of `count` prompts the images with these global indices get in an update.

    Depends on seed, update and global index alone, so a batch can be split in any way. Within
    an update no prompt comes twice before every prompt has come once.
    """
    order = random.Random(f"align-prompts-{seed}-{update}").sample(range(count), count)
    return [order[index % count] for index in indices]
