"""Small Hamiltonian networks and molecules for tests."""

import torch

from tesseral.potentials.hamiltonian.base import HamiltonianModel
from tesseral.potentials.hamiltonian.layout import layout
from tesseral.potentials.hamiltonian.molecules import Molecules, collate
from tesseral.potentials.hamiltonian.networks import build

LAYOUT = layout("def2-svp")
CONFIGS = {
    "qhnet": {"channels": 8, "bottleneck": 4, "layers": 3, "hidden": 12, "edge_hidden": 6},
    "sphnet": {
        "channels": 8,
        "bottleneck": 4,
        "heads": 2,
        "near_layers": 2,
        "far_layers": 2,
        "near_radial": 8,
        "hidden": 12,
        "edge_hidden": 6,
        "epoch": 10,
    },
}
EPOCH = 10


def network(name: str, *, step: int = 0, seed: int = 0, **changes) -> HamiltonianModel:
    """A network in float64 and evaluation mode, every weight (norms, biases, scores too) moved away from its start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(name, CONFIGS[name] | changes, LAYOUT).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    model.start_step(step)
    return model


def molecule(numbers: list[int], seed: int = 0, spread: float = 1.5) -> Molecules:
    """A random molecule whose atoms keep a distance of 0.7 Å."""
    generator = torch.Generator().manual_seed(seed)
    chosen: list[torch.Tensor] = []
    while len(chosen) < len(numbers):
        r = spread * torch.randn(3, dtype=torch.float64, generator=generator)
        if all(float((r - other).norm()) > 0.7 for other in chosen):
            chosen.append(r)
    return Molecules.of(torch.tensor(numbers), torch.stack(chosen), dtype=torch.float64)


def moved(m: Molecules, rotation: torch.Tensor, shift: float = 0.0) -> Molecules:
    """Turned (or reflected) and shifted."""
    return Molecules.of(m.numbers, m.positions @ rotation.T + shift, dtype=m.positions.dtype)


def rotation(seed: int) -> torch.Tensor:
    """A random proper rotation."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    return q * torch.linalg.det(q)


def several() -> Molecules:
    """A batch of unlike molecules, one of them a single atom, one with equal atoms."""
    kinds = [[8, 1, 1], [9], [6, 1, 7, 1, 6, 8, 1, 1, 9], [1, 1]]
    return collate([molecule(z, seed=k) for k, z in enumerate(kinds)])
