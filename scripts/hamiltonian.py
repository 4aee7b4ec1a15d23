"""`tesseral hamiltonian`: predicted Fock matrices, orbital energies, densities, and the SCF that starts from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cli import add_common, check_device, progress, refuse_overwrite, write_json

if TYPE_CHECKING:
    from ..potentials.hamiltonian.scf import Convergence, Prediction

EXAMPLE = "tesseral hamiltonian sphnet-organic caffeine.xyz -o caffeine.h5 --scf --dos dos.png --cube homo lumo"
WIDTH_EV = 0.3  # of the lines of the density of states


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="a checkpoint file or the name of a shipped model")
    parser.add_argument("molecules", metavar="IN", help="neutral closed-shell molecules, any format")
    parser.add_argument("-o", "--output", metavar="OUT.h5", type=Path, required=True, help="HDF5 file to write")
    parser.add_argument(
        "--scf",
        action="store_true",
        help="run PySCF from the prediction and from its own guesses, and print the saved cycles",
    )
    parser.add_argument(
        "--conv-tol", type=float, default=1e-9, metavar="EH", help="of the energies of --scf (default 1e-9)"
    )
    parser.add_argument("--dos", metavar="F.png", type=Path, help="figure of the density of states")
    parser.add_argument(
        "--cube",
        nargs="+",
        default=[],
        metavar="ORBITAL",
        help="write cube files of these orbitals beside OUT: homo, lumo, homo-1, lumo+2 or a number from 1",
    )
    parser.add_argument("--spacing", type=float, default=0.2, metavar="Å", help="of the cube's grid (default 0.2)")
    add_common(parser, "device", "json", "force")


def run(args: argparse.Namespace) -> None:
    """Predict, write, report."""
    from ..datasets.errors import UserError
    from ..datasets.read import read
    from ..potentials.hamiltonian import load
    from ..potentials.hamiltonian.scf import converge, orbital_number, predict_all, write_cube

    for path in (args.output, args.dos, args.json):
        if path is not None:
            refuse_overwrite(path, args.force)
    if args.spacing <= 0 or args.conv_tol <= 0:
        raise UserError("--spacing and --conv-tol must be positive")
    model = load(args.model, device=check_device(args.device))
    structures = read(args.molecules)
    if not structures:
        raise UserError(f"{args.molecules} holds no molecules")
    records, levels = [], []
    with Output(args.output) as out:
        found = predict_all(model, structures)
        shown = progress(found, description="predict", total=len(structures), unit="molecules")
        for k, prediction in enumerate(shown):
            scf = converge(prediction, conv_tol=args.conv_tol) if args.scf else None
            out.add(k, prediction, scf)
            records.append(_record(prediction, scf))
            levels.append(prediction.orbitals.energies)
            print(_line(k, prediction, scf))
            for text in args.cube:
                number = orbital_number(text, prediction.n_electrons, len(prediction.orbitals.energies))
                cube = args.output.with_name(f"{args.output.stem}_{k}_{text.strip().lower()}.cube")
                refuse_overwrite(cube, args.force)
                write_cube(cube, prediction, number, spacing=args.spacing)
                print(f"  orbital {text} in {cube}")
    print(f"{len(records)} molecules in {args.output}")
    summary = _summary(records) if args.scf else {}
    if summary:
        print(_summary_text(summary))
    if args.dos:
        _draw_states(args.dos, levels, [r["homo"] for r in records])
        print(f"density of states: {args.dos}")
    if args.json:
        write_json(
            args.json,
            {"model": args.model, "molecules": records, "units": UNITS, **({"scf": summary} if summary else {})},
        )


UNITS = {"energies": "Eh", "dipole": "e·Å", "charges": "e"}


class Output:
    """The HDF5 file: one group per molecule, written to a temporary name until it is complete."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> Output:
        import json

        import h5py

        from ._cli import COMMAND_LINE

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = h5py.File(self.temporary, "w")
        self.file.attrs["units"] = json.dumps(UNITS, ensure_ascii=False)
        self.file.attrs["orbital_order"] = "PySCF"
        self.file.attrs["command"] = " ".join(COMMAND_LINE.get())
        return self

    def add(self, k: int, prediction: Prediction, scf: Convergence | None) -> None:
        """One molecule; quantities that the SCF gave are attributes."""
        import json

        group = self.file.create_group(f"{k:06d}")
        group.attrs["level"] = json.dumps(prediction.level.header())
        group.attrs["formula"] = prediction.structure.formula
        for key, value in (
            ("numbers", prediction.structure.numbers),
            ("positions", prediction.structure.positions),
            ("hamiltonian", prediction.hamiltonian),
            ("overlap", prediction.overlap),
            ("density", prediction.density),
            ("orbital_energies", prediction.orbitals.energies),
            ("coefficients", prediction.orbitals.coefficients),
            ("dipole", prediction.dipole),
            ("mulliken", prediction.mulliken),
            ("loewdin", prediction.loewdin),
        ):
            group.create_dataset(key, data=value)
        frontier = prediction.frontier
        group.attrs.update({"homo": frontier.homo, "lumo": frontier.lumo, "gap": frontier.gap})
        if scf is not None:
            group.attrs["scf_energy"] = scf.energies["predicted"]
            group.attrs["scf_cycles"] = json.dumps(scf.cycles)

    def __exit__(self, kind: object, *_: object) -> None:
        self.file.close()
        if kind is None:
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _record(prediction: Prediction, scf: Convergence | None) -> dict[str, Any]:
    frontier = prediction.frontier
    record: dict[str, Any] = {
        "formula": prediction.structure.formula,
        "homo": frontier.homo,
        "lumo": frontier.lumo,
        "gap": frontier.gap,
        "dipole": prediction.dipole,
        "mulliken": prediction.mulliken,
        "loewdin": prediction.loewdin,
    }
    if scf is not None:
        record["scf"] = {
            "cycles": scf.cycles,
            "ratios": scf.ratios,
            "energies": scf.energies,
            "converged": scf.converged,
            "energy_of_prediction": scf.first_energy,
        }
    return record


def _line(k: int, prediction: Prediction, scf: Convergence | None) -> str:
    import numpy as np

    from ..datasets.units import DIPOLE, HARTREE

    frontier = prediction.frontier
    debye = float(np.linalg.norm(prediction.dipole)) / DIPOLE["Debye"]
    text = (
        f"{k}  {prediction.structure.formula}  HOMO {frontier.homo * HARTREE:.3f} eV  LUMO "
        f"{frontier.lumo * HARTREE:.3f} eV  gap {frontier.gap * HARTREE:.3f} eV  dipole {debye:.3f} D"
    )
    if scf is None:
        return text
    others = ", ".join(f"{n} from {start}" for start, n in scf.cycles.items() if start != "predicted")
    failed = [start for start, fine in scf.converged.items() if not fine]
    warning = f"; NOT converged from {', '.join(failed)}" if failed else ""
    return (
        f"{text}\n  SCF: {scf.cycles['predicted']} cycles from the prediction, {others}; "
        f"E {scf.energies['predicted']:.8f} Eh (one Fock build: "
        f"{(scf.first_energy - scf.energies['predicted']) * 1e3:+.4f} mEh){warning}"
    )


def _summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean ratio of cycles and its standard error, from each start."""
    import numpy as np

    found: dict[str, Any] = {"n_molecules": len(records)}
    for start in records[0]["scf"]["ratios"]:
        ratios = np.array([r["scf"]["ratios"][start] for r in records])
        error = float(ratios.std(ddof=1) / np.sqrt(len(ratios))) if len(ratios) > 1 else None
        found[f"ratio_{start}"] = {"mean": float(ratios.mean()), "standard_error": error}
    spreads = [max(r["scf"]["energies"].values()) - min(r["scf"]["energies"].values()) for r in records]
    found["largest_energy_difference"] = {"value": max(spreads), "unit": "Eh"}
    found["all_converged"] = all(all(r["scf"]["converged"].values()) for r in records)
    return found


def _summary_text(summary: dict[str, Any]) -> str:
    parts = []
    for key in summary:
        if key.startswith("ratio_"):
            error = summary[key]["standard_error"]
            shown = f"{summary[key]['mean']:.3f}" + (f" ± {error:.3f}" if error is not None else "")
            parts.append(f"{shown} of the cycles from {key.removeprefix('ratio_')}")
    difference = summary["largest_energy_difference"]["value"]
    return f"SCF: {', '.join(parts)}; converged energies differ by at most {difference:.1e} Eh"


def _draw_states(path: Path, levels: list[Any], homos: list[float]) -> None:
    """Density of states of each molecule against the energy; occupied states are filled."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure

    from ..datasets.units import HARTREE
    from ..potentials.hamiltonian.scf import density_of_states
    from ._figures import INK, STYLE, TEAL

    shown = list(zip(levels, homos, strict=True))[:12]
    grid = np.linspace(-35.0, 15.0, 1500)
    with mpl.rc_context({**STYLE, "savefig.transparent": False}):
        figure = Figure(figsize=(6.4, 1.2 + 1.1 * len(shown)), layout="constrained")
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (energies, homo) in zip(panels, shown, strict=True):
            states = density_of_states(energies * HARTREE, grid, WIDTH_EV)
            occupied = density_of_states(energies[energies <= homo + 1e-9] * HARTREE, grid, WIDTH_EV)
            axes.fill_between(grid, occupied, color=TEAL, alpha=0.35, linewidth=0)
            axes.plot(grid, states, color=INK, linewidth=1)
            axes.axvline(homo * HARTREE, color=TEAL, linewidth=0.8)
            axes.set(ylim=(0, None), xlim=(grid[0], grid[-1]), ylabel="states / eV")
        panels[-1].set_xlabel("energy (eV)")
        figure.savefig(path, dpi=200)
