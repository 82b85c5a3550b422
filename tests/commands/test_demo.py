"""The demo: that it runs, and (slowly) that what it trains is what it promises."""

import json
from pathlib import Path

import numpy as np
import pytest

from scorefield.commands.demo import demo
from scorefield.evaluation import DigitProbe
from scorefield.training.data import digits

pytestmark = pytest.mark.figures


def test_the_demo_runs_from_end_to_end_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = demo(tmp_path, quick=True)
    weights = sorted((tmp_path / "vp" / "checkpoints").iterdir())
    second = demo(tmp_path, quick=True)
    assert first == second
    assert sorted((tmp_path / "vp" / "checkpoints").iterdir()) == weights
    assert all(Path(file).stat().st_size > 0 for file in second["files"])
    assert "classifier of real digits" in capsys.readouterr().out


@pytest.mark.slow
def test_the_samples_are_digits(tmp_path: Path) -> None:
    # 1,000 samples of a fair ten-sided die lie within 6% and 14% but for one run in 4,000.
    demo(tmp_path)
    summary = json.loads((tmp_path / "demo.json").read_text())
    assert summary["probe_accuracy"] >= 0.98
    assert summary["vp"]["confidence_over_real"] >= 0.95
    assert summary["vp"]["least_share"] >= 0.06
    assert summary["vp"]["largest_share"] <= 0.14
    assert summary["ncsn"]["confidence_over_real"] >= 0.90


def test_the_probe_knows_digits_from_noise() -> None:
    real, held_out = digits("train"), digits("test")
    assert real.label is not None
    assert held_out.label is not None
    probe = DigitProbe(real.x, real.label)
    assert probe.accuracy(held_out.x, held_out.label) >= 0.98
    noise = np.random.default_rng(0).integers(0, 17, (500, 1, 8, 8))
    assert probe.confidence(noise) < 0.7 * probe.confidence(held_out.x)
    assert abs(probe.shares(held_out.x).sum() - 1) < 1e-9
