"""Captured steps: padding, buffers, growth and copying on the CPU with stand-ins for the CUDA graph; on a GPU too."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, fcc111
from ase.calculators.calculator import CalculationFailed
from ase.md.verlet import VelocityVerlet
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tesseral.datasets.errors import UserError
from tesseral.datasets.graph import graph_from_structure
from tesseral.datasets.statistics import Statistics
from tesseral.datasets.structure import Structure
from tesseral.kernels.backends import use_backend
from tesseral.md import calculator as calculator_module
from tesseral.md.calculator import Calculator
from tesseral.potentials import build, captured
from tesseral.potentials.base import predict
from tesseral.potentials.captured import LARGEST, CapturedStep, CaptureError, needs, rounded
from tesseral.potentials.export import Deployed, example, padded
from tesseral.testing.contract import perturb

TESSERAL = {
    "cutoff": 3.5,
    "lmax": 1,
    "n_layers": 2,
    "channels": [4],
    "field_channels": 3,
    "scalars": 4,
    "n_radial": 3,
}
FACET = {"cutoff": 3.0, "lmax": 1, "hidden": [[4, 4]], "embedding": 4, "scalars": 4, "n_radial": 3}
MODELS = {
    "tesseral": ("tesseral", TESSERAL),
    "tesseral-silu": ("tesseral", {**TESSERAL, "mixer": "silu", "field_channels": 4}),
    "facet": ("facet", FACET),
}


def model(name="tesseral", dtype=torch.float64):
    architecture, config = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        statistics = Statistics([8, 29], {8: -430.0, 29: -1650.0}, 1.0, 1.0, 12.0, 1, 1)
        built = perturb(build(architecture, config, statistics))
    return built.to(dtype).eval().requires_grad_(False)


def again(function, buffers):
    """Runs the step again on the same memory."""
    return lambda: function(*buffers)


def recorded(function, buffers):
    """Records the operations and repeats them: what Python decided while recording is fixed, as in a CUDA graph."""
    graph = make_fx(function)(*buffers)
    return lambda: graph(*buffers)


def copper(seed=1, amount=0.1):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(amount, seed=seed)
    return atoms


def cluster():
    return Atoms("CuOCu", [[0, 0, 0], [1.9, 0.2, 0], [0.3, 2.2, 0.4]])


def structures():
    squeezed = copper(2)
    squeezed.set_cell(squeezed.cell.array * 0.93 + 0.05, scale_atoms=True)
    mixed = copper(3)
    mixed.numbers[1] = 8
    slab = fcc111("Cu", (2, 2, 2), vacuum=5.0, periodic=False)
    far = Atoms("OCu", [[0, 0, 0], [9, 0, 0]])
    return [cluster(), copper(), squeezed, mixed, Atoms("Cu"), slab, far, copper() * (3, 2, 1), cluster()]


def graph_of(atoms, cutoff):
    structure = Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    return graph_from_structure(structure, cutoff, dtype=torch.float64)


def close(found, expected, tolerance=1e-10):
    for name in ("energy", "energies", "forces", "stress"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.shape == b.shape, name
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize(("name", "capture"), [*((name, again) for name in MODELS), ("tesseral", recorded)])
def test_replays_equal_the_model(name, capture):
    """Molecules, crystals, other cells and species, a lone atom, larger and smaller again."""
    own = model(name)
    step = CapturedStep(own, capture)
    sizes = []
    for atoms in structures() if capture is again else structures()[::-1]:  # recording takes a second
        graph = graph_of(atoms, own.cutoff)
        close(step.predict(graph), predict(own, graph))
        sizes.append(step.size)
    assert sizes == sorted(sizes)
    assert step.recordings == len(set(sizes)) < len(sizes)


def test_results_survive_the_next_replay():
    own = model()
    memory = []

    def in_place(function, buffers):
        memory.append(function(*buffers))
        return lambda: memory[-1].copy_(function(*buffers))

    step = CapturedStep(own, in_place)
    first = step.predict(graph_of(copper(1), own.cutoff))
    kept = first.forces.clone()
    step.predict(graph_of(copper(2), own.cutoff))
    assert step.recordings == 1
    assert torch.equal(first.forces, kept)


def test_what_is_not_asked_is_left_out():
    own = model()
    step, graph = CapturedStep(own, again), graph_of(copper(), own.cutoff)
    alone = step.predict(graph, forces=False, stress=False)
    assert alone.forces is None
    assert alone.stress is None
    with pytest.raises(UserError, match="stress needs three"):
        step.predict(graph_of(cluster(), own.cutoff), stress=True)
    with pytest.raises(UserError, match="does not know H"):
        step.predict(graph_of(Atoms("H"), own.cutoff))


def test_sizes():
    """At most an eighth too large, few of them, and with room for ghosts that share the spare edges."""
    found = [rounded(n, 16) for n in range(5000)]
    assert all(n <= size <= max(16, n * 9 / 8) for n, size in enumerate(found))
    assert found == sorted(found)
    assert len(set(found)) < 80
    assert all(needs(n) >= n * 9 / 8 for n in range(1, 1000))


def test_padding_is_sorted_and_even():
    numbers, edge_index, vectors, _ = example(model(), 9)
    order = torch.argsort(edge_index[1], stable=True)
    system = padded(numbers, edge_index[:, order], vectors[order], 3.5, (16, len(vectors) + 40))
    assert [len(system[0]), system[1].shape, len(system[2])] == [
        16,
        (2, len(vectors) + 40),
        len(vectors) + 40,
    ]
    assert (system[1][1].diff() >= 0).all()
    assert torch.equal(system[1][:, len(vectors) :][0], system[1][:, len(vectors) :][1])
    assert torch.bincount(system[1][1, len(vectors) :], minlength=16).tolist() == [0] * 9 + [
        6,
        6,
        6,
        5,
        6,
        6,
        5,
    ]
    assert (system[2][len(vectors) :].norm(dim=1) == 7).all()


# --- what may be captured ------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Names and shapes of all operations; refuses those that make the host wait for a GPU, or shapes depend on data."""

    refused = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "is_nonzero", "equal", "item")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            t.dtype in (torch.bool, torch.uint8) for t in given[1:]
        )
        assert name not in self.refused, name
        assert not masked, f"{name} with a mask"
        assert (name, function._overloadname) != ("repeat_interleave", "Tensor")
        found = function(*args, **(kwargs or {}))
        tensors = [*given, *(t for t in tree_leaves(found) if isinstance(t, torch.Tensor))]
        assert len({t.device.type for t in tensors}) <= 1, f"{name} between host and device"
        self.seen.append((str(function), *(tuple(t.shape) for t in tensors)))
        return found


class NoHostData(TorchFunctionMode):
    """Refuses tensors made of Python numbers or numpy arrays, which are copied to the GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        assert name not in ("tensor", "as_tensor", "from_numpy", "asarray", "new_tensor"), name
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=["triton cupy", "triton"])
def meta_is_gpu(monkeypatch, request):
    """The device "meta" stands for a GPU with these kernels: data that the host asked for would be an error there."""
    import importlib

    backends = importlib.import_module("tesseral.kernels.backends")
    for name in request.param.split():
        monkeypatch.setitem(backends.DEVICES, name, "meta")
    monkeypatch.setitem(backends._PLACES, "meta", "meta")
    monkeypatch.setattr(backends, "_reason_against", lambda name: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=None: False)  # knows no "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_waits_for_the_gpu(name, dtype, meta_is_gpu):
    own = Deployed(model(name, dtype)).to("meta")
    own.references = own.references.to("meta")
    inputs = [t.to("meta") for t in example(own.model, 9)]
    own(*inputs)  # the warm-up, which fills tables
    with NoHostData(), Operations() as operations:
        own(*inputs)
    names = " ".join(seen[0] for seen in operations.seen)
    assert "tesseral.message" in names
    assert "tesseral.harmonics_gradient" in names


def test_waiting_would_be_seen():
    x = torch.arange(3.0)
    for wait in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x.any()), x.unique, x.nonzero):
        with pytest.raises(AssertionError), Operations():
            wait()
    with pytest.raises(AssertionError, match="between host and device"), Operations():
        x.to("meta")
    with pytest.raises(AssertionError, match="tensor"), NoHostData():
        torch.tensor(1.0)


@pytest.mark.parametrize("name", MODELS)
def test_operations_follow_from_sizes(name):
    """Two structures of one padded size: the same operations on the same shapes, gradient included."""
    own, lists = Deployed(model(name)), []
    for seed, n in ((0, 9), (1, 13)):
        numbers, edge_index, vectors, volume = example(own.model, n, seed)
        system = padded(numbers, edge_index, vectors, own.model.cutoff, (20, 200))
        own(*system, volume)
        with Operations() as operations:
            own(*system, volume)
        lists.append(operations.seen)
    assert len(lists[0]) > 100
    assert lists[0] == lists[1]


# --- in the calculator ---------------------------------------------------------------------------------------


def pair_of_calculators(capture=again, **options):
    """With a captured step, and without."""
    own, plain = Calculator(model(), **options), Calculator(model(), **options)
    assert own.captured is None  # not on a GPU
    own.captured = CapturedStep(own.model, capture)
    return own, plain


def test_trajectories_are_the_same():
    """NVE with a neighbour list that is rebuilt on the way; edges come and go within one recording."""
    ends, edges = [], set()
    calculators = pair_of_calculators(recorded, skin=0.3)
    for calculator in calculators:
        atoms = copper() * (2, 1, 1)
        atoms.numbers[3] = 8
        atoms.calc = calculator
        atoms.set_velocities(np.random.default_rng(0).normal(0, 0.08, atoms.positions.shape))
        dynamics = VelocityVerlet(atoms, 2 * units.fs)
        dynamics.attach(lambda a=atoms, c=calculator: edges.add(c.graph(a).n_edges))
        dynamics.run(30)
        ends.append((atoms.positions.copy(), atoms.get_potential_energy(), atoms.get_stress()))
        assert calculator.neighbors.n_builds > 1
    assert len(edges) > 3
    assert calculators[0].captured.recordings == 1
    for a, b in zip(*ends, strict=True):
        assert np.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_calculator_follows_every_change():
    own, plain = pair_of_calculators()
    for atoms in structures():
        for name in ("energy", "forces", *(["stress"] if atoms.pbc.all() else [])):
            assert np.allclose(own.get_property(name, atoms), plain.get_property(name, atoms), rtol=1e-9, atol=1e-9)
    assert own.captured.recordings > 1
    assert np.allclose(own.in_plane_virial(copper()), plain.in_plane_virial(copper()), atol=1e-9)


def test_changed_weights_are_noticed():
    own, plain = pair_of_calculators(recorded)
    for calculator in (own, plain):
        calculator.get_potential_energy(copper())
        calculator.model.layers[0].self_term.weights[0].mul_(1.3)
    assert own.get_potential_energy(copper(2)) == pytest.approx(plain.get_potential_energy(copper(2)), abs=1e-9)
    assert own.captured.recordings == 2


def test_larger_systems_and_chosen_backends_run_without(monkeypatch):
    own, plain = pair_of_calculators()
    assert not own.captured.takes(LARGEST + 1)
    assert own.captured.takes(LARGEST)
    with use_backend("reference"):
        assert not own.captured.takes(4)
        assert "reference asked for" in captured.explain()
        assert own.get_potential_energy(copper()) == pytest.approx(plain.get_potential_energy(copper()))
    assert own.captured.recordings == 0
    assert str(LARGEST) in captured.explain()
    monkeypatch.setattr(captured, "LARGEST", 3)
    own.get_potential_energy(copper(2))
    assert own.captured.recordings == 0
    own.get_potential_energy(cluster())
    assert own.captured.recordings == 1


def test_wrong_replays_are_an_error():
    own, _ = pair_of_calculators(lambda function, buffers: lambda: function(*buffers) * (1 + 1e-6))
    for _ in range(2):  # no silent way round
        with pytest.raises(RuntimeError, match=r"energy differ .* TESSERAL_BACKEND=triton") as caught:
            own.get_potential_energy(copper())
        assert not isinstance(caught.value, CaptureError)
        assert not own.results


def test_stale_replays_are_an_error():
    """As if the first recording held the input that it was made with."""
    wrong = {}

    def frozen(function, buffers):
        constant = function(*[torch.zeros_like(b) for b in buffers])
        wrong["constant"] = constant
        return lambda: constant

    own, _ = pair_of_calculators(frozen)
    with pytest.raises(RuntimeError, match="Results cannot be trusted"):
        own.get_forces(copper())
    assert "constant" in wrong


def test_impossible_captures_are_said_once():
    def fail(function, buffers):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    own, plain = pair_of_calculators(fail)
    with pytest.warns(
        UserWarning, match="without CUDA graphs, slower: RuntimeError: operation not permitted when"
    ) as seen:
        energy = own.get_potential_energy(copper())
    assert len(seen) == 1
    assert "more lines" not in str(seen[0].message)
    assert energy == plain.get_potential_energy(copper())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.get_potential_energy(copper(2))


def test_numbers_that_are_not_finite_are_the_models_own_fault():
    own, plain = pair_of_calculators()
    twins = Atoms("Cu2", [[0, 0, 0], [0, 0, 0]])
    with pytest.raises(CalculationFailed, match="two atoms coincide"):
        own.get_potential_energy(twins)
    assert not own.captured._checked
    assert own.get_potential_energy(cluster()) == pytest.approx(plain.get_potential_energy(cluster()), abs=1e-9)
    assert own.captured._checked


def test_copies_record_for_themselves():
    own, _ = pair_of_calculators()
    energy = own.get_potential_energy(copper())
    twin = copy.deepcopy(own)
    assert twin.captured.recordings == 0
    assert twin.captured.model is twin.model is not own.model
    twin.reset()
    assert twin.get_potential_energy(copper()) == pytest.approx(energy, abs=1e-9)
    step = pickle.loads(pickle.dumps(own.captured))
    assert (step.recordings, step.capture) == (0, again)


def test_automatic_on_a_gpu(monkeypatch):
    """`suits` decides; nothing has to be asked for."""
    monkeypatch.setattr(calculator_module, "suits", lambda own: True)
    assert isinstance(Calculator(model()).captured, CapturedStep)
    assert captured.suits(model().to("meta")) is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_cuda_graphs(name, dtype):
    own = Calculator(model(name), device="cuda", dtype=dtype)
    plain = Calculator(model(name), device="cuda", dtype=dtype)
    plain.captured = None
    tolerance = {"float32": 1e-4, "float64": 1e-9}[dtype]
    for atoms in structures():
        for quantity in ("energies", "forces", *(["stress"] if atoms.pbc.all() else [])):
            found, expected = own.get_property(quantity, atoms), plain.get_property(quantity, atoms)
            scale = max(np.abs(plain.get_property("forces", atoms)).max(), 1.0)
            assert np.abs(found - expected).max() < tolerance * scale, (quantity, atoms)
    assert own.captured is not None
    assert own.captured.recordings < len(structures())
