"""The generator as a whole: loss against a plain re-computation, training, sampling by number, checkpoint, errors."""

import numpy as np
import pytest
import torch

import tesseral
from tesseral.datasets.errors import UserError
from tesseral.generative import save
from tesseral.generative.eqgat import Prediction
from tesseral.generative.loader import MoleculeLoader, encode_all
from tesseral.generative.model import EqgatDiff
from tesseral.generative.molecules import collate
from tesseral.generative.sampler import SamplerOptions
from tesseral.generative.task import GeneratorTask, LossOptions, per_molecule
from tesseral.generative.vocabulary import Vocabulary
from tesseral.training.config import ConfigError
from tesseral.training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from tesseral.training.task import Trainee


def trainee(task, **training):
    return Trainee(
        task,
        TrainingOptions(epochs=1, **training),
        OptimizerOptions(lr=5e-3, clip=1.0),
        ScheduleOptions(warmup=0.02),
    )


def test_loss_terms_are_those_of_the_paper(small):
    molecules = small.structures()
    vocabulary = Vocabulary.from_structures(molecules)
    clean = collate(encode_all(molecules, vocabulary), torch.float64)
    layout, generator = clean.layout, torch.Generator().manual_seed(0)
    atoms = [torch.randn(len(layout.batch), n, dtype=torch.float64, generator=generator) for n in (3, 3)]
    bonds = torch.randn(len(layout.pairs), len(vocabulary.bonds), dtype=torch.float64, generator=generator)
    positions = clean.positions + torch.randn(clean.positions.shape, dtype=torch.float64, generator=generator)
    found = per_molecule(Prediction(positions, tuple(atoms), bonds), clean)
    full = layout.both_ways(bonds)
    for g in range(4):
        nodes = torch.nonzero(layout.batch == g).squeeze(1)
        expected = [((positions - clean.positions)[nodes] ** 2).mean()]
        for k in range(2):
            logs = atoms[k][nodes].log_softmax(-1)
            expected.append(-logs.gather(1, clean.atoms[nodes, k : k + 1]).mean())
        per_atom = []
        for i in nodes:
            edges = layout.edge_index[1] == i
            logs = full[edges].log_softmax(-1)
            per_atom.append(-logs.gather(1, clean.bonds[edges].unsqueeze(1)).mean())
        expected.append(0.5 * torch.stack(per_atom).mean())
        torch.testing.assert_close(found[g], torch.stack(expected))


def test_validation_is_repeatable_and_training_noise_is_new(small):
    molecules = small.structures()
    task = GeneratorTask(small.model(molecules))
    batch = collate(encode_all(molecules, task.model.vocabulary))
    first, second = (task.losses(batch, training=False).totals for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    first = task.losses(batch, training=True).totals
    assert not torch.equal(first, task.losses(batch, training=True).totals)
    torch.manual_seed(0)
    assert torch.equal(first, task.losses(batch, training=True).totals)


def test_weights_of_terms_can_be_chosen(small):
    molecules = small.structures()
    model = small.model(molecules)
    assert GeneratorTask(model).weights(0.0) == [3.0, 0.4, 1.0, 2.0]
    task = GeneratorTask(model, LossOptions(positions=1.0, bonds=0.0, atoms={"charge": 2.0}))
    assert task.weights(0.5) == [1.0, 0.4, 2.0, 0.0]
    with pytest.raises(ConfigError, match="'ring'"):
        GeneratorTask(model, LossOptions(atoms={"ring": 1.0}))


@pytest.mark.parametrize("norm", ["published", "corrected"])
def test_training_step_in_bf16_is_near_float32(small, norm):
    molecules = small.structures()
    gradients = []
    for precision in ("float32", "bf16"):
        task = GeneratorTask(small.model(molecules, norm=norm))
        batch = collate(encode_all(molecules * 4, task.model.vocabulary))
        learner = trainee(task, precision=precision)
        torch.manual_seed(1)
        assert np.isfinite(float(learner.step(batch, 1)))
        gradients.append(torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]))
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert float(cosine) > 0.95


def test_a_batch_without_weight_counts_for_nothing(small):
    molecules = small.structures()
    task = GeneratorTask(small.model(molecules))
    loader = MoleculeLoader(encode_all(molecules[:1], task.model.vocabulary), batch_size=1, rank=1, world_size=2)
    (batch,) = loader
    losses = task.losses(batch, training=True)
    assert not bool(losses.totals.any() or losses.counts.any() or losses.sums.any())


def test_loader_shows_each_molecule_once_per_epoch_and_seeks(small):
    molecules = small.structures() * 5
    encoded = encode_all(molecules, Vocabulary.from_structures(molecules))
    loader = MoleculeLoader(encoded, max_edges=60, seed=3)
    epoch = list(loader)
    assert sum(b.layout.n_molecules for b in epoch) == 20
    assert all(len(b.bonds) <= 60 for b in epoch)
    loader.seek(0, 2)
    assert all(torch.equal(a.atoms, b.atoms) for a, b in zip(epoch[2:], loader, strict=True))
    loader.seek(1)
    assert any(a.atoms.shape != b.atoms.shape or (a.atoms != b.atoms).any() for a, b in zip(epoch, loader))  # noqa: B905
    with pytest.raises(UserError, match="same data"):
        MoleculeLoader(encoded[1:], max_edges=60, seed=3).load_state_dict(loader.state_dict())


@pytest.mark.slow
def test_overfitting_reproduces_the_molecules(small):
    """Two molecules, seen long enough, come back as the same graphs with the right bond lengths."""
    from rdkit import Chem, rdBase

    wanted = ("C[N+](=O)[O-]", "CC#N")
    molecules = small.structures(wanted)
    task = GeneratorTask(small.model(molecules, scalars=48, vectors=12, edges=12, layers=3))
    batch = collate(encode_all(molecules * 10, task.model.vocabulary))
    learner, steps = trainee(task, ema=0.98), 250
    torch.manual_seed(0)
    losses = [float(learner.step(batch, steps)) for _ in range(steps)]
    assert np.mean(losses[-30:]) < 0.2 * losses[0]

    with learner.average.applied():
        drawn = task.model.sample(100, seed=1)
    hits, lengths = 0, []
    with rdBase.BlockLogs():
        for structure in drawn:
            mol = structure.to_rdkit(sanitize=False)
            for atom in mol.GetAtoms():
                atom.SetNoImplicit(False)
            if Chem.SanitizeMol(mol, catchErrors=True) == 0 and Chem.MolToSmiles(mol) in wanted:
                hits += 1
                i, j, _ = structure.bonds.T
                lengths += np.linalg.norm(structure.positions[i] - structure.positions[j], axis=1).tolist()
    assert hits >= 60
    i, j, _ = molecules[0].bonds.T
    assert 1.1 < np.median(lengths) < 1.55


def test_molecule_k_is_the_same_in_any_run(small):
    generator = small.model(small.structures())
    options = SamplerOptions(calls=5)
    many = generator.sample(6, seed=4, options=options, max_edges=30)
    one = generator.sample(1, seed=4, options=options, first=3)
    assert one[0].numbers.tolist() == many[3].numbers.tolist()
    np.testing.assert_allclose(one[0].positions, many[3].positions, atol=1e-3)


def test_sizes_can_be_asked_for(small):
    generator = small.model(small.structures())
    options = SamplerOptions(calls=1)
    assert {s.n_atoms for s in generator.sample(30, options=options)} <= {3, 4, 5}
    assert [s.n_atoms for s in generator.sample(3, atoms=7, options=options)] == [7, 7, 7]
    assert {s.n_atoms for s in generator.sample(40, atoms=(2, 4), options=options)} == {2, 3, 4}
    with pytest.raises(UserError, match="range"):
        generator.sample(1, atoms=0)


def test_fixed_structure_comes_first_in_every_molecule(small):
    molecules = small.structures()
    generator, core = small.model(molecules), small.structures()[2]
    for drawn in generator.sample(4, atoms=(1, 3), fixed=core, options=SamplerOptions(calls=5)):
        assert drawn.numbers[:4].tolist() == core.numbers.tolist()
        assert drawn.n_atoms in (5, 6, 7)
        shift = drawn.positions[:4].mean(0) - core.positions.mean(0)
        np.testing.assert_allclose(drawn.positions[:4], core.positions + shift, atol=1e-5)
        inside = sorted(tuple(b) for b in drawn.bonds.tolist() if max(b[:2]) < 4)
        assert inside == sorted((min(i, j), max(i, j), o) for i, j, o in core.bonds.tolist())


def test_checkpoint_round_trip_through_the_public_name(small, tmp_path):
    generator = small.model(small.structures(), norm="published")
    path = save(generator, tmp_path / "g.safetensors", {"licence": "MIT"})
    back = tesseral.load(path)
    assert isinstance(back, EqgatDiff)
    assert back.card["licence"] == "MIT"
    assert back.card["elements"] == [6, 7, 8]
    assert back.vocabulary == generator.vocabulary
    assert back.config == generator.config
    options = SamplerOptions(calls=3)
    for a, b in zip(tesseral.generate(path, 3, steps=3), back.sample(3, options=options), strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)


def test_unknown_presets_and_keys_are_named(small):
    vocabulary = Vocabulary.from_structures(small.structures())
    with pytest.raises(UserError, match="published"):
        EqgatDiff.from_config({"preset": "large"}, vocabulary)
    with pytest.raises(UserError, match="layers"):
        EqgatDiff.from_config({"network": {"layer": 3}}, vocabulary)
