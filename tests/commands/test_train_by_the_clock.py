"""What training shows, draws and saves by the clock, and what it chooses by the data."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from safetensors.torch import load_file

from scorefield.commands.check_data import check_data
from scorefield.commands.interruption import Stop
from scorefield.commands.progress_bar import duration
from scorefield.commands.run import open_run
from scorefield.commands.train import pictures
from scorefield.commands.train.command import train
from scorefield.commands.training import progress
from scorefield.commands.training.timetable import CHECKPOINT, PICTURE, Timetable
from scorefield.configs import build, digits, own
from scorefield.training.distributed.ranks import Agreement, Ranks


def small(images: int = 128, **settings: object) -> ConfigDict:
    config = digits.get_config("vp")
    config.net = build.spec(build.NETWORKS, "mlp", width=8, blocks=1)
    config.sampling.steps = 2
    config.training.update(images=images, batch=32, log_every=3, decay=False, **settings)
    return config


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (725, "12 min"), (3599.6, "1 h"),
        (4320, "1 h 12 min"), (36935, "10 h 16 min"), (90_000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_times_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def made(settings: dict[str, float], seconds: int, drawing: float = 0.0) -> dict[int, list[float]]:
    """When pictures and checkpoints are made in a run whose steps take a second."""
    now = 0.0
    timetable = Timetable(ConfigDict(settings), lambda: now)
    times: dict[int, list[float]] = {PICTURE: [], CHECKPOINT: []}
    while (now := now + 1) < seconds:
        request = timetable.request()
        for what in (each for each in times if request & each):
            assert not timetable.request()  # an answer may come late: nothing is requested twice
            times[what].append(now)
            with timetable.making(what):
                now += drawing if what == PICTURE else 0
    return times


EVERY = {"sample_every": 1, "sample_seconds": 60.0, "checkpoint_every": 1, "checkpoint_seconds": 600.0}


def test_pictures_come_after_a_minute_and_then_twice_as_late_and_checkpoints_every_ten() -> None:
    times = made(EVERY, 3600)
    assert times == {PICTURE: [60, 120, 240, 480, 960, 1920], CHECKPOINT: [600, 1200, 1800, 2400, 3000]}
    # A drawing of 40 s is followed by 400 s without.
    assert made(EVERY, 1000, drawing=40)[PICTURE] == [60, 500]
    for key, none in (("sample_every", PICTURE), ("sample_seconds", PICTURE), ("checkpoint_every", CHECKPOINT)):
        assert made({**EVERY, key: 0}, 3600) == {**times, none: []}


def test_a_request_goes_with_the_signal() -> None:
    stop = Stop(Agreement(Ranks()))
    assert [stop.agreed(), stop.agreed(PICTURE | CHECKPOINT)] == [(0, 0), (0, 3)]
    stop.signal = 15
    assert stop.agreed(PICTURE) == (15, 1)


def test_the_clock_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: object, **__: object) -> torch.Tensor:
        return torch.rand(36, 1, 8, 8)  # with the random numbers that the network's dropout takes next

    monkeypatch.setattr(pictures, "generate", drawn)
    for name, seconds in (("with", 1e-9), ("without", 0.0)):
        config = small(sample_every=10**9, checkpoint_every=10**9, sample_seconds=seconds, checkpoint_seconds=seconds)
        config.net = build.spec(build.NETWORKS, "unet", width=4, multipliers=(1,), blocks=1, dropout=0.5)
        train(tmp_path / name, config, device="cpu")
    runs = tmp_path / "with", tmp_path / "without"
    assert [len(list((run / "samples").iterdir())) for run in runs] == [2, 1]  # after the first step, and at the end
    assert [len(list((run / "checkpoints").iterdir())) for run in runs] == [2, 1]  # training.keep
    weights = [load_file(run / "checkpoints" / "0000000128" / "model.safetensors") for run in runs]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert (runs[0] / "metrics.jsonl").read_bytes() == (runs[1] / "metrics.jsonl").read_bytes()


def test_the_first_line_says_how_long_it_takes_and_further_ones_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "ESTIMATED", 0.0)
    train(tmp_path, small(160, log_seconds=1e-9, sample_every=0), device="cpu")
    lines = [line for line in capsys.readouterr().out.splitlines() if "images/s" in line]
    assert re.fullmatch(r"\S+ images/s: \d+ s to go", lines[0])
    assert [line.split()[0] for line in lines[1:]] == ["96", "128", "160"]
    assert all(re.fullmatch(r" +\d+ images  loss \d\.\d{4}  \S+ images/s  \d+ s left", line) for line in lines[1:])
    train(tmp_path, small(2_000, log_seconds=0.0, sample_every=0), device="cpu")
    assert sum("images/s" in line for line in capsys.readouterr().out.splitlines()) == 1


# Own data


def photographs(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(sizes):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))  # keeps its spread when it is made smaller
        coarse.resize((width, height), Image.Resampling.NEAREST).save(folder / f"{i}.png")
    return folder


def of_shape(count: int, *shape: int) -> dict[str, Any]:
    return own.preset(count, shape)


@pytest.mark.parametrize(
    ("shape", "levels"), [((3, 32, 32), 3), ((1, 28, 28), 3), ((3, 64, 64), 4), ((3, 8, 8), 2), ((3, 96, 64), 4)]
)
def test_a_network_halves_the_images_to_about_eight_pixels(shape: tuple[int, ...], levels: int) -> None:
    chosen = of_shape(20, *shape)
    assert (len(chosen["net.multipliers"]), chosen["net.attention"]) == (levels, (levels - 1,))


def test_few_images_get_a_small_network_and_many_a_large_one() -> None:
    few, many = of_shape(1_800, 1, 8, 8), of_shape(50_000, 1, 8, 8)
    assert few["net.width"] < many["net.width"] and few["training.images"] < many["training.images"] == 1_000_000


@pytest.mark.parametrize(
    ("sizes", "size"),
    [([(20, 30), (30, 20), (17, 90)], 32), ([(16, 16)] * 3, 16), ([(24, 16)] * 3, (16, 24)), ([(300, 200)] * 3, 32)],
)
def test_a_folder_trains_with_nothing_but_its_path(
    sizes: list[tuple[int, int]], size: int | tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = own.get_config()
    config.data.path = str(photographs(tmp_path / "photos", sizes))
    config.net.width = 4
    config.training.update(images=32, sample_every=0)
    train(tmp_path / "run", config, device="cpu")
    run = open_run(tmp_path / "run", "cpu")
    sides = size if isinstance(size, tuple) else (size, size)
    assert run.data.shape == (3, *sides)
    assert run.config.data.size == (list(size) if isinstance(size, tuple) else size)
    assert (run.config.net.width, run.config.net.blocks, run.config.training.batch) == (4, 1, 32)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("chosen by the data: "))
    assert "net.blocks=1" in line and "net.width" not in line
    caches = [place for place in (tmp_path / "photos" / ".scorefield").iterdir() if place.is_dir()]
    assert run.dataset("train").shape == run.data.shape and len(caches) == 1  # decoded once


def test_a_run_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    config = own.get_config()
    config.data.path = str(photographs(tmp_path / "photos", [(16, 16)] * 4))
    config.training.update(images=32, sample_every=0)
    config.net.width = 4
    train(tmp_path / "run", config, device="cpu")
    file = tmp_path / "run" / "config.json"
    saved = json.loads(file.read_text())
    saved["config"]["training"]["learning_rate"] = 3e-4
    for key in ("ema_ramp", "log_seconds", "sample_seconds", "checkpoint_seconds"):  # newer than the file
        del saved["config"]["training"][key]
    file.write_text(json.dumps(saved))
    again = own.get_config()
    again.data.path = config.data.path
    again.training.update(images=64, sample_every=0)
    assert train(tmp_path / "run", again, device="cpu")["images"] == 64
    described = open_run(tmp_path / "run", "cpu").config
    assert (described.net.width, described.training.learning_rate, described.training.ema_ramp) == (4, 3e-4, 0.0)


def test_check_data_tries_the_network_that_training_would_choose(tmp_path: Path) -> None:
    config = own.get_config()
    config.data.path = str(photographs(tmp_path / "photos", [(20, 30), (30, 20), (40, 40)]))
    report = check_data(tmp_path, config)
    assert report["network"] == "unet takes it"
    assert report["chosen_by_the_data"]["net.multipliers"] == (1, 2, 2)
