"""Run folders: refusals, whole files, metrics, PNG text."""

import errno
import json
import math
import os
import resource
import subprocess
import sys

import pytest
import torch
from PIL import Image

from align.config.commands import GenerateConfig
from align.config.train import TrainConfig
from align.runs.folder import (
    atomic_path,
    grid_images,
    image_grid,
    load_config,
    log_metrics,
    open_run,
    read_metrics,
    save_image,
    to_pil,
    write_atomic,
    write_json,
)


def test_run_json_holds_the_configuration(tmp_path):
    config = TrainConfig(steps=7, seed=3, lora=("a=0.5",))
    folder = open_run(tmp_path / "run", config, command="train")
    saved = json.loads((folder / "run.json").read_text())
    assert saved["command"] == "train"
    assert saved["config"]["steps"] == 7
    assert saved["seed"] == 3
    assert torch.__version__.startswith(saved["versions"]["torch"])  # which has no +cpu
    assert len(saved["git_commit"] or 40 * "0") >= 40
    assert load_config(folder, TrainConfig, "train") == config
    assert load_config(folder / "run.json", TrainConfig, "train") == config


def test_default_folders_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {open_run(None, {}, command="generate") for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.parent.name == "runs" for folder in folders)


def test_folder_in_use_is_refused_replaced_or_continued(tmp_path):
    folder = open_run(tmp_path / "run", {}, command="train")
    (folder / "images").mkdir()
    (folder / "images" / "old.png").touch()
    with pytest.raises(ValueError, match="exists and is not empty"):
        open_run(folder, {}, command="train")
    open_run(folder, {}, resume=True, command="train")
    assert (folder / "images" / "old.png").exists()
    open_run(folder, {}, overwrite=True, command="train")
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_overwrite_spares_what_no_run_wrote(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="no run wrote"):
        open_run(tmp_path, {}, overwrite=True, command="train")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_out_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        open_run(tmp_path / "file", {}, command="train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"command": "generate", "config": {}}', "is of `align generate`"),
        ('{"config": {"stps": 1}}', "did you mean steps"),
        ('{"steps": 0}', "steps is 0"),
    ],
)
def test_broken_configuration_file(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "run.json", TrainConfig, "train")


def test_missing_configuration_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        load_config(tmp_path / "none.json", TrainConfig, "train")


def test_failed_write_leaves_the_former_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text('{"x"')
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        write_half()
    assert json.loads(path.read_text()) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


FILL = """
import sys
from align.runs.folder import write_atomic
write_atomic(sys.argv[1], "x" * 100_000)
"""


def test_full_disk_is_one_sentence_and_no_file(tmp_path):
    """A real out-of-space device, /dev/full, behind the folder the file is written to."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")

    def write_on_full_disk():
        with atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"half")
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")

    with pytest.raises(OSError, match=r"the disk is full: .*a\.bin was not written") as caught:
        write_on_full_disk()
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_write_cut_by_the_system_leaves_no_file(tmp_path):
    """The process may write 10 kB at most: the system itself stops the write half-way."""
    result = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path / "a.bin")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert result.returncode != 0
    assert "File too large" in result.stderr
    assert os.listdir(tmp_path) == []


def test_metrics_survive_torn_lines(tmp_path):
    log_metrics(tmp_path, step=0, reward=torch.tensor(0.5), gradient=math.nan)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "terms": {"jpeg": 2}')
    log_metrics(tmp_path, step=2)
    assert read_metrics(tmp_path) == [{"step": 0, "reward": 0.5, "gradient": None}, {"step": 2}]
    assert read_metrics(tmp_path / "elsewhere") == []


def test_png_says_how_it_was_made(tmp_path):
    path = tmp_path / "a.png"
    image = torch.rand(3, 8, 12)
    settings = {"num_inference_steps": 25, "guidance_scale": 3.0, "lora": ("a,b",), "eta": None}
    settings["scheduler"] = "DDIMScheduler"
    save_image(
        path, image, prompt="Ein grüner Kreis", seed=5, model="m", negative_prompt="x", **settings
    )
    with Image.open(path) as saved:
        text = saved.text  # pyright: ignore[reportAttributeAccessIssue]
        pixels = torch.from_numpy(__import__("numpy").array(saved)).permute(2, 0, 1)
    assert text["prompt"] == "Ein grüner Kreis"
    assert (text["seed"], text["model"]) == ("5", "m")
    assert json.loads(text["settings"])["guidance_scale"] == 3.0
    assert "eta" not in json.loads(text["settings"])
    lines = text["parameters"].split("\n")
    assert lines[:2] == ["Ein grüner Kreis", "Negative prompt: x"]
    assert lines[2].startswith(
        "Steps: 25, Sampler: DDIMScheduler, CFG scale: 3.0, Seed: 5, Size: 12x8, Model: m, "
        'lora: "a,b", Version: align '
    )
    assert (pixels.float() / 255 - image).abs().max() <= 0.5 / 255 + 1e-6


def test_grid_places_images_row_by_row():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 4, 5) / 4
    grid = image_grid(images, columns=2, gap=1)
    assert grid.shape == (3, 9, 11)
    assert (grid[:, :4, 6:] == 0.25).all()
    assert (grid[:, 5:, :5] == 0.5).all()
    assert (grid[:, 5:, 6:] == 1).all()  # the empty place is white
    with pytest.raises(ValueError, match="at least one"):
        image_grid(images[:0])


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9])
def test_a_grid_gives_its_images_back(count):
    images = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(count))
    assert grid_images(image_grid(images), count).equal(images)


def test_values_outside_the_range_are_clamped():
    pixels = to_pil(torch.tensor([-1.0, 0.5, 2.0]).view(1, 1, 3).expand(3, 1, 3))
    assert [pixels.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_write_atomic_text(tmp_path):
    write_atomic(tmp_path / "deep" / "a.txt", "grün")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "grün"


def test_generate_config_is_saved_too(tmp_path):
    config = GenerateConfig(prompt=("a red circle",), out=str(tmp_path / "g"))
    folder = open_run(config.out, config, command="generate")
    again = load_config(folder, GenerateConfig, "generate")
    assert again.prompt == config.prompt
    assert again.out is None
