"""A Morse pair potential as a `Potential`: an exact, smooth double for the models, also for sub-processes of
the tests.
"""

import torch

from tesseral.potentials.base import Potential


class Morse(Potential):
    """Sum over pairs of D (1 - exp(-a (r - r0)))² - D, taken smoothly to zero at the cutoff."""

    architecture = "morse-double"

    def __init__(self, elements=(1, 6, 8, 29), *, depth=0.4, width=1.5, length=2.2, cutoff=5.0, dtype=torch.float64):
        super().__init__(tuple(elements), {z: -1.5 * z for z in elements})
        self.cutoff = cutoff
        self.config = {"width": width, "length": length}
        self.depth = torch.nn.Parameter(torch.tensor(depth, dtype=dtype))

    @classmethod
    def from_config(cls, config, statistics):
        return cls(statistics.elements, **config)

    def atomic_energies(self, species, vectors, plan):
        r = vectors.norm(dim=1)
        x = (r / self.cutoff).clamp(max=1.0)
        smooth = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
        pair = self.depth * ((1 - torch.exp(-self.config["width"] * (r - self.config["length"]))) ** 2 - 1)
        size = 1 + 0.05 * species.to(r.dtype)
        pair = pair * smooth * size[plan.target] * size[plan.source]
        return torch.zeros_like(size).index_add(0, plan.target, 0.5 * pair)
