"""The worker of `tesseral bench hamiltonian`: checks networks, times them in turns, or measures the memory of one.

A line on stdin is ``{"do": "check", "time" or "memory", ...}``, the reply a line on stdout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ...kernels import use_backend
from ...potentials.hamiltonian.layout import Blocks, OrbitalLayout, layout
from ...potentials.hamiltonian.molecules import Molecules
from ...potentials.hamiltonian.networks import build
from .kernel_side import allocated, resident_growth, turns
from .serve import answer

SIDES = ("qhnet e3nn", "qhnet", "sphnet dense", "sphnet")
PATHS = {
    "forward": "prediction of all blocks, no gradients",
    "step": "training step: prediction, backward, AdamW",
}
PRESETS = {
    "published": ({"preset": "standard"}, {"preset": "svp"}),
    "small": ({"preset": "small", "parity": "so3"}, {"preset": "small"}),
}
"""Hyper-parameters of QHNet and SPHNet."""
TOLERANCES = {"float64": 1e-9, "float32": 1e-3}
"""Largest error over the root mean square."""
CHECKED = 14  # atoms of the molecule that results are checked with
LAST_PHASE = 10**9  # optimiser steps after which SPHNet's paths are fixed
COMPILED = 8  # atoms of the molecule with which kernels are compiled before memory is measured


def main() -> None:
    """Answer requests until stdin closes; what libraries print to stdout goes to stderr."""
    answer(lambda request: ACTIONS[request.pop("do")](**request))


def alkane(n_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers ``(n,)`` and positions ``(n, 3)`` Å of a coiled chain C_k H_2k+2, cut or completed to n atoms."""
    bond, angle, turn = 1.53, np.radians(112.0), np.radians(63.0)
    carbons = [np.zeros(3), np.array([bond, 0, 0]), np.array([bond * (1 - np.cos(angle)), bond * np.sin(angle), 0])]
    while 3 * len(carbons) + 2 < n_atoms + 3:
        a, b, c = carbons[-3:]
        along = (c - b) / np.linalg.norm(c - b)
        normal = np.cross(b - a, along)
        normal /= np.linalg.norm(normal)
        across = np.cross(normal, along)
        step = -np.cos(angle) * along + np.sin(angle) * (np.cos(turn) * across + np.sin(turn) * normal)
        carbons.append(c + bond * step)
    k = max((n_atoms - 2) // 3, 2)
    chain, hydrogens = np.array(carbons[:k]), []
    for i in range(k):
        near = [_unit(carbons[i + d] - carbons[i]) for d in (-1, 1) if 0 <= i + d < k]
        if len(near) == 1:  # an end of the chain: its third hydrogen stands for the missing carbon
            near.append(0.94 * _unit(np.cross(near[0], [0.3, -0.2, 1.0])) - near[0] / 3)
            hydrogens.append(chain[i] + 1.09 * near[1])
        middle, side = _unit(-near[0] - near[1]), _unit(np.cross(near[0], near[1]))
        hydrogens += [chain[i] + 1.09 * (0.58 * middle + s * 0.81 * side) for s in (1, -1)]
    hydrogens = hydrogens[: n_atoms - k]
    extra = n_atoms - k - len(hydrogens)
    far = [chain[-1] + np.array([0.0, 0.0, 3.0 + 2.0 * e]) for e in range(extra)]
    positions = np.concatenate([chain, np.array(hydrogens), np.array(far).reshape(-1, 3)])
    return np.array([6] * k + [1] * (n_atoms - k)), positions


def _unit(v: np.ndarray) -> np.ndarray:
    length: np.ndarray = v / np.linalg.norm(v)
    return length


def network(side: str, preset: str, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network with random weights; both QHNets have the same."""
    config = PRESETS[preset]
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    if side.startswith("sphnet"):
        changes = {"sparsity": 0.0} if side == "sphnet dense" else {}
        model = build("sphnet", config[1] | changes, orbitals()).to(dtype)
        model.start_step(LAST_PHASE)
        return model
    ours = build("qhnet", config[0], orbitals()).to(dtype)
    if side == "qhnet":
        return ours
    from .hamiltonian_peer import PeerQHNet

    torch.set_default_dtype(dtype)  # e3nn keeps its coefficients in the default precision of the moment
    try:
        return PeerQHNet(ours).to(dtype)  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(before)


def orbitals() -> OrbitalLayout:
    """Layout of the benchmark's molecules."""
    return layout("def2-svp")


def example(n_atoms: int, seed: int, dtype: torch.dtype = torch.float32) -> Molecules:
    """A slightly distorted molecule."""
    numbers, positions = alkane(n_atoms)
    noise = 0.03 * np.random.default_rng(seed).normal(size=positions.shape)
    return Molecules.of(numbers, positions + noise, dtype=dtype)


def prepare(model: nn.Module, molecule: Molecules, path: str) -> Callable[[], Any]:
    """A function that runs a path once."""

    def forward() -> Any:
        with torch.no_grad():
            return model(molecule)

    if path == "forward":
        model.eval()
        return forward
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=0.0)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        blocks = model(molecule)
        (blocks.diagonal.abs().mean() + blocks.lower.abs().mean()).backward()
        optimiser.step()

    return step


# --- checks --------------------------------------------------------------------------------------------------


def check(sides: list[str], preset: str, seed: int) -> dict[str, Any]:
    """What must hold before anything is timed, by name: "error" over rms, "tolerance", "right"."""
    found: dict[str, float] = {}
    exact, double = torch.float64, example(CHECKED, seed, torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=exact, generator=torch.Generator().manual_seed(seed)))[0]
    rotation = rotation * torch.linalg.det(rotation)
    turned = Molecules.of(double.numbers, double.positions @ rotation.T, dtype=exact)
    d = orbitals().rotation(rotation)
    for side in sides:
        blocks = _run(network(side, preset, seed, exact), double)
        expected = Blocks(d @ blocks.diagonal @ d.T, d @ blocks.lower @ d.T)
        found[f"{side}, rotated molecule"] = _error(_run(network(side, preset, seed, exact), turned), expected)
        if side != "qhnet e3nn":
            with use_backend("reference"):
                plain = _run(network(side, preset, seed, exact), double)
            found[f"{side}, plain torch"] = _error(blocks, plain)
    if "qhnet e3nn" in sides:
        theirs = _run(network("qhnet e3nn", preset, seed, exact), double)
        ours = _run(network("qhnet", preset, seed, exact), double)
        found["qhnet, e3nn layers"] = _error(ours, theirs)
        single = double.to(dtype=torch.float32)
        ours, theirs = (_run(network(side, preset, seed), single) for side in ("qhnet", "qhnet e3nn"))
        found["qhnet, e3nn layers, float32"] = _error(ours, theirs)
    report = {}
    for name, error in found.items():
        tolerance = TOLERANCES["float32" if name.endswith("float32") else "float64"]
        if "e3nn layers" in name and not name.endswith("float32"):
            tolerance = 1e-5  # e3nn's lengths are not smooth at zero, ours are
        report[name] = {"error": error, "tolerance": tolerance, "right": error <= tolerance}
    return report


@torch.no_grad()
def _run(model: nn.Module, molecule: Molecules) -> Blocks:
    blocks: Blocks = model.eval()(molecule)
    return blocks


def _error(found: Blocks, expected: Blocks) -> float:
    """Largest error over the root mean square."""
    pairs = ((found.diagonal, expected.diagonal), (found.lower, expected.lower))
    return max(float((a - b).abs().max() / b.square().mean().sqrt()) for a, b in pairs)


# --- times and memory ----------------------------------------------------------------------------------------


def timing(*, atoms: int, sides: list[str], path: str, preset: str, repeats: int, seed: int) -> dict[str, Any]:
    """CPU times of all sides in turns (ms per molecule), and facts of the molecule."""
    molecule = example(atoms, seed)
    calls = {side: prepare(network(side, preset, seed), molecule, path) for side in sides}
    facts = {
        "atoms": atoms,
        "pairs": int(molecule.n_pairs),
        "edges_15": len(molecule.edges(15.0)),
        "extent": float(torch.cdist(molecule.positions, molecule.positions).max()),
    }
    return {"facts": facts, "times": turns(calls, repeats)}


def memory(atoms: int, side: str, path: str, preset: str, seed: int) -> dict[str, Any]:
    """Largest extra memory (MiB) of a path: of tensors, and of the process where the system tells."""
    model = network(side, preset, seed)
    small, call = (prepare(model, example(n, seed), path) for n in (min(COMPILED, atoms), atoms))
    small()
    resident = resident_growth(call)
    parameters = sum(p.numel() for p in model.parameters())
    return {"allocated": allocated(call) / 2**20, "resident": resident, "parameters": parameters}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {"check": check, "time": timing, "memory": memory}

if __name__ == "__main__":
    main()
