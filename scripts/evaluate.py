"""`tesseral evaluate`: errors of a model on a data set, with a parity plot."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..potentials.evaluate import Evaluation

EXAMPLE = "tesseral evaluate runs/potential/best.safetensors test.xyz --plot parity.png --json errors.json"
AXES = {"energy": ("energy per atom", "eV/atom"), "forces": ("force", "eV/Å"), "stress": ("stress", "GPa")}
MOST_POINTS = 50_000  # drawn; a plot with more looks the same


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    from ._cli import add_common

    parser.add_argument("model", metavar="MODEL", help="a checkpoint file or the name of a shipped model")
    parser.add_argument("data", metavar="DATA", nargs="+", help="labelled structures, one or several files")
    parser.add_argument("--plot", metavar="F.png", help="write a parity plot (png, pdf or svg)")
    parser.add_argument("--keys", default="", metavar="LABEL=KEY,…", help="names of labels in the file")
    parser.add_argument("--units", default="", metavar="NAME=UNIT,…", help="units of the file: energy=kcal/mol")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="precision; default: the model's own")
    add_common(parser, "device", "json", "force", "seed")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..datasets.keys import KeyMap
    from ..datasets.read import open_source
    from ..datasets.units import Units
    from ..potentials import load
    from ..potentials.evaluate import evaluate
    from ..training.checkpoint import read_header
    from ..training.shipped import locate
    from ._cli import check_device, progress, refuse_overwrite, write_json

    for path in filter(None, (args.plot, args.json)):
        refuse_overwrite(path, args.force)
    if read_header(locate(args.model)).get("room") == "hamiltonian":
        _evaluate_hamiltonian(args)
        return
    model = load(args.model, device=check_device(args.device), dtype=args.dtype)
    source = open_source(args.data, keys=KeyMap.parse(args.keys), units=Units.parse(args.units))
    result = evaluate(model, source, progress=lambda loader: progress(loader, description="evaluate"))
    report = result.report()
    print(table(report))
    if args.plot:
        parity_plot(result, args.plot)
        print(f"parity plot: {args.plot}")
    if args.json:
        write_json(args.json, {"model": args.model, "data": args.data, **report})


def _evaluate_hamiltonian(args: argparse.Namespace) -> None:
    """Errors of a Hamiltonian network on label files."""
    from ..datasets.errors import UserError
    from ..potentials.hamiltonian import load
    from ..potentials.hamiltonian.data import LabelSet
    from ..potentials.hamiltonian.evaluate import evaluate
    from ._cli import check_device, progress, write_json

    if args.plot or args.keys or args.units:
        raise UserError("--plot, --keys and --units are for potentials; label files state what they hold")
    model = load(args.model, device=check_device(args.device), dtype=args.dtype)
    labels = LabelSet.open(args.data)
    report = evaluate(model, labels, progress=lambda rows: progress(rows, description="evaluate", total=len(labels)))
    print(table(report))
    if args.json:
        write_json(args.json, {"model": args.model, "data": args.data, **report})


def _hamiltonian_table(report: dict[str, Any]) -> str:
    lines = [f"{report['n_molecules']} molecules, mean absolute errors"]
    for name in ("hamiltonian", "guess"):
        entry = report[name]
        parts = ", ".join(f"{part} {entry[part]:.4g}" for part in ("atoms", "pairs") if part in entry)
        note = "" if name == "hamiltonian" else "  (taken as the prediction)"
        lines.append(f"{name:24s}{entry['mae']:12.4g}  {entry['unit']} ({parts}){note}")
    for name in ("orbital_energies", "homo", "lumo", "gap"):
        if name in report:
            lines.append(f"{name.replace('_', ' '):24s}{report[name]['mae']:12.4g}  {report[name]['unit']}")
    for name in ("similarity", "subspace"):
        if name in report:
            lines.append(f"{name:24s}{report[name]['mean']:12.6g}  %")
    return "\n".join(lines)


def table(report: dict[str, Any]) -> str:
    """The numbers as aligned text."""
    if "hamiltonian" in report:
        return _hamiltonian_table(report)
    quantities = [name for name in ("energy_per_atom", "forces", "stress") if name in report]
    lines = [f"{report['n_frames']} frames", f"{'':24s}{'MAE':>12s}{'RMSE':>12s}"]
    for name in quantities:
        lines.append(_row(name.replace("_", " "), report[name]))
    if len(report["by_element"]) > 1:
        lines.append("forces by element")
        lines += [_row(f"  {symbol}", entry["forces"]) for symbol, entry in report["by_element"].items()]
    for group, entry in report["by_config_type"].items():
        if len(report["by_config_type"]) > 1:
            lines.append(f"config_type {group}")
            lines += [_row("  " + n.replace("_", " "), entry[n]) for n in quantities if n in entry]
    return "\n".join(lines + report["notes"])


def _row(name: str, errors: dict[str, Any]) -> str:
    return f"{name:24s}{errors['mae']:12.4g}{errors['rmse']:12.4g}  {errors['unit']}"


def parity_plot(result: Evaluation, path: str) -> None:
    """Prediction against reference with the density of points in colour and the distribution of errors inside."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from ._figures import STYLE

    report = result.report()
    with mpl.rc_context({**STYLE, "savefig.transparent": False}):
        figure = Figure(figsize=(4.4 * len(result.reference), 4.4), layout="constrained")
        for k, name in enumerate(result.reference):
            axes = figure.add_subplot(1, len(result.reference), k + 1)
            _parity_panel(axes, result, name, report)
        figure.savefig(path, dpi=200)


def _parity_panel(axes: Any, result: Evaluation, name: str, report: dict[str, Any]) -> None:
    import numpy as np

    from ..potentials.evaluate import NAMES, SCALES
    from ._figures import INK, LINE, SOFT, TEAL

    quantity, unit = AXES[name]
    scale = SCALES[name] if name == "stress" else 1.0
    reference = result.reference[name].flatten().numpy() * scale
    predicted = result.predicted[name].flatten().numpy() * scale
    if name == "energy":  # total energies are large and alike
        mean = reference.mean()
        reference, predicted = reference - mean, predicted - mean
        quantity = f"{quantity} {'+' if mean < 0 else '−'} {abs(mean):.3f}"
    chosen = np.random.default_rng(0).permutation(len(reference))[:MOST_POINTS]
    ends = [min(reference.min(), predicted.min()), max(reference.max(), predicted.max())]
    margin = 0.04 * (ends[1] - ends[0]) or 1.0
    ends = [ends[0] - margin, ends[1] + margin]
    axes.plot(ends, ends, color=SOFT, linewidth=0.8, zorder=1)
    axes.scatter(
        reference[chosen], predicted[chosen], c=_density(reference[chosen], predicted[chosen], ends), cmap="viridis_r",
        s=5, linewidths=0, rasterized=True, zorder=2,
    )  # fmt: skip
    errors = report[NAMES[name]]
    axes.set_title(f"MAE {errors['mae']:.3g}  RMSE {errors['rmse']:.3g} {errors['unit']}", fontsize=10, color=INK)
    axes.set(xlabel=f"reference {quantity} ({unit})", ylabel=f"predicted {quantity} ({unit})", xlim=ends, ylim=ends)
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
    inset = axes.inset_axes((0.62, 0.1, 0.34, 0.24))
    difference = (predicted - reference) * (1.0 if name == "stress" else 1e3)
    width = np.percentile(np.abs(difference), 99) or 1.0
    inset.hist(difference, bins=41, range=(-width, width), color=TEAL)
    inset.set(yticks=[], facecolor="white")
    inset.set_title(f"error ({errors['unit']})", fontsize=7, pad=2)
    inset.tick_params(labelsize=7)
    inset.grid(False)
    inset.axvline(0, color=LINE, linewidth=0.8)


def _density(x: Any, y: Any, ends: list[float]) -> Any:
    """Logarithm of the number of points in each point's cell of a 120 x 120 grid."""
    import numpy as np

    grid = np.linspace(ends[0], ends[1], 121)
    counts = np.histogram2d(x, y, bins=(grid, grid))[0]
    cell = [np.clip(np.digitize(values, grid) - 1, 0, 119) for values in (x, y)]
    return np.log(counts[cell[0], cell[1]] + 1)
