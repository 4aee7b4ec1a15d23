"""The record of generators as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .show import aligned, busy

COLUMNS: tuple[tuple[str, str, float], ...] = (  # heading, number, factor
    ("valid %", "validity", 100),
    ("one fragment %", "connected", 100),
    ("stable %", "stability.corrected.molecule", 100),
    ("learned %", "stability.learned.molecule", 100),
    ("legacy %", "stability.legacy.molecule", 100),
    ("atoms legacy %", "stability.legacy.atom", 100),
    ("unique %", "uniqueness", 100),
    ("novel %", "novelty", 100),
    ("W1 bond mÅ", "wasserstein.bond.value", 1000),
    ("W1 angle °", "wasserstein.angle.value", 1),
    ("W1 dihedral °", "wasserstein.dihedral.value", 1),
    ("KL %", "likeness.kl.value", 100),
    ("seen/kept", "memory.ratio", 1),
    ("FCD", "likeness.fcd", 1),
    ("PoseBusters %", "posebusters.pass", 100),
    ("strain kcal/mol", "strain.energy_drop.median", 1),
    ("molecules/s", "sampling.molecules_per_second", 1),
    ("per CPU s", "sampling.molecules_per_cpu_second", 1),
)
SHARE = 100  # %
DIFFERENCE = {"validity": "validity", "stability.corrected.molecule": "molecule stability (corrected)"}


def table(record: dict[str, Any]) -> str:
    """Means and half widths of the intervals for each model and number of steps, with published lines below."""
    rows = _rows(record)
    shown = [column for column in COLUMNS if any(column[1] in numbers for _, _, numbers, own in rows if own)]
    lines = [["model", "steps", *(heading for heading, _, _ in shown)]]
    for name, steps, numbers, _ in rows:
        lines.append([name, steps, *(_cell(numbers.get(key), factor) for _, key, factor in shown)])
    return "\n".join([aligned(lines), "", *notes(record)])


def _rows(record: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], bool]]:
    """(name, steps, numbers, whether measured here)."""
    rows = [
        (name, steps, run["numbers"], True)
        for name, model in record["models"].items()
        for steps, run in model["runs"].items()
    ]
    for name, facts in record["published"].items():
        speed = {"mean": facts["molecules_per_second"], "half_width": None}
        numbers = {**facts["numbers"], "sampling.molecules_per_second": speed}
        rows.append((f"{name} (published)", str(facts["steps"]), numbers, False))
    return rows


def notes(record: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know."""
    settings = record["settings"]
    lines = [
        f"{len(settings['seeds'])} seeds of {settings['n_per_seed']} molecules, ± {settings['interval']}",
        "valid, stable, …: shares of all generated; unique: of the valid; novel: of the unique",
        "stable: molecules, corrected protocol (Kekulé valences); learned: valences as in the training data; "
        "legacy: as published; seen/kept: how often a training molecule is drawn beside one kept aside (1: no memory)",
        "bonds as the network draws them"
        if settings["free_valences"]
        else "bonds of an atom within the largest valence that its kind has in the training data",
        f"measured on {record['device']}, {record['threads']} threads",
    ]
    for name, model in record["models"].items():
        lines.append(f"{name}: {model['parameters']:,} parameters, {model['noise_levels']} levels, {model['data']}")
        for steps, found in model["differences"].items():
            words = [f"{text} {_signed(found[key])}" for key, text in DIFFERENCE.items() if key in found]
            lines.append(f"{name}, {steps} steps against {max(map(int, model['runs']))}: {', '.join(words)} points")
    for name, facts in record["published"].items():
        lines.append(f"{name}: {facts['data']}; {facts['hardware']}; {facts['source']}")
    lines += busy(record, "molecules/s is a lower bound, CPU time tells more")
    return lines


def figure(record: dict[str, Any], path: str | Path) -> None:
    """Quality, geometry and speed against the number of steps."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from .._figures import STYLE

    panels = (
        ("valid, %", "validity", 100),
        ("stable (corrected), %", "stability.corrected.molecule", 100),
        ("W1 of angles, °", "wasserstein.angle.value", 1),
        ("molecules/s", "sampling.molecules_per_second", 1),
    )
    with mpl.rc_context({**STYLE, "savefig.transparent": False}):
        drawing = Figure(figsize=(11, 3.2), layout="constrained")
        for axes, (title, key, factor) in zip(drawing.subplots(1, len(panels)), panels, strict=True):
            _curves(axes, record, key, factor)
            _published(axes, record, key, factor)
            axes.set(title=title, xlabel="network calls", xscale="log")
            ticks = sorted({int(s) for model in record["models"].values() for s in model["runs"]})
            axes.set_xticks(ticks, [str(s) for s in ticks])
            if key == "sampling.molecules_per_second":
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
            elif factor == SHARE:
                axes.set_ylim(top=min(axes.get_ylim()[1], SHARE))
            axes.minorticks_off()
        handles, labels = drawing.axes[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
        drawing.savefig(path, dpi=200)


def _curves(axes: Any, record: dict[str, Any], key: str, factor: float) -> None:
    """One line with intervals for each model that has the number; a share ends at 100 %."""
    from .._figures import BLUE, SOFT, TEAL, WARM

    for (name, model), colour in zip(record["models"].items(), (TEAL, BLUE, WARM, SOFT) * 9, strict=False):
        known = [(int(s), run["numbers"][key]) for s, run in model["runs"].items() if run["numbers"].get(key)]
        if known:
            steps, numbers = zip(*known, strict=True)
            means = [factor * number["mean"] for number in numbers]
            halves = [factor * (number["half_width"] or 0) for number in numbers]
            above = [
                min(half, SHARE - mean) if factor == SHARE else half for mean, half in zip(means, halves, strict=True)
            ]
            axes.errorbar(steps, means, [halves, above], marker="o", markersize=4, capsize=2, color=colour, label=name)


def _published(axes: Any, record: dict[str, Any], key: str, factor: float) -> None:
    """A line for each published number; another data set, another machine."""
    for name, facts in record["published"].items():
        number = facts["numbers"].get(key, {}).get("mean")
        if key == "sampling.molecules_per_second":
            number = facts["molecules_per_second"]
        if number is not None:
            label = f"{name} published: QM9 with hydrogens, {facts['steps']} steps, {facts['hardware']}"
            axes.axhline(factor * number, linestyle="--", linewidth=1, color="0.5", label=label)


def _cell(number: dict[str, Any] | None, factor: float) -> str:
    if number is None:
        return "–"
    mean, half = factor * number["mean"], number["half_width"]
    digits = 1 if abs(mean) >= 10 else 2
    return f"{mean:.{digits}f}" if half is None else f"{mean:.{digits}f} ± {factor * half:.{digits}f}"


def _signed(number: dict[str, Any]) -> str:
    half = "" if number["half_width"] is None else f" ± {100 * number['half_width']:.1f}"
    return f"{100 * number['mean']:+.1f}{half}"
