"""Exported potentials: the same numbers as the model, in one file that says what it is."""

import json
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from tesseral.datasets.errors import UserError
from tesseral.datasets.statistics import Statistics
from tesseral.kernels.backends import use_backend
from tesseral.md.calculator import Calculator
from tesseral.potentials import build, load, save
from tesseral.potentials import export as module
from tesseral.potentials.artefact import Artefact, artefact_beside, read_artefact_header
from tesseral.potentials.compiled import record
from tesseral.potentials.export import Deployed, example, export, folded, merged, padded
from tesseral.scripts.main import main
from tesseral.testing.contract import perturb

SMALL = {
    "cutoff": 3.5,
    "lmax": 1,
    "n_layers": 2,
    "channels": [4],
    "field_channels": 3,
    "scalars": 4,
    "n_radial": 3,
}
REFERENCES = {8: -430.0, 29: -1650.0}


def model(dtype=torch.float64, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        statistics = Statistics([8, 29], REFERENCES, 1.0, 1.0, 12.0, 1, 1)
        return perturb(build("tesseral", {**SMALL, **config}, statistics)).to(dtype).eval()


def copper():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def cluster():
    return Atoms("CuOCu", [[0, 0, 0], [1.9, 0.2, 0], [0.3, 2.2, 0.4]])


@pytest.fixture(scope="module", params=["float32", "float64"])
def exported(request, tmp_path_factory):
    """An artefact beside the checkpoint that it was exported from."""
    layers = {"float32": 1, "float64": 2}[request.param]  # compiling takes most of the time
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("export")
    checkpoint = save(model(getattr(torch, request.param), n_layers=layers), folder / "model.safetensors")
    assert main(["export", str(checkpoint), "-o", str(folder / "model.pt2"), "--to", "aoti"]) == 0
    return folder


@pytest.mark.slow
def test_artefact_and_model_agree(exported):
    """Molecule, crystal with stress, pair, lone atom and slab, without compiling again."""
    path = exported / "model.pt2"
    artefact, eager = Calculator(path), Calculator(load(exported / "model.safetensors"))
    tolerance = {"float32": 1e-5, "float64": 1e-10}[read_artefact_header(path)["dtype"]]
    far = Atoms("OCu", [[0, 0, 0], [9, 0, 0]])
    structures = [
        cluster(),
        copper(),
        copper() * (2, 1, 1),
        Atoms("O2", [[0, 0, 0], [0, 0, 1.3]]),
        far,
        Atoms("Cu"),
    ]
    for atoms in structures:
        wanted = ["energies", "forces", *(["stress"] if atoms.pbc.all() else [])]
        for name in wanted:
            found, expected = artefact.get_property(name, atoms), eager.get_property(name, atoms)
            scale = max(np.abs(eager.get_property("forces", atoms)).max(), 1.0)
            assert np.abs(found - expected).max() < tolerance * scale, (name, atoms)
    slab = copper()
    slab.pbc = (True, True, False)
    assert np.allclose(artefact.in_plane_virial(slab), eager.in_plane_virial(slab), rtol=1e-4, atol=1e-4)
    assert artefact.get_potential_energy(Atoms("Cu")) == REFERENCES[29]
    assert artefact.fingerprint() == eager.fingerprint()
    with pytest.raises(UserError, match="does not know H"):
        artefact.get_potential_energy(Atoms("H"))
    beside(exported)
    refusals(exported)


def beside(folder):
    """The calculator takes the artefact beside a checkpoint for small structures, if it belongs to it."""
    checkpoint = folder / "model.safetensors"
    calculator = Calculator(checkpoint)
    assert calculator.artefact is not None
    assert calculator.model is not calculator.artefact
    calculator.model.scale.fill_(float("nan"))  # was the artefact asked?
    assert np.isfinite(calculator.get_potential_energy(cluster()))
    other = load(checkpoint)
    with torch.no_grad():
        other.embedding.mul_(1.01)
    assert artefact_beside(checkpoint, other) is None
    assert artefact_beside(checkpoint, load(checkpoint).to(torch.float16)) is None


def refusals(folder):
    path = folder / "model.pt2"
    other = {"float32": torch.float64, "float64": torch.float32}[read_artefact_header(path)["dtype"]]
    with pytest.raises(UserError, match="export again with --device cpu --dtype"):
        Artefact(path, dtype=other)
    with pytest.raises(UserError, match="exported for cpu"):
        Artefact(path, device="cuda")
    with pytest.raises(UserError, match="exported artefact"):
        load(path)
    assert main(["export", str(folder / "model.safetensors"), "-o", str(path)]) == 2
    cut = folder / "cut.pt2"
    cut.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match="truncated"):
        Artefact(cut)


def test_header_says_everything(tmp_path):
    header = module.header(model())
    assert json.loads(json.dumps(header)) == header | {"config": json.loads(json.dumps(header["config"]))}
    assert header["elements"] == [8, 29]
    assert header["reference_energies"] == {"8": -430.0, "29": -1650.0}
    assert (header["dtype"], header["device"], header["cutoff"]) == ("float64", "cpu", 3.5)


def test_names_that_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.pt2"):
        export(model(), tmp_path / "model.so")
    with pytest.raises(UserError, match="no artefact"):
        Calculator(tmp_path / "absent.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(UserError, match="not written by `tesseral export`"):
        Calculator(tmp_path / "text.pt2")


def test_ghosts_change_nothing():
    own = Deployed(model())
    numbers, edges, vectors, volume = example(own.model, 5)
    alone = own(numbers, edges, vectors, volume)
    more = padded(numbers[:1], edges[:, :0], vectors[:0], own.model.cutoff)
    lone = own(*more, volume)
    assert torch.equal(lone[1], torch.tensor([REFERENCES[int(numbers[0])], 0], dtype=torch.float64))
    assert not lone[2].any()
    ghosts = torch.cat([numbers, numbers.new_zeros(1)])
    far = torch.cat([vectors, vectors.new_tensor([[2 * own.model.cutoff, 0.0, 0.0]])])
    both = own(ghosts, torch.cat([edges, torch.full((2, 1), 5)], 1), far, volume)
    for a, b in zip(alone, (both[0], both[1][:5], both[2][:5], both[3]), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_unknown_elements_show_as_nan():
    own = Deployed(model())
    numbers, *rest = example(own.model, 3)
    numbers[1] = 6
    energies = own(numbers, *rest)[1]
    assert energies.isnan().tolist() == [False, True, False]


def test_edges_come_in_any_order():
    """What is exported is the reference, which does not need them sorted."""
    own = Deployed(model())
    numbers, edges, vectors, volume = example(own.model, 6)
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    with use_backend("reference"):
        sorted_by_target = own(numbers, edges, vectors, volume)
        shuffled = own(numbers, edges[:, order], vectors[order], volume)
    for a, b in zip(sorted_by_target, shuffled, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mixer", ["product", "silu"])
def test_simplified_graph_is_the_model(mixer):
    """Folding weights and merging products leave the numbers, on sizes that were not recorded."""
    own = Deployed(model(mixer=mixer)).requires_grad_(False)
    with use_backend("reference"):
        graph = record(own, example(own.model, 7), (0, 1, 0, None))
        before = len(graph.graph.nodes)
        graph = merged(folded(graph))
        assert len(graph.graph.nodes) < before
        for n in (7, 20):
            inputs = example(own.model, n, seed=n)
            for a, b in zip(graph(*inputs), own(*inputs), strict=True):
                assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def test_wrong_machine_code_is_never_written(tmp_path, monkeypatch):
    """As if the compiler had erred: nothing lies at the path afterwards."""
    own = model()

    def wrong(*inputs):
        energy, *others = Deployed(own)(*inputs)
        return energy.detach(), others[0].detach() + 1e-3, *others[1:]

    monkeypatch.setattr(module, "_compile", lambda *_: None)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda _: wrong)
    with pytest.raises(RuntimeError, match="energies differ from the model's"):
        export(own, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
