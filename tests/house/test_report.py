"""Reports of runs: self-contained pages that hold the run's numbers."""

import json
import re

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from tesseral import Structure
from tesseral.scripts import _drawing as drawing
from tesseral.scripts import _page as page
from tesseral.scripts.main import main

METRICS = """epoch,step,time_s,lr,train_forces_rmse,val_loss,val_energy_rmse,val_forces_rmse
1,10,5.5,0.001,300,3.0,12,310
2,20,11.0,0.001,200,1.0,8,217
3,30,95.0,0.001,150,2.0,9,250
"""


def water() -> Structure:
    """A water molecule that lies in no special plane."""
    return Structure([8, 1, 1], [[0, 0, 0], [0.6, 0.6, 0.3], [-0.6, 0.5, 0.4]])


def outside_references(text: str) -> list[str]:
    """Whatever a browser would load from elsewhere."""
    loads = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!#|data:)([^\"')>\s]+)", text)
    return [x for x in loads if not x.startswith("#")] + re.findall(r"@import|<link", text)


def test_training_page_shows_the_best_epoch(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text(METRICS)
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "217" in text and "best: epoch 2" in text and "1 min 35 s" in text
    assert text.count("<svg") == 2  # forces, energy; no stress was trained
    assert outside_references(text) == []
    assert main(["report", str(tmp_path)]) == 2
    assert "--force" in capsys.readouterr().err


def test_simulation_page_moves(tmp_path):
    from tesseral.md.dynamics import run_md

    output = tmp_path / "run.extxyz"
    run_md(bulk("Cu", cubic=True), EMT(), steps=40, output=output, seed=1, temperature_K=300.0, ensemble="nve")
    assert main(["report", str(output)]) == 0
    text = (tmp_path / "run.report.html").read_text()
    scene = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert len(scene["frames"]) == 5 and len(scene["frames"][0]) == 12 and len(scene["edges"]) == 12
    assert "meV/atom/ps" in text and "pressure" in text
    assert outside_references(text) == []


def test_something_else_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "metrics.csv" in capsys.readouterr().err
    (tmp_path / "metrics.csv").write_text(METRICS.splitlines()[0] + "\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "no finished epoch" in capsys.readouterr().err


def test_frames_of_a_molecule_are_superposed():
    """Turning and moving a frame changes nothing that is drawn."""
    from scipy.spatial.transform import Rotation

    first, moved = water(), water()
    moved.positions = Rotation.from_rotvec([0.3, 1.2, -0.5]).apply(moved.positions) + np.array([4, 5, 6])
    frames = drawing.scene([first, moved]).frames
    assert np.abs(frames[0] - frames[1]).max() < 1e-9
    distances = [np.linalg.norm(f[1] - f[2]) for f in (frames[0], first.positions)]
    assert distances[0] == pytest.approx(distances[1])


def test_molecule_is_not_mirrored():
    """The picture shows the molecule itself, not its mirror image."""
    chiral = Structure([6, 1, 9, 17, 35], [[0, 0, 0], [0.6, 0.6, 0.6], [-0.8, -0.7, 0.8], [-1, 1, -1], [1.1, -1, -1.1]])
    drawn = drawing.scene([chiral]).frames[0]

    def hand(p):
        return np.sign(np.linalg.det(p[1:4] - p[0]))

    assert hand(drawn) == hand(chiral.positions)


def test_bonds_and_near_atoms_in_front():
    scene = drawing.scene([water()])
    assert scene.bonds == [(0, 1), (0, 2)]
    text = drawing.still(scene, name="w")
    assert text.count("<circle") == 3 and text.count("<line") == 6
    radii = [float(r) for r in re.findall(r'<circle[^>]* r="([\d.]+)"', text)]
    expected = scene.radii[np.argsort(scene.frames[0][:, 2])]
    assert np.allclose(np.array(radii) / radii[0], expected / expected[0], atol=0.02)


def test_texts_are_escaped():
    made = page.Page("<script>", "a & b", kind="x").render() + page.paragraph("<b>") + page.table(["<i>"], [["<u>"]])
    assert not re.search(r"<(script|b|i|u)>", made) and "a &amp; b" in made


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (23.456, "23.5"),
        (-0.00123, "−0.00123"),
        (12345.0, "12345"),
        (None, "–"),
        (float("nan"), "–"),
        (0, "0"),
    ],
)
def test_numbers_are_readable(value, text):
    assert page.number(value) == text
