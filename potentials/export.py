"""A potential as one compiled file (AOTInductor): energy, forces and stress inside one graph of plain operations.

The artefact is a ``.pt2`` archive with machine code, weights and a JSON header. It needs no Python and none of our
kernels' operators, so that C++ hosts can run it (``torch::inductor::AOTIModelPackageLoader``). One structure per call:

inputs
    numbers (N,) int64: atomic numbers; 0 marks a ghost, which pads and has no energy
    edge_index (2, E) int64: row 0 the neighbour, row 1 the centre, in any order; all periodic images within the cutoff
    vectors (E, 3) float64 Å: neighbour minus centre, its image's offset included; edges beyond the cutoff count nothing
    volume () float64 Å³: of the cell, or 1
outputs
    energy () float64 eV: reference energies included
    energies (N,) float64 eV: of every atom; NaN for an element that the model does not know
    forces (N, 3) float64 eV/Å
    stress (6,) float64 eV/Å³: derivative of the energy with respect to strain, divided by the volume; xx yy zz yz xz xy

Sizes are free, with N >= 2 and E >= 2: pad smaller structures with ghosts, and with edges from a ghost to itself that
are longer than the cutoff. No size compiles again; a host that wants few sizes of memory pads to its own buckets.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..datasets.errors import UserError
from ..kernels.backends import use_backend
from ..kernels.plan import GraphPlan
from .base import Potential, energy_and_gradient, net_forces, strain_derivative
from .compiled import record

FORMAT = "tesseral-artefact"
FORMAT_VERSION = 1
METADATA_KEY = "tesseral"
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}
"""Largest error of compiled energies and forces, relative to the largest force (eV/Å) or 1, whichever is larger."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


class Deployed(nn.Module):
    """Everything between a host's arrays and its results, see the module's text for inputs and outputs."""

    def __init__(self, model: Potential):
        super().__init__()
        self.model = model
        references = torch.tensor(list(model.reference_energies.values()), dtype=torch.float64)
        self.references = references.to(model.device)

    def forward(self, numbers: Tensor, edge_index: Tensor, vectors: Tensor, volume: Tensor) -> Outputs:
        """Energy, energies, forces and stress."""
        index = self.model.species_index[numbers]
        species, target = index.clamp(min=0), edge_index[1]
        counts = torch.zeros_like(numbers).index_add(0, target, torch.ones_like(target))
        # Row pointers of sorted edges; what they say without sorting, who has neighbours, is all that is read here.
        row_ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        plan = GraphPlan(edge_index[0], target, row_ptr)
        energies, gradient = energy_and_gradient(self.model, species, vectors.to(self.model.dtype), plan)
        gradient = gradient.double()
        total = energies.double() + self.references[species]
        missing = torch.where(numbers == 0, 0.0, torch.nan).double()
        total = torch.where(index < 0, missing, total)
        virial = (vectors[:, :, None] * gradient[:, None, :]).sum(0)
        return total.sum(), total, net_forces(gradient, plan), strain_derivative(virial[None])[0] / volume


def export(model: Potential, path: str | Path, *, force: bool = False) -> Path:
    """Compile a potential for its device and dtype, check the result against the model, and write it.

    Args:
        model: the potential.
        path: the file to write, ``*.pt2``.
        force: replace an existing file.

    Returns:
        The path.

    Raises:
        UserError: wrong ending, the file exists, or there is no C++ compiler.
        RuntimeError: the compiled model gives other numbers than the model.
    """
    path = refuse(path, force)
    if model.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError("exporting compiles machine code and found no C++ compiler: install g++")
    own = Deployed(model).eval().requires_grad_(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        _compile(own, temporary, json.dumps(header(model), allow_nan=False))
        check(own, temporary)
        os.replace(temporary, path)
    return path


def refuse(path: str | Path, force: bool) -> Path:
    """The path of an artefact that may be written.

    Raises:
        UserError: wrong ending, or the file exists and force is False.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise UserError(f"{path}: the name of an artefact must end in .pt2")
    if path.exists() and not force:
        raise UserError(f"{path} exists already; choose another name or say --force to replace it")
    return path


def header(model: Potential) -> dict[str, Any]:
    """What the artefact says of itself."""
    from .. import __version__

    card = {k: v for k, v in model.card.items() if k in ("card", "provenance", "metrics")}
    return {
        **card,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": model.architecture,
        "config": model.config_dict(),
        "units": {"energy": "eV", "length": "Å"},
        "elements": list(model.elements),
        "cutoff": model.cutoff,
        "reference_energies": {str(z): e for z, e in model.reference_energies.items()},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "conservative": model.conservative,
        "weights": model.fingerprint(),
        "versions": {"tesseral": __version__, "torch": torch.__version__},
        "inputs": [
            "numbers (N,) int64",
            "edge_index (2, E) int64",
            "vectors (E, 3) float64",
            "volume () float64",
        ],
        "outputs": ["energy () eV", "energies (N,) eV", "forces (N, 3) eV/Å", "stress (6,) eV/Å³"],
    }


def _compile(own: Deployed, path: Path, text: str) -> None:
    from torch.export import Dim
    from torch.export import export as torch_export

    inputs = example(own.model, 13)
    with use_backend("reference"):
        graph = merged(folded(record(own, inputs, (0, 1, 0, None))))
    atoms, edges = Dim("n_atoms", min=2), Dim("n_edges", min=2)
    # Threads are the host's to choose, at run time; else this process's number would be compiled in.
    options = {"aot_inductor.metadata": {METADATA_KEY: text}, "cpp.dynamic_threads": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        program = torch_export(graph, inputs, dynamic_shapes=({0: atoms}, {1: edges}, {0: edges}, {}), strict=False)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def example(model: Potential, n: int, seed: int = 0) -> Inputs:
    """Inputs for a random cluster of n atoms of all elements, at typical distances, on the model's device."""
    generator = torch.Generator().manual_seed(seed)
    side = int(n ** (1 / 3) + 1)
    lattice = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * 3)
    order = torch.randperm(len(lattice), generator=generator)[:n]
    spacing = 0.45 * model.cutoff
    positions = spacing * (lattice[order] + 0.3 * torch.rand(n, 3, generator=generator, dtype=torch.float64))
    near = (torch.cdist(positions, positions) < model.cutoff) & ~torch.eye(n, dtype=torch.bool)
    target, source = near.nonzero().T
    numbers = torch.tensor(model.elements)[torch.randint(len(model.elements), (n,), generator=generator)]
    inputs = numbers, torch.stack([source, target]), positions[source] - positions[target]
    volume = torch.tensor(float(spacing**3 * n), dtype=torch.float64)
    return tuple(t.to(model.device) for t in (*inputs, volume))  # type: ignore[return-value]


def padded(
    numbers: Tensor, edge_index: Tensor, vectors: Tensor, cutoff: float, size: tuple[int, int] = (2, 2)
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with at least this many atoms and edges: ghosts, and edges from them to themselves beyond the cutoff.

    Edges that were sorted by target stay sorted, and every ghost gets about as many: no row is much longer than others.
    """
    n, missing = len(numbers), max(size[1] - len(vectors), 0)
    if n >= size[0] and not missing:
        return numbers, edge_index, vectors
    ghosts = max(size[0] - n, 1)
    far = vectors.new_tensor([[2 * cutoff, 0.0, 0.0]]).expand(missing, 3)
    ends = n + torch.arange(missing, device=numbers.device) * ghosts // max(missing, 1)
    return (
        torch.cat([numbers, numbers.new_zeros(ghosts)]),
        torch.cat([edge_index, ends.expand(2, -1)], dim=1),
        torch.cat([vectors, far]),
    )


def check(own: Deployed, path: Path) -> None:
    """Compare an artefact with its model on clusters of several sizes, down to a single atom.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    run = torch._inductor.aoti_load_package(str(path))
    for n in (1, 2, 13, 40):
        numbers, edge_index, vectors, volume = example(own.model, n, seed=n)
        inputs = (*padded(numbers, edge_index, vectors, own.model.cutoff), volume)
        with use_backend("reference"):
            expected = [t.detach() for t in own(*inputs)]
        if wrong := disagreement(run(*inputs), expected, own.model.dtype):
            raise RuntimeError(
                f"the compiled model's {wrong} on {n} atoms with torch {torch.__version__}: nothing was written. "
                "Please report this"
            )


def errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """Largest error of every output, the energy's per atom, relative to the largest force or 1 eV/Å."""
    scale = max(float(expected[2].abs().max()), 1.0)
    sizes = {"energy": len(expected[1]), "energies": 1, "forces": 1, "stress": 1}
    return {
        name: float((a - b).abs().max()) / scale / n
        for (name, n), a, b in zip(sizes.items(), found, expected, strict=True)
    }


def disagreement(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> str | None:
    """In words, which outputs differ from the model's by more than its dtype's rounding; None: nothing does."""
    for name, error in errors(found, expected).items():
        if not error < TOLERANCES[str(dtype).removeprefix("torch.")]:  # a NaN fails too
            return f"{name} differ from the model's by {error:.1e}"
    return None


def folded(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with everything evaluated that depends on weights and tables only."""
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(graph, node.target).detach()
        elif node.op == "call_function" and node.all_input_nodes and known.keys() >= set(node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        if isinstance(value, Tensor) and node.op != "get_attr" and not known.keys() >= set(node.users):
            name = f"constant_{node.name}"
            graph.register_buffer(name, value.contiguous().clone())
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(name))
    return _cleaned(graph)


def merged(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with batches of products with one and the same matrix as single products."""
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target is not aten.bmm.default:
            continue
        rows, matrix = node.args
        while matrix.target in (aten.reshape.default, aten.expand.default):
            matrix = matrix.args[0]
        if matrix.op != "get_attr" or getattr(graph, matrix.target).ndim != 2:
            continue
        inner, outer = getattr(graph, matrix.target).shape
        if tuple(node.args[1].meta["val"].shape[1:]) != (inner, outer):
            continue
        with graph.graph.inserting_before(node):
            flat = graph.graph.call_function(aten.reshape.default, (rows, [-1, inner]))
            product = graph.graph.call_function(aten.mm.default, (flat, matrix))
            shape = [-1, node.meta["val"].shape[1], outer]
            node.replace_all_uses_with(graph.graph.call_function(aten.reshape.default, (product, shape)))
    return _cleaned(graph)


def _cleaned(graph: fx.GraphModule) -> fx.GraphModule:
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [n for n, _ in (*graph.named_parameters(), *graph.named_buffers()) if n not in used]:
        delattr(graph, name)
    graph.recompile()
    return graph
