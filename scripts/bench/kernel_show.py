"""The record of `tesseral bench kernels` as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .kernel_cases import ORDERS
from .kernels import aims, wrong
from .show import aligned, busy

SHORT = dict(zip(ORDERS, ("fwd", "fwd+bwd", "double"), strict=True))


def table(record: dict[str, Any]) -> str:
    """Our times, and how many times longer the others take; then memory, aims and what to know."""
    names = list(dict.fromkeys(name for case in record["cases"] for name in case["sides"]))
    others = [name for name in names if name != "tesseral"]
    rows = [["case", "order", "ms", "error", "first call s", *(f"{name} ×" for name in others)]]
    for case in record["cases"]:
        for order, found in case["sides"]["tesseral"]["orders"].items():
            cells = [_time(found), f"{found['error']:.0e}", f"{found['first_call_s']:.1f}"]
            cells += [_factor(case, order, name) for name in others]
            rows.append([case["name"], SHORT[order], *cells])
    blocks = [aligned(rows)] if record["cases"] else []
    if "memory" in record:
        blocks.append(aligned(_memory_rows(record["memory"])))
    return "\n\n".join([*blocks, "\n".join(notes(record))])


def _time(found: dict[str, Any]) -> str:
    if "time" not in found:
        return "wrong"
    time = found["time"]
    return f"{time['median']:.3g} ({time['low']:.3g}…{time['high']:.3g})"


def _factor(case: dict[str, Any], order: str, name: str) -> str:
    found = case["ratios"][order].get(name)
    if found is not None:
        return f"{found['median']:.2f} ({found['low']:.2f}…{found['high']:.2f})"
    theirs = case["sides"].get(name, {}).get("orders", {}).get(order)
    return "–" if theirs is None or theirs["right"] else f"wrong ({theirs['error']:.0e})"


def _memory_rows(memory: list[dict[str, Any]]) -> list[list[str]]:
    """Peaks, and bytes per edge between the smallest and the largest number of edges of each number of channels."""
    rows = [["memory of double backward", "channels", "edges", "tensors MiB", "process MiB", "bytes per edge"]]
    for row in memory:
        resident = "–" if row["resident"] is None else f"{row['resident']:.1f}"
        slope = f"{per_edge(memory, row['side'], row['channels']):.0f}"
        cells = [
            row["side"],
            str(row["channels"]),
            str(row["edges"]),
            f"{row['allocated']:.1f}",
            resident,
            slope,
        ]
        rows.append(cells)
    return rows


def per_edge(memory: list[dict[str, Any]], side: str, channels: int) -> float:
    """Bytes of tensors that one more edge costs."""
    found = sorted(
        (row["edges"], row["allocated"]) for row in memory if (row["side"], row["channels"]) == (side, channels)
    )
    (few, less), (many, more) = found[0], found[-1]
    return 2**20 * (more - less) / (many - few)


def notes(record: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know."""
    lines = [
        "ms: CPU time of one call, one thread, float32, median and 5…95 %; error: largest over rms, against float64",
        "×: how many times longer the other takes, paired by turn; inputs are in each side's own layout",
        "fwd+bwd: gradients of all inputs; double: gradient by what depends on positions, then of it (loss of forces)",
        "first call: CPU time, compilation included, on 100 rows",
    ]
    for sentence, factor, found in aims(record):
        verdict = "met" if min(found) >= factor else "missed"
        numbers = ", ".join(f"{f:.1f}" for f in found)
        lines.append(f"aim: {sentence} at least {factor:g}× e3nn: {verdict} ({numbers})")
    lines += [f"WRONG: {text}" for text in wrong(record)]
    lines += [f"{name} {version}" for name, version in record["peers"].items()]
    lines += [f"{name} was left out: {reason}" for name, reason in record["missing"].items()]
    lines += busy(record)
    return lines


def figure(record: dict[str, Any], path: str | Path) -> None:
    """Panels of ratios over the degree, one per operation, and one of memory."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from .._figures import STYLE

    panels = [p for p in _panels(record) if p[2]]
    n = len(panels) + ("memory" in record)
    with mpl.rc_context({**STYLE, "savefig.transparent": False, "font.size": 9}):
        columns = min(n, 3)
        drawing = Figure(figsize=(3.3 * columns + 0.3, 2.9 * -(-n // columns)), layout="constrained")
        grid = drawing.subplots(-(-n // columns), columns, squeeze=False).ravel()
        for axes, (title, peer, cases, aim) in zip(grid, panels, strict=False):
            _ratio_panel(axes, f"{title}\n{peer} over tesseral", peer, cases, aim)
        if "memory" in record:
            _memory_panel(grid[n - 1], record["memory"])
        for axes in grid[n:]:
            axes.set_axis_off()
        drawing.suptitle("CPU time, one thread, float32: how many times longer the other takes", fontsize=10)
        drawing.savefig(path, dpi=180)


Panel = tuple[str, str, list[dict[str, Any]], float | None]


def _panels(record: dict[str, Any]) -> list[Panel]:
    """(title, peer, cases that have it, aim)."""
    wanted: list[tuple[str, str, float | None, dict[str, Any]]] = [
        ("messages, scalar sources", "e3nn", 5.0, {"operation": "message", "source": "scalar"}),
        ("messages, all degrees", "e3nn", 5.0, {"operation": "message", "source": "all"}),
        ("Gaunt product", "e3nn", 10.0, {"operation": "gaunt"}),
        ("harmonics", "e3nn", None, {"operation": "harmonics"}),
        ("harmonics", "sphericart", None, {"operation": "harmonics"}),
        ("pair product, 30 % of the paths", "e3nn", None, {"operation": "pair", "share": 0.3}),
        ("pair product, 70 % of the paths", "e3nn", None, {"operation": "pair", "share": 0.7}),
        ("grid network", "torch", None, {"operation": "grid"}),
    ]
    return [
        (
            title,
            peer,
            [c for c in record["cases"] if spec.items() <= c["spec"].items() and _has(c, peer)],
            aim,
        )
        for title, peer, aim, spec in wanted
    ]


def _has(case: dict[str, Any], peer: str) -> bool:
    return any(peer in found for found in case["ratios"].values())


def _ratio_panel(axes: Any, title: str, peer: str, cases: list[dict[str, Any]], aim: float | None) -> None:
    from .._figures import BLUE, INK, SOFT, TEAL, WARM

    for order, colour in zip(ORDERS, (BLUE, TEAL, WARM), strict=True):
        found = [(c["spec"]["lmax"], c["ratios"][order][peer]) for c in cases if peer in c["ratios"].get(order, {})]
        if found:
            degrees = [l for l, _ in found]
            middle = [r["median"] for _, r in found]
            spread = [[r["median"] - r["low"] for _, r in found], [r["high"] - r["median"] for _, r in found]]
            axes.errorbar(degrees, middle, yerr=spread, color=colour, marker="o", markersize=4, label=order)
    axes.axhline(1.0, color=INK, linewidth=0.8)
    if aim is not None:
        axes.axhline(aim, color=SOFT, linewidth=0.8, linestyle="--")
        axes.annotate("aim", (1.0, aim), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    axes.set(title=title, xlabel="L", yscale="log", xticks=sorted({c["spec"]["lmax"] for c in cases}))
    axes.title.set_fontsize(9)
    _plain_numbers(axes)
    axes.legend(fontsize=7)


def _memory_panel(axes: Any, memory: list[dict[str, Any]]) -> None:
    """Peaks over the number of edges, per side and channels."""
    from .._figures import SOFT, TEAL

    styles = dict(zip(sorted({row["channels"] for row in memory}), ("--", "-", ":", "-."), strict=False))
    for side, colour in (("tesseral", TEAL), ("e3nn", SOFT)):
        for channels, style in styles.items():
            rows = sorted(
                (r["edges"], r["allocated"]) for r in memory if (r["side"], r["channels"]) == (side, channels)
            )
            if rows:
                label = f"{side}, {channels} channels"
                axes.plot(*zip(*rows, strict=True), style, color=colour, marker="o", markersize=4, label=label)
    axes.set(title="messages: memory of double backward", xlabel="edges", ylabel="MiB", yscale="log")
    axes.set_xticks(sorted({row["edges"] for row in memory}))
    axes.title.set_fontsize(9)
    _plain_numbers(axes)
    axes.legend(fontsize=7)


def _plain_numbers(axes: Any) -> None:
    """1, 2, 5, 10 ... on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
