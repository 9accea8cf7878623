"""What the documentation says can be typed: every command parses, every Python block runs or
compiles, every link leads somewhere."""

import argparse
import re
import runpy
import shlex
import sys
import tomllib

import pytest
from doc_blocks import PAGES, ROOT, blocks, commands, python_blocks

from align import arguments, cli

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_OURS = {
    "accelerate",
    "cd",
    "cp",
    "docker",
    "git",
    "hf",
    "tensorboard",
}  # words may follow freely


class Parsed(BaseException):
    """Raised in place of the work, once a command line has been parsed."""


@pytest.fixture
def parse_only(monkeypatch):
    """Every command parses by its own parser and stops there."""

    def stop(function):
        def parse(*positional, **named):
            raise Parsed(function(*positional, **named))

        return parse

    for module in (cli, arguments):
        monkeypatch.setattr(module, "parse", stop(arguments_parse))
    monkeypatch.setattr(cli, "no_arguments", stop(cli_no_arguments))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop(argparse_parse_args))


arguments_parse, cli_no_arguments = arguments.parse, cli.no_arguments
argparse_parse_args = argparse.ArgumentParser.parse_args


def check_align(words):
    if words in ([], ["--help"], ["--version"]) or words[-1:] == ["--help"]:
        name = " ".join(word for word in words if word != "--help")
        assert not name or name == "--version" or name in cli.COMMANDS, name
        return
    with pytest.raises(Parsed) as stopped:
        cli._dispatch(words)
    check_values(stopped.value.args[0])


def check_values(config):
    """Names inside values: built-in models, prompt sets and rewards that there are."""
    from align.language.prompts import builtin_names
    from align.models.load import EMBEDDED
    from align.rewards import JUDGES, REWARDS
    from align.rewards.expression import leaves, parse_expression

    model = getattr(config, "model", None)
    if isinstance(model, str) and model.startswith("embedded/") and "nar" not in model:
        assert (EMBEDDED / model.removeprefix("embedded/") / "model_index.json").is_file(), model
    prompts = getattr(config, "prompts", None)
    if prompts and re.fullmatch(r"[\w-]+", prompts):
        assert prompts in builtin_names(), prompts
    for name, known in (("reward", REWARDS), ("judge", REWARDS | JUDGES)):
        for term in leaves(parse_expression(getattr(config, name, None) or "jpeg")):
            assert term.name.endswith(".py") or term.name in known, term.name


def check_script(words):
    path = ROOT / words[0]
    assert path.is_file(), words[0]
    sys.argv = [str(path), *words[1:]]
    sys.path.insert(0, str(path.parent))
    if "argparse" not in path.read_text(encoding="utf-8"):
        return
    with pytest.raises(Parsed):
        runpy.run_path(str(path), run_name="__main__")


def check_pip(words):
    assert words[0] == "install", words
    for extras in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), extras


def check_command(words):
    """Check a command line by its program."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if "-m" in rest and rest[rest.index("-m") + 1] == "align":
        config = rest[rest.index("--config_file") + 1] if "--config_file" in rest else "Makefile"
        assert (ROOT / config).is_file(), config
        check_align(rest[rest.index("-m") + 2 :])
    elif program == "align":
        check_align(rest)
    elif program == "python":
        check_script(rest)
    elif program == "docker" and rest[0] == "run":
        check_align(rest[rest.index("align") + 1 :])  # what follows the image's name
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in rest if "=" not in word]
        assert all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in targets), targets
    elif program == "pip":
        check_pip(rest)
    else:
        assert program in NOT_OURS, f"what is {program}?"


@pytest.mark.parametrize(("where", "line"), commands(), ids=lambda value: value[:60])
def test_every_command_can_be_typed(where, line, parse_only, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    monkeypatch.setattr(sys, "path", sys.path[:])
    check_command(shlex.split(line, comments=True))


def test_wrong_commands_are_noticed(parse_only):
    for line in (
        "align trian --steps 3",
        "align train --no-such-option 3",
        "align train --reward no-such-reward",
        "align generate --prompts no-such-set",
        "align models --all",
        "python scripts/no_such.py",
        "python scripts/bench/memory.py --no-such-option",
        "pip install align-diffusion[no-such-extra]",
        "make no-such-target",
        "no-such-program",
    ):
        with pytest.raises((AssertionError, ValueError, SystemExit)):
            check_command(shlex.split(line))


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.where)
def test_python_blocks_compile(block):
    compile(block.text, block.where, "exec")


RUN = sorted({b.page for b in python_blocks() if "run" in b.info.split()[1:]})


@pytest.mark.parametrize("page", RUN)
def test_blocks_marked_run_do_run(page, tmp_path, monkeypatch):
    """The blocks of a page share their names, as its reader's session would; blocks that begin
    with `# FILE.py` are that file."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(page):
        if block.info.split()[:1] == ["python"] and "run" in block.info.split():
            file = re.match(r"# ([\w/]+\.py)\n", block.text)
            if file:
                (tmp_path / file[1]).write_text(block.text, encoding="utf-8")
            exec(compile(block.text, block.where, "exec"), names)
    assert names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|<img src=\"([^\"]+)", text):
        link = target[0] or target[1]
        if not link.startswith(("http:", "https:", "mailto:")):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def headings(page):
    """The anchors of a page's headings, as GitHub and Sphinx make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_anchors_are_headings(page):
    for target, anchor in re.findall(
        r"\]\(((?!http)[^)#\s]*)#([\w-]+)\)", (ROOT / page).read_text(encoding="utf-8")
    ):
        linked = (ROOT / page).parent / target if target else ROOT / page
        assert anchor in headings(linked), f"{page}: {target}#{anchor}"


def test_paths_in_code_spans_exist():
    """`scripts/…`, `tests/…`, `align/….py` and `docs/…` that the pages name are in the tree."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for path in re.findall(r"`((?:scripts|tests|align|docs)/[\w/.-]+\.\w+)", text):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_names_of_papers_exist():
    """Every `align.…` in docs/papers.md can be imported."""
    import importlib

    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    names = sorted(set(re.findall(r"`(align\.[\w.]+)`", text)))
    assert len(names) > 30
    for name in names:
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:count]))
            except ModuleNotFoundError:
                continue
            for part in parts[count:]:
                found = getattr(found, part)
            break
        assert callable(found) or isinstance(found, dict), name
