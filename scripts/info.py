"""`tesseral info`: versions, devices, kernel backends and shipped models."""

import argparse
from typing import Any

from ._cli import add_common, versions, write_json

EXAMPLE = "tesseral info --json info.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tesseral info`."""
    add_common(parser, "json")


def run(args: argparse.Namespace) -> None:
    """Print what is installed, what it can compute on, and the models that come with the package."""
    facts: dict[str, Any] = {
        "devices": devices(),
        "kernel_backends": backends(),
        "kernels": kernel_choices(),
        "steps": step_choices(),
        "models": models(),
    }
    for name, number in versions().items():
        print(f"{name:12} {number}")
    print("\ndevices")
    for name, text in facts["devices"].items():
        print(f"  {name:10} {text}")
    print(f"\nkernel backends  {', '.join(facts['kernel_backends'])}")
    for device, lines in facts["kernels"].items():
        print(f"\nkernels on {device}, float32")
        for name, line in lines.items():
            print(f"  {name:20} {line.partition(': ')[2]}")
        if device in facts["steps"]:
            print(f"  {'whole steps':20} {facts['steps'][device]}")
    print("\nshipped models")
    for name, header in facts["models"].items():
        print(f"  {name:20} {one_line(header)}")
    if not facts["models"]:
        print("  none")
    if args.json:
        write_json(args.json, facts)


def devices() -> dict[str, str]:
    """Torch devices of this machine, each with a few words."""
    import torch

    found = {"cpu": f"{torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    return found


def backends() -> list[str]:
    """Names of the kernel backends that run here."""
    from .. import kernels

    return kernels.backends()


def kernel_choices() -> dict[str, dict[str, str]]:
    """For every device, which backend runs each kernel operation on float32 tensors, and why."""
    import torch

    from ..kernels.backends import OPERATIONS, explain

    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {kind: {name: explain(name, torch.zeros(1, device=kind)) for name in OPERATIONS} for kind in kinds}


def step_choices() -> dict[str, str]:
    """For every device, how the calculator runs whole steps, and why."""
    import torch

    from ..potentials import captured

    return {"cuda": captured.explain()} if torch.cuda.is_available() else {}


def models() -> dict[str, dict[str, Any]]:
    """Shipped models of all rooms: name to the header of their file, card included."""
    from ..training.shipped import ROOMS, shipped

    return {name: header for room in ROOMS for name, header in shipped(room).items()}


def one_line(header: dict[str, Any]) -> str:
    """Elements and summary of a model's header in one line."""
    from ..datasets.elements import symbol

    elements = " ".join(symbol(int(z)) for z in header["elements"])
    return "  ".join(x for x in (elements, str(header.get("card", {}).get("summary", ""))) if x)
