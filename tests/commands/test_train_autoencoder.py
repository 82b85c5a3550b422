"""`--mode=train_autoencoder`: what it writes and measures, resumes and refuses."""

import errno
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from safetensors.torch import load_file

from scorefield.commands.autoencoder_files import read_autoencoder, write_autoencoder
from scorefield.commands.command_line import run
from scorefield.commands.configuration import load, of_run
from scorefield.commands.train_autoencoder import command, session
from scorefield.commands.train_autoencoder.command import train_autoencoder
from scorefield.commands.train_autoencoder.log import Log
from scorefield.configs import autoencoder, build
from scorefield.training import Step
from scorefield.training.data import digits

VQ = "vq:quantiser='codebook:size=16',code_channels=2,width=4,multipliers=(1,2),blocks=1,middle_attention=False"
# As tests/models/networks has them for the networks alone: Rombach et al. 2022, their first stages.
PARAMETERS = {
    "kl_f4": 55_312_063, "kl_f8": 83_653_863, "kl_f16": 69_610_963, "kl_f32": 103_880_131,
    "vq_f4": 55_322_782, "vq_f8": 67_717_295, "vq_f16": 69_593_371,
}  # fmt: skip


def small(images: int = 96, *changes: str, **settings: object) -> ConfigDict:
    config = load("autoencoder:digits", changes)
    config.net.width = 4
    config.training.update(
        images=images, batch=16, log_every=2, evaluate_every=32, evaluate_images=20, measure_images=50, decay=False,
        sample_every=0, checkpoint_every=0,
    )  # fmt: skip
    config.training.update(**settings)
    return config


def against_a_discriminator(images: int) -> ConfigDict:
    config = small(images, f"--config.net={VQ}", checkpoint_every=64, log_every=3)
    config.loss.update(
        perceptual="laplacian", adversarial=0.5, start=2, ramp=2, discriminator_width=4, discriminator_layers=1
    )
    return config


def rows(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ae"
    train_autoencoder(folder, small(96, "--config.loss.perceptual=laplacian"), device="cpu")
    return folder


def test_the_numbers_are_those_of_the_written_weights_on_held_out_images(workdir: Path) -> None:
    stored = read_autoencoder(workdir)
    images = digits("test").subset(20, 0).x
    x = 2 * (images + 0.5) / 17 - 1
    with torch.no_grad():
        y = stored.module(torch.from_numpy(x).float()).clamp(-1, 1).double().numpy()
    error = np.square(x - y).mean((1, 2, 3))
    psnr = 10 * np.log10((2 * 16 / 17) ** 2 / error)  # from the smallest level to the largest one
    measured = [row["held_out"] for row in rows(workdir) if "held_out" in row]
    assert [row["images"] for row in rows(workdir) if "held_out" in row] == [32, 64, 96]
    assert measured[-1]["psnr"] == pytest.approx(psnr.mean(), abs=1e-4)
    assert measured[-1]["psnr_error"] == pytest.approx(psnr.std(ddof=1) / math.sqrt(20), abs=1e-4)
    assert {"ssim", "laplacian", "kl_per_dimension", "kl_by_channel"} <= measured[-1].keys()
    report = json.loads((workdir / "autoencoder_report.json").read_text())
    assert report["held_out"]["psnr"] == measured[-1]["psnr"]
    assert report["perceptual"] == "laplacian" and any("LPIPS" in line for line in report["taken_for_granted"])
    assert stored.measured is not None and stored.measured["images"] == 50 and stored.shape == (1, 8, 8)
    assert (workdir / "curves.png").is_file()


def test_a_kill_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Log.evaluate

    def killed(self: Log, step: Step) -> None:
        if step.images == 96:  # two steps after the checkpoint, which is in the middle of a row
            raise KeyboardInterrupt
        evaluate(self, step)

    monkeypatch.setattr(Log, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(tmp_path / "run", against_a_discriminator(128), device="cpu")
    monkeypatch.setattr(Log, "evaluate", evaluate)
    for name, left in (("run", 64), ("unbroken", 128)):
        summary = train_autoencoder(tmp_path / name, against_a_discriminator(128), device="cpu")
        assert summary["images_this_time"] == left
    places = [tmp_path / name / "checkpoints" / "0000000128" for name in ("run", "unbroken")]
    for file in ("model.safetensors", "ema.safetensors"):
        ours, theirs = (load_file(place / file) for place in places)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = (torch.load(place / "state.pt", weights_only=True) for place in places)
    optimizers = [[state["optimizer"], *state["more_optimizers"]] for state in (ours, theirs)]
    assert len(optimizers[0]) == 2
    for mine, other in zip(*optimizers, strict=True):
        for key, moments in mine["state"].items():
            assert all(torch.equal(moment, other["state"][key][name]) for name, moment in moments.items())
    ours, theirs = (rows(tmp_path / name) for name in ("run", "unbroken"))
    assert ours == theirs
    steps = [row for row in theirs if "loss" in row]
    assert [row["step"] for row in steps if "discriminator_loss" in row] == [3, 6, 8]
    assert [row["adversarial_weight"] > 0 for row in steps] == [True, True, True]
    assert {"codes_used", "perplexity"} <= theirs[-1]["held_out"].keys()


def test_workdir_alone_resumes(workdir: Path) -> None:
    files = [workdir / name for name in ("config.json", "autoencoder_report.json")]
    before = [file.read_text() for file in files]
    assert train_autoencoder(workdir, of_run(workdir), device="cpu")["images_this_time"] == 0
    assert [file.read_text() for file in files] == before


def test_a_folder_of_images_chooses_its_size(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    for images in (16, 32):
        path = f"--config.data.path={tmp_path / 'photos'}"
        config = load("autoencoder:own", (path, "--config.training.sample_every=0", "--config.training.decay=false"))
        config.net.width, config.training.images = 4, images
        train_autoencoder(tmp_path / "run", config, device="cpu")
    stored = read_autoencoder(tmp_path / "run")
    assert stored.shape == (3, 12, 12) and stored.data is not None and stored.data["size"] == 12


def test_a_full_disk_stops_the_run_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(session, "write_autoencoder", full)
    with pytest.raises(ValueError, match=r"^No space left on device: [^\n]*make room, and run the same command again$"):
        train_autoencoder(tmp_path / "run", small(32), device="cpu")
    summary = train_autoencoder(tmp_path / "on", small(32, on_full_disk="continue"), device="cpu")
    assert summary["images"] == 32


def test_a_step_that_is_not_finite_names_its_layer_and_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = command._start

    def poisoned(*arguments: Any) -> Any:
        begun = start(*arguments)
        with torch.no_grad():
            begun.state.model.autoencoder.decoder.head.bias.fill_(math.nan)
        return begun

    monkeypatch.setattr(command, "_start", poisoned)
    with pytest.raises(ValueError, match=r"^step 1 .*the weight autoencoder.decoder.head.bias is not finite"):
        train_autoencoder(tmp_path / "run", small(32), device="cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("variant", autoencoder.VARIANTS)
def test_every_configuration_makes_its_network(variant: str) -> None:
    config = autoencoder.get_config(variant)
    with torch.device("meta"):
        net = build.autoencoder(config.net, 3)
    assert not variant[-1].isdigit() or net.factor == int(variant.rpartition("_f")[2])
    if variant in PARAMETERS:
        assert sum(p.numel() for p in net.parameters()) == PARAMETERS[variant]
        assert config.loss.perceptual == "lpips" and config.training.learning_rate == pytest.approx(4.5e-6 * 12)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--config=autoencoder:fashion", "expected a variant of autoencoder"),
        ("--config=digits:vp", "got one of a denoiser: train that with --mode=train"),
        ("--config=autoencoder:digits --config.training.labels=true", "in place of 'labels' there is"),
        ("--config=autoencoder:digits --config.data=toy:kind=moons", r"expected images \(C, H, W\) for an autoencoder"),
        ("--config=autoencoder:digits --config.net=kl:multipliers=(1,1,1,1,1)", "sides divide by 16.*got 8 x 8"),
        ("--config=autoencoder:digits --config.loss.norm=l3", "expected loss.norm to be l1 or l2, got l3"),
        ("--config=autoencoder:digits --config.loss.kl=-1", "expected loss.kl to be 0 or more, got -1"),
        ("--config=autoencoder:digits --config.training.batch=0", "expected training.batch to be at least 1"),
        ("--config=autoencoder:digits --config.training.evaluate_images=0", "expected training.evaluate_images"),
        ("--config=autoencoder:digits --config.loss.perceptual=lpips:weights=none.pth", "no such file"),
        ("--config=autoencoder:digits --config.loss.perceptual=lpips:weights=text.txt", "expected"),
        ("--config=autoencoder:digits --config.loss.perceptual=lipps", "got 'lipps': did you mean 'lpips'"),
        ("--config=autoencoder:digits --config.loss.adversarial=0.5", "pixels a side for the discriminator"),
    ],
)
def test_a_wrong_command_gets_one_line(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("hello")
    assert run(["scorefield", "--mode=train_autoencoder", "--workdir=new", "--device=cpu", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert re.search(says, err) and err.count("\n") == 1 and len(err) <= 330, err
    assert all(line.startswith(("train_autoencoder new: ", "reads the train split")) for line in out.splitlines())
    assert not (tmp_path / "new").exists()


def test_an_imported_autoencoder_is_not_replaced(workdir: Path, tmp_path: Path) -> None:
    write_autoencoder(tmp_path, read_autoencoder(workdir))
    with pytest.raises(ValueError, match="where one was imported: choose another"):
        train_autoencoder(tmp_path, small(32), device="cpu")


def test_a_directory_of_an_autoencoder_is_not_taken_for_a_run_of_a_denoiser(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, says in (
        ("--mode=sample", "expected a run of a denoiser in"),
        ("--mode=train --config=digits:vp", "expected a run of a denoiser in"),
        ("--mode=train", "got one of an autoencoder: train that with --mode=train_autoencoder"),
        ("--mode=train_autoencoder --config=autoencoder:digits", "config.net.width is 4 there and 8 here"),
    ):
        assert run(["scorefield", f"--workdir={workdir}", *words.split()]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1, err
