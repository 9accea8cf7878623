"""Live curves: the reports' own plots, inline, so that they follow the page's width and theme."""

from collections.abc import Iterable

from align.runs.page import curve_plot, plot

SIZE = (6.0, 3.0)  # inches; the letters stay readable on a phone
COLUMNS = 3  # of the legend
MOST = 200  # points of a curve


def curves(
    rows: Iterable[tuple[float, str, float]],
    xlabel: str,
    ylabel: str,
    smooth: int = 1,
    height: float = 0.0,
) -> str:
    """HTML of the rows (x, curve, y); empty where there are none.

    `smooth` is that of `curve_plot`; the axis is `height` high at least, so that what is small
    looks small.
    """
    series: dict[str, tuple[list[float], list[float]]] = {}
    for x, name, y in rows:
        xs, ys = series.setdefault(name, ([], []))
        xs.append(x)
        ys.append(y)
    if not series:
        return ""
    thinned = {
        name: (xs[:: -(-len(xs) // MOST)], ys[:: -(-len(ys) // MOST)])
        for name, (xs, ys) in series.items()
    }
    figure = curve_plot(thinned, xlabel=xlabel, ylabel=ylabel, smooth=smooth)
    low, high = figure.axes[0].get_ylim()
    if high - low < height:
        figure.axes[0].set_ylim((low + high - height) / 2, (low + high + height) / 2)
    figure.set_size_inches(*SIZE)
    figure.patch.set_alpha(0)
    legend = figure.axes[0].get_legend()
    if legend is not None:  # above the curves, where it hides none of them
        legend.remove()
        figure.legend(loc="outside upper left", ncols=COLUMNS, frameon=False, fontsize="small")
    last = ", ".join(f"{name} {ys[-1]:.3g}" for name, (_, ys) in series.items())
    return f'<div class="curves">{plot(figure, f"{ylabel} by {xlabel}; last: {last}")}</div>'
