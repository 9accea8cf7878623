"""Code blocks of the project's Markdown, and the commands in them."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "demo" / "README.md",
        ROOT / "scripts" / "accelerate" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
)
SHELL = ("console", "bash", "sh", "shell")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block; `info` is what stands after the fence."""

    page: str
    line: int
    info: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The code blocks of a page, in order."""
    tokens = MarkdownIt("default").parse((ROOT / page).read_text(encoding="utf-8"))
    return tuple(
        Block(page, (token.map or [0])[0] + 1, token.info.strip(), token.content)
        for token in tokens
        if token.type in ("fence", "code_block")
    )


def python_blocks() -> list[Block]:
    return [b for page in PAGES for b in blocks(page) if b.info.split()[:1] == ["python"]]


def commands() -> list[tuple[str, str]]:
    """(where, command line) of every shell block: of `console` ones what follows a `$`."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            kind = (block.info.split() or [""])[0]
            if kind in SHELL or not kind:
                text = re.sub(r"\\\n\s*", " ", block.text)
                lines = text.splitlines()
                if kind == "console":
                    lines = [line[2:] for line in lines if line.startswith("$ ")]
                found += [(block.where, line.strip()) for line in lines if line.strip()]
        for span in spans(page):
            if re.match(r"(align|make|python scripts/\S+) ", span) and not re.search(
                "…|COMMAND", span
            ):
                found.append((page, span))
    return [(where, line) for where, line in found if not line.startswith("#")]


def spans(page: str) -> list[str]:
    """The code spans of a page's text."""
    tokens = MarkdownIt("default").parse((ROOT / page).read_text(encoding="utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    return [child.content for child in inline if child.type == "code_inline"]
