"""`tesseral train`: train a model from a YAML file."""

from __future__ import annotations

import argparse

EXAMPLE = "tesseral train --template > config.yaml; tesseral train config.yaml data.train=train.xyz training.epochs=300"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the configuration")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes, e.g. optimizer.lr=0.002")
    parser.add_argument(
        "--resume", action="store_true", help="continue the training in the run folder, exactly"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier training in the run folder")
    parser.add_argument("--template", action="store_true", help="print a commented configuration and stop")
    parser.add_argument("--seed", type=int, metavar="N", help="the same as training.seed=N")
    parser.add_argument("--device", help="the same as training.device=…")
    parser.add_argument("--json", metavar="FILE", help="also write the final numbers to this file")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..potentials.fit import PotentialTraining, train
    from ..training.config import ConfigError, load_config, template
    from ._cli import write_json

    if args.template:
        print(template(PotentialTraining))
        return
    overrides = list(args.overrides)
    path = args.config
    if path is not None and "=" in path:  # no file, overrides only
        overrides.insert(0, path)
        path = None
    if path is None and not overrides:
        raise ConfigError("no configuration: give CONFIG.yaml (`tesseral train --template` prints one)")
    if args.seed is not None:
        overrides.append(f"training.seed={args.seed}")
    if args.device is not None:
        overrides.append(f"training.device={args.device}")
    result = train(load_config(PotentialTraining, path, overrides), resume=args.resume, force=args.force)
    if not result["metrics"]:
        print(f"{result['folder']}: this training is finished; raise training.epochs to go on")
    if "test" in result:
        from .evaluate import table

        print(f"test data\n{table(result['test'])}")
    if args.json:
        write_json(args.json, result)
