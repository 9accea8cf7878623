"""The Space and the image: that what they name is there, and that the GPU is asked for."""

import asyncio
import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from align.demo import app
from demo import space

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = ("demo", "dev", "docs")  # extras that CI installs


@pytest.fixture(scope="module")
def header():
    text = (ROOT / "demo" / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_of_the_space_names_what_there_is(header):
    assert header["sdk"] == "gradio"
    assert (ROOT / "demo" / header["app_file"]).is_file()
    assert header["sdk_version"] == metadata.version("gradio")
    assert f"Programming Language :: Python :: {header['python_version']}" in PROJECT["classifiers"]
    assert header["license"] == PROJECT["license"].lower()
    assert len(header["short_description"]) <= 60  # the Hub's limit


def test_the_requirements_of_the_space_are_this_package():
    (line,) = (ROOT / "demo" / "requirements.txt").read_text(encoding="utf-8").split()
    requirement = Requirement(line)
    assert requirement.name == PROJECT["name"]
    assert requirement.extras == {"demo"}
    assert requirement.extras <= set(PROJECT["optional-dependencies"])


def test_every_event_of_the_slot_asks_for_a_gpu_and_no_other():
    decorated = []

    def decorate(function):
        decorated.append(lambda *arguments: function(*arguments))
        return decorated[-1]

    async def build_page():  # outside a loop Gradio opens one that nobody closes
        plain, page = app.build(), space.on_gpu(app.build, decorate)()
        return plain, page

    with ThreadPoolExecutor(1) as thread:  # Playwright leaves a running loop in this one
        plain, page = thread.submit(asyncio.run, build_page()).result()
    slots = [event.concurrency_id == space.SLOT for event in plain.fns.values()]
    assert any(slots)
    assert not all(slots)
    assert len(decorated) == sum(slots)
    assert [event.fn in decorated for event in page.fns.values()] == slots


def test_the_image_copies_what_is_there_and_what_the_ignore_file_lets_in():
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ignore[0] == "*"
    let_in = {path.name for line in ignore if line[0] == "!" for path in ROOT.glob(line[1:])}
    copied = [
        name
        for line in re.findall(r"^COPY (.+)$", docker, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name in let_in, name
    assert set(PROJECT["license-files"]) <= set(copied)
    assert PROJECT["readme"] in copied


def test_the_image_starts_the_demo_by_a_real_command_line():
    from align.arguments import parse
    from align.config.commands import DemoConfig

    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (words,) = re.findall(r"^CMD \[(.+)\]$", docker, re.MULTILINE)
    command, *arguments = re.findall(r'"([^"]+)"', words)
    assert command == "demo"
    config = parse(DemoConfig, arguments, command)
    assert (config.host, config.port) == ("0.0.0.0", 7860)
    assert f"EXPOSE {config.port}" in docker


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    for entry in (citation, *citation["references"]):
        assert entry["title"]
        assert all("name" in author or "family-names" in author for author in entry["authors"])


def test_every_extra_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")[1:]
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if line}
    wanted = [PROJECT["dependencies"], *map(PROJECT["optional-dependencies"].get, PINNED)]
    names = {canonicalize_name(Requirement(line).name) for group in wanted for line in group}
    assert names - pinned <= {PROJECT["name"]}
