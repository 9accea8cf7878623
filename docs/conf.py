"""Sphinx: `make docs` builds docs/ into build/docs; warnings are errors."""

import re
from importlib.metadata import version as installed

project = "align"
copyright = "the align authors"
version = release = installed("align-diffusion")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "align"
exclude_patterns = ["conf.py"]
suppress_warnings = ["misc.highlighting_failure"]  # "…" stands for what is left out

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # the tutorial runs whenever the documentation is built
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "exclude-members": "__new__, __init__, __post_init__"}


def to_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings here mark code by single backticks and nothing else; write that as reST."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]+`+)", line)
        for at, part in enumerate(parts):
            if part.startswith("`"):
                parts[at] = f"``{part.strip('`')}``"
            else:
                parts[at] = re.sub(r"([*|\\])|(?<=\w)(_)(?!\w)", r"\\\1\2", part)
        lines[number] = "".join(parts)


def tables() -> dict[str, list[tuple[str, str]]]:
    """What can be named, with what it does, from the tables that the commands read."""
    from align.config.optimize import SEARCHES
    from align.config.train import METHODS
    from align.diffusion.denoisers import FAMILIES
    from align.rewards import JUDGES, REWARDS

    return {
        "rewards": [(name, one.measures) for name, one in (REWARDS | JUDGES).items()],
        "search methods": [(name, one.does) for name, one in SEARCHES.items()],
        "training methods": [(name, one.does) for name, one in METHODS.items()],
        "families": [(name, one.name) for name, one in FAMILIES.items()],
    }


def fill_tables(app, page: str, source: list[str]) -> None:
    """Put the tables where a page says `<!-- table: NAME -->`."""
    if "<!-- table: " not in source[0]:
        return
    for title, rows in tables().items():
        lines = [
            "| name | what |",
            "| --- | --- |",
            *(f"| `{name}` | {what} |" for name, what in rows),
        ]
        source[0] = source[0].replace(f"<!-- table: {title} -->", "\n".join(lines))


def setup(app) -> None:
    app.connect("source-read", fill_tables)
    app.connect("autodoc-process-docstring", to_rst, priority=100)  # before napoleon
