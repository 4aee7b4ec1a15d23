"""Tables, harmonics and rotations against closed forms, e3nn and sphericart."""

import numpy as np
import pytest
import torch

from tesseral.kernels.conventions import FROM_Z_POLAR, TO_Z_POLAR, coupling_paths, gaunt, gaunt_strength, w3j
from tesseral.kernels.harmonics import spherical_harmonics
from tesseral.kernels.rotations import wigner_d
from tesseral.kernels.sphere import gauss_legendre_grid

TRIPLES = [(a, b, c) for a in range(5) for b in range(5) for c in range(abs(a - b), min(a + b, 6) + 1)]
# kappa of the Gaunt sheet
STRENGTHS = {
    (0, 0, 0): 0.282095,
    (0, 1, 1): 0.488603,
    (1, 1, 2): 0.690988,
    (2, 2, 0): 0.630783,
    (2, 2, 2): 0.753930,
    (1, 2, 3): 0.846284,
    (2, 2, 4): 1.011503,
    (3, 3, 2): 0.861814,
}


def random_vectors(n: int = 50) -> torch.Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def random_rotations(n: int = 5) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(n, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    return q


def test_w3j_equals_e3nn_with_sign():
    o3 = pytest.importorskip("e3nn.o3")
    for triple in TRIPLES:
        expected = o3.wigner_3j(*triple, dtype=torch.float64).numpy()
        np.testing.assert_allclose(w3j(*triple), expected, atol=1e-12, err_msg=str(triple))


@pytest.mark.parametrize(("triple", "value"), STRENGTHS.items())
def test_gaunt_strength(triple, value):
    assert gaunt_strength(*triple) == pytest.approx(value, abs=1e-6)


def test_gaunt_entries():
    x, y = 0, 1
    assert gaunt(1, 1, 0)[x, x, 0] == pytest.approx(0.282095, abs=1e-6)
    assert gaunt(1, 1, 2)[x, y, 1] == pytest.approx(0.218510, abs=1e-6)
    assert gaunt(1, 1, 2)[y, y, 2] == pytest.approx(0.252313, abs=1e-6)


def test_gaunt_is_the_integral_of_three_harmonics():
    grid = gauss_legendre_grid(4, 8, 16)
    y = spherical_harmonics(grid.points, 4, normalization="integral")
    integrals = torch.einsum("g,ga,gb,gc->abc", grid.weights, y, y, y).numpy()
    for a, b, c in [t for t in TRIPLES if t[2] <= 4]:
        block = integrals[a * a : (a + 1) ** 2, b * b : (b + 1) ** 2, c * c : (c + 1) ** 2]
        np.testing.assert_allclose(gaunt(a, b, c), block, atol=1e-12, err_msg=str((a, b, c)))


@pytest.mark.parametrize(("lmax", "everything", "even"), [(1, 5, 4), (2, 15, 11), (3, 34, 23), (4, 65, 42)])
def test_number_of_paths(lmax, everything, even):
    degrees = tuple(range(lmax + 1))
    assert len(coupling_paths(degrees, lmax, degrees, "so3")) == everything
    assert len(coupling_paths(degrees, lmax, degrees, "o3")) == even


@pytest.mark.parametrize("normalize", [True, False])
def test_harmonics_equal_e3nn(normalize):
    o3 = pytest.importorskip("e3nn.o3")
    vectors = random_vectors()
    expected = o3.spherical_harmonics(list(range(7)), vectors, normalize, "component")
    found = spherical_harmonics(vectors, 6, normalize=normalize)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-11)


def test_harmonics_equal_sphericart_at_permuted_axes():
    sphericart = pytest.importorskip("sphericart.torch")
    vectors = random_vectors()
    theirs = sphericart.SphericalHarmonics(4).compute(vectors)
    # e3nn(v) = sphericart(v[TO_Z_POLAR]), so sphericart(v) = e3nn(v[FROM_Z_POLAR])
    ours = spherical_harmonics(vectors[:, FROM_Z_POLAR], 4, normalization="integral")
    assert torch.allclose(ours, theirs, atol=1e-13)
    assert torch.allclose(
        sphericart.SphericalHarmonics(4).compute(vectors[:, TO_Z_POLAR].contiguous()),
        spherical_harmonics(vectors, 4, normalization="integral"),
        atol=1e-13,
    )


def test_harmonics_have_no_poles():
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).double().requires_grad_()
    y = spherical_harmonics(axes, 4)
    assert torch.allclose(y.square().sum(-1), torch.full((6,), 25.0, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(y.square().sum() + y.sum(), axes)
    assert torch.isfinite(gradient).all()
    assert torch.autograd.gradgradcheck(lambda v: spherical_harmonics(v, 3), axes[:3].detach().requires_grad_())


def test_wigner_d_rotates_harmonics_also_improperly():
    vectors = random_vectors(10)
    for rotation in (*random_rotations(), -torch.eye(3, dtype=torch.float64)):
        turned = spherical_harmonics(vectors @ rotation.T, 5)
        y = spherical_harmonics(vectors, 5)
        for l, d in enumerate(wigner_d(rotation, 5)):
            rows = slice(l * l, (l + 1) ** 2)
            assert torch.allclose(turned[:, rows], y[:, rows] @ d.T, atol=1e-12)


def test_wigner_d_equals_e3nn():
    o3 = pytest.importorskip("e3nn.o3")
    rotation = random_rotations(1)[0]
    rotation = rotation * torch.linalg.det(rotation)
    irreps = o3.Irreps([(1, (l, 1)) for l in range(5)])
    found = torch.block_diag(*wigner_d(rotation, 4))
    # e3nn goes through Euler angles in its default dtype, which limits the comparison
    assert torch.allclose(irreps.D_from_matrix(rotation), found, atol=1e-6)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="axis of 3"):
        spherical_harmonics(torch.zeros(4, 2), 1)
    with pytest.raises(ValueError, match="axes \\(3, 3\\)"):
        wigner_d(torch.zeros(4), 1)
    with pytest.raises(ValueError, match="violates"):
        w3j(1, 1, 3)
    with pytest.raises(ValueError, match="parity"):
        coupling_paths((0,), 1, (0,), "even")
