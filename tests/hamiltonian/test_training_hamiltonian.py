"""Label files as training data, the loss, a training and its resume, evaluation, the command that uses a model."""

import json

import h5py
import numpy as np
import pytest
import torch

import tesseral
from tesseral.datasets.errors import UserError
from tesseral.potentials.hamiltonian import load, networks
from tesseral.potentials.hamiltonian.data import HamiltonianLoader, LabelSet, Samples, assemble
from tesseral.potentials.hamiltonian.evaluate import evaluate
from tesseral.potentials.hamiltonian.fit import HamiltonianTraining, train
from tesseral.potentials.hamiltonian.layout import Blocks, layout
from tesseral.potentials.hamiltonian.level import RESOLVED, Level
from tesseral.potentials.hamiltonian.solve import solve
from tesseral.potentials.hamiltonian.store import Label, write_labels
from tesseral.potentials.hamiltonian.targets import from_target, to_target
from tesseral.potentials.hamiltonian.task import HamiltonianTask, LossOptions
from tesseral.scripts.main import main
from tesseral.training.config import from_dict

PBE = Level("pbe", RESOLVED["pbe"], "def2-svp", 1, "PySCF")
SMALL = {"channels": 8, "bottleneck": 4, "layers": 3, "hidden": 12, "edge_hidden": 6}  # of a qhnet
SVP = layout("def2-svp", [1, 8])
MOLECULES = ([8, 1, 1], [1, 1], [8, 1, 1], [8, 8])


def fake_label(k):
    """A molecule with a random matrix, overlap and guess: training needs no physics."""
    rng = np.random.default_rng(k)
    numbers = np.array(MOLECULES[k % len(MOLECULES)])
    n = SVP.n_orbitals(numbers.tolist())
    a, b, s = (rng.normal(size=(n, n)) for _ in range(3))
    positions = np.arange(3 * len(numbers)).reshape(-1, 3) * 0.5 + rng.normal(size=(len(numbers), 3)) * 0.1
    hamiltonian = a + a.T - 8 * np.diag(np.arange(n)[::-1])
    guess = hamiltonian + 0.01 * (b + b.T)
    overlap = np.eye(n) + 0.01 * (s + s.T)
    return Label(numbers, positions, hamiltonian=hamiltonian, guess=guess, overlap=overlap, name=f"m{k}")


@pytest.fixture
def labels(tmp_path):
    write_labels(tmp_path / "H.h5", [fake_label(k) for k in range(12)], PBE, SVP)
    return tmp_path / "H.h5"


def config(folder, labels, **sections):
    values = {
        "run": str(folder),
        "model": {"architecture": "qhnet", "config": SMALL},
        "data": {"train": str(labels), "val": 0.25, "batch_size": 3},
        "training": {"epochs": 2, "tensorboard": False, "save_every": 1},
    }
    for name, changes in sections.items():
        values[name] = values.get(name, {}) | changes
    return from_dict(HamiltonianTraining, values)


def test_samples_hold_the_difference_to_the_guess(labels):
    opened = LabelSet.open(labels)
    samples = Samples(opened, np.arange(12), opened.layout, dtype=torch.float64)
    batch = samples.batch([0, 1, 2])
    assert batch.molecules.n_atoms.tolist() == [3, 2, 3]
    parts = batch.molecules.targets.split([3, 2, 3])
    for part, k in zip(parts, (0, 1, 2), strict=True):
        want = fake_label(k)
        got = SVP.to_matrix(part, torch.from_numpy(want.numbers)).numpy()
        np.testing.assert_allclose(got, want.hamiltonian - want.guess, rtol=0, atol=1e-12)
    scales = samples.scales()
    deltas = np.concatenate([fake_label(k).delta.ravel() for k in range(12)])
    assert scales.tolist() == pytest.approx([deltas.std()] * 2, rel=0.15)


def test_batch_matrices_are_the_padded_ones(labels):
    opened = LabelSet.open(labels)
    batch = Samples(opened, np.arange(12), SVP, target="full", dtype=torch.float64).batch([1, 0])
    full = assemble(batch.molecules.targets, batch.molecules, SVP.size)
    assert full.shape == (2, 3 * 14, 3 * 14)
    for row, k in zip(full, (1, 0), strict=True):
        label = fake_label(k)
        index = SVP.orbital_index(torch.from_numpy(label.numbers))
        np.testing.assert_allclose(row[index[:, None], index].numpy(), label.hamiltonian, rtol=0, atol=1e-12)


class Given(torch.nn.Module):
    """A network that gives fixed blocks."""

    def __init__(self, blocks):
        super().__init__()
        self.layout, self.given = SVP, blocks
        self.weight = torch.nn.Parameter(torch.ones(()))

    def start_step(self, step):
        self.step = step

    def forward(self, molecules):
        return Blocks(self.given.diagonal * self.weight, self.given.lower * self.weight)


def test_loss_terms_and_reported_errors_are_those_of_the_matrices(labels):
    opened = LabelSet.open(labels)
    samples = Samples(opened, np.arange(12), SVP, dtype=torch.float64, orbitals=True)
    batch = samples.batch([0, 1, 3])
    rng = np.random.default_rng(5)
    errors, blocks = [], []
    for k in (0, 1, 3):
        label = fake_label(k)
        e = rng.normal(size=label.delta.shape) * 1e-3
        errors.append(e + e.T)
        blocks.append(SVP.to_blocks(torch.from_numpy(label.delta + e + e.T), torch.from_numpy(label.numbers)))
    given = Blocks(torch.cat([b.diagonal for b in blocks]) + 0, torch.cat([b.lower for b in blocks]))
    given.diagonal[batch.molecules.numbers == 1, 13, 13] = 7.0  # padding counts for nothing
    task = HamiltonianTask(Given(given), LossOptions(alignment=1.0, density=1.0))
    found = task.losses(batch, training=True)
    assert task.steps == 1 and task.model.step == 0
    terms = (found.totals / found.counts).tolist()
    lower, own_and_lower = [], []
    for k, e in zip((0, 1, 3), errors, strict=True):
        starts = np.cumsum([0, *(len(SVP.places[z]) for z in MOLECULES[k])])
        atom = np.searchsorted(starts, np.arange(len(e)), side="right")
        own_and_lower.append(e[atom[:, None] >= atom])
        lower.append(e[atom[:, None] > atom])
    flat = np.concatenate(own_and_lower)
    assert terms[:2] == pytest.approx([np.abs(flat).mean(), np.square(flat).mean()])
    aligned, density = [], []
    for k, e in zip((0, 1, 3), errors, strict=True):
        label = fake_label(k)
        solution = solve(label.hamiltonian, label.overlap)
        w, occupied = solution.coefficients.T @ e @ solution.coefficients, int(label.numbers.sum()) // 2
        off = np.abs(w).sum() - np.abs(w.diagonal()).sum()
        aligned.append(np.abs(w.diagonal()[:occupied]).mean() + off / (len(w) * (len(w) - 1)))
        gaps = solution.energies[occupied:] - solution.energies[:occupied, None]
        density.append(np.sqrt(np.square(w[:occupied, occupied:] / np.maximum(gaps, 1e-3)).sum() / occupied))
    assert terms[2:] == pytest.approx([np.mean(aligned), np.mean(density)], rel=1e-6)
    report = task.report(found.sums)
    assert report["density_error"] == pytest.approx(np.mean(density), rel=1e-6)
    assert report["h_mae"] == pytest.approx(1e6 * np.mean([np.abs(e).mean() for e in errors]))
    assert report["h_pairs_mae"] == pytest.approx(1e6 * np.abs(np.concatenate(lower)).mean())


def test_orthogonal_target_is_the_difference_in_orthonormal_orbitals(labels):
    opened = LabelSet.open(labels)
    samples = Samples(opened, np.arange(12), SVP, target="orthogonal", dtype=torch.float64, orbitals=True)
    label = fake_label(2)
    x = to_target(label, "orthogonal")
    values, vectors = np.linalg.eigh(label.overlap)
    half = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(half @ x @ half, label.delta, rtol=0, atol=1e-12)
    back = from_target(x, "orthogonal", label.guess, label.overlap)
    np.testing.assert_allclose(back, label.hamiltonian, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="the overlap if orthogonal"):
        from_target(x, "orthogonal", label.guess, None)
    batch = samples.batch([2])
    got = SVP.to_matrix(batch.molecules.targets, torch.from_numpy(label.numbers)).numpy()
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
    # an error in this basis is the same error among the reference orbitals, whatever the overlap
    c = batch.orbitals.coefficients[0, SVP.orbital_index(torch.from_numpy(label.numbers))].numpy()
    np.testing.assert_allclose(c.T @ c, np.eye(len(c)), rtol=0, atol=1e-12)
    e = 1e-4 * np.random.default_rng(0).normal(size=x.shape)
    in_orbitals = solve(label.hamiltonian, label.overlap).coefficients.T @ (half @ e @ half)
    in_orbitals = in_orbitals @ solve(label.hamiltonian, label.overlap).coefficients
    np.testing.assert_allclose(c.T @ e @ c, in_orbitals, rtol=0, atol=1e-12)


def test_processes_share_every_batch(labels):
    opened = LabelSet.open(labels)
    samples = Samples(opened, np.arange(4), SVP)
    loaders = [HamiltonianLoader(samples, batch_size=1, seed=3, rank=r, world_size=2) for r in range(2)]
    for mine, other in zip(*loaders, strict=True):
        assert (mine.molecules.targets is None) != (other.molecules.targets is None)
    network = networks.build("qhnet", SMALL, SVP)
    empty = next(b for b in loaders[1] if b.molecules.targets is None)
    found = HamiltonianTask(network).losses(empty, training=True)
    assert found.totals.sum() == found.counts.sum() == found.sums.sum() == 0
    found.totals.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_killed_training_resumes_exactly_with_its_gates(nets, labels, tmp_path, monkeypatch):
    sections = {"model": {"architecture": "sphnet", "config": nets.CONFIGS["sphnet"] | {"epoch": 1}}}
    whole = train(config(tmp_path / "whole", labels, **sections))
    real = HamiltonianTask.losses

    def killed(self, batch, *, training):
        if training and self.steps == 4:  # the paths are fixed since step 3
            raise MemoryError
        return real(self, batch, training=training)

    monkeypatch.setattr(HamiltonianTask, "losses", killed)
    with pytest.raises(MemoryError):
        train(config(tmp_path / "parts", labels, **sections))
    monkeypatch.setattr(HamiltonianTask, "losses", real)
    rest = train(config(tmp_path / "parts", labels, **sections), resume=True)
    assert rest["metrics"]["step"] == whole["metrics"]["step"] == 6
    assert rest["metrics"]["val_h_mae"] == whole["metrics"]["val_h_mae"]
    model, other = (tesseral.load(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert model.architecture == "sphnet" and model.layout == SVP and model.card["level"] == PBE.header()
    assert model.card["provenance"]["data"]["files"] == [{"name": "H.h5", "labels": 12}]
    assert model.card["steps"] == 6
    rows = (tmp_path / "whole/metrics.csv").read_text().splitlines()
    assert len(rows) == 3 and "val_h_mae" in rows[0]


def test_sphnet_twins_train_on_equal_terms(nets, labels, tmp_path):
    small = {key: value for key, value in nets.CONFIGS["sphnet"].items() if key != "epoch"}
    result = train(
        config(
            tmp_path / "twins",
            labels,
            model={"architecture": "sphnet", "config": small, "twin": True},
            training={"epochs": 1},
        )
    )
    dense, sparse = (load(tmp_path / "twins" / n / "model.safetensors") for n in ("dense", "sparse"))
    assert (dense.config.sparsity, sparse.config.sparsity) == (0.0, 0.7)
    assert result["dense"]["metrics"]["step"] == result["sparse"]["metrics"]["step"] == 3


def test_bad_data_and_options_are_refused(labels, tmp_path):
    write_labels(tmp_path / "five.h5", [fake_label(0)], Level("b3lyp5", RESOLVED["b3lyp5"], "def2-svp", 1), SVP)
    write_labels(tmp_path / "compact.h5", [fake_label(0).compact()], PBE, SVP)
    compact = {"train": str(tmp_path / "compact.h5"), "val": 0.0}
    for changes, reason in (
        ({"data": {"train": [str(labels), str(tmp_path / "five.h5")]}}, "different levels of theory"),
        ({"data": {"val": str(tmp_path / "five.h5")}}, "different levels of theory"),
        ({"data": {"train": []}}, "data.train is missing"),
        ({"data": {"train": str(tmp_path / "none.h5")}}, "no such file"),
        ({"data": compact, "loss": {"density": 1.0}}, "lack the overlap"),
        ({"data": compact, "model": {"target": "full"}}, "too little for target 'full'"),
        ({"model": {"config": {"channel": 3}}}, "did you mean 'channels'"),
        ({"model": {"twin": True}}, "twin belongs to a fresh sphnet"),
    ):
        with pytest.raises(UserError, match=reason):
            train(config(tmp_path / "bad", labels, **changes))
    assert not (tmp_path / "bad").exists()


def test_foreign_labels_are_sent_to_the_command_that_completes_them(shared_data):
    with pytest.raises(UserError, match="add it with `tesseral data hamiltonian"):
        LabelSet.open(shared_data("hamiltonian/water_pbe_def2svp.h5"))


def test_evaluation_of_full_and_compact_files_agrees(labels, tmp_path):
    model = networks.build("qhnet", SMALL, SVP).eval()
    model.scales.fill_(1e-2)
    compact = [LabelSet.open(labels).labels[k].compact() for k in range(12)]
    write_labels(tmp_path / "c.h5", compact, PBE, SVP)
    full, small = evaluate(model, LabelSet.open(labels)), evaluate(model, LabelSet.open(tmp_path / "c.h5"))
    assert full["hamiltonian"]["mae"] == pytest.approx(small["hamiltonian"]["mae"], rel=1e-4)
    deltas = [np.abs(fake_label(k).delta).mean() for k in range(12)]
    assert full["guess"]["mae"] == pytest.approx(1e6 * np.mean(deltas))
    assert full["hamiltonian"]["pairs"] != full["hamiltonian"]["atoms"]
    assert 0 < full["subspace"]["mean"] <= 100 and "gap" in full and "gap" not in small


@pytest.fixture
def checkpoint(labels, tmp_path):
    train(config(tmp_path / "run", labels))
    return tmp_path / "run/best.safetensors"


def write_xyz(path, text):
    path.write_text(text)
    return path


def test_command_writes_orbitals_charges_and_saved_cycles(checkpoint, tmp_path, capsys):
    pytest.importorskip("pyscf", reason="the extra `hamiltonian` (PySCF) is not installed")
    water, hydrogen = "3\n\nO 0 0 0.117\nH 0 0.757 -0.47\nH 0.1 -0.757 -0.47\n", "2\n\nH 0 0 0\nH 0 0 0.74\n"
    molecules = write_xyz(tmp_path / "m.xyz", water + hydrogen)
    out = tmp_path / "out.h5"
    arguments = [str(checkpoint), str(molecules), "-o", str(out), "--scf", "--json", str(tmp_path / "out.json")]
    extra = ["--dos", str(tmp_path / "dos.png"), "--cube", "homo", "--spacing", "0.6"]
    assert main(["hamiltonian", *arguments, *extra]) == 0
    shown = capsys.readouterr().out
    assert "cycles from the prediction" in shown and "of the cycles from minao" in shown
    assert (tmp_path / "dos.png").stat().st_size > 5000 and (tmp_path / "out_1_homo.cube").exists()
    with h5py.File(out) as file:
        group = file["000000"]
        orbitals = solve(group["hamiltonian"][:], group["overlap"][:])
        np.testing.assert_allclose(orbitals.energies, group["orbital_energies"][:], rtol=0, atol=1e-10)
        assert np.einsum("ij,ji->", group["density"][:], group["overlap"][:]) == pytest.approx(10, abs=1e-10)
        assert group["mulliken"][:].sum() == pytest.approx(0, abs=1e-9)
        assert group.attrs["gap"] == pytest.approx(orbitals.energies[5] - orbitals.energies[4])
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["scf"]["n_molecules"] == 2 and record["scf"]["all_converged"]
    assert record["scf"]["largest_energy_difference"]["value"] < 1e-8
    assert record["molecules"][0]["scf"]["cycles"]["minao"] > 3
    found = main(["hamiltonian", *arguments])
    assert found == 2 and "exists already" in capsys.readouterr().err
    prediction = tesseral_predict(checkpoint, molecules)
    np.testing.assert_allclose(prediction.hamiltonian, prediction.hamiltonian.T, rtol=0, atol=0)


def tesseral_predict(checkpoint, molecules):
    from tesseral.potentials.hamiltonian import predict

    several = predict(checkpoint, tesseral.read(molecules))
    single = predict(load(checkpoint), tesseral.read(molecules)[0])
    np.testing.assert_allclose(several[0].hamiltonian, single.hamiltonian, rtol=0, atol=1e-5)
    return single


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2\n\nO 0 0 0\nH 0 0 0.97\n", "open shell"),
        ("3\ncharge=1\nO 0 0 0.117\nH 0 0.757 -0.47\nH 0.1 -0.757 -0.47\n", "only neutral"),
        ("2\n\nF 0 0 0\nH 0 0 0.92\n", "no def2-svp orbitals for F; there are H, O"),
        ('2\nLattice="5 0 0 0 5 0 0 0 5" pbc="T T T"\nH 0 0 0\nH 0 0 0.74\n', "periodic cell"),
    ],
)
def test_molecules_outside_the_model_are_refused(text, reason, checkpoint, tmp_path, capsys):
    pytest.importorskip("pyscf", reason="the extra `hamiltonian` (PySCF) is not installed")
    molecules = write_xyz(tmp_path / "m.xyz", text)
    assert main(["hamiltonian", str(checkpoint), str(molecules), "-o", str(tmp_path / "o.h5")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "o.h5").exists()
