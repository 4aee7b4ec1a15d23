"""The training domain: exact numbers of small sets, and its way through a checkpoint's header."""

import json

import numpy as np
import pytest
from ase.build import bulk

from tesseral.datasets.domain import Domain, measure_domain, pair_name
from tesseral.datasets.structure import Structure


def test_ranges_of_small_molecules():
    first = Structure([6, 1, 1], [[0, 0, 0], [0, 0, 1.1], [0, 3.0, 0]], labels={"forces": np.diag([1.0, 2.0, 5.0])})
    second = Structure([6, 8], [[0, 0, 0], [0, 0, 1.2]])
    domain = measure_domain([first, second], radius=2.0)
    assert domain.min_distance == pytest.approx({"C-H": 1.1, "O-C": 1.2})
    assert domain.neighbors == {"C": (1, 1), "H": (0, 1), "O": (1, 1)}
    assert domain.max_force == 5.0 and domain.radius == 2.0


def test_periodic_images_count():
    crystal = Structure.from_ase(bulk("Cu", a=3.6))
    domain = measure_domain([crystal])
    assert domain.min_distance["Cu-Cu"] == pytest.approx(3.6 / np.sqrt(2))
    assert domain.neighbors == {"Cu": (18, 18)}
    assert domain.max_force is None


def test_header_and_back():
    domain = Domain({"C-H": 0.9}, {"C": (1, 4)}, 3.0, 12.0)
    for header in ({"domain": domain.to_dict()}, {"card": {"domain": domain.to_dict()}}):
        assert Domain.from_card(json.loads(json.dumps(header))) == domain
    assert Domain.from_card({}) == Domain()


def test_pair_names_do_not_depend_on_the_order():
    assert pair_name(1, 6) == pair_name(6, 1) == "C-H"
