"""Figures of the reports as SVG text: matplotlib in one quiet style, global settings stay untouched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

import numpy as np

INK, SOFT, LINE = "#1f2733", "#5d6776", "#dfdbd2"
TEAL, WARM, BLUE = "#0e6b70", "#c8702a", "#4468a8"
NARROW = (4.4, 3.7)  # inches of a figure that shares its line with another
STYLE: Any = {
    "svg.fonttype": "none",  # letters stay letters: the page's font, and they can be searched
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.transparent": True,
}


def learning_curve(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, wide: bool = True
) -> str:
    """Named curves (x values, y values) on a logarithmic y axis; not `wide`: for two side by side."""
    with _canvas((7.6, 3.6) if wide else NARROW) as (figure, out):
        axes = figure.add_subplot()
        for (name, (xs, ys)), colour in zip(curves.items(), (SOFT, TEAL, WARM, BLUE), strict=False):
            axes.plot(xs, ys, label=name, color=colour)
        axes.set(xlabel=x, ylabel=y, yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.legend()
    return out.getvalue()


def parity(
    reference: np.ndarray, predicted: Mapping[str, np.ndarray], *, quantity: str, unit: str, error_unit: str
) -> str:
    """Predictions against reference, one colour for each; `error_unit` is a thousandth of `unit`."""
    with _canvas((4.2, 4.2)) as (figure, out):
        axes = figure.add_subplot()
        ends = [min(reference.min(), *(p.min() for p in predicted.values()))]
        ends.append(max(reference.max(), *(p.max() for p in predicted.values())))
        axes.plot(ends, ends, color=INK, linewidth=0.8, zorder=1)
        for (name, values), colour in zip(predicted.items(), (SOFT, TEAL), strict=False):
            error = 1000 * np.abs(values - reference).mean()
            axes.scatter(
                reference, values, s=7, color=colour, alpha=0.5, linewidths=0, rasterized=True,
                label=f"{name}: MAE {error:.3g} {error_unit}",
            )  # fmt: skip
        axes.set(xlabel=f"reference {quantity} ({unit})", ylabel=f"predicted {quantity} ({unit})")
        axes.set_aspect("equal", "datalim")
        axes.legend(loc="upper left", handletextpad=0.2, borderaxespad=0.1, markerscale=2)
        axes.margins(y=0.12)
    return out.getvalue()


def stacked(
    x: Sequence[float],
    panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]],
    *,
    xlabel: str,
    wide: bool = True,
) -> str:
    """Panels over one x axis, each (y label, named curves); a single unnamed curve has the name ""."""
    colours = (TEAL, WARM, BLUE)
    with _canvas((7.6, 1.75 * len(panels) + 0.4) if wide else NARROW) as (figure, out):
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for number, (axes, (label, curves)) in enumerate(zip(grid, panels, strict=True)):
            for k, (name, values) in enumerate(curves.items()):
                axes.plot(x, values, color=colours[(number + k) % 3], label=name or None, linewidth=1.2)
            axes.set_ylabel(label)
            if any(curves):
                axes.legend(loc="best", ncols=len(curves))
        grid[-1].set_xlabel(xlabel)
        figure.align_ylabels()
    return out.getvalue()


@contextmanager
def _canvas(size: tuple[float, float]) -> Iterator[tuple[Any, StringIO]]:
    """A figure (inches) in our style and the text buffer that holds its SVG afterwards."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out = StringIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, out
        figure.savefig(out, format="svg", dpi=220, metadata={"Date": None})
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    out.write(text[text.index("<svg") :])  # without the XML prologue: it is put into a page
