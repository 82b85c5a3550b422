"""Encoding and decoding: what a file of latents carries, what is replaced, and which images are taken."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from said import without_progress
from training_runs import configuration, new_state, untrained_run

from scorefield.commands.compare import compare
from scorefield.commands.encode import decode, encode
from scorefield.commands.flow import along_flow, rms
from scorefield.commands.grid import grid
from scorefield.commands.images import read_input
from scorefield.commands.interpolate import interpolate
from scorefield.commands.outputs import newest
from scorefield.commands.run import DataFacts, Run
from scorefield.commands.sample import sample
from scorefield.commands.trained import open_trained
from scorefield.configs import build
from scorefield.training import save
from scorefield.training.data import folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("encode") / "run")


@pytest.fixture
def workdir(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def report(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return read


def test_latents_that_moved_decode_as_they_were_encoded(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(workdir, num=4, steps=16, device="cpu")
    encode(workdir, num=4, solver="heun", grid="optimal", steps=7, ema=False, device="cpu")
    capsys.readouterr()
    grid(workdir, num=4, steps=16, order=1, device="cpu")  # other times under the same name
    assert without_progress(capsys.readouterr().err) == f"replaces {workdir / 'grid.json'}\n"
    run = open_trained(workdir, "cpu").run
    state = new_state(run)
    torch.nn.init.normal_(state.denoiser.net.head.weight, std=0.5)
    state.images = 7
    save(workdir / "checkpoints", state)  # trained further
    moved = Path(shutil.move(workdir / "latents.npz", tmp_path / "moved.npz"))
    (workdir / "latents.json").unlink()
    capsys.readouterr()
    decode(workdir, input=str(moved), device="cpu")
    assert without_progress(capsys.readouterr().err) == ""
    decoded = report(workdir / "decoded.npz")
    assert (decoded["solver"], decoded["grid"], decoded["steps"]) == ("heun", "optimal", 7)
    assert (decoded["weights"], decoded["checkpoint"]) == ("raw", "0000000000")
    with np.load(moved, allow_pickle=False) as file:
        latent, t, x = (torch.as_tensor(file[name]) for name in ("latent", "t", "x"))
    trained = open_trained(workdir, "cpu", ema=False, checkpoint="0")
    back = build.build(build.SOLVERS, "heun")(trained.denoiser, run.sde, latent, t)
    assert decoded["round_trip_rms"] == pytest.approx(rms(back, run.centred(x)), rel=1e-5)

    decode(workdir, input=str(moved), solver="ddim", steps=9, checkpoint="latest", device="cpu")
    said = without_progress(capsys.readouterr().err).splitlines()[0]
    assert said.startswith("these latents were encoded by solver heun, not ddim, steps 7, not 9, checkpoint_sha256 ")


def test_latents_of_older_versions_decode_as_their_report_says(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(workdir, num=4, solver="heun", steps=5, device="cpu")
    with np.load(workdir / "latents.npz") as file:
        old = {name: file[name] for name in ("latent", "x")}
    np.savez(workdir / "latents.npz", **old)
    decode(workdir, device="cpu")
    assert report(workdir / "decoded.npz")["round_trip_rms"] == report(workdir / "latents.npz")["round_trip_rms"]
    assert report(workdir / "decoded.npz")["steps"] == 5
    (workdir / "latents.json").unlink()
    capsys.readouterr()
    assert decode(workdir, device="cpu")["solver"] == "ddim"
    assert "does not say what encoded it: takes ddim in 100 steps" in capsys.readouterr().err


def test_the_default_comes_back_and_another_solver_that_does_not_says_so(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = encode(workdir, num=20, device="cpu")
    assert "come back" not in capsys.readouterr().err
    assert said["round_trip_rms"] < 0.05
    encode(workdir, num=20, solver="ddim", steps=4, device="cpu")
    error = report(workdir / "latents_2.npz")["round_trip_rms"]
    assert error > 0.05
    assert f"come back from these latents with an error of {error:.2g} (rms)" in capsys.readouterr().err
    trained = open_trained(workdir, "cpu")
    with np.load(workdir / "latents_2.npz") as file:
        latent, x = torch.as_tensor(file["latent"][:16]), torch.as_tensor(file["x"][:16])
    options = {"solver": "ddim", "grid": "log_snr", "steps": 4}
    back, _ = along_flow(trained.run, trained.denoiser, latent, options, up=False)
    assert error == pytest.approx(rms(back, trained.run.centred(x)), rel=1e-5)


def test_nothing_is_replaced_without_a_line(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode(workdir, num=3, steps=2, device="cpu")
    first = (workdir / "latents.npz").read_bytes()
    capsys.readouterr()
    encode(workdir, num=3, steps=3, device="cpu")
    kept = f"keeps {workdir / 'latents.npz'} (steps 2, not 3) and writes {workdir / 'latents_2.npz'}"
    assert kept in capsys.readouterr().err.splitlines()
    assert (workdir / "latents.npz").read_bytes() == first
    assert newest(workdir, "latents") == workdir / "latents_2.npz"
    assert decode(workdir, device="cpu")["latents"] == str(workdir / "latents_2.npz")
    encode(workdir, num=3, steps=2, device="cpu")
    assert f"replaces {workdir / 'latents.npz'}, which the same settings made" in capsys.readouterr().err
    assert decode(workdir, device="cpu")["latents"] == str(workdir / "latents.npz")
    assert (workdir / "decoded_2.npz").is_file()

    for steps in (2, 3):
        sample(workdir, num=2, steps=steps, device="cpu")
        interpolate(workdir, num=2, steps=steps, device="cpu")
        compare(workdir, num=2, steps=(steps,), solver=("ddim",), device="cpu")
    assert (workdir / "samples_2.npz").is_file()
    assert (workdir / "compare_2.npz").is_file()
    assert (workdir / "interpolation_2.npz").is_file()
    (workdir / "samples_3.png").touch()  # of somebody else
    sample(workdir, num=2, steps=4, device="cpu")
    assert (workdir / "samples_4.npz").is_file()

    given = tmp_path / "new" / "s.npz"
    capsys.readouterr()
    sample(workdir, num=2, steps=2, output=str(given), device="cpu")
    assert without_progress(capsys.readouterr().err) == f"makes the folder {given.parent}\n"
    sample(workdir, num=2, steps=3, output=str(given), device="cpu")
    assert without_progress(capsys.readouterr().err) == f"replaces {given}\n"


def photographs(place: Path) -> Path:
    random = np.random.default_rng(0)
    place.mkdir()
    for i, size in enumerate([(12, 9, 3), (8, 8, 3), (8, 11)]):
        Image.fromarray(random.integers(0, 256, size).astype(np.uint8)).save(place / f"{i}.png")
    return place


@pytest.mark.parametrize("settings", [{"size": 8, "fit": "resize", "resample": "box", "crop": 7}, {"size": 8}, {}])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_given_to_a_run_become_as_its_reader_made_them(
    tmp_path: Path, settings: dict[str, Any], channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    place, config = photographs(tmp_path / "photographs"), configuration()
    config.data = build.spec(build.DATASETS, "folder", path="gone", **settings)
    facts = DataFacts("photographs", (channels, 8, 8), 256, None, "")
    read = read_input(Run(tmp_path, config, facts, torch.device("cpu")), place)
    there = {**settings, "channels": channels, "cache": "off"} | ({} if settings else {"size": 8})
    wanted = [folder(place, split, **there).x for split in ("test", "train")]  # the first image, and the others
    assert (read.x == np.concatenate(wanted)).all()
    assert capsys.readouterr().err == ("" if settings else "2 of 3 images are resized to 8x8 (height x width)\n")


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((1, 8, 9), None), ((3, 8, 8), None), ((8, 8), "x[:, None]"), ((8, 8, 1), "x.transpose(0, 3, 1, 2)")],
)
def test_arrays_of_another_shape_are_refused(
    shape: tuple[int, ...], remedy: str | None, workdir: Path, tmp_path: Path
) -> None:
    x = np.full((2, *shape), 255, np.uint8)  # other levels as well: the shape comes first
    np.save(tmp_path / "x.npy", x)
    said = f"expected data of shape (1, 8, 8), as this run was trained on, got {shape} in x: "
    with pytest.raises(ValueError, match=re.escape(said + (f"save {remedy}" if remedy else "give data of that shape"))):
        encode(workdir, input=str(tmp_path / "x.npy"), device="cpu")
    if remedy:
        assert eval(remedy, {"x": x}).shape[1:] == (1, 8, 8)


def test_a_photo_for_a_run_of_other_levels_says_what_they_are(workdir: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    levels = r"expected 17 levels \(integers 0 .. 16\).*got 256 levels .* in x.png: scale its values to these, and save"
    with pytest.raises(ValueError, match=levels):
        encode(workdir, input=str(tmp_path / "x.png"), device="cpu")
