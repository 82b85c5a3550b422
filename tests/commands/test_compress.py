"""Compressing and restoring: arrays, images in files and splits come back to the bit, and wrong files are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import entropy
from training_runs import configuration, new_state

from scorefield.commands.codec import RunCodec, check_codec
from scorefield.commands.command_line import run as command_line
from scorefield.commands.compress import compress, decompress
from scorefield.commands.likelihood import likelihood
from scorefield.commands.run import DataFacts, Run
from scorefield.commands.trained import Trained
from scorefield.configs import build
from scorefield.configs import digits as digits_config
from scorefield.training import save
from scorefield.training.data import Dataset, digits


def new_run(workdir: Path, facts: DataFacts, width: int = 16, **training: object) -> Path:
    """A run with a checkpoint of random weights."""
    config = configuration()
    config.net = build.spec(build.NETWORKS, "mlp", width=width, blocks=1)
    config.training.update(**training)
    run = Run(workdir, config, facts, torch.device("cpu"))
    run.save()
    save(workdir / "checkpoints", new_state(run))
    return workdir


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress")
    return new_run(folder / "run", DataFacts.of(digits("train")), labels=True)


def test_a_bound_of_a_single_draw_has_no_error(made: Path, tmp_path: Path) -> None:
    said = compress(made, num=6, chain=1, draws=1, verify=False, output=str(tmp_path / "x.scorefield"), device="cpu")
    assert json.loads((tmp_path / "x.json").read_text())["bound_error"] is None
    assert "+-" not in said["bound of the chain"]


@pytest.fixture
def workdir(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def test_a_split_comes_back_with_its_classes(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = compress(workdir, num=30, chain=3, draws=2, device="cpu")
    report = json.loads((workdir / "compressed.json").read_text())
    assert report["verified"] and report["bytes"] == (workdir / "compressed.scorefield").stat().st_size
    assert report["file"] == pytest.approx(8 * report["bytes"] / (30 * 64))
    assert 0 < report["net"] < report["bound"] and report["bound_error"] > 0  # escapes are short, for random weights
    counts = np.bincount(digits("test").subset(30, 0).x.reshape(-1))
    assert report["entropy"] == pytest.approx(entropy(counts, base=2))
    assert said["files"] == [str(workdir / "compressed.scorefield"), str(workdir / "compressed.json")]
    decompress(workdir, device="cpu")
    data = digits("test").subset(30, 0)
    with np.load(workdir / "decompressed.npz") as file:
        assert file["x"].dtype == data.x.dtype
        np.testing.assert_array_equal(file["x"], data.x)
        np.testing.assert_array_equal(file["label"], data.label)
    threads = torch.get_num_threads()
    assert report["threads"] == threads


@pytest.mark.parametrize("kind", ["uint8", ">i4", "float64", "uint16"])
def test_an_array_comes_back_in_its_type(workdir: Path, tmp_path: Path, kind: str) -> None:
    x = np.random.default_rng(0).integers(0, 17, (1 if kind == "uint16" else 7, 1, 8, 8)).astype(kind)
    np.save(tmp_path / "x.npy", x)
    output = str(tmp_path / "there" / "x.scorefield")
    compress(workdir, input=str(tmp_path / "x.npy"), label=3, chain=2, draws=0, output=output, device="cpu")
    decompress(workdir, input=output, output=str(tmp_path / "back.npz"), device="cpu")
    with np.load(tmp_path / "back.npz") as file:
        assert (file["x"].dtype.str, file["x"].tobytes()) == (x.dtype.str, x.tobytes())


def test_images_in_files_come_back_as_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = Dataset("rgb", "train", rng.integers(0, 256, (9, 3, 6, 5), dtype=np.uint8), 256)
    workdir = new_run(tmp_path / "rgb", DataFacts.of(data))
    images = {f"{name}.png": rng.integers(0, 256, (6, 5, 3), dtype=np.uint8) for name in ("a", "deep/b", "a.bmp")}
    for name, image in images.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / name.replace(".bmp.png", ".bmp"))
    compress(workdir, input=str(tmp_path / "in"), chain=2, draws=0, device="cpu")
    decompress(workdir, device="cpu")
    for name, image in images.items():
        with Image.open(workdir / "decompressed" / name) as back:
            np.testing.assert_array_equal(np.asarray(back), image)


def test_a_likelihood_reports_the_rate_beside_the_bound(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorefield.commands.codec.CHAIN", 2)
    said = likelihood(workdir, num=25, estimators=["vlb"], chain=2, codec=True, device="cpu")
    rate = json.loads((workdir / "likelihood_test.json").read_text())["codec"]
    assert rate["chain"] == 2 and 5 < rate["n"] < 25 and 0 < rate["net"] < rate["bound"]
    assert said["codec, bits/dim"].startswith(f"{rate['net']:.4f} net of {rate['n']} images, decoded to the bit; ")
    said = likelihood(workdir, num=1, estimators=["vlb"], chain=2, codec=True, device="cpu")
    assert said["codec, bits/dim"].startswith("none: too few images")


def test_codes_and_paths_with_a_noise_level_for_each_dimension_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = digits_config.get_config("mulan")
    run = Run(tmp_path, config, DataFacts.of(digits("train")), torch.device("cpu"))
    trained = Trained(run, run.new_denoiser(), tmp_path, ema=True)
    with pytest.raises(ValueError, match="one noise level for all dimensions for --mode=compress, got MultivariateVP"):
        check_codec(trained, "compress")
    monkeypatch.setitem(vars(run), "autoencoder", "one")
    with pytest.raises(ValueError, match="without an autoencoder for --mode=compress, got a latent run"):
        check_codec(trained, "compress")


def test_images_that_come_back_otherwise_are_refused(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--mode=compress", f"--workdir={workdir}", "--num=6", "--chain=2", "--draws=0")
    right = RunCodec.decompress
    compress(workdir, num=6, chain=2, draws=0, verify=False, output=str(workdir / "x.scorefield"), device="cpu")
    monkeypatch.setattr(RunCodec, "decompress", lambda *args, **named: 1 - right(*args, **named))  # a wrong machine
    capsys.readouterr()
    assert command_line(["scorefield", *flags, "--device=cpu"]) == 2
    assert "got others: the network's answers are not the same" in capsys.readouterr().err
    assert not (workdir / "compressed.scorefield").exists()
    with pytest.raises(ValueError, match="this machine rounds another way"):
        decompress(workdir, input=str(workdir / "x.scorefield"), device="cpu")
    assert not (workdir / "decompressed.npz").exists()


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line of a command that ends with status 2."""
    capsys.readouterr()
    assert command_line(["scorefield", *flags, "--device=cpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and len(lines[0]) <= 320
    return lines[0]


def test_other_files_other_weights_and_continuous_data_are_refused(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"--workdir={workdir}"
    assert "found none: compress" in refused(capsys, "--mode=decompress", where)
    compress(workdir, num=20, chain=2, draws=0, device="cpu")
    file = workdir / "compressed.scorefield"
    data = file.read_bytes()
    file.write_bytes(data[:-3])
    assert "truncated or damaged" in refused(capsys, "--mode=decompress", where)
    file.write_bytes(b"hello, this is no such file")
    assert "got another: give --input" in refused(capsys, "--mode=decompress", where)
    other = new_run(tmp_path / "other", DataFacts.of(digits("train")), width=8, labels=True)
    file.write_bytes(data)
    assert "got others in" in refused(capsys, "--mode=decompress", f"--workdir={other}", f"--input={file}")
    points = Dataset("points", "train", np.zeros((4, 1, 8, 8), np.float32), None)
    continuous = new_run(tmp_path / "continuous", DataFacts.of(points))
    assert "got continuous data" in refused(capsys, "--mode=compress", f"--workdir={continuous}")
    assert "--input or --split" in refused(capsys, "--mode=compress", where, f"--input={file}", "--split=test")
    assert not list(tmp_path.rglob("*.part"))
