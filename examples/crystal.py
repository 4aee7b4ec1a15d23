"""Lattice constant and bulk modulus of copper from the shipped solids model. Run it from anywhere."""

import numpy as np
from ase.build import bulk
from ase.eos import EquationOfState
from ase.units import GPa

import tesseral

model = tesseral.load("tesseral-solids")
calculator = tesseral.Calculator(model)
volumes, energies = [], []
for a in np.linspace(3.55, 3.72, 7):
    atoms = bulk("Cu", a=a)
    atoms.calc = calculator
    volumes.append(atoms.get_volume())
    energies.append(atoms.get_potential_energy())

volume, energy, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
print(f"copper: a = {(4 * volume) ** (1 / 3):.3f} Å, B = {modulus / GPa:.0f} GPa")
