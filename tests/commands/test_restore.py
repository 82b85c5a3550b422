"""Restoring images: what the files hold, what does not change them, and which inputs are measurements."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_gaussians import MEANS, SPREAD, class_run, labelled
from PIL import Image
from training_runs import configuration, untrained_run

from scorefield.commands.compare import compare
from scorefield.commands.data_facts import DataFacts
from scorefield.commands.restore import restore
from scorefield.commands.restore_draws import data_std
from scorefield.commands.restore_problem import hidden_by
from scorefield.commands.run import Run
from scorefield.configs import build
from scorefield.configs.methods import Facts, Method
from scorefield.evaluation.posterior import moments
from scorefield.models import GaussianMixture
from scorefield.models.measurements import LinearFunction
from scorefield.solvers import DDIM, Twisted
from scorefield.training.data import digits

BOX = "inpaint:box=(2,2,6,6)"
SMALL: dict[str, Any] = {"task": BOX, "num": 3, "samples": 3, "steps": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("restore") / "run")


@pytest.fixture
def workdir(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_files_do_not_depend_on_the_batch_nor_on_further_images(workdir: Path) -> None:
    method = "twisted:particles=2,guide=pigdm"
    restore(workdir, **SMALL, method=method, batch=64, output=str(workdir / "a.npz"))
    restore(workdir, **SMALL, method=method, batch=2, output=str(workdir / "b.npz"))
    restore(workdir, **{**SMALL, "num": 2}, method=method, output=str(workdir / "c.npz"))
    a, b, c = (arrays(workdir / f"{name}.npz") for name in "abc")
    assert a["samples"].shape == (3, 3, 1, 8, 8) and a["samples"].dtype == np.uint8
    assert a["log_evidence"].shape == (3, 3)
    for name in ("y", "truth", "samples", "x", "index"):
        np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_array_equal(a[name][:2], c[name])
    np.testing.assert_allclose(a["log_evidence"], b["log_evidence"], rtol=1e-4)
    np.testing.assert_allclose(a["mean"], a["samples"].astype(float).mean(1), rtol=1e-6)
    np.testing.assert_allclose(a["std"], a["samples"].astype(float).std(1, ddof=1), rtol=1e-5, atol=1e-6)
    report = json.loads((workdir / "a.json").read_text())
    assert report["task"] == BOX and len(report["rank_histogram"]) == 4
    assert report["forwards"] == 2 * (2 * 3 + 1)  # particles, of an evaluation and a product a step, and the last
    y, clean = torch.as_tensor(a["y"]), torch.as_tensor(a["truth"]).float() / 17 * 2 - 1 + 1 / 17
    known = torch.ones(8, 8, dtype=torch.bool)
    known[2:6, 2:6] = False
    noise = (y - clean[..., known].flatten(1)) / 0.05
    assert 0.5 < float(noise.square().mean()) < 1.5  # of 144 numbers: four standard errors


def test_known_pixels_come_back_without_noise_and_hidden_ones_do_not_matter(workdir: Path, tmp_path: Path) -> None:
    """The photograph is another where the mask hides it. What is restored is the same, and known pixels are its own."""
    saved = json.loads((workdir / "config.json").read_text())
    saved["data"] |= {"name": "photographs", "levels": 256, "num_classes": None, "std": None}
    (workdir / "config.json").write_text(json.dumps(saved))
    pixels = np.tile(np.arange(8, dtype=np.uint8) * 30, (8, 1))
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = []
    for value in (0, 255):
        Image.fromarray(np.where(mask > 0, np.uint8(value), pixels)).save(tmp_path / "photo.png")
        options: dict[str, Any] = {"input": str(tmp_path / "photo.png"), "mask": str(tmp_path / "mask.png")}
        said = restore(workdir, **options, noise=0.0, samples=2, steps=3, method="pigdm", output=f"{tmp_path}/o.npz")
        found.append(arrays(tmp_path / "o.npz"))
    assert "coverage" not in said and "truth" not in found[0]
    np.testing.assert_array_equal(found[0]["samples"], found[1]["samples"])
    known = mask == 0
    np.testing.assert_array_equal(found[0]["samples"][0, :, 0][:, known], np.tile(pixels[known], (2, 1)))


def test_a_measured_file_is_the_measurement_itself(workdir: Path, tmp_path: Path) -> None:
    y = np.linspace(-0.9, 0.9, 2 * 16, dtype=np.float32).reshape(2, 1, 4, 4)
    np.save(tmp_path / "y.npy", y)
    options: dict[str, Any] = {**SMALL, "task": "super_resolve:factor=2", "num": None}
    restore(workdir, **options, input=str(tmp_path / "y.npy"), measured=True, method="ddrm", output=f"{tmp_path}/o.npz")
    np.testing.assert_array_equal(arrays(tmp_path / "o.npz")["y"], y)
    with pytest.raises(ValueError, match=r"expected measurements \(N, 1, 2, 2\) .* got \(2, 1, 4, 4\)"):
        restore(workdir, **{**options, "task": "super_resolve:factor=4"}, input=f"{tmp_path}/y.npy", measured=True)


def test_methods_are_compared_on_the_same_measurements(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("diffpir", "repaint:jump=1,times=2", "dps:scale=0.3", "daps")
    compare(workdir, method=methods, task=BOX, num=2, samples=2, steps=(2,), noise=0.0, device="cpu")
    report = json.loads((workdir / "compare_methods.json").read_text())
    failed = [row["method"] for row in report["table"] if "failed" in row]
    assert [row["method"] for row in report["table"]] == list(methods)
    assert failed == []
    kept = arrays(workdir / "compare_methods.npz")
    assert set(methods) <= kept.keys() and kept["diffpir"].shape == (2, 2, 1, 8, 8)
    assert "diffpir" in capsys.readouterr().out


def test_a_mask_is_known_by_what_it_does() -> None:
    keep = torch.tensor([1.0, 0.0, 1.0])
    assert hidden_by(LinearFunction(lambda x: x * keep, (3,))).tolist() == [[False, True, False]]  # type: ignore[union-attr]
    assert hidden_by(LinearFunction(lambda x: x[:, :2], (3,))).tolist() == [[False, False, True]]  # type: ignore[union-attr]
    assert hidden_by(LinearFunction(lambda x: 2 * x * keep, (3,))) is None
    assert hidden_by(LinearFunction(lambda x: x[:, :1] + x[:, 1:2], (3,))) is None


def test_the_standard_deviation_of_the_data_is_known_to_new_runs_and_guessed_for_old_ones(workdir: Path) -> None:
    run = Run(workdir, configuration(), DataFacts.of(digits("train")), torch.device("cpu"))
    exact = run.in_range(torch.as_tensor(digits("train").x)).double().var(0, correction=0).mean().sqrt()
    assert data_std(run) == pytest.approx(float(exact), rel=1e-6)
    saved = json.loads((workdir / "config.json").read_text())["data"]
    del saved["std"]
    old = Run(workdir, configuration(), DataFacts.read(saved), torch.device("cpu"))
    assert data_std(old) == 0.5


def test_methods_of_the_table_wrap_a_denoiser_for_their_solver() -> None:
    prior = GaussianMixture(torch.zeros(1, 4), torch.ones(1), torch.ones(1))
    keep = LinearFunction(lambda x: x[:, :2], (4,))
    for name in build.METHODS:
        method: Method = build.build(build.METHODS, name)
        problem = method.problem(prior, keep, 0.1, Facts(bounds=(-1.0, 1.0)))
        assert problem.noise_std == 0.1 and problem.bounds == (-1.0, 1.0)
        assert method.solver.stochastic
        if method.own_run:
            with pytest.raises(ValueError, match="no --solver for a method with a run of its own"):
                method.solved_by(DDIM())
        else:
            assert method.solved_by(DDIM()) == DDIM()
    assert build.build(build.METHODS, "twisted:particles=3").solver == Twisted(3)


def test_a_certificate_of_exact_guidance_has_the_evidence_and_all_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One class is an isotropic Gaussian, of which pigdm is exact:  y ~ N(A m, noise^2 + spread^2 |A|^2)."""
    matrix, y, noise = np.array([[1.0, 0.5]]), 0.5, 0.3
    np.savez(tmp_path / "points.npz", **dict(zip(("x", "label"), labelled(20, range(4)), strict=True)))
    run = class_run(tmp_path / "run", tmp_path / "points.npz").workdir
    np.save(tmp_path / "A.npy", matrix)
    np.save(tmp_path / "y.npy", np.array([[y]], np.float32))
    options: dict[str, Any] = {
        "task": f"matrix:file='{tmp_path / 'A.npy'}'", "input": str(tmp_path / "y.npy"), "measured": True,
        "samples": 40, "certify": True, "label": 1, "device": "cpu",
    }  # fmt: skip
    said = restore(run, noise=noise, steps=20, method=f"pigdm:data_std={SPREAD}", **options)
    assert "rest on" not in capsys.readouterr().err
    kept = arrays(run / "restored.npz")
    assert np.exp(kept["log_weights"][0]).sum() == pytest.approx(1)
    variance = noise**2 + SPREAD**2 * float((matrix**2).sum())
    apart = y - float(matrix[0] @ MEANS[1].numpy())
    expected = -(apart**2) / variance / 2 - math.log(2 * math.pi * variance) / 2
    assert said["log_evidence"] == pytest.approx(expected, abs=0.05)
    assert said["ess"] > 38
    mean, _ = moments(torch.as_tensor(kept["samples"]), torch.as_tensor(kept["log_weights"]))
    np.testing.assert_allclose(kept["mean"], mean, rtol=1e-5)
    restore(run, noise=1e-3, steps=3, method="jacobian_free:data_std=1e-3", output=f"{tmp_path}/far.npz", **options)
    assert "of 40 samples, too few for the evidence: use" in capsys.readouterr().err
