"""HTML reports: one file that holds its pictures and curves and needs nothing from the network.

Every function returns a fragment of HTML; `html_page` puts fragments into a page. Text is escaped
here, so callers hand over plain text.
"""

import base64
import dataclasses
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from statistics import stdev
from typing import TYPE_CHECKING, Any

from align.config.groups import ordered
from align.runs.folder import to_pil

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

COLORS = ("#2a6fdb", "#d9542b", "#2e9e5b", "#8b4bb8", "#b08900", "#4a4f57")
_PLACE = ("out", "overwrite", "resume", "config")

STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #57606a; --line: #d5dae1; --paper: #fff;
  --shade: #f4f6f9; --accent: #1f5fc4; --good: #1a7f43; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --soft: #a3acb8; --line: #3a414b;
  --paper: #15181d; --shade: #20242b; --accent: #86b4ff; --good: #6fd394; --bad: #ff9389; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { font-size: 1.08rem; }
.note, caption { color: var(--soft); font-size: .9rem; }
code, pre { font-family: ui-monospace, "SF Mono", Consolas, monospace; font-size: .87rem; }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: 8px;
  padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { text-align: right; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 7rem; }
th { font-weight: 600; }
.pictures { display: grid; gap: 1.2rem 1rem; margin: .8rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(var(--wide), 100%), 1fr)); }
.pictures figure { margin: 0; display: grid; grid-row: span 2; grid-template-rows: subgrid;
  gap: .3rem; }
.pictures figcaption { font-weight: 600; align-self: end; }
.pictures .row { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: .4rem; }
.pictures .one { position: relative; display: block; }
.pictures img { width: 100%; display: block; border-radius: 6px; border: 1px solid var(--line); }
.one small { display: block; color: var(--soft); font-size: .82rem; line-height: 1.35;
  margin-top: .25rem; }
.one small b { color: var(--ink); }
.one.good small b { color: var(--good); }
.one.bad small b { color: var(--bad); }
.plot { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .5rem;
  margin: .8rem 0; max-width: 46rem; }
.plot svg { width: 100%; height: auto; display: block; }
@media (max-width: 560px) {
  table { font-size: .85rem; }
  th, td { white-space: normal; padding-right: .5rem; }
  th:first-child, td:first-child { min-width: 0; }
}
"""


def html_page(title: str, *parts: str) -> str:
    """A complete HTML document of these fragments under a heading."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is "", "lead" (larger) or "note" (smaller, paler)."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """Lines to be copied, such as commands."""
    return f"<pre><code>{escape(text)}</code></pre>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """A table; the first column is text, the others are numbers or short values."""
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{top}\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


@dataclasses.dataclass(frozen=True)
class Shot:
    """A picture in a report and the text under it."""

    image: "Float[Tensor, '3 h w'] | Image"
    """In [0, 1], or PIL."""
    label: str = ""
    """In bold, such as "before"."""
    text: str = ""
    good: bool | None = None
    """Colours the label green or red."""


def pictures(groups: Sequence[tuple[str, Sequence[Shot]]], width: int = 160) -> str:
    """Groups of pictures side by side, each group under its caption.

    `width` is how wide a picture is shown, in CSS pixels; narrow screens show fewer in a row.
    """
    most = max((len(shots) for _, shots in groups), default=1)
    figures = []
    for caption, shots in groups:
        row = "".join(_shot(shot, caption) for shot in shots)
        figures.append(
            f"<figure><figcaption>{escape(caption)}</figcaption>"
            f'<div class="row">{row}</div></figure>'
        )
    return f'<div class="pictures" style="--wide: {width * most}px">{"".join(figures)}</div>'


def _shot(shot: Shot, caption: str) -> str:
    mood = "" if shot.good is None else " good" if shot.good else " bad"
    mark = "" if shot.good is None else "✓ " if shot.good else "✗ "
    label = f"<b>{mark}{escape(shot.label)}</b> " if shot.label or mark else ""
    under = f"<small>{label}{escape(shot.text)}</small>" if label or shot.text else ""
    alt = escape(f"{caption}: {shot.label}" if shot.label else caption, quote=True)
    return f'<span class="one{mood}"><img src="{data_uri(shot.image)}" alt="{alt}">{under}</span>'


def data_uri(image: "Float[Tensor, '3 h w'] | Image", shortest: int = 192) -> str:
    """A picture as a `data:` address holding a PNG.

    Pictures with a side under `shortest` are enlarged by a whole factor, pixel by pixel, so that
    browsers do not blur them.
    """
    from PIL.Image import Image, Resampling

    picture = image if isinstance(image, Image) else to_pil(image)
    factor = -(-shortest // min(picture.size))
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def curve_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    smooth: int = 1,
) -> "Figure":
    """Curves by name, each (x values, y values), as a matplotlib figure.

    With `smooth` > 1 the bold line is the mean of that many points up to each one, in a band of
    two standard errors, over pale dots, the values themselves.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    xs = [value for x, _ in series.values() for value in x]
    for index, (name, (x, y)) in enumerate(series.items()):
        color = COLORS[index % len(COLORS)]
        tails = _tails(y, smooth)
        means = [sum(part) / len(part) for part in tails]
        if smooth > 1:
            axes.plot(x, y, ".", color=color, alpha=0.3, markersize=4)
            errors = [2 * stdev(part) / len(part) ** 0.5 if part[1:] else 0.0 for part in tails]
            pairs = list(zip(means, errors, strict=True))
            low, high = [m - e for m, e in pairs], [m + e for m, e in pairs]
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        marker = "o" if len(x) < 3 else None
        axes.plot(x, means, color=color, linewidth=2, marker=marker, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    whole = all(float(v).is_integer() for v in xs)
    axes.xaxis.get_major_locator().set_params(integer=whole)  # pyright: ignore[reportCallIssue]
    axes.grid(color="#e3e6ea")
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False)
    return figure


def _tails(values: Sequence[float], length: int) -> list[Sequence[float]]:
    return [values[max(0, end - length) : end] for end in range(1, len(values) + 1)]


def plot(figure: "Figure", description: str) -> str:
    """A matplotlib figure as inline SVG; `description` is read out where it cannot be seen."""
    import matplotlib

    buffer = io.StringIO()
    # With a fixed salt for its ids and no date, the same figures give the same text.
    with matplotlib.rc_context({"svg.hashsalt": "align"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return (
        f'<div class="plot" role="img" aria-label="{escape(description, quote=True)}">{svg}</div>'
    )


def command_line(command: str, config: Any) -> str:
    """The `align` command that a config stands for: what its preset or the defaults do not say."""
    words = ["align", command]
    preset = getattr(config, "preset", None)
    usual = type(config)(preset=preset) if preset else type(config)()
    for name in ordered(type(config)):
        value = getattr(config, name)
        changed = name == "preset" or value != getattr(usual, name)
        if name in _PLACE or value is None or not changed:
            continue
        flag = f"--{name.replace('_', '-')}"
        if name == "prompt":  # the only plain arguments there are
            words += value
        elif name == "lora":
            words += [word for lora in value for word in (flag, lora)]
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def objects_text(objects: Sequence[Any]) -> str:
    """What `align.scenes.read` found in a picture, in words."""
    counts = Counter(map(_object_text, objects))
    words = [f"{text} ({count} times)" if count > 1 else text for text, count in counts.items()]
    return ", ".join(words) or "nothing"


def _object_text(one: Any) -> str:
    if one.shape is None:
        return f"{one.color} blob" if one.color else "blob of no known colour"
    texture = one.texture if one.texture not in (None, "solid") else ""
    words = (one.size, texture, one.color or "oddly coloured", one.shape)
    return " ".join(word for word in words if word)
