"""The error of few passes: none against the same passes, less with more of them, and the picture is there."""

import sys
from pathlib import Path

import pytest

from wm_jax.eval import oasis_error
from wm_jax.eval.oasis_error import OasisErrorConfig, curves, mixture_curves

pytestmark = pytest.mark.oasis
FOLDER = Path(__file__).parents[1] / "ports" / "open_oasis"


@pytest.mark.full
def test_the_answer_has_no_error_and_errors_are_handed_on_from_frame_to_frame(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oasis_error, "MANY", 3)
    config = OasisErrorConfig(weights=FOLDER, geometry="small", steps=(3, 1), frames=(1, 3), sessions=1)
    found = {(one.solver, one.steps, one.frame): one for one in curves(*config.load(), config)}
    assert found["ddim", 3, 1].relative == found["ddim", 3, 3].relative == 0.0
    assert found["ddim", 3, 3].psnr == pytest.approx(48.13, abs=0.01)
    assert found["ddim", 1, 1].relative == pytest.approx(found["dpmpp2m", 1, 1].relative, abs=1e-5)
    for frame in (1, 3):
        assert 0 < found["dpmpp2m", 3, frame].relative < 3 and 0 < found["ddim", 1, frame].relative < 3
        assert 0 < (found["ddim", 1, frame].psnr or 0) < 48


def test_on_a_mixture_that_is_known_the_second_order_wins_from_four_passes_on():
    found = {(one.solver, one.steps): one.relative for one in mixture_curves(OasisErrorConfig(steps=(4, 6, 8, 16)))}
    for steps in (4, 6, 8, 16):
        assert found["dpmpp2m", steps] < found["ddim", steps]
    assert found["dpmpp2m", 8] < 0.75 * found["ddim", 8]


def test_the_command_prints_a_table_and_draws(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    picture = tmp_path / "error.png"
    monkeypatch.setattr(sys, "argv", ["oasis_error", "--mixture", "--steps", "2", "5", "--out", str(picture)])
    assert oasis_error.main() == 0
    shown = capsys.readouterr().out
    assert "| passes | frame 1, ddim | frame 1, dpmpp2m |" in shown and "| 5 | 0." in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", ["oasis_error"])
    assert oasis_error.main() == 1
