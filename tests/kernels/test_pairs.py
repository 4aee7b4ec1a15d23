"""Pair products: e3nn's 'uuu' product, selections of paths, every derivative."""

import pytest
import torch

from tesseral.kernels.backends import backends, use_backend
from tesseral.kernels.conventions import Path, coupling_paths
from tesseral.kernels.pairs import pair_product
from tesseral.kernels.rotations import wigner_d

BACKENDS = [name for name in backends() if name in ("reference", "numba")]
PATHS = coupling_paths((0, 1, 2), 2, (0, 1, 2), "so3")
SELECTED = [PATHS[k] for k in (13, 2, 9, 5)]  # not sorted


def inputs(paths, *, l1=2, l2=2, nodes=3, channels=3):
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (nodes, (l1 + 1) ** 2, channels),
        (nodes, (l2 + 1) ** 2, channels),
        (nodes, len(paths), channels),
    ]
    return [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]


@pytest.fixture
def double():
    """e3nn keeps its coefficients in the default precision of the moment a layer is built."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def to_e3nn(x: torch.Tensor, lmax: int) -> torch.Tensor:
    """Degree-major with channels outside the components."""
    return torch.cat([x[:, l * l : (l + 1) ** 2].transpose(1, 2).flatten(1) for l in range(lmax + 1)], dim=-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [4, 70])  # less than a block of channels, and more than one
@pytest.mark.parametrize("paths", [PATHS, SELECTED], ids=["all", "selected"])
def test_equals_e3nn(backend, channels, paths, double):
    o3 = pytest.importorskip("e3nn.o3")
    x, y, w = inputs(paths, channels=channels)
    irreps = o3.Irreps([(channels, (l, 1)) for l in range(3)])
    layer = o3.TensorProduct(
        irreps,
        irreps,
        irreps,
        [(p.l1, p.l2, p.l3, "uuu", True) for p in paths],
        irrep_normalization="component",
        path_normalization="none",
        shared_weights=False,
        internal_weights=False,
    )
    expected = layer(to_e3nn(x, 2), to_e3nn(y, 2), w.flatten(1))
    with use_backend(backend):
        found = pair_product(x, y, w, paths, 2)
    assert torch.allclose(to_e3nn(found, 2), expected, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unselected_paths_are_paths_of_weight_zero(backend):
    x, y, w = inputs(PATHS)
    keep = torch.tensor([p in SELECTED for p in PATHS])
    with use_backend(backend):
        full = pair_product(x, y, w * keep[:, None], PATHS, 2)
        some = pair_product(x, y, w[:, keep], [p for p in PATHS if p in SELECTED], 2)
        nothing = pair_product(x, y, w[:, :0], [], 2)
    assert torch.allclose(full, some, atol=1e-13)
    assert nothing.shape == (3, 9, 3) and not nothing.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_shared_by_all_nodes(backend):
    x, y, w = inputs(SELECTED)
    shared = w[0].detach().requires_grad_()
    with use_backend(backend):
        found = pair_product(x, y, shared, SELECTED, 2)
        expected = pair_product(x, y, shared.repeat(3, 1, 1), SELECTED, 2)
        assert torch.allclose(found, expected, atol=1e-14)
        assert torch.autograd.gradcheck(lambda w: pair_product(x, y, w, SELECTED, 2), (shared,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_a_selection_between_different_degrees(backend):
    paths = [Path(1, 2, 1), Path(0, 1, 1), Path(1, 2, 3), Path(1, 1, 1)]
    x, y, w = inputs(paths, l1=1, l2=2, nodes=2, channels=2)
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda *a: pair_product(*a, paths, 3), (x, y, w))
        assert torch.autograd.gradgradcheck(lambda *a: pair_product(*a, paths, 3), (x, y, w))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotates(backend):
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    d = torch.block_diag(*wigner_d(q * torch.linalg.det(q), 2))
    x, y, w = inputs(PATHS)
    with use_backend(backend):
        assert torch.allclose(pair_product(d @ x, d @ y, w, PATHS, 2), d @ pair_product(x, y, w, PATHS, 2), atol=1e-12)


@pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")
def test_only_wanted_gradients_are_computed(monkeypatch):
    """Weights may need gradients, but a call that asks for x must not pay for them."""
    from tesseral.kernels import _numba_pairs

    calls = []
    original = _numba_pairs.strengths
    monkeypatch.setattr(_numba_pairs, "strengths", lambda *a: calls.append(1) or original(*a))
    x, y, w = inputs(SELECTED)
    out = pair_product(x, y, w, SELECTED, 2).sum()
    torch.autograd.grad(out, x, retain_graph=True)
    assert not calls
    torch.autograd.grad(out, w)
    assert len(calls) == 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("channels", [3, 70])
def test_gradients_in_one_pass(channels, shared):
    """Equal to one by one, and differentiable further."""
    paths = [Path(1, 2, 1), Path(0, 1, 1), Path(1, 2, 3), Path(1, 1, 1), Path(1, 1, 2)]
    x, y, w = inputs(paths, l1=1, nodes=5, channels=channels)
    w = w[0].detach().requires_grad_() if shared else w
    found, expected = (pair_product(x, y, w, paths, 3, together=t) for t in (True, False))
    cotangent = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad(found, (x, y, w), cotangent),
        torch.autograd.grad(expected, (x, y, w), cotangent),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)
    if channels == 3:
        few = [t.detach()[:2, ..., :2].requires_grad_() if t.ndim == 3 else t for t in (x, y, w)]
        few[2] = w.detach()[..., :2].requires_grad_() if shared else few[2]
        assert torch.autograd.gradgradcheck(lambda *a: pair_product(*a, paths, 3, together=True), few)


@pytest.mark.parametrize("shared", [False, True])
def test_several_threads_give_the_same_numbers(shared):
    x, y, w = inputs(PATHS, nodes=40)
    w = w[0].detach().requires_grad_() if shared else w

    def evaluate():
        out = pair_product(x, y, w, PATHS, 2, together=True)
        separate = pair_product(x, y, w, PATHS, 2).sum()
        return out, *torch.autograd.grad(out.sum(), (x, y, w)), torch.autograd.grad(separate, w)[0]

    before = torch.get_num_threads()
    one = evaluate()
    try:
        torch.set_num_threads(2)
        two = evaluate()
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two, strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-13)  # sums over nodes change their order


@pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")
def test_operator_contract():
    """Schema and shapes without data, as torch checks them."""
    from tesseral.kernels.pairs import couple_op, strengths_op

    x, y, w = inputs(SELECTED)
    flat = [l for p in SELECTED for l in (p.l1, p.l2, p.l3)]
    from tesseral.kernels.pairs import gradients_op

    for operator, arguments in (
        (couple_op, (x, y, w, flat, [0, 9], False)),
        (strengths_op, (x, y, x, flat, False)),
        (strengths_op, (x, y, x, flat, True)),
        (gradients_op, (x.detach(), y.detach(), w.detach(), x.detach(), flat)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_nodes(backend):
    with use_backend(backend):
        out = pair_product(torch.zeros(0, 9, 4), torch.zeros(0, 9, 4), torch.zeros(0, 4, 4), SELECTED, 2)
    assert out.shape == (0, 9, 4)


def test_bad_arguments_are_refused():
    x, y, w = inputs(SELECTED)
    with pytest.raises(ValueError, match="alike"):
        pair_product(x, y[:2], w, SELECTED, 2)
    with pytest.raises(ValueError, match="one per path"):
        pair_product(x, y, w[:, :2], SELECTED, 2)
    with pytest.raises(ValueError, match=r"Path\(l1=2, l2=2, l3=3\) does not fit"):
        pair_product(x, y, w[:, :1], [Path(2, 2, 3)], 2)
    with pytest.raises(ValueError, match=r"Path\(l1=0, l2=0, l3=1\) does not fit"):
        pair_product(x, y, w[:, :1], [Path(0, 0, 1)], 2)
