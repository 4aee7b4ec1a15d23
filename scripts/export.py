"""`tesseral export`: a model as one compiled file for C++ hosts and fast small systems."""

from __future__ import annotations

import argparse

EXAMPLE = """tesseral export tesseral-organic -o organic.pt2 --to aoti
  tesseral md molecule.xyz -o run.extxyz --model organic.pt2 --steps 1000

a C++ host runs it with torch::inductor::AOTIModelPackageLoader, one structure per call:
  inputs   numbers (N,) int64, 0 marks a ghost; edge_index (2, E) int64, row 0 neighbour, row 1 centre;
           vectors (E, 3) float64 Å, neighbour minus centre; volume () float64 Å³, or 1
  outputs  energy () eV; energies (N,) eV; forces (N, 3) eV/Å; stress (6,) eV/Å³, xx yy zz yz xz xy
           (with volume 1: the derivative of the energy with respect to strain); all float64
sizes are free from N = 2, E = 2 on: pad with ghosts and with edges from a ghost to itself, longer than the cutoff"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    from ._cli import add_common

    parser.add_argument("model", metavar="MODEL", help="a checkpoint file or the name of a shipped model")
    parser.add_argument("-o", "--output", metavar="FILE.pt2", required=True, help="the file to write")
    parser.add_argument("--to", choices=("aoti",), default="aoti", help="kind: aoti, AOTInductor (default)")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="precision; default: the model's own")
    add_common(parser, "device", "force")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..potentials import load
    from ..potentials.export import export, refuse
    from ._cli import check_device

    refuse(args.output, args.force)
    model = load(args.model, device=check_device(args.device), dtype=args.dtype)
    print(f"compiling {args.model}, which takes about a minute")
    path = export(model, args.output, force=args.force)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, equal to the model on clusters of 1 to 40 atoms")
