"""Equivariant models beyond potentials and generators, one folder per family."""
