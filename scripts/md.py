"""`tesseral md`: molecular dynamics with a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cli import add_common, check_device, write_json

if TYPE_CHECKING:
    from ase import Atoms

    from ..md.dynamics import MDResult

EXAMPLE = "tesseral md molecule.extxyz -o run.extxyz --temperature 300 --steps 10000 --plot run.png"
SETTINGS = {
    "ensemble": "ensemble",
    "thermostat": "thermostat",
    "barostat": "barostat",
    "temperature": "temperature_K",
    "pressure": "pressure_GPa",
    "timestep": "timestep_fs",
    "thermostat_time": "thermostat_fs",
    "barostat_time": "barostat_fs",
    "seed": "seed",
}
"""Options that define the run: left out when resuming, they are as they were."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tesseral md`."""
    parser.add_argument("input", metavar="IN", help="file with the start, any format; velocities in it are used")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="trajectory: .extxyz, .traj or .h5"
    )
    parser.add_argument("--model", help="shipped model or checkpoint (default: the shipped one that covers IN)")
    parser.add_argument("--index", default="-1", help="frame of IN (default -1, the last)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the whole run (default 1000)")
    parser.add_argument("--ensemble", choices=("nve", "nvt", "npt"), help="default nvt")
    parser.add_argument("--thermostat", choices=("langevin", "nose-hoover", "bussi"), help="default langevin")
    parser.add_argument("--barostat", choices=("isotropic", "full"), help="volume alone (default) or whole cell")
    parser.add_argument("--temperature", type=float, metavar="K", help="default 300")
    parser.add_argument("--pressure", type=float, metavar="GPA", help="default 0")
    parser.add_argument("--timestep", type=float, metavar="FS", help="default 1")
    parser.add_argument("--thermostat-time", type=float, metavar="FS", help="default 100 (Langevin: 1/friction)")
    parser.add_argument("--barostat-time", type=float, metavar="FS", help="default 1000")
    parser.add_argument("--every", type=int, metavar="N", help="steps between records (default 10)")
    parser.add_argument("--save-every", type=int, default=100, metavar="N", help="steps between saved states (100)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted or finished run")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="default: as the model was stored")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="figure of the thermodynamic log")
    limits = parser.add_argument_group("where the run is stopped")
    limits.add_argument("--max-temperature", type=float, metavar="K", help="default 10 × target, at least 5000")
    limits.add_argument("--max-energy-change", type=float, metavar="EV", help="per atom, default 3")
    limits.add_argument(
        "--any-surroundings",
        action="store_true",
        help="do not stop at neighbour counts and forces unlike training",
    )
    parser.add_argument("--allow-nonconservative", action="store_true", help="NVE with forces without an energy")
    parser.add_argument("--seed", type=int, metavar="N", help="default: drawn, printed and kept in the state")
    add_common(parser, "device", "json", "force")


def run(args: argparse.Namespace) -> None:
    """Run the simulation and print what came out; numbers are also written when it stopped."""
    from ..md.calculator import Calculator
    from ..md.choose import choose_model
    from ..md.dynamics import run_md
    from ..md.watch import SimulationStoppedError

    atoms = _start(args)
    name = args.model or choose_model([atoms])
    print(f"model {name}" + ("" if args.model else " (the shipped model that covers this structure)"))
    asked = {SETTINGS[key]: value for key, value in vars(args).items() if key in SETTINGS and value is not None}
    try:
        result = run_md(
            atoms,
            Calculator(name, device=check_device(args.device), dtype=args.dtype),
            steps=args.steps,
            output=args.output,
            resume=args.resume,
            force=args.force,
            every=args.every,
            save_every=args.save_every,
            limits=_limits(args),
            progress=True,
            allow_nonconservative=args.allow_nonconservative,
            **asked,
        )
    except SimulationStoppedError as error:
        if args.json:
            write_json(args.json, {"model": name, "stopped": {"step": error.step, "reason": error.reason}})
        raise
    _summary(result)
    if args.plot:
        from ..md.thermo import plot_thermo

        plot_thermo(result.files["thermo"], args.plot, title=f"{args.input}, {name}")
        print(f"figure          {args.plot}")
    if args.json:
        write_json(args.json, {"model": name, **result.to_dict()})


def _start(args: argparse.Namespace) -> Atoms:
    """The one frame to start from."""
    from ..datasets.errors import UserError
    from ..datasets.read import read

    frames = read(args.input, index=args.index)
    if len(frames) != 1:
        raise UserError(f"--index {args.index} chooses {len(frames)} frames of {args.input}: choose exactly one")
    frames[0].validate(f"{args.input}, frame {args.index}")
    return frames[0].to_ase()


def _limits(args: argparse.Namespace) -> Any:
    from ..md.watch import Limits

    given = {"temperature_K": args.max_temperature, "energy_change": args.max_energy_change}
    return Limits(surroundings=not args.any_surroundings, **{k: v for k, v in given.items() if v is not None})


def _summary(result: MDResult) -> None:
    """Print the numbers that tell whether the run can be trusted."""
    settings = result.settings
    kind = settings.ensemble if settings.ensemble == "nve" else f"{settings.ensemble} ({settings.integrator})"
    mean, spread = result.temperature_K
    print(
        f"{kind}, {len(result.atoms)} atoms, {result.step} steps of {settings.timestep_fs:g} fs = {result.time_ps:g} ps"
    )
    print(f"temperature     {mean:.1f} ± {spread:.1f} K (target {settings.temperature_K:g} K)")
    if result.pressure_GPa is not None:
        print(f"pressure        {result.pressure_GPa:.3f} GPa")
    if result.drift is not None:
        print(f"drift           {result.drift:+.4f} meV/atom/ps of the conserved energy")
    if result.steps_run:
        print(f"speed           {result.steps_per_second:.1f} steps/s, {result.ns_per_day:.3f} ns/day")
    else:
        print("nothing to do: the run had all these steps already; raise --steps to extend it")
    print(f"seed            {result.seed}")
    for role, path in result.files.items():
        print(f"{role:15} {path}")
