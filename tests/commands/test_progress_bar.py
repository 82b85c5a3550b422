"""Progress where there is no terminal: a line at once and every half minute, with the time that is left."""

from pathlib import Path

import pytest
from training_runs import new_run, new_state

from scorefield.commands import command_line, progress_bar
from scorefield.commands.compare import compare
from scorefield.commands.encode import decode, encode
from scorefield.commands.grid import grid
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.progress_bar import Bar
from scorefield.commands.sample import sample
from scorefield.commands.train_dequantiser import train_dequantiser
from scorefield.training import save


def test_without_a_terminal_there_is_a_line_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    bar = Bar("score", 1200, "image", clock=lambda: now)
    assert capsys.readouterr().err == "score: 0 of 1,200 images\n"
    bar.skip(100)
    progress = bar.part(400)
    lines = []
    for now in range(10, 101, 10):
        progress(now / 100)
        lines.append(capsys.readouterr().err)
    # After 30 s, 220 of 1,200 are done: the other 980 take 133.6 s. After 60 s, 860 take 152 s: 340 took 60 s.
    expected = {
        3: "score: 220 of 1,200 images, 2 min 14 s left\n",
        6: "score: 340 of 1,200 images, 2 min 32 s left\n",
        9: "score: 460 of 1,200 images, 2 min 25 s left\n",
    }
    assert {i + 1: line for i, line in enumerate(lines) if line} == expected
    bar.say(gain="0.5")
    now = 200.0
    bar.skip(700)
    assert capsys.readouterr().err == "score: 1,200 of 1,200 images, gain 0.5, 0 s left\n"


def test_nothing_is_said_where_nothing_is_to_be_shown_or_known(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    hidden, begun = Bar("score", 10, show=False, clock=lambda: now), Bar("score", 10, clock=lambda: now)
    now = 50.0
    hidden.skip(5)
    begun.skip(0)  # no speed is known
    assert capsys.readouterr().err == 2 * "score: 0 of 10 samples\n"


def test_every_long_command_tells_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path)
    run.save()
    save(tmp_path / "checkpoints", new_state(run))
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0.0)
    sample(tmp_path, num=3, batch=2, steps=2)
    compare(tmp_path, num=2, solver=("ddim",), steps=(2,))
    grid(tmp_path, num=2, steps=16)
    encode(tmp_path, num=2, steps=2)
    decode(tmp_path)
    likelihood(tmp_path, num=3, batch=2, steps=2)
    train_dequantiser(tmp_path, num=32, batch=16)
    out, err = (text.splitlines() for text in capsys.readouterr())
    assert sum(line.startswith("reads the averaged weights of ") for line in out) == 7  # of each command, before it
    assert "reads the test split of digits" in out
    begun = {line for line in err if ": 0 of " in line}
    assert begun >= {f"{name}: 0 of 3 images" for name in ("likelihood", "prior KL")}, begun
    lines = [line.rpartition(", ")[0].partition(", gain")[0] for line in err]
    ends = (
        "sample: 2 of 3 samples", "sample: 3 of 3 samples", "unipc, 250 steps: 2 of 2 samples",
        "ddim, 2 steps: 2 of 2 samples", "grid: 2 of 2 samples", "encode: 2 of 2 samples",
        "decode: 2 of 2 samples", "likelihood: 2 of 3 images", "likelihood: 3 of 3 images", "check: 3 of 3 samples",
        "train dequantiser: 16 of 32 images", "train dequantiser: 32 of 32 images",
    )  # fmt: skip
    assert not [end for end in ends if end not in lines], lines


def test_a_command_says_what_it_does_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = list[str]()

    def importing(_: str) -> None:
        said.append(capsys.readouterr().out)
        raise ValueError("far enough")

    monkeypatch.setattr(command_line, "_command", importing)
    assert command_line.run(["scorefield", "sample", "--workdir=a"]) == 2
    assert said == ["sample a: draw samples\n"]
    monkeypatch.setenv("RANK", "1")  # of two processes, one says it
    command_line.run(["scorefield", "sample", "--workdir=a"])
    assert said[1:] == [""]
