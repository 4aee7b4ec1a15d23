"""Public contracts that models and integrators must keep, for this package and for third parties."""
