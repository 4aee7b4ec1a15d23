"""The contract of every energy model and the one place where energies become forces and stress."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..datasets.elements import MAX_Z, SYMBOLS
from ..datasets.errors import UserError
from ..datasets.graph import Graph
from ..datasets.statistics import Statistics
from ..kernels.plan import GraphPlan


@dataclass
class Prediction:
    """What a potential says of a batch.

    Attributes:
        energy: ``(G,)`` float64 eV.
        energies: ``(N,)`` float64 eV, their sums are `energy`.
        forces: ``(N, 3)`` eV/Å, or None if not asked for.
        stress: ``(G, 6)`` eV/Å³ in ASE's sign and Voigt order (xx yy zz yz xz xy), or None if not asked for or no
            structure of the batch has three periodic axes.
        stress_mask: ``(G,)`` True where the stress is defined; rows without it hold 0.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None
    stress_mask: Tensor | None = None


class Potential(nn.Module, ABC):
    """Base of all energy models: total energy = sum of reference energies + interaction energies of edge vectors.

    A new architecture sets `architecture`, gives `from_config`, and implements `atomic_energies`. Forces, stress,
    checkpoints, calculators and training then work without further code.

    Attributes:
        architecture: name in `tesseral.potentials.ARCHITECTURES`.
        conservative: forces are the exact gradient of the energy.
        cutoff: Å, the neighbour list that the model needs.
        elements: atomic numbers that the model knows, ascending.
        reference_energies: eV of the isolated atom by atomic number, added in float64.
        config: dataclass of hyper-parameters.
        card: header of the checkpoint it was loaded from, or {}.
    """

    architecture: ClassVar[str]
    conservative: ClassVar[bool] = True
    species_index: Tensor
    cutoff: float
    config: Any

    def __init__(self, elements: tuple[int, ...], reference_energies: dict[int, float]):
        """Set up the species table.

        Args:
            elements: atomic numbers that the model knows.
            reference_energies: eV of the isolated atom, by atomic number; elements left out count 0.

        Raises:
            UserError: no elements, or one beyond the periodic table.
        """
        super().__init__()
        self.elements = tuple(sorted(elements))
        if not self.elements or not 0 < self.elements[0] <= self.elements[-1] <= MAX_Z:
            raise UserError(f"elements must be atomic numbers 1..{MAX_Z}, at least one; got {elements}")
        self.reference_energies = {z: float(reference_energies.get(z, 0.0)) for z in self.elements}
        self.card: dict[str, Any] = {}
        index = torch.full((MAX_Z + 1,), -1, dtype=torch.int64)
        index[list(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("species_index", index, persistent=False)

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any], statistics: Statistics) -> Potential:
        """Build from plain hyper-parameters and the statistics of the training data."""

    @abstractmethod
    def atomic_energies(self, species: Tensor, vectors: Tensor, plan: GraphPlan) -> Tensor:
        """Interaction energy of each atom: what the total energy adds to the reference energies.

        Args:
            species: ``(N,)`` position of each atom's element in `elements`.
            vectors: ``(E, 3)`` Å, neighbour minus centre, in the model's dtype.
            plan: the graph, edges sorted by target.

        Returns:
            ``(N,)`` eV.
        """

    @property
    def dtype(self) -> torch.dtype:
        """dtype of weights and features."""
        return next(p.dtype for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def species(self, numbers: Tensor) -> Tensor:
        """Index of each atom's element in `elements`.

        Raises:
            UserError: an element that the model was not trained on.
        """
        index: Tensor = self.species_index[numbers]
        check_known(numbers, index, self.elements)
        return index

    def fingerprint(self) -> str:
        """Hash of all weights: equal for equal models, whatever their file is called."""
        digest = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            digest.update(name.encode() + str(tensor.dtype).encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def config_dict(self) -> dict[str, Any]:
        """Hyper-parameters as plain data, for the checkpoint's header."""
        return asdict(self.config)


def check_known(numbers: Tensor, index: Tensor, elements: tuple[int, ...]) -> None:
    """Refuse elements whose index is negative.

    Raises:
        UserError: naming them and those that the model knows.
    """
    if bool((index < 0).any()):
        unknown = sorted({SYMBOLS[int(z)] for z in numbers[index.to(numbers.device) < 0]})
        known = " ".join(SYMBOLS[z] for z in elements)
        raise UserError(
            f"this model does not know {', '.join(unknown)}; it knows {known}. "
            "Use a model trained on these elements (`tesseral info` lists the shipped ones)."
        )


def checked_periodic(graph: Graph, stress: bool | Literal["auto"]) -> Tensor:
    """``(G,)`` True where three axes are periodic, so that there is a stress.

    Raises:
        UserError: stress is demanded (True) of a structure that has none.
    """
    periodic = graph.pbc.all(dim=1)
    if stress is True and not bool(periodic.all()):
        which = int((~periodic).nonzero()[0])
        raise UserError(
            f"structure {which} of the batch has periodic axes {graph.pbc[which].tolist()}: stress needs three. "
            "Set pbc=True and a cell, or do not ask for stress."
        )
    return periodic


def energy_and_gradient(
    model: Potential, species: Tensor, vectors: Tensor, plan: GraphPlan, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Atomic energies ``(N,)`` eV and the gradient ``(E, 3)`` eV/Å of their sum with respect to the edge vectors."""
    with torch.enable_grad():
        leaf = vectors.detach().requires_grad_()
        energies = model.atomic_energies(species, leaf, plan)
        if not energies.requires_grad or leaf.numel() == 0:
            return energies, torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(energies.sum(), leaf, create_graph=create_graph, materialize_grads=True)
    return energies, gradient


EnergyAndGradient = Callable[..., tuple[Tensor, Tensor]]


def predict(
    model: Potential,
    graph: Graph,
    *,
    forces: bool = True,
    stress: bool | Literal["auto"] = "auto",
    create_graph: bool = False,
    energy_and_gradient: EnergyAndGradient = energy_and_gradient,
) -> Prediction:
    """Energy, forces and stress of a batch.

    All models read edge vectors only, so one gradient gives both: F_i = sum of dE/dv over edges into i minus those
    out of i, and stress = (1/V) sum over edges of v (x) dE/dv, symmetrised.

    Args:
        model: the potential.
        graph: the batch; its positions may have higher precision than the model.
        forces: also compute forces.
        stress: True demands it for every structure, "auto" gives it where three axes are periodic, False skips it.
        create_graph: keep the graph of the gradient, for training on forces.
        energy_and_gradient: how the two are evaluated (eager by default, see `potentials.compiled`).

    Raises:
        UserError: unknown element, or stress demanded of a structure without three periodic axes.
    """
    periodic = checked_periodic(graph, stress)
    species = model.species(graph.numbers)
    plan = GraphPlan.build(graph.edge_index, graph.row_ptr)
    vectors = graph.edge_vectors()
    want_stress = stress is True or (stress == "auto" and bool(periodic.any()))
    if forces or want_stress:
        energies, gradient = energy_and_gradient(
            model, species, vectors.to(model.dtype), plan, create_graph=create_graph
        )
    else:
        energies, gradient = model.atomic_energies(species, vectors.to(model.dtype), plan), None
    if not create_graph:
        energies = energies.detach()
    references = torch.tensor(list(model.reference_energies.values()), dtype=torch.float64, device=energies.device)
    energies = energies.double() + references[species]
    energy = torch.zeros(graph.n_graphs, dtype=torch.float64, device=energies.device)
    result = Prediction(energy.index_add(0, graph.batch, energies), energies)
    if forces and gradient is not None:
        result.forces = net_forces(gradient, plan)
    if want_stress and gradient is not None:
        result.stress_mask = periodic
        result.stress = _stress(graph, vectors.to(gradient.dtype), gradient, plan, periodic)
    return result


def net_forces(gradient: Tensor, plan: GraphPlan) -> Tensor:
    """Forces ``(N, 3)`` of the gradient ``(E, 3)`` with respect to edge vectors."""
    net = torch.zeros(plan.n_nodes, 3, dtype=gradient.dtype, device=gradient.device)
    return net.index_add(0, plan.target, gradient).index_add(0, plan.source, -gradient)


def strain_derivative(outer: Tensor) -> Tensor:
    """Derivative ``(G, 6)`` of the energy with respect to strain, in Voigt order.

    Args:
        outer: ``(G, 3, 3)`` sums over edges of v (x) dE/dv.
    """
    pairs = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    return torch.stack([0.5 * (outer[:, i, j] + outer[:, j, i]) for i, j in pairs], dim=-1)


def _stress(graph: Graph, vectors: Tensor, gradient: Tensor, plan: GraphPlan, periodic: Tensor) -> Tensor:
    """Stress (G, 6) in ASE's sign and Voigt order; rows of structures without three periodic axes are 0."""
    outer = (vectors[:, :, None] * gradient[:, None, :]).flatten(1)
    virial = outer.new_zeros(graph.n_graphs, 9).index_add(0, graph.batch[plan.target], outer).view(-1, 3, 3)
    volume = torch.linalg.det(graph.cell.double()).abs().to(virial.dtype)
    return strain_derivative(virial) / torch.where(periodic, volume, 1.0)[:, None] * periodic[:, None]
