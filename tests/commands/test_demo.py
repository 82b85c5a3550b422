"""The demo: that it runs, and (slowly) that what it trains is what it promises."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorefield.commands.demo import demo
from scorefield.evaluation import DigitProbe
from scorefield.main import main
from scorefield.training.data import digits

pytestmark = pytest.mark.figures


class Here:
    """The command of a process, in this one."""

    def __init__(self, command: list[str], **_: Any) -> None:
        assert command[1:3] == ["-m", "scorefield.main"]
        self.status = main(command[2:])

    def wait(self) -> int:
        return self.status

    poll = wait


def test_the_demo_runs_from_end_to_end_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = demo(tmp_path, quick=True)
    assert all(Path(file).stat().st_size > 0 for file in first["files"])
    assert "classifier of real digits" in capsys.readouterr().out
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*/*")}
    monkeypatch.setattr(subprocess, "Popen", Here)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    assert demo(tmp_path, quick=True) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*/*")} == kept


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
