"""Hamiltonian (Fock) matrices of molecules: orbital layout, labels, networks, and their use in quantum chemistry.

Inside this room energies are in Hartree and lengths in Å; matrices at every public edge are in PySCF's orbital order.
"""
