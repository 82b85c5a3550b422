"""Anomaly scores by the command: an exact run in closed form, integers, the codes of a latent run, and refusals."""

import json
import math
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest
from class_gaussians import MEANS, SPREAD, class_run, labelled
from image_files import refused
from latent_run import configuration as latent_configuration
from latent_run import write_random_autoencoder
from sklearn.metrics import roc_auc_score
from training_runs import configuration, new_run

from scorefield.commands.score import score
from scorefield.evaluation.anomaly import GaussianFit, log_errors
from scorefield.likelihood import DatasetScorer, Plan
from scorefield.solvers import AdamsMoulton, grids
from scorefield.training.checkpoints.atomic import atomic_dir, write_tensors

Arrays = dict[str, np.ndarray]


def scored(workdir: Path, output: Path, **options: Any) -> tuple[dict[str, Any], Arrays]:
    """The report and the arrays."""
    files = score(workdir, output=str(output), **options)["files"]
    assert [Path(file).name for file in files] == [
        output.name, f"{output.stem}.npz", f"{output.stem}.png", f"{output.stem}_histograms.png"
    ]  # fmt: skip
    assert all(Path(file).is_file() for file in files)
    with np.load(files[1]) as arrays:
        return json.loads(output.read_text()), dict(arrays)


def untrained(workdir: Path, config: ml_collections.ConfigDict) -> Path:
    """A run of the digits with random weights."""
    run = new_run(workdir, config)
    run.save()
    with atomic_dir(workdir / "checkpoints" / f"{0:010d}") as part:
        for name in ("ema", "model"):
            write_tensors(part / f"{name}.safetensors", run.new_model().state_dict())
    return workdir


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("runs") / "digits", configuration())


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network is exact, and two sets: `near.npz`, its own, and `far.npz`, five deviations away."""
    folder = tmp_path_factory.mktemp("runs")
    for name, away, seed in (("near", 0.0, 0), ("far", 5 * SPREAD, 1)):
        x, label = labelled(240, range(4), seed)
        np.savez(folder / f"{name}.npz", x=x + np.float32([0.0, away]), label=label)
    class_run(folder / "run", folder / "near.npz")
    return folder


def test_an_exact_run_gives_closed_forms_in_nats(exact: Path, tmp_path: Path) -> None:
    far = f"array:path={exact / 'far.npz'}"
    report, arrays = scored(exact / "run", tmp_path / "s.json", num=24, training_images=200, against=far)
    assert report["unit"] == "nats/dim" and list(report["scores"]) == ["bits", "typicality", "errors"]
    for before, file in (("", "near"), ("against_", "far")):
        with np.load(exact / f"{file}.npz") as known:
            x, label = (known[key][::10][arrays[f"{before}index"]] for key in ("x", "label"))
        z = (x - MEANS.numpy()[label]) / SPREAD
        exactly = z**2 / 2 + math.log(SPREAD * math.sqrt(2 * math.pi))
        # The mean of 24 images beyond 5 of its standard errors, four times: 1.4e-4 by Student's t.
        off = arrays[f"{before}map"] - exactly
        assert bool((np.abs(off.mean(0)) < 5 * off.std(0, ddof=1) / math.sqrt(24)).all())
        assert 0.3 < np.square(off.mean(1)).mean() / np.square(arrays[f"{before}bits_error"]).mean() < 2
        np.testing.assert_allclose(arrays[f"{before}map"].mean(1), arrays[f"{before}bits"], rtol=1e-5, atol=1e-5)
    assert report["scores"]["bits"]["mean"]["against"] == pytest.approx(arrays["against_bits"].mean())
    for name, row in report["scores"].items():
        both = np.concatenate([arrays[name], arrays[f"against_{name}"]])
        share = (arrays[name] > np.quantile(arrays[f"training_{name}"], 0.99)).mean()
        assert row["flagged"]["data"] == pytest.approx(share) and row["flagged"]["training"] == 0.01
        assert row["auroc"] == pytest.approx(roc_auc_score(np.arange(48) >= 24, both), abs=1e-12) and row["auroc"] > 0.9
    np.testing.assert_allclose(arrays["typicality"], np.abs(arrays["bits"] - arrays["training_bits"].mean()))


def test_labels_count_as_in_a_likelihood(exact: Path, tmp_path: Path) -> None:
    report, _ = scored(exact / "run", tmp_path / "s.json", num=8, training_images=10, label=1)
    assert report["data"]["label"] == report["training"]["label"]
    # Points of class 0 are 40 deviations from that of class 1: 800 nats, half of them for each dimension.
    assert report["scores"]["bits"]["mean"]["data"] > 100


def test_a_set_against_itself_gives_a_half_exactly_and_maps_sum_to_the_bits(digits_run: Path, tmp_path: Path) -> None:
    report, arrays = scored(
        digits_run, tmp_path / "s.json", num=20, training_images=30, draws=16, against="digits", batch=7
    )
    assert report["unit"] == "bits/dim" and report["estimators"] == ["dsm"]
    assert list(report["scores"]) == ["bits", "typicality", "errors", "codec"]
    assert [row["auroc"] for row in report["scores"].values()] == [0.5] * 4
    assert arrays["map"].shape == (20, 1, 8, 8) and arrays["error_by_level"].shape == (20, 16)
    np.testing.assert_allclose(arrays["map"].mean((1, 2, 3)), arrays["bits"], rtol=1e-5)
    assert len(report["bands"]["log_snr"]) == 9 and len(report["bands"]["error"]["against"]) == 8
    fit = GaussianFit.of(log_errors(arrays["training_error_by_level"], 8))
    np.testing.assert_allclose(arrays["errors"], fit(log_errors(arrays["error_by_level"], 8)))
    whole, more = scored(digits_run, tmp_path / "b.json", num=24, training_images=30, draws=16, batch=100)
    assert "auroc" not in whole["scores"]["bits"] and "against" not in whole
    for key in ("bits", "typicality", "errors", "codec", "map"):  # the first images are the same, and so is their noise
        np.testing.assert_allclose(more[key][:20], arrays[key], rtol=2e-3, atol=1e-4)


def test_the_flow_is_scored_where_it_is_asked_for(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(self: DatasetScorer, tolerance: float, *_: object, **__: object) -> dict[str, Any]:
        assert tolerance == 0.2 and len(self.stored) == 10
        self.plan = Plan(AdamsMoulton(), grids.soft_clipped(self.sde, 4).flip(0), tolerance, 1.0, False, 0)
        return {}

    monkeypatch.setattr(DatasetScorer, "choose", choose)
    how: dict[str, Any] = {"num": 4, "training_images": 10, "draws": 8, "estimators": ["elbo", "ode"], "tolerance": 0.2}
    report, arrays = scored(digits_run, tmp_path / "s.json", **how)
    assert list(report["scores"]) == [
        "bits", "typicality", "errors", "codec", "ode", "ode_typicality", "ode_codec"
    ]  # fmt: skip
    np.testing.assert_allclose(arrays["ode_codec"] - arrays["codec"], arrays["ode"] - arrays["bits"])


def test_a_latent_run_is_scored_by_its_codes(tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", latent_configuration(write_random_autoencoder(tmp_path / "autoencoder")))
    report, arrays = scored(run, tmp_path / "s.json", num=4, training_images=10, draws=8)
    assert report["unit"] == "nats/dim" and report["levels"] is None and "codec" not in report["scores"]
    assert arrays["map"].shape == (4, 3, 4, 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"against": "mnist_like"}, "expected data of shape"),
        ({"estimators": ["elbo", "dsm"]}, "one bound, elbo or dsm"),
        ({"estimators": ["vlb"]}, "for this run dsm or dsm,ode"),
        ({"tolerance": 0.1}, "the solver of ode"),
        ({"training_images": 9}, "--training_images of at least 10"),
        ({"draws": 7}, "--draws of at least 8"),
        ({"output": "s.npz"}, ".json file"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_any_work(
    options: dict[str, Any], says: str, digits_run: Path, tmp_path: Path
) -> None:
    if "against" in options:
        np.savez(tmp_path / "small.npz", x=np.zeros((20, 1, 7, 7), np.uint8))
        options = {"against": f"array:path={tmp_path / 'small.npz'},levels=17"}
    refused(says, score, digits_run, **{"num": 4, **options})
