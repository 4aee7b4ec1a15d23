"""The record of `tesseral bench hamiltonian` as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .hamiltonian import PEER, aims, wrong
from .hamiltonian_side import SIDES
from .show import aligned, busy


def table(record: dict[str, Any]) -> str:
    """Times and peak memory per molecule; how many times longer, and how much more, the peer takes."""
    rows = [["atoms", "pairs", "path", "network", "ms", f"{PEER} / it", "memory MiB", f"of {PEER}"]]
    for n, found in record["sizes"].items():
        for path in record["settings"]["paths"]:
            peaks = found["memory"].get(path, {})
            for side in SIDES:
                if side in peaks or side in found["times"].get(path, {}):
                    cells = [_time(found["times"].get(path, {}).get(side)), _ratio(found, path, side)]
                    cells += [f"{peaks[side]['allocated']:.0f}" if side in peaks else "–", _share(peaks, side)]
                    rows.append([n, str(found["facts"]["pairs"]), path, side, *cells])
    return "\n".join([aligned(rows), "", *notes(record)])


def _time(found: dict[str, Any] | None) -> str:
    return "–" if found is None else f"{found['median']:.4g} ({found['low']:.4g}…{found['high']:.4g})"


def _ratio(found: dict[str, Any], path: str, side: str) -> str:
    ratio = found["ratios"].get(path, {}).get(side)
    return "" if ratio is None else f"{ratio['median']:.1f} ({ratio['low']:.1f}…{ratio['high']:.1f})"


def _share(peaks: dict[str, Any], side: str) -> str:
    if side == PEER or PEER not in peaks or side not in peaks:
        return ""
    return f"{100 * peaks[side]['allocated'] / peaks[PEER]['allocated']:.0f} %"


def notes(record: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know."""
    lines = [
        "ms: CPU time per molecule, one thread, float32, median and 5…95 %; ratios paired by turn",
        *(f"{path}: {text}" for path, text in record["settings"]["paths"].items()),
        "memory: largest sum of tensors alive at once, made during the call",
        "sphnet: 70 % of paths and pairs left out, last phase; all weights random, both QHNets have the same",
    ]
    lines += [f"aim: {text}: {'met' if met else 'missed'} ({found})" for text, met, found in aims(record)]
    for name, check in record["checks"].items():
        lines.append(f"check: {name}: {check['error']:.0e}{'' if check['right'] else ' WRONG'}")
    lines += [f"WRONG: {text}" for text in wrong(record)]
    lines += [f"{name} was left out: {reason}" for name, reason in record["missing"].items()]
    lines += busy(record)
    return lines


def figure(record: dict[str, Any], path: str | Path) -> None:
    """Time and memory over the number of atoms, one panel for each path, with the peer's multiple of SPHNet."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from .._figures import STYLE

    paths = [p for p in record["settings"]["paths"] if any(p in s["times"] for s in record["sizes"].values())]
    with mpl.rc_context({**STYLE, "savefig.transparent": False, "font.size": 9}):
        drawing = Figure(figsize=(3.4 * len(paths) + 0.3, 5.6), layout="constrained")
        grid = drawing.subplots(2, len(paths), squeeze=False)
        for k, name in enumerate(paths):
            _panel(grid[0][k], record, name, ("times", "median"), "CPU time, ms per molecule")
            grid[0][k].set_title(record["settings"]["paths"][name], fontsize=9)
            _panel(grid[1][k], record, name, ("memory", "allocated"), "peak memory, MiB")
        grid[0][0].legend(fontsize=7)
        drawing.savefig(path, dpi=180)


def _panel(axes: Any, record: dict[str, Any], path: str, key: tuple[str, str], label: str) -> None:
    """One quantity over the number of atoms, logarithmic, per network; the peer over SPHNet in figures."""
    from matplotlib.ticker import NullFormatter

    from .._figures import BLUE, SOFT, TEAL, WARM

    colours = dict(zip(SIDES, (SOFT, WARM, BLUE, TEAL), strict=True))
    series: dict[str, list[tuple[int, float]]] = {}
    for n, found in record["sizes"].items():
        for side, value in found[key[0]].get(path, {}).items():
            series.setdefault(side, []).append((int(n), value[key[1]]))
    for side in [s for s in SIDES if s in series]:
        axes.plot(*zip(*series[side], strict=True), marker="o", markersize=4, color=colours[side], label=side)
    ours, theirs = dict(series.get("sphnet", ())), dict(series.get(PEER, ()))
    for n in sorted(ours.keys() & theirs.keys()):
        text = f"{100 * ours[n] / theirs[n]:.0f} %"
        if key[0] == "times":
            text = f"{record['sizes'][str(n)]['ratios'][path]['sphnet']['median']:.1f}×"
        above: dict[str, Any] = {"xytext": (0, -11), "textcoords": "offset points", "ha": "center"}
        axes.annotate(text, (n, ours[n]), fontsize=7, color=TEAL, **above)
    axes.margins(0.12, 0.14)
    sizes: Sequence[int] = [int(n) for n in record["sizes"]]
    axes.set(xscale="log", yscale="log", xlabel="atoms", ylabel=label, xticks=sizes)
    axes.set_xticklabels([str(n) for n in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
