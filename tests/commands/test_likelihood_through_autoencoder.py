"""The command that scores a latent run: the image's bound in three parts, what is kept of it, and refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scorefield.commands.autoencoder_files import StoredAutoencoder, write_autoencoder
from scorefield.commands.likelihood import image_model
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.likelihood.image_model import FILE
from scorefield.commands.train.command import train
from scorefield.configs import build, digits
from scorefield.likelihood import PixelDistribution
from scorefield.models import Denoiser
from scorefield.models.latent import ScaledAutoencoder

NOISES = (0.0, 0.05, 0.5)
AUTOENCODER = ("moments", "decode", "encode")


def autoencoder(folder: Path, spec: str) -> Path:
    torch.manual_seed(0)
    net = build.spec(build.AUTOENCODERS, spec)
    module = build.autoencoder(net, 1)
    write_autoencoder(folder, StoredAutoencoder(module, net, (1, 8, 8), 17, scale=(2.0, 3.0), shift=(0.1, -0.1)))
    return folder


def trained(folder: Path, spec: str) -> Path:
    config = digits.get_config("vp")
    config.net = build.spec(build.NETWORKS, "mlp", width=16, blocks=1)
    config.autoencoder = str(autoencoder(folder / "autoencoder", spec))
    config.transform.dequantise = False
    config.training.update(images=64, batch=32, sample_every=0)
    train(folder / "run", config)
    return folder / "run"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent run on the digits, of two steps, with its image model."""
    return trained(tmp_path_factory.mktemp("latent"), "kl:width=8,multipliers=(1,2),blocks=1,code_channels=2")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images and noises to fit with."""
    for name, value in {"IMAGES": 48, "TRIED": 16, "NOISES": NOISES}.items():
        monkeypatch.setattr(image_model, name, value)


def report_of(workdir: Path, path: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    lines = likelihood(workdir, output=str(path), **options)
    return json.loads(path.read_text()), lines


def test_the_report_has_the_bound_in_three_parts_with_their_errors(workdir: Path, tmp_path: Path) -> None:
    options = {"num": 6, "estimators": ["ode", "dsm"], "steps": 8, "draws": 4, "code_draws": 2, "batch": 4}
    report, lines = report_of(workdir, tmp_path / "report.json", **options)
    for name in ("ode", "dsm"):
        estimate = report["estimates"][name]
        assert sum(estimate["parts"].values()) == pytest.approx(estimate["bits_per_dim"], rel=1e-6)
        assert estimate["parts"].keys() == {"pixels", "codes", "encoder"}
        assert all(error > 0 for error in estimate["parts_standard_error"].values())
        assert "pixels " in lines[f"{name}, its parts"]
        assert estimate["kind"].startswith("a bound of the image through the autoencoder")
    weighted = report["estimates"]["ode"]["importance_weighted"]
    assert weighted["bits_per_dim"] < report["bits_per_dim"]
    assert "importance_weighted" not in report["estimates"]["dsm"]
    assert report["levels"] == 17
    with np.load(tmp_path / "report.npz") as file:
        assert file["latent"].shape == (6, 2, 4, 4)
        assert float(file["ode"].mean()) == pytest.approx(report["bits_per_dim"])
    other, _ = report_of(workdir, tmp_path / "other.json", **{**options, "batch": 6})
    assert other["bits_per_dim"] == pytest.approx(report["bits_per_dim"], rel=1e-5)


def test_what_the_bound_needs_is_fitted_once_for_an_autoencoder(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / FILE).unlink(missing_ok=True)
    options = {"num": 2, "estimators": ["dsm"], "draws": 2}
    report, _ = report_of(run, tmp_path / "a.json", **options)
    begun = {"noise of the codes: 0 of 48 images", "scales of the pixels: 0 of 48 images"}
    assert begun <= set(capsys.readouterr().err.splitlines())
    kept = json.loads((run / FILE).read_text())
    assert report["image_model"] == kept
    assert kept["images"] == 48
    assert PixelDistribution.read(kept["distribution"]).levels == 17
    tried = {float(noise): bound for noise, bound in kept["tried"].items()}
    assert list(tried) == list(NOISES[: len(tried)])
    assert tried[kept["noise"]] == min(tried.values())
    kept["distribution"]["scale"] = [[9.0] * 16]
    (run / FILE).write_text(json.dumps(kept))
    capsys.readouterr()
    wide, _ = report_of(run, tmp_path / "b.json", **options)
    assert not begun & set(capsys.readouterr().err.splitlines())
    assert wide["estimates"]["dsm"]["parts"]["pixels"] > report["estimates"]["dsm"]["parts"]["pixels"]
    kept["autoencoder_sha256"] = "another"
    (run / FILE).write_text(json.dumps(kept))
    again, _ = report_of(run, tmp_path / "c.json", **options)
    assert again["bits_per_dim"] == report["bits_per_dim"]


def test_of_several_ranks_the_first_one_fits(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(workdir, tmp_path / "run")
    options = {"num": 2, "estimators": ["dsm"], "draws": 2}
    report, _ = report_of(run, tmp_path / "a.json", **options)
    made = (run / FILE).read_bytes()
    (run / FILE).unlink()

    class Second:
        """A second rank; the first one has written its file when all are at the barrier."""

        first = False

        def barrier(self) -> None:
            (run / FILE).write_bytes(made)

    monkeypatch.setattr(image_model.Ranks, "current", classmethod(lambda _: Second()))
    capsys.readouterr()
    again, _ = report_of(run, tmp_path / "b.json", **options)
    assert "fitting" not in capsys.readouterr().out
    assert again["bits_per_dim"] == report["bits_per_dim"]


def test_no_more_images_than_a_batch_are_in_the_networks_at_once(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the image model is fitted, the images are scored with two codes each, and the prior is compared."""
    run, seen = shutil.copytree(workdir, tmp_path / "run"), dict[str, set[int]]()
    (run / FILE).unlink(missing_ok=True)

    def counted(kind: type, name: str) -> None:
        function = getattr(kind, name)

        def call(self: Any, x: torch.Tensor, *args: Any, **cond: Any) -> Any:
            seen.setdefault(name, set()).add(len(x))
            return function(self, x, *args, **cond)

        monkeypatch.setattr(kind, name, call)

    for kind, name in (
        (Denoiser, "forward"), (Denoiser, "noise"), *((ScaledAutoencoder, name) for name in AUTOENCODER)
    ):  # fmt: skip
        counted(kind, name)
    options = {"num": 5, "estimators": ["ode", "dsm"], "draws": 2, "code_draws": 2, "steps": 2, "prior": "data"}
    few, _ = report_of(run, tmp_path / "few.json", batch=3, **options)
    assert seen.keys() == {"forward", "noise", *AUTOENCODER}
    assert all(max(sizes) == 3 for sizes in seen.values())
    (run / FILE).unlink()
    many, _ = report_of(run, tmp_path / "many.json", batch=128, **options)
    assert few["image_model"]["noise"] == many["image_model"]["noise"]
    assert few["bits_per_dim"] == pytest.approx(many["bits_per_dim"], rel=1e-4)
    assert few["prior_kl"] == pytest.approx(many["prior_kl"], rel=1e-4)


def test_a_tolerance_chooses_a_solver_for_the_image(workdir: Path, tmp_path: Path) -> None:
    report, lines = report_of(workdir, tmp_path / "report.json", num=4, tolerance=0.5)
    assert report["estimates"]["ode"]["tolerance_met"]
    assert "bits/dim" in lines["solver's error"]


def test_what_does_not_suit_a_latent_run_is_refused(workdir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected no --dequantisation of a latent run, .* got uniform"):
        likelihood(workdir, dequantisation="uniform")
    with pytest.raises(ValueError, match="expected --code_draws of at least 1, got 0"):
        likelihood(workdir, code_draws=0)
    spec = "vq:width=8,multipliers=(1,2),blocks=1,code_channels=2,quantiser=codebook:size=8"
    with pytest.raises(ValueError, match=r"log q.* is infinite, and there is no bound: take the run of a KL"):
        likelihood(trained(tmp_path, spec), num=2, estimators=["dsm"])
