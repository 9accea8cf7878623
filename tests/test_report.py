"""HTML reports and the command lines they quote."""

import base64
import dataclasses
import html.parser
import io
import shlex

import pytest
import torch
from PIL import Image

from align.cli import parse
from align.config.commands import GenerateConfig
from align.config.train import TrainConfig
from align.runs import page as report


class Outline(html.parser.HTMLParser):
    """Addresses, tags left open and text of a page."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "path", "use"})

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_is_whole_escaped_and_needs_nothing_else():
    shot = report.Shot(torch.rand(3, 16, 16), "before", "sees <nothing>", good=False)
    figure = report.curve_plot({"a": ([1, 2, 3], [1.0, 2.0, 4.0])}, xlabel="x", ylabel="y")
    page = report.html_page(
        "A <title>",
        report.heading("1 < 2"),
        report.paragraph("a & b", "lead"),
        report.table(["what", "how much"], [["<b>", 1.5]], caption="all"),
        report.pictures([('a "red" circle', [shot, shot])]),
        report.plot(figure, 'a "curve"'),
        report.code("align train > log"),
    )
    outline = Outline(page)
    assert outline.open == []
    for text in ("A <title>", "1 < 2", "a & b", "<b>", "sees <nothing>", "align train > log"):
        assert text in outline.text
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert page.count("data:image/png") == 2
    assert "<svg" in page


def test_small_pictures_are_enlarged_without_blur():
    image = torch.rand(3, 10, 16)
    data = base64.b64decode(report.data_uri(image, shortest=25).partition(",")[2])
    shown = Image.open(io.BytesIO(data))
    assert shown.size == (48, 30)
    back = shown.resize((16, 10), Image.Resampling.NEAREST)
    pixels = torch.tensor(list(back.tobytes())).view(10, 16, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(pixels, image, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_smoothed_curve_shows_the_running_mean():
    figure = report.curve_plot({"r": ([1, 2, 3], [0.0, 2.0, 4.0])}, xlabel="", ylabel="", smooth=2)
    pale, bold = figure.axes[0].lines
    assert list(pale.get_ydata()) == [0, 2, 4]
    assert list(bold.get_ydata()) == [0, 1, 3]
    (band,) = figure.axes[0].collections  # two standard errors: of 0 and 2 that is 2 about 1
    path = band.get_paths()[0].vertices
    assert {(x, y) for x, y in path.tolist() if x == 2} == {(2, -1), (2, 3)}


def test_the_same_plot_is_the_same_text():
    plots = {
        report.plot(report.curve_plot({"r": ([1], [2.0])}, xlabel="x", ylabel="y"), "d")
        for _ in range(2)
    }
    assert len(plots) == 1


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("generate", GenerateConfig(prompt=("a 'red' circle", "b"), num_images=3, eta=0.25)),
        ("generate", GenerateConfig(prompt=("a",), lora=("runs/a=0.5", "runs/b"), seed=7)),
        (
            "train",
            TrainConfig(lora_targets=("to_q", "to_k"), checkpointing=False, learning_rate=1e-5),
        ),
        ("train", TrainConfig(preset="embedded", steps=100, learning_rate=1e-3)),
        ("train", TrainConfig()),
    ],
)
def test_a_quoted_command_gives_back_the_config(command, config):
    line = report.command_line(command, config)
    words = shlex.split(line)
    assert words[:2] == ["align", command]
    again = parse(type(config), words[2:], command)
    fields = [field.name for field in dataclasses.fields(config)]
    assert {f: getattr(again, f) for f in fields} == {f: getattr(config, f) for f in fields}


def test_a_quoted_command_leaves_to_the_preset_what_it_says():
    line = report.command_line("train", TrainConfig(preset="embedded", reward="jpeg"))
    assert line == "align train --reward jpeg --preset embedded"


def test_where_a_run_was_written_is_not_quoted():
    assert report.command_line("train", TrainConfig(out="runs/x", overwrite=True)) == "align train"
