"""The alternatives of the design study and the further variables of atoms learn, and come back from sampling."""

import numpy as np
import pytest
import torch

from tesseral.generative.data import EXTRA, MoleculeOptions, embedded, prepared
from tesseral.generative.loader import encode_all
from tesseral.generative.model import EqgatDiff
from tesseral.generative.molecules import collate
from tesseral.generative.task import GeneratorTask
from tesseral.generative.vocabulary import Vocabulary
from tesseral.training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from tesseral.training.task import Trainee

OPTIONS = MoleculeOptions(hydrogens="remove", extra=["ring", "aromatic", "hybridisation"])


def learned(molecules, *, steps=220, extra=(), self_conditioning=False, **diffusion):
    """A small generator that has seen the molecules for `steps` steps, and its losses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = {"scalars": 32, "vectors": 8, "edges": 8, "layers": 3, "norm": "corrected"}
        config = {"network": network, "diffusion": {"steps": 20, **diffusion}}
        config["self_conditioning"] = self_conditioning
        model = EqgatDiff.from_config(config, Vocabulary.from_structures(molecules, extra=extra))
        batch = collate(encode_all(molecules * (20 // len(molecules)), model.vocabulary))
        trainee = Trainee(
            GeneratorTask(model),
            TrainingOptions(epochs=1, ema=0.97),
            OptimizerOptions(lr=5e-3, clip=1.0),
            ScheduleOptions(warmup=0.02),
        )
        losses = [float(trainee.step(batch, steps)) for _ in range(steps)]
        trainee.average._copy(trainee.average.shadow)
    return model, losses


@pytest.mark.parametrize(
    "variant",
    [
        {"classes": "gaussian"},
        {"target": "noise", "weighting": "uniform", "amplitude": "root"},
        {"classes": "gaussian", "target": "noise", "weighting": "uniform", "amplitude": "root"},
        {"self_conditioning": True},
    ],
    ids=["gaussian classes", "noise", "both", "self-conditioning"],
)
def test_variants_of_the_design_study_learn(small, variant):
    """Graphs and bond lengths of two molecules come back."""
    molecules = small.structures(("CC#N", "CC=O"))
    model, losses = learned(molecules, **variant)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])
    drawn = model.sample(50, seed=1)
    wanted = {(m.formula, tuple(sorted(m.bonds[:, 2].tolist()))) for m in molecules}
    right = [s for s in drawn if (s.formula, tuple(sorted(s.bonds[:, 2].tolist()))) in wanted]
    assert len(right) >= 30
    lengths = [np.linalg.norm(s.positions[s.bonds[:, 0]] - s.positions[s.bonds[:, 1]], axis=1) for s in right]
    assert 1.1 < np.median(np.concatenate(lengths)) < 1.6


def test_further_variables_of_atoms_agree_with_the_graph():
    """Ring, aromatic and hybridisation are noised and learned along, and fit the bonds that are drawn with them."""
    molecules = [prepared(embedded(s), OPTIONS) for s in ("C1CC1", "CC#N")]
    extra = tuple(OPTIONS.extra)
    model, _ = learned(molecules, extra=extra, weighting="snr-bonds")
    agree = []
    for structure in model.sample(50, seed=1):
        mol = structure.to_rdkit(sanitize=False)
        mol.UpdatePropertyCache(strict=False)
        from rdkit import Chem

        Chem.GetSSSR(mol)
        ring = np.array([EXTRA["ring"](atom) for atom in mol.GetAtoms()])
        agree.append((structure.arrays["ring"] == ring).all())
        assert set(structure.arrays["hybridisation"]) <= {2, 4}  # SP, SP3
        assert not structure.arrays["aromatic"].any()
    assert np.mean(agree) >= 0.8
    drawn = {s.formula for s in model.sample(50, seed=1)}
    assert {"C3", "C2N"} <= drawn
