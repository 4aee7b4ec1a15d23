"""Generators of molecules and trajectories: noise processes, networks, samplers."""
