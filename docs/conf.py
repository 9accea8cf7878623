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


def setup(app) -> None:
    app.connect("autodoc-process-docstring", to_rst, priority=100)  # before napoleon
