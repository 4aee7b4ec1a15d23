"""Orbital layout against PySCF: shells, exact round trip, rotation of real matrices."""

import numpy as np
import pytest
import torch

from tesseral.datasets.errors import UserError
from tesseral.potentials.hamiltonian.layout import Blocks, OrbitalLayout, layout, pair_index

WATER = ([8, 1, 1], [[0.0, 0.0, 0.117], [0.0, 0.757, -0.47], [0.1, -0.757, -0.47]])
# formyl fluoride: H, C, O, F in one molecule
FORMYL = ([6, 8, 9, 1], [[0.0, 0.1, 0.0], [0.2, 1.16, 0.3], [1.14, -0.62, 0.1], [-0.95, -0.43, -0.2]])


def molecule(case, rotation=None, basis="def2-svp"):
    gto = pytest.importorskip("pyscf.gto", reason="the extra `hamiltonian` (PySCF) is not installed")
    numbers, positions = case
    positions = np.array(positions) if rotation is None else np.array(positions) @ rotation.T
    atoms = [(z, tuple(r)) for z, r in zip(numbers, positions, strict=True)]
    return gto.M(atom=atoms, basis=basis, verbose=0)


def fock(mol):
    from pyscf import scf

    mf = scf.RHF(mol)  # no integration grid: the matrix turns exactly
    mf.conv_tol, mf.conv_tol_grad = 1e-13, 1e-8
    mf.kernel()
    return torch.from_numpy(mf.get_fock())


def orthogonal(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


@pytest.mark.parametrize("basis", ["def2-svp", "def2-tzvp"])
def test_tables_are_those_of_pyscf(basis):
    gto = pytest.importorskip("pyscf.gto", reason="the extra `hamiltonian` (PySCF) is not installed")
    for z, shells in layout(basis, range(1, 19)).shells:
        mol = gto.M(atom=[[z, (0, 0, 0)]], basis=basis, spin=None, verbose=0)
        wanted = [mol.bas_angular(i) for i in range(mol.nbas) for _ in range(mol.bas_nctr(i))]
        assert list(shells) == wanted, z


def test_irreps_of_the_published_blocks():
    svp, tzvp = layout("def2-svp"), layout("def2-tzvp")
    assert (svp.irreps, svp.offsets, svp.size) == ((3, 2, 1), (0, 3, 9, 14), 14)
    assert (tzvp.irreps, tzvp.offsets, tzvp.size) == ((5, 5, 2, 1), (0, 5, 20, 30, 37), 37)
    assert svp.element_mask[1].nonzero().flatten().tolist() == [0, 1, 3, 4, 5]
    assert svp.element_mask[[1, 6, 9]].sum(1).tolist() == [5, 14, 14]
    assert tzvp.element_mask[[1, 8, 17]].sum(1).tolist() == [6, 31, 37]


@pytest.mark.parametrize("basis", ["def2-svp", "def2-tzvp"])
def test_round_trip_is_exact(basis):
    mol = molecule(FORMYL, basis=basis)
    matrix = torch.from_numpy(mol.intor("int1e_kin"))
    matrix = (matrix + matrix.T) / 2
    lay, numbers = layout(basis), torch.tensor(FORMYL[0])
    blocks = lay.to_blocks(matrix, numbers)
    assert torch.equal(lay.to_matrix(blocks, numbers), matrix)
    on_atoms, on_pairs = lay.masks(numbers, pair_index(4))
    assert torch.equal(blocks.diagonal * on_atoms, blocks.diagonal)
    assert torch.equal(blocks.lower * on_pairs, blocks.lower)
    assert int(on_atoms.sum() + 2 * on_pairs.sum()) == mol.nao**2 == lay.n_orbitals(numbers.tolist()) ** 2


@pytest.mark.parametrize("case", [WATER, FORMYL], ids=["water", "formyl fluoride"])
def test_fock_matrix_turns_with_the_molecule(case):
    lay, numbers = layout("def2-svp"), torch.tensor(case[0])
    start = fock(molecule(case))
    for seed in range(5):
        turn = orthogonal(seed)
        d = lay.matrix_rotation(torch.from_numpy(turn), numbers)
        assert (d @ start @ d.T - fock(molecule(case, turn))).abs().max() < 1e-8


@pytest.mark.parametrize("basis", ["def2-svp", "def2-tzvp"])
def test_integrals_turn_exactly_also_under_reflection(basis):
    lay, numbers = layout(basis), torch.tensor(FORMYL[0])
    for seed in range(5):
        turn = orthogonal(seed) * (1 if seed else -1)
        d = lay.matrix_rotation(torch.from_numpy(turn), numbers)
        for name in ("int1e_ovlp", "int1e_kin", "int1e_nuc"):
            before, after = (torch.from_numpy(molecule(FORMYL, r, basis).intor(name)) for r in (None, turn))
            assert (d @ before @ d.T - after).abs().max() < 1e-10, name


def test_blocks_of_a_rotated_matrix_turn_block_by_block():
    lay, numbers = layout("def2-svp"), torch.tensor(FORMYL[0])
    turn = torch.from_numpy(orthogonal(3))
    start, d = torch.from_numpy(molecule(FORMYL).intor("int1e_kin")), lay.rotation(turn)
    whole = lay.matrix_rotation(turn, numbers)
    turned = lay.to_blocks(whole @ start @ whole.T, numbers)
    blocks = lay.to_blocks(start, numbers)
    torch.testing.assert_close(turned.diagonal, d @ blocks.diagonal @ d.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned.lower, d @ blocks.lower @ d.T, rtol=0, atol=1e-12)


def test_batch_splits_into_molecules_and_one_atom_has_no_pairs():
    lay = layout("def2-svp")
    batch = Blocks(torch.arange(4.0)[:, None, None] * torch.ones(14, 14), torch.zeros(3, 14, 14))
    three, one = batch.split([3, 1])
    assert three.lower.shape == (3, 14, 14) and one.lower.shape == (0, 14, 14)
    assert lay.to_matrix(one, torch.tensor([1])).shape == (5, 5)
    assert pair_index(3).tolist() == [[1, 2, 2], [0, 0, 1]]


def test_header_keeps_the_layout_and_errors_name_the_element():
    lay = layout("def2-TZVP", [1, 8, 16])
    assert OrbitalLayout.from_header(lay.header()) == lay
    with pytest.raises(UserError, match="no def2-svp orbitals for S; there are H, C, N, O, F"):
        layout("def2-svp").to_blocks(torch.zeros(2, 2), torch.tensor([16, 1]))
    with pytest.raises(UserError, match="no table of the shells of '6-31g'"):
        layout("6-31g")
    with pytest.raises(UserError, match=r"the matrix is \(9, 9\), def2-svp gives this molecule 10"):
        layout("def2-svp").to_blocks(torch.zeros(9, 9), torch.tensor([1, 1]))
