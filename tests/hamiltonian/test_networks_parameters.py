"""Parameter counts of the published networks, module by module, with the tensors that the released code never uses."""

import pytest

from tesseral.potentials.hamiltonian.layout import layout
from tesseral.potentials.hamiltonian.networks import build
from tesseral.potentials.hamiltonian.scalars import Idle

BASES = {"svp": layout("def2-svp"), "tzvp": layout("def2-tzvp")}


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def idle(module):
    return sum(count(m) for m in module.modules() if isinstance(m, Idle))


@pytest.fixture(scope="module")
def qhnet():
    return build("qhnet", {"preset": "reference"}, BASES["svp"])


@pytest.fixture(scope="module", params=["svp", "tzvp"])
def sphnet(request):
    model = build("sphnet", {"preset": f"reference-{request.param}"}, BASES[request.param])
    return request.param, model


def test_qhnet(qhnet):
    assert count(qhnet) == 20_415_673 and idle(qhnet) == 250_396
    assert count(build("qhnet", {"preset": "standard"}, BASES["svp"])) == 20_165_277


def test_qhnet_rows(qhnet):
    rows = {
        "embedding": (count(qhnet.embedding), 1_280),
        "radial": (count(qhnet.radial), 1),
        "convolution 1": (count(qhnet.first), 197_760),
        "convolution 2": (count(qhnet.convolutions[0]), 1_435_776),
        "convolutions": (count(qhnet.convolutions), 5_743_104),
        "self layer": (count(qhnet.selfs[0]), 2_715_904),
        "self layers": (count(qhnet.selfs), 5_431_808),
        "pair layer": (count(qhnet.pairs[0]), 4_216_192),
        "pair layers": (count(qhnet.pairs), 8_432_384),
        "output linears": (count(qhnet.heads), 40_960),
        "expansion weights, diagonal": (count(qhnet.diagonal_networks[0]), 247_680),
        "expansion biases, diagonal": (count(qhnet.diagonal_networks[1]), 18_318),
        "expansion weights, pairs": (count(qhnet.pair_networks[0]), 264_064),
        "expansion biases, pairs": (count(qhnet.pair_networks[1]), 34_702),
        "expansion operators": (count(qhnet.expansion), 0),
        "tables of the released operators": (count(qhnet.idle), 3_612),
    }
    assert {name: found for name, (found, _) in rows.items()} == {name: n for name, (_, n) in rows.items()}


def test_sphnet(sphnet):
    basis, model = sphnet
    total, clean = {"svp": (18_076_502, 17_736_556), "tzvp": (37_461_592, 36_980_150)}[basis]
    assert count(model) == total
    assert count(build("sphnet", {"preset": basis}, BASES[basis])) == clean
    edge_gate = count(model.second.pair_gate)
    assert total - edge_gate == {"svp": 18_075_733, "tzvp": 37_460_567}[basis]


def test_sphnet_rows(sphnet):
    basis, model = sphnet
    k = 0 if basis == "svp" else 1
    weights, biases = ((1_792, 14), (10_144, 55))[k]
    rows = {
        "radial scalars": (count(model.radial, model.pair_radial), (2, 2)),
        "vectorial part": (count(model.start), (2_132_013, 2_132_013)),
        "atom start": (count(model.start.start), (71_652, 71_652)),
        "split": (count(model.start.scalars, model.start.vectors), (33_024 + 32_768,) * 2),
        "radial functions of groups": (count(model.start.far_radial, model.start.far_edge), (6_628, 6_628)),
        "short layer": (count(model.start.near[0]), (263_808, 263_808)),
        "long layer": (count(model.start.far[0]) + 4 * 128, (214_912, 214_912)),
        "output of the vectorial part": (count(model.start.norms, model.start.out), (512 + 32_896,) * 2),
        "spherical layer 1": (count(model.first, model.norms[0]), (198_528, 247_936)),
        "spherical layer 2": (count(model.second, model.norms[1]), (1_437_313, 2_855_553)),
        "diagonal block": (count(model.selfs[0]), (2_740_994, 5_256_670)),
        "diagonal blocks": (count(model.selfs), (2 * 2_740_994, 2 * 5_256_670)),
        "block of pairs": (count(model.pairs[0]), (4_126_851, 9_479_007)),
        "blocks of pairs": (count(model.pairs), (2 * 4_126_851, 2 * 9_479_007)),
        "output linears": (count(model.heads), (2 * 20_480, 2 * 28_672)),
        "weight networks": (
            count(model.diagonal_networks[0], model.pair_networks[0]),
            (2 * 247_680, 2 * 1_325_088),
        ),
        "bias networks": (count(model.diagonal_networks[1], model.pair_networks[1]), (2 * 18_318, 2 * 23_607)),
    }
    assert (model.expansion.n_weights, model.expansion.n_biases) == (weights, biases)
    assert {name: found for name, (found, _) in rows.items()} == {name: n[k] for name, (_, n) in rows.items()}


def test_numbers_of_paths(qhnet, sphnet):
    basis, model = sphnet
    assert (len(model.second.paths), len(model.selfs[0].product.paths)) == ((42, 65) if basis == "svp" else (106, 175))
    into = [[sum(p.l3 == l for p in paths) for l in range(5)] for paths in (qhnet.convolutions[0].paths,)]
    assert into == [[5, 8, 10, 10, 9]]
    assert [sum(p.l3 == l for p in qhnet.pairs[0].product.paths) for l in range(5)] == [5, 12, 16, 17, 15]


def test_idle_tensors_are_not_trained(qhnet):
    assert sum(p.numel() for p in qhnet.parameters() if not p.requires_grad) == idle(qhnet)
