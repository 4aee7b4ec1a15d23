"""Energy and forces of ethanol through ASE, then its nearest minimum. Run it from the repository root."""

from ase.io import read

import tesseral

atoms = read("examples/ethanol.xyz")
atoms.calc = tesseral.Calculator("tesseral-organic")
print(f"energy {atoms.get_potential_energy():.3f} eV, largest force {abs(atoms.get_forces()).max():.3f} eV/Å")

relaxed = tesseral.relax(atoms, "tesseral-organic", fmax=0.02)
print(f"relaxed {relaxed.atoms.get_potential_energy():.3f} eV after {relaxed.steps} steps")
