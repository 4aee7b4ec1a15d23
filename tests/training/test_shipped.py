"""Shipped models are found by name, in every room; files of the same name come first."""

import pytest
import torch

import tesseral
from tesseral.datasets.errors import UserError
from tesseral.training import shipped
from tesseral.training.checkpoint import write_checkpoint


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "weights", lambda room: tmp_path / room)
    for room, name in (("potentials", "energies"), ("generative", "molecules"), ("generative", "more")):
        write_checkpoint(tmp_path / room / f"{name}.safetensors", {"w": torch.ones(1)}, {"room": room})
    return tmp_path


def test_names_of_all_rooms_or_of_one(shelf):
    assert shipped.locate("molecules") == shelf / "generative" / "molecules.safetensors"
    assert shipped.locate("energies", "potentials") == shelf / "potentials" / "energies.safetensors"
    assert list(shipped.shipped("generative")) == ["molecules", "more"]
    assert shipped.shipped("hamiltonian") == {}
    with pytest.raises(UserError, match=r"neither a file nor a shipped model \(energies\)"):
        shipped.locate("molecules", "potentials")


def test_a_file_comes_before_a_shipped_name(shelf, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_checkpoint(tmp_path / "elsewhere" / "molecules", {"w": torch.ones(1)}, {"room": "generative"})
    assert shipped.locate("molecules").name == "molecules"


def test_load_says_what_there_is(shelf, tmp_path):
    with pytest.raises(UserError, match="energies, molecules, more"):
        tesseral.load("nothing")
    strange = write_checkpoint(tmp_path / "strange.safetensors", {"w": torch.ones(1)}, {"room": "kitchen"})
    with pytest.raises(UserError, match="room 'kitchen'"):
        tesseral.load(strange)
