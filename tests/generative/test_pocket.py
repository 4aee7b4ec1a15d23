"""Molecules inside pockets: the file, the cut, the joint graph, symmetries, and whether molecules find their place."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tesseral
from tesseral.datasets.errors import DataError, UserError
from tesseral.datasets.structure import Structure
from tesseral.generative import save
from tesseral.generative.data import MoleculeOptions
from tesseral.generative.eqgat import Prediction
from tesseral.generative.fit import GeneratorTraining, train
from tesseral.generative.loader import MoleculeLoader, encode_all
from tesseral.generative.model import EqgatDiff
from tesseral.generative.molecules import collate
from tesseral.generative.pocket import PocketFacts
from tesseral.generative.protein import cut, read_pairs, read_protein
from tesseral.generative.sampler import SamplerOptions
from tesseral.generative.task import GeneratorTask
from tesseral.generative.vocabulary import Vocabulary
from tesseral.training.config import ConfigError, from_dict
from tesseral.training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from tesseral.training.task import Trainee

PDB = """\
ATOM      1  N   GLY A   1       0.000   0.000   0.000  1.00  0.00           N
ATOM      2  CA AGLY A   1       1.500   0.000   0.000  0.60  0.00           C
ATOM      3  CA BGLY A   1       1.700   0.500   0.000  0.40  0.00           C
ATOM      4  C   GLY A   1       2.000   1.400   0.000  1.00  0.00           C
ATOM      5  O   GLY A   1       1.200   2.300   0.000  1.00  0.00           O
ATOM      6  H   GLY A   1      -0.900   0.000   0.000  1.00  0.00           H
ATOM      7  N   SER A   2       9.000   0.000   0.000  1.00  0.00           N
ATOM      8  CA  SER A   2      10.500   0.000   0.000  1.00  0.00           C
ATOM      9  C   SER A   2      11.000   1.400   0.000  1.00  0.00           C
HETATM   10  N   MSE A   3       0.000   9.000   0.000  1.00  0.00           N
HETATM   11  CA  MSE A   3       1.500   9.000   0.000  1.00  0.00           C
HETATM   12  C   MSE A   3       2.000  10.400   0.000  1.00  0.00           C
HETATM   13 SE   MSE A   3       2.500  11.400   0.000  1.00  0.00          SE
HETATM   14  O   HOH A   4       3.000   3.000   3.000  1.00  0.00           O
HETATM   15 ZN    ZN A   5       4.000   0.000   0.000  1.00  0.00          ZN
HETATM   16  C1  LIG A   6       1.000   0.000   3.000  1.00  0.00           C
HETATM   17  C2  LIG A   6       2.400   0.000   3.000  1.00  0.00           C
END
"""


def test_pdb_files_give_amino_acids_and_ions(tmp_path):
    path = tmp_path / "p.pdb"
    path.write_text(PDB)
    protein = read_protein(path)
    assert protein.numbers.tolist() == [7, 6, 6, 8, 7, 6, 6, 7, 6, 6, 34, 30]  # no H, water, ligand, second CA
    assert protein.arrays["residue"].tolist() == [0] * 4 + [1] * 3 + [2] * 4 + [3]
    np.testing.assert_allclose(protein.positions[1], [1.5, 0, 0])
    path.write_text("HETATM    1  O   HOH A   4       3.000   3.000   3.000  1.00  0.00           O\nEND\n")
    with pytest.raises(DataError, match="no amino acids"):
        read_protein(path)
    path.write_text("nothing")
    with pytest.raises(DataError, match="PDB file"):
        read_protein(path)
    with pytest.raises(DataError, match=r"absent\.pdb.*cannot read"):
        read_protein(tmp_path / "absent.pdb")


def test_pocket_is_cut_by_whole_residues(tmp_path):
    path = tmp_path / "p.pdb"
    path.write_text(PDB)
    protein = read_protein(path)
    near = cut(protein, np.array([[1.0, 0.0, 3.0], [2.4, 0.0, 3.0]]), 3.6)
    assert near.numbers.tolist() == [7, 6, 6, 8, 30]
    assert cut(protein, np.array([[1.0, 0.0, 3.0]]), 10.0).n_atoms == 12
    assert 34 not in cut(protein, np.array([[2.5, 11.4, 0.2]]), 25.0).numbers  # lies upon the molecule
    with pytest.raises(DataError, match=r"nearest atom is 89\.0 Å"):
        cut(protein, np.array([[100.0, 0.0, 0.0]]), 6.0)


def test_real_pockets_open(shared_data):
    folder = shared_data("pockets")
    ligands = sorted(str(p) for p in folder.glob("*/ligand.sdf"))
    pockets = sorted(str(p) for p in folder.glob("*/pocket10.pdb.gz"))
    pairs, left_out = read_pairs(ligands, pockets, MoleculeOptions(hydrogens="remove"), 6.0)
    assert len(pairs) + sum(left_out.values()) == len(ligands) == 15
    assert len(pairs) >= 13
    for molecule in pairs:
        pocket = molecule.info["pocket"]
        assert 50 < pocket.n_atoms < 700
        distances = np.linalg.norm(pocket.positions[:, None] - molecule.positions, axis=-1)
        assert 1.0 < distances.min() < 4.0
        assert 1 not in pocket.numbers
    with pytest.raises(DataError, match="one each"):
        read_pairs(ligands, pockets[1:], MoleculeOptions(), 6.0)


def shell(center, numbers, seed):
    """A pocket: atoms on a sphere of 4.5 Å around a point, unevenly."""
    rng = np.random.default_rng(seed)
    directions = rng.normal([0.0, 0.0, 0.7], size=(len(numbers), 3))
    positions = center + 4.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return Structure(np.array(numbers), positions, arrays={"residue": np.arange(len(numbers)) // 3})


def pairs(small, smiles=("CC#N", "CC=O"), offset=6.0):
    """Molecules off the centroid of a pocket each, somewhere in space."""
    molecules = small.structures(smiles)
    for k, molecule in enumerate(molecules):
        molecule.positions += np.array([10.0 * k, 3.0, -5.0]) - molecule.positions.mean(0)
        numbers = [6, 7, 6, 8, 6, 6, 16, 6, 7][: 8 + k] if k == 0 else [8, 8, 6, 7, 6, 6, 7, 6]
        molecule.info["pocket"] = shell(molecule.positions.mean(0), numbers, seed=k + 1)
    return molecules


def generator(molecules, *, steps=20, seed=0, perturb=0.0, self_conditioning=False, **network):
    """An untrained generator in pockets."""
    sizes = {"scalars": 24, "vectors": 8, "edges": 8, "layers": 3, "norm": "corrected", **network}
    facts = PocketFacts.from_structures(molecules, 6.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {"network": sizes, "diffusion": {"steps": steps}, "self_conditioning": self_conditioning}
        model = EqgatDiff.from_config(config, Vocabulary.from_structures(molecules), pockets=facts)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(perturb * torch.randn_like(parameter))
    return model


def batch_of(model, molecules):
    encoded = encode_all(molecules, model.vocabulary, pockets=model.pockets)
    return collate(encoded, model.dtype)


def test_joint_graph_has_all_pairs_of_the_molecule_and_near_ones_else(small):
    molecules = pairs(small)
    model = generator(molecules).double()
    batch = batch_of(model, molecules)
    graph, layout = batch.pockets.graph(batch.positions), batch.layout
    positions = batch.pockets.spread(batch.positions, batch.pockets.positions)
    source, target = graph.edge_index
    n = len(graph.batch)
    squared = (positions[:, None] - positions).square().sum(-1)
    same = graph.batch[:, None] == graph.batch
    both = graph.movable[:, None] & graph.movable
    wanted = same & (both | (squared <= 25)) & ~torch.eye(n, dtype=torch.bool)
    expected = torch.nonzero(wanted)  # (target, source), sorted
    assert torch.equal(torch.stack([target, source], 1), expected)
    assert torch.equal(graph.degree, wanted.sum(1))
    assert graph.movable.sum() == 6
    there, back = graph.bonded
    torch.testing.assert_close(graph.edge_index[:, there], graph.edge_index[:, back].flip(0))
    torch.testing.assert_close(graph.edge_index[:, there], batch.pockets.ligand[layout.edge_index[:, layout.pairs]])
    torch.testing.assert_close(graph.edge_index[:, graph.between], batch.pockets.ligand[layout.edge_index])


def moved(molecules, rotation, shift):
    """The same pairs, turned and shifted."""
    result = []
    for molecule in molecules:
        pocket = molecule.info["pocket"]
        turned = Structure(pocket.numbers, pocket.positions @ rotation.T + shift, arrays=pocket.arrays)
        result.append(
            Structure(
                molecule.numbers,
                molecule.positions @ rotation.T + shift,
                bonds=molecule.bonds,
                arrays=molecule.arrays,
                info={"pocket": turned},
            )
        )
    return result


@pytest.mark.parametrize("reflect", [False, True])
def test_prediction_turns_and_moves_with_molecule_and_pocket(small, reflect):
    molecules = pairs(small)
    model = generator(molecules, perturb=0.1).double()
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation) * (-1 if reflect else 1)
    t = torch.tensor([5, 14])
    before = model(batch_of(model, molecules), t)
    after = model(batch_of(model, moved(molecules, rotation, np.array([7.0, -3.0, 30.0]))), t)
    expected = before.positions @ torch.from_numpy(rotation).T
    torch.testing.assert_close(after.positions, expected, atol=1e-9, rtol=1e-9)
    for a, b in zip((*after.atoms, after.bonds), (*before.atoms, before.bonds), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    # and it depends on the pocket: turned alone, another prediction
    other = [*molecules]
    other[0] = moved(molecules[:1], rotation, molecules[0].positions.mean(0) * 0)[0]
    other[0].positions = molecules[0].positions
    other[0].info["pocket"].positions += molecules[0].info["pocket"].positions.mean(0) - other[0].info[
        "pocket"
    ].positions.mean(0)
    changed = model(batch_of(model, other), t)
    assert float((changed.positions[:3] - before.positions[:3]).detach().abs().max()) > 1e-3


def test_pairs_do_not_feel_the_batch(small):
    molecules = pairs(small)
    model = generator(molecules, perturb=0.1).double()
    t = torch.tensor([5, 14])
    together = model(batch_of(model, molecules), t)
    for k in range(2):
        alone = model(batch_of(model, molecules[k : k + 1]), t[k : k + 1])
        part = slice(3 * k, 3 * k + 3)
        torch.testing.assert_close(alone.positions, together.positions[part])
        torch.testing.assert_close(alone.bonds, together.bonds[part])


def test_an_estimate_is_seen_and_turns_along(small):
    molecules = pairs(small)
    model = generator(molecules, perturb=0.1, self_conditioning=True).double()
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    t, turn = torch.tensor([5, 14]), torch.from_numpy(rotation).T
    here, there = batch_of(model, molecules), batch_of(model, moved(molecules, rotation, np.zeros(3)))
    guess = model(here, t)
    before = model(replace(here, estimate=guess), t)
    assert float((before.bonds - guess.bonds).detach().abs().max()) > 1e-4
    after = model(replace(there, estimate=guess._replace(positions=guess.positions @ turn)), t)
    torch.testing.assert_close(after.positions, before.positions @ turn)
    torch.testing.assert_close(after.bonds, before.bonds)
    assert len(model.sample(2, pocket=molecules[0].info["pocket"], options=SamplerOptions(3))) == 2


def test_pocket_atoms_stay_where_they_are(small):
    """Also inside the network: the layers get and give them at the same place."""
    molecules = pairs(small)
    model = generator(molecules, perturb=0.1).double()
    batch, places = batch_of(model, molecules), []
    for layer in model.network.layers:
        layer.register_forward_hook(lambda _, inputs, outputs: places.append(outputs[2]))
    model(batch, torch.tensor([5, 14]))
    for p in places:
        torch.testing.assert_close(p[batch.pockets.nodes], batch.pockets.positions)
    assert float((places[-1][batch.pockets.ligand] - batch.positions).detach().abs().max()) > 0.01


def test_with_an_oracle_molecules_return_to_their_place_in_the_pocket(small):
    """Nothing is centred: the place relative to the pocket is kept, and in the end the frame of the file."""
    molecules = pairs(small)
    model = generator(molecules, steps=50).double()
    clean = batch_of(model, molecules)
    off = clean.positions[:3].mean(0)
    assert float(off.norm()) > 0.5
    vocabulary = model.vocabulary
    logits = [
        1e4 * torch.nn.functional.one_hot(clean.atoms[:, k], len(c)).double()
        for k, c in enumerate(vocabulary.atoms.values())
    ]
    bonds = 1e4 * torch.nn.functional.one_hot(clean.bonds[clean.layout.pairs], len(vocabulary.bonds)).double()
    model.forward = lambda noisy, t: Prediction(clean.positions[:3], tuple(x[:3] for x in logits), bonds[:3])
    pocket = molecules[0].info["pocket"]
    drawn = model.sample(1, atoms=3, pocket=pocket)[0]
    assert drawn.numbers.tolist() == molecules[0].numbers.tolist()
    np.testing.assert_allclose(drawn.positions, molecules[0].positions, atol=0.02)
    assert sorted(map(tuple, drawn.bonds.tolist())) == sorted(map(tuple, molecules[0].bonds.tolist()))


def test_noise_in_a_pocket_keeps_its_mean_and_starts_around_the_centroid(small):
    molecules = pairs(small) * 400
    model = generator(pairs(small)).double()
    from tesseral.generative.streams import Streams

    batch = batch_of(model, molecules)
    streams = Streams(0, torch.arange(800))
    noise = model.diffusion.noise(batch, streams)
    means = noise.reshape(800, 3, 3).mean(1)
    assert float(means.square().mean()) == pytest.approx(1 / 3, rel=0.1)
    start = model.diffusion.prior(batch.layout, streams, torch.float64, pockets=batch.pockets)
    assert float(start.positions.mean()) == pytest.approx(0, abs=0.05)


def test_sizes_follow_the_pocket():
    facts = PocketFacts((6,), 6.0, 3.0, ((100, 8),) * 50 + ((300, 20),) * 50)
    uniform = (np.arange(1000) + 0.5) / 1000
    small, large = facts.draw_sizes(105, uniform), facts.draw_sizes(1000, uniform)
    assert np.mean(small == 8) > 0.95
    assert np.mean(large == 20) > 0.95  # far from all: the most alike
    assert set(small) >= {12, 20}  # every size in between is possible
    back = PocketFacts.from_dict(json.loads(json.dumps(facts.to_dict())))
    assert back == facts
    unknown = facts.encode(Structure([6, 30], np.eye(3)[:2]))
    assert unknown.classes.tolist() == [1, 0]


def test_molecules_are_learned_at_their_place_in_their_pocket(small):
    """Two pockets, two molecules of the same size: each pocket gets its own, lying as in the data."""
    molecules = pairs(small)
    model = generator(molecules, scalars=32, seed=1)
    batch = collate(encode_all(molecules * 6, model.vocabulary, pockets=model.pockets))
    steps = 350
    trainee = Trainee(
        GeneratorTask(model),
        TrainingOptions(epochs=1, ema=0.97),
        OptimizerOptions(lr=5e-3, clip=1.0),
        ScheduleOptions(warmup=0.02),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        losses = [float(trainee.step(batch, steps)) for _ in range(steps)]
    assert np.mean(losses[-20:]) < 0.3 * losses[0]
    with trainee.average.applied():
        for molecule in molecules:
            drawn = model.sample(20, seed=1, atoms=3, pocket=molecule.info["pocket"])
            right = [s for s in drawn if sorted(s.numbers) == sorted(molecule.numbers)]
            assert len(right) >= 15
            end = molecule.positions[np.argmax(molecule.numbers)]  # N or O
            away = [np.linalg.norm(s.positions[np.argmax(s.numbers)] - end) for s in right]
            assert np.median(away) < 0.6


def test_training_from_files_and_generation_in_a_pocket(small, tmp_path):
    from tesseral.datasets.write import write

    (tmp_path / "p.pdb").write_text(PDB)
    for k, smiles in enumerate(("CC#N", "CC=O", "CCN")):
        molecule = small.structures((smiles,))[0]
        molecule.positions += np.array([1.7, 0.5, 3.2]) - molecule.positions.mean(0)
        (tmp_path / f"{k}").mkdir()
        write(tmp_path / f"{k}" / "ligand.sdf", [molecule])
        (tmp_path / f"{k}" / "pocket.pdb").write_text(PDB)
    config = from_dict(
        GeneratorTraining,
        {
            "run": str(tmp_path / "run"),
            "model": {"config": {"preset": "cpu", "network": {"layers": 2}, "diffusion": {"steps": 5}}},
            "data": {
                "train": str(tmp_path / "*" / "ligand.sdf"),
                "pockets": str(tmp_path / "*" / "pocket.pdb"),
                "val": 0.3,
                "molecules": {"hydrogens": "remove"},
            },
            "training": {"epochs": 2, "threads": 1, "tensorboard": False},
        },
    )
    result = train(config)
    assert result["left_out"] == {}
    model = tesseral.load(tmp_path / "run" / "model.safetensors")
    assert model.pockets.elements == (6, 7, 8, 30)
    pocket = cut(read_protein(tmp_path / "p.pdb"), np.array([[1.7, 0.5, 3.2]]), 6.0)
    drawn = model.sample(3, pocket=pocket, options=SamplerOptions(2))
    assert {s.n_atoms for s in drawn} == {3}
    many = model.sample(3, pocket=pocket, options=SamplerOptions(2), max_edges=1)
    for a, b in zip(drawn, many, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-3)
    with pytest.raises(UserError, match="in pockets: give one"):
        model.sample(1)
    with pytest.raises(UserError, match="not possible yet"):
        model.sample(1, pocket=pocket, fixed=small.structures()[0], atoms=1)
    with pytest.raises(UserError, match="without pockets"):
        small.model(small.structures()).sample(1, pocket=pocket)
    with pytest.raises(ConfigError, match="fraction of the pairs"):
        from_dict(GeneratorTraining, {"data": {"pockets": "p.pdb", "val": "v.sdf"}})
    with pytest.raises(ConfigError, match="no file matches"):
        train(from_dict(GeneratorTraining, {"data": {"pockets": "none*.pdb"}}, base=config), force=True)


def test_free_molecules_are_a_start_for_pockets(small, tmp_path):
    """Fine-tuning: all weights of the free model are taken over, pocket atoms are new."""
    from tesseral.generative import fit

    free = small.model(small.structures())
    path = save(free, tmp_path / "free.safetensors")
    config = from_dict(GeneratorTraining, {"model": {"init": str(path)}, "data": {"pockets": "unused.pdb"}})
    tuned = fit._model(config, pairs(small))
    state = tuned.state_dict()
    for name, tensor in free.state_dict().items():
        assert torch.equal(state[name], tensor)
    assert set(state) - set(free.state_dict()) == {"network.pocket_in.weight"}


def test_batches_are_planned_by_all_edges(small):
    molecules = pairs(small) * 4
    model = generator(pairs(small))
    encoded = encode_all(molecules, model.vocabulary, pockets=model.pockets)
    graph = batch_of(model, molecules[:1]).pockets.graph(torch.zeros(3, 3))
    assert encoded[0].n_edges >= encoded[0].pocket.edges.shape[1] + 6
    assert encoded[0].n_edges == pytest.approx(graph.edge_index.shape[1], rel=0.5)
    loader = MoleculeLoader(encoded, max_edges=2 * encoded[0].n_edges)
    assert len(loader) >= 4
