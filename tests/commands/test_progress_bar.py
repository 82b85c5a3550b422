"""Progress where there is no terminal: a line every half minute, with the time that is left."""

import pytest

from scorefield.commands.progress_bar import Bar


def test_without_a_terminal_there_is_a_line_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    bar = Bar("score", 1200, "image", clock=lambda: now)
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
    assert capsys.readouterr().err == "score: 0 of 10 samples\n"
