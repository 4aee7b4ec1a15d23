"""A benchmark's record as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUSY = 0.5  # load average per core above which times should not be quoted


def table(record: dict[str, Any]) -> str:
    """CPU times in ms (median, range) per system and path, with the ratios of peers to our models."""
    programs = list(record["programs"])
    ratios = [f"{p} / {o}" for p in programs for o in programs if _is_peer(record, p) > _is_peer(record, o)]
    rows = [["system", "atoms", "edges", "path", *[f"{name} ms" for name in programs], *ratios]]
    for name, system in record["systems"].items():
        for path, found in system["paths"].items():
            cells = [_time(found["times"].get(program)) for program in programs]
            factors = [_ratio(found["ratios"].get(pair)) for pair in ratios]
            rows.append([name, str(system["atoms"]), _edges(system["edges"]), path, *cells, *factors])
    return "\n".join([aligned(rows), "", *notes(record)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as text, a column as wide as its widest cell."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def busy(record: dict[str, Any], so: str = "measure again on a quiet machine") -> list[str]:
    """A line where other programs were running at the start or the end of the measurement; `so`: what follows."""
    machine = record["machine"]
    loads = [machine[key] or 0.0 for key in ("load_average", "load_average_at_end") if key in machine]
    if max(loads) <= BUSY * machine["cores"]:
        return []
    load = " to ".join(f"{value:.1f}" for value in loads)
    return [f"other programs were running (load {load} on {machine['cores']} cores): {so}"]


def notes(record: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know."""
    used = {path for system in record["systems"].values() for path in system["paths"]}
    lines = [f"{path}: {text}" for path, text in record["paths"].items() if path in used]
    for name, facts in record["programs"].items():
        words = [facts["model"], f"{facts['weights']} weights", f"{facts['parameters']:,} parameters"]
        words += [f"{facts['backend']} kernels"] if "backend" in facts else []
        words += [f"{package} {version}" for package, version in facts["versions"].items()]
        lines.append(f"{name}: {', '.join(words)}")
    lines += [f"{name} was left out: {reason}" for name, reason in record["missing"].items()]
    lines += busy(record)
    return lines


def figure(record: dict[str, Any], path: str | Path) -> None:
    """A panel for each system with bars of the median CPU times from zero, and the ratio to the first peer."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from .._figures import STYLE

    panels = [
        (name, system["atoms"], chosen, system["paths"][chosen])
        for name, system in record["systems"].items()
        for chosen in ("calculator", "step")
        if chosen in system["paths"]
    ]
    colours = _colours(record)
    with mpl.rc_context({**STYLE, "savefig.transparent": False, "axes.grid": False}):
        width = max(0.5 * len(panels) * (len(colours) + 0.6), 4.0)
        drawing = Figure(figsize=(width, 3.6), layout="constrained")
        grid = drawing.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, n_atoms, chosen, found) in zip(grid, panels, strict=True):
            axes.set_title(f"{name}\n{n_atoms} atoms", fontsize=10)
            axes.set_xlabel("training step" if chosen == "step" else "energy, forces", fontsize=8)
            _bars(axes, colours, found)
        drawing.suptitle("CPU time in ms, one thread, float32", fontsize=9)
        patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
        drawing.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
        drawing.savefig(path, dpi=200)


def _colours(record: dict[str, Any]) -> dict[str, str]:
    """Colour of each program: greens and blues are ours, grey and brown are peers."""
    from itertools import cycle

    from .._figures import BLUE, SOFT, TEAL, WARM

    own, peers = cycle((TEAL, BLUE)), cycle((SOFT, WARM))
    return {name: next(peers if _is_peer(record, name) else own) for name in record["programs"]}


def _bars(axes: Any, colours: dict[str, str], found: dict[str, Any]) -> None:
    """One panel: bars with the range of the repeats, each with its time, ours also with the peer's multiple of it."""
    for k, (name, time) in enumerate(found["times"].items()):
        error = [[time["median"] - time["min"]], [time["max"] - time["median"]]]
        axes.bar(k, time["median"], 0.8, color=colours[name], yerr=error, error_kw={"elinewidth": 0.8})
        text = f"{time['median']:.0f}" if time["median"] >= 100 else f"{time['median']:.3g}"
        factor = next((v["median"] for r, v in found["ratios"].items() if r.endswith(f" / {name}")), None)
        if factor is not None:
            text = f"{factor:.1f}×\n{text}"
        above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        axes.annotate(text, (k, time["max"]), fontsize=8, **above)
    axes.set(xticks=[], yticks=[], xlim=(-0.7, len(found["times"]) - 0.3))
    axes.spines["left"].set_visible(False)
    axes.margins(y=0.2)


def _is_peer(record: dict[str, Any], name: str) -> bool:
    return bool(record["programs"][name]["peer"])


def _time(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['median']:.4g} ({found['min']:.4g}…{found['max']:.4g})"


def _ratio(found: dict[str, float] | None) -> str:
    return "–" if found is None else f"{found['median']:.2f} ({found['min']:.2f}…{found['max']:.2f})"


def _edges(edges: dict[str, int]) -> str:
    """The number of edges; all numbers when the programs disagree, as with another cutoff."""
    return " ".join(str(n) for n in dict.fromkeys(edges.values()))
