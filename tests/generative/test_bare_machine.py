"""A GPU machine has torch, numpy, h5py and safetensors: training steps and sampling need nothing else."""

import subprocess
import sys

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rdkit", "ase", "scipy", "lightning", "pymatgen", "yaml", "numba"}:
            raise ImportError(f"{name} is not on a bare machine")

sys.meta_path.insert(0, Refuse())
import numpy as np, torch
from tesseral.datasets.structure import Structure
from tesseral.generative import load, save
from tesseral.generative.loader import MoleculeLoader, encode_all
from tesseral.generative.model import EqgatDiff
from tesseral.generative.task import GeneratorTask
from tesseral.generative.vocabulary import Vocabulary
from tesseral.training.options import OptimizerOptions, ScheduleOptions, TrainingOptions
from tesseral.training.task import Trainee

water = Structure([8, 1, 1], np.eye(3), bonds=[[0, 1, 1], [0, 2, 1]])
vocabulary = Vocabulary.from_structures([water])
config = {"preset": "cpu", "network": {"layers": 2}, "diffusion": {"steps": 4}}
model = EqgatDiff.from_config(config, vocabulary)
loader = MoleculeLoader(encode_all([water] * 4, vocabulary), batch_size=4)
trainee = Trainee(GeneratorTask(model), TrainingOptions(), OptimizerOptions(lr=1e-3), ScheduleOptions())
for batch in loader:
    trainee.step(batch, len(loader))
trainee.task.export(sys.argv[1], {})
print(load(sys.argv[1]).sample(1)[0].n_atoms)
"""


def test_training_step_and_sampling_without_chemistry_packages(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "m.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["3"]
