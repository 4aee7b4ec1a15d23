"""`tesseral train`: train a model from a YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

EXAMPLE = "tesseral train --template > config.yaml; tesseral train config.yaml data.train=train.xyz training.epochs=300"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the configuration")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes, e.g. optimizer.lr=0.002")
    parser.add_argument("--resume", action="store_true", help="continue the training in the run folder, exactly")
    parser.add_argument("--force", action="store_true", help="replace an earlier training in the run folder")
    parser.add_argument(
        "--template",
        action="store_true",
        help="print a commented configuration and stop; of other models than potentials with model.architecture=… "
        "(eqgat-diff, sphnet, qhnet)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same as training.seed=N")
    parser.add_argument("--device", help="the same as training.device=…")
    parser.add_argument("--json", metavar="FILE", help="also write the final numbers to this file")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..training.config import ConfigError, load_config, template
    from ._cli import write_json

    overrides = list(args.overrides)
    path = args.config
    if path is not None and "=" in path:  # no file, overrides only
        overrides.insert(0, path)
        path = None
    kind, train = _room(path, overrides)
    if args.template:
        print(template(kind))
        return
    if path is None and not overrides:
        raise ConfigError("no configuration: give CONFIG.yaml (`tesseral train --template` prints one)")
    if args.seed is not None:
        overrides.append(f"training.seed={args.seed}")
    if args.device is not None:
        overrides.append(f"training.device={args.device}")
    result = train(load_config(kind, path, overrides), resume=args.resume, force=args.force)
    if not result["metrics"]:
        print(f"{result['folder']}: this training is finished; raise training.epochs to go on")
    if "test" in result:
        from .evaluate import table

        print(f"test data\n{table(result['test'])}")
    if args.json:
        write_json(args.json, result)


def _room(path: str | None, overrides: list[str]) -> tuple[type, Callable[..., dict[str, Any]]]:
    """The configuration class and the training of the room that has the configured architecture."""
    from ..generative import ARCHITECTURES as GENERATORS
    from ..potentials.hamiltonian import ARCHITECTURES as HAMILTONIANS
    from ..training.config import read_yaml

    section = (read_yaml(path).get("model") if path is not None else None) or {}
    name = section.get("architecture") if isinstance(section, dict) else None
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "model.architecture":
            name = value
    if name in GENERATORS:
        from ..generative import fit as generative

        return generative.GeneratorTraining, generative.train
    if name in HAMILTONIANS:
        from ..potentials.hamiltonian import fit as hamiltonian

        return hamiltonian.HamiltonianTraining, hamiltonian.train
    from ..potentials import fit as potentials

    return potentials.PotentialTraining, potentials.train
