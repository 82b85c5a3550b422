"""The command that scores a data set: its report, its partial results, ranks, and refusals."""

import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from torch import Tensor

from scorefield.commands.likelihood import scorer as scorer_module
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.likelihood.partial_results import PartialResults
from scorefield.commands.train.command import train
from scorefield.commands.train_dequantiser import train_dequantiser
from scorefield.configs import build, digits, own
from scorefield.likelihood import DatasetScorer, Plan
from scorefield.models import Denoiser
from scorefield.models.analytic import Gaussian, GaussianMixture
from scorefield.solvers import AdamsMoulton, grids

# Partial results


def test_parts_are_found_only_with_the_same_settings(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    parts = PartialResults(output, {"seed": 0})
    parts.save("a", {"x": np.arange(3)})
    same, other = PartialResults(output, {"seed": 0}), PartialResults(output, {"seed": 1})
    assert "a" in same
    assert same.load("a")["x"].tolist() == [0, 1, 2]
    assert "a" not in other
    same.delete()
    assert not list(tmp_path.iterdir())


def test_parts_of_other_settings_are_told_and_removed_after_a_week(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.json"
    mine, young, old = (PartialResults(output, {"seed": seed}) for seed in range(3))
    another = PartialResults(tmp_path / "report_2.json", {"seed": 2})
    for parts in (mine, young, old, another):
        parts.save("a", {"x": np.arange(3)})
    week = 7 * 86_400
    for parts, age in ((mine, 2 * week), (young, 0.9 * week), (old, 1.1 * week), (another, 2 * week)):
        for path in (*parts.folder.iterdir(), parts.folder):
            os.utime(path, (time.time() - age,) * 2)
    mine.delete_old_others()
    assert [("a" in parts) for parts in (mine, young, old, another)] == [True, True, False, True]
    lines = capsys.readouterr().err.splitlines()
    assert {(line.split()[0], line.split()[1].rstrip(",")) for line in lines} == {
        ("keeps", str(young.folder)), ("removes", str(old.folder)),
    }  # fmt: skip
    (young.folder / "b.npz").touch()
    os.utime(young.folder, (time.time() - 2 * week,) * 2)
    mine.delete_old_others()
    assert "a" in young  # its newest part counts


# The command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits, of a few steps."""
    folder = tmp_path_factory.mktemp("runs") / "vp"
    config = digits.get_config("vp")
    config.net.width = 8
    config.training.update(images=640, batch=64, sample_every=0)
    train(folder, config)
    return folder


def report_of(workdir: Path, path: Path, **options: Any) -> dict[str, Any]:
    likelihood(workdir, output=str(path), **options)
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def test_a_subset_is_random_and_another_one_keeps_the_first_report(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(workdir, tmp_path / "vp")
    for seed, name in ((3, "likelihood_test"), (4, "likelihood_test_2"), (3, "likelihood_test")):
        wrote = likelihood(copy, num=4, seed=seed, estimators=["dsm"], draws=2)["files"]
        assert wrote[0] == str(copy / f"{name}.json")
        report = json.loads(Path(wrote[0]).read_text())
        assert report["images"] == f"4 of 360, at random (seed {seed})"
        with np.load(wrote[1]) as file:
            assert file["index"].tolist() == np.random.default_rng(seed).permutation(360)[:4].tolist()
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith(f"keeps {copy / 'likelihood_test.json'} (images 4 of 360") for line in lines) == 1
    assert sum(line.endswith("which the same settings made") for line in lines) == 1


def test_four_estimators_side_by_side(workdir: Path, tmp_path: Path) -> None:
    names = ["ode", "dsm", "vlb", "elbo"]
    report = report_of(workdir, tmp_path / "all.json", num=6, estimators=names, draws=6, chain=5, steps=4, batch=4)
    assert list(report["estimates"]) == names
    with np.load(tmp_path / "all.npz") as file:
        for name in names:
            estimate = report["estimates"][name]
            assert estimate["n"] == 6
            assert estimate["bits_per_dim"] == pytest.approx(file[name].mean())
            low, high = estimate["interval_95"]
            assert high - low == pytest.approx(2 * 1.96 * file[name].std(ddof=1) / 6**0.5)
            assert estimate["seconds_an_image"] > 0
            assert file[name].shape == (6,)
            if name != "ode":
                cell = math.log2(2 / 17) if name == "dsm" else 0.0  # the log-volume of a cell, in bits
                assert sum(estimate["parts"].values()) - cell == pytest.approx(estimate["bits_per_dim"])
        assert file["latent"].shape == (6, 1, 8, 8)
    assert 0 < report["prior_kl"]["estimate"] <= report["prior_kl"]["bound"]
    for key in ("checkpoint_sha256", "data_sha256", "weights", "versions", "t_min", "t_max", "dequantisation"):
        assert report[key]


def test_a_batch_is_a_matter_of_memory(workdir: Path, tmp_path: Path) -> None:
    values = []
    for batch in (1, 5):
        report_of(workdir, tmp_path / "b.json", num=5, estimators=["ode", "elbo"], draws=4, steps=4, batch=batch)
        with np.load(tmp_path / "b.npz") as file:
            values.append(np.stack([file["ode"], file["elbo"]]))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)  # float32 networks round by their batch


def test_no_more_images_than_a_batch_are_in_the_network_at_once(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[int]()

    def counted(evaluate: Any) -> Any:
        def call(self: Denoiser, x: Tensor, *args: Any, **cond: Any) -> Tensor:
            seen.append(len(x))
            return evaluate(self, x, *args, **cond)

        return call

    for name in ("forward", "noise"):
        monkeypatch.setattr(Denoiser, name, counted(getattr(Denoiser, name)))
    options: dict[str, Any] = {"num": 5, "steps": 2, "draws": 2, "chain": 2}
    names = ["ode", "dsm", "vlb", "elbo"]
    how = "importance:samples=3"
    report_of(workdir, tmp_path / "m.json", batch=2, estimators=names, dequantisation=how, prior="data", **options)
    assert set(seen) == {1, 2}
    # 32 directions of an image at once, so an image at a time
    seen.clear()
    options |= {"num": 2, "steps": 1}
    exact = report_of(workdir, tmp_path / "e.json", batch=2, divergence="exact", **options)
    assert set(seen) == {1}
    more = report_of(workdir, tmp_path / "f.json", batch=2, divergence="exact:chunk=1", **options)
    assert max(seen) == 2
    assert exact["bits_per_dim"] == pytest.approx(more["bits_per_dim"], rel=1e-5)


def test_uniform_dequantisation_of_a_run_that_was_trained_on_levels_is_warned_of(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(workdir, tmp_path / "levels")
    config = json.loads((run / "config.json").read_text())
    config["config"]["transform"]["dequantise"] = False
    (run / "config.json").write_text(json.dumps(config))
    for place, how, warned in ((run, None, True), (run, "truncated_normal", False), (workdir, None, False)):
        report_of(place, tmp_path / "w.json", num=2, steps=2, dequantisation=how)
        assert ("was trained on the levels themselves" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("how", ["importance:samples=3", "truncated_normal"])
def test_other_dequantisations_are_reported(how: str, workdir: Path, tmp_path: Path) -> None:
    report = report_of(workdir, tmp_path / "d.json", num=4, steps=4, dequantisation=how)
    assert report["dequantisation"] == how
    assert report["estimates"]["ode"]["nfe"] == 7 * build.build(build.DEQUANTISATIONS, build.parse(how)).samples
    assert math.isfinite(report["bits_per_dim"])


def test_a_prior_of_the_data_is_nearer_to_it(workdir: Path, tmp_path: Path) -> None:
    reports = [report_of(workdir, tmp_path / "p.json", num=4, steps=4, prior=prior) for prior in ("standard", "data")]
    assert reports[1]["prior_kl"]["estimate"] < reports[0]["prior_kl"]["estimate"]


@pytest.mark.slow
def test_a_tolerance_chooses_and_says_what(workdir: Path, tmp_path: Path) -> None:
    report = report_of(workdir, tmp_path / "t.json", num=36, tolerance=0.05)
    ode = report["estimates"]["ode"]
    assert ode["tolerance"] == 0.05
    assert ode["solver_error"] <= 0.05
    assert ode["solver_error_rms"] <= ode["solver_error"]
    assert ode["tolerance_met"]
    assert ode["above_tolerance"] == []
    assert ode["trial_images"] == 6
    assert ode["error_of_a_value"] > 0
    assert "AdamsMoulton" in ode["solver"]
    assert ode["nfe"] >= ode["steps"] + 3
    with np.load(tmp_path / "t.npz") as arrays:
        assert arrays["ode_solver_error"].max() == pytest.approx(ode["solver_error"])


def chooses_four_steps(self: DatasetScorer, tolerance: float, *_: object, **__: object) -> dict[str, Any]:
    ts = grids.soft_clipped(self.sde, 4).flip(0)
    self.plan = Plan(AdamsMoulton(), ts, tolerance, ratio=1.0, met=False, trial_nfe=60)
    return {"tolerance": tolerance, "trial_images": len(self.stored), "trial_evaluations": 60, "probes": 1}


def test_images_whose_error_stays_above_the_tolerance_are_named(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their numbers in the split, the worst first."""
    monkeypatch.setattr(DatasetScorer, "choose", chooses_four_steps)
    lines = likelihood(workdir, num=5, tolerance=1e-9, output=str(tmp_path / "n.json"))
    ode = json.loads((tmp_path / "n.json").read_text())["estimates"]["ode"]
    with np.load(tmp_path / "n.npz") as arrays:
        order = np.argsort(-arrays["ode_solver_error"])
        assert [each["image"] for each in ode["above_tolerance"]] == arrays["index"][order].tolist()
        assert ode["above_tolerance"][0]["solver_error"] == pytest.approx(arrays["ode_solver_error"].max())
    assert not ode["tolerance_met"]
    assert f"in 5 of 5 images, at most {ode['solver_error']:.1e} bits/dim" in lines["solver's error"]


def test_a_choice_is_kept_for_the_run_and_made_again_for_another_tolerance(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = list[float]()

    def choose(self: DatasetScorer, tolerance: float, *_: object, **__: object) -> dict[str, Any]:
        chosen.append(tolerance)
        return chooses_four_steps(self, tolerance)

    monkeypatch.setattr(DatasetScorer, "choose", choose)
    options: dict[str, Any] = {"num": 4, "tolerance": 0.3}
    first, second = (report_of(workdir, tmp_path / f"{i}.json", **options) for i in range(2))
    assert chosen == [0.3]
    odes = [report["estimates"]["ode"] for report in (first, second)]
    assert [ode["chosen_by"] for ode in odes] == ["this command", "an earlier command"]
    assert first["bits_per_dim"] == second["bits_per_dim"]
    assert odes[0]["solver_error"] == odes[1]["solver_error"] > 0
    report_of(workdir, tmp_path / "2.json", **{**options, "tolerance": 0.5})
    report_of(workdir, tmp_path / "3.json", **options, split="train")
    assert chosen == [0.3, 0.5, 0.3]
    report_of(workdir, tmp_path / "4.json", **{**options, "num": 6})  # four images chose, six are to be tried
    assert chosen == [0.3, 0.5, 0.3, 0.3]
    plans = json.loads((workdir / "likelihood_plans.json").read_text())
    for plan in plans.values():
        plan["plan"] = {"pilots": 32, "adams_moulton": "adams_moulton", "ts": [0.1, 0.9]}  # an earlier version's
    (workdir / "likelihood_plans.json").write_text(json.dumps(plans))
    report_of(workdir, tmp_path / "old.json", **options)
    assert chosen.pop() == 0.3
    for plan in plans.values():
        plan["plan"] = None
    (workdir / "likelihood_plans.json").write_text(json.dumps(plans))
    report_of(workdir, tmp_path / "none.json", **options)
    assert chosen.pop() == 0.3
    (workdir / "likelihood_plans.json").write_text("[]")
    report_of(workdir, tmp_path / "5.json", **options)
    assert chosen == [0.3, 0.5, 0.3, 0.3, 0.3]


OPTIONS: dict[str, Any] = {"num": 24, "steps": 6, "batch": 4, "estimators": ["ode", "elbo"], "draws": 4}


@pytest.fixture(scope="module")
def complete(workdir: Path) -> Path:
    """The values of an uninterrupted command in one process."""
    likelihood(workdir, output=str(workdir / "complete.json"), **OPTIONS)
    return workdir / "complete.npz"


def arguments(workdir: Path, output: Path) -> list[str]:
    flags = {**OPTIONS, "estimators": "ode,elbo", "mode": "likelihood", "workdir": workdir, "output": output}
    return [f"--{name}={value}" for name, value in flags.items()]


def alike(first: Path, second: Path) -> bool:
    with np.load(first) as a, np.load(second) as b:
        return a.files == b.files and all(np.array_equal(a[key], b[key]) for key in a.files)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_interrupted_command_resumes_to_the_same_number(
    number: int, workdir: Path, complete: Path, tmp_path: Path
) -> None:
    resumed = tmp_path / "resumed.json"
    process = warm.begin(*arguments(workdir, resumed))
    while len(list(tmp_path.glob(".resumed*/ode_*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode != 0
    assert not resumed.exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".resumed*/ode_*.npz")}
    assert kept
    if number == signal.SIGINT:
        done = {name: 4 * len(list(tmp_path.glob(f".resumed*/{name}_*.npz"))) for name in ("ode", "elbo")}
        each = ", ".join(f"{count} of 24 images by {name}" for name, count in done.items())
        assert said.splitlines()[-1] == f"interrupted after {each}: the same command continues"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialResults, "delete", lambda self: None)
        likelihood(workdir, output=str(resumed), **OPTIONS)
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert alike(complete, resumed.with_suffix(".npz"))


def test_two_ranks_give_the_number_of_one(workdir: Path, complete: Path, tmp_path: Path) -> None:
    two = tmp_path / "two.json"
    processes = warm.ranks(*arguments(workdir, two))
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert alike(complete, two.with_suffix(".npz"))
    assert not list(tmp_path.glob(".two*"))


def test_what_is_kept_is_taken_and_what_another_dequantiser_left_is_not(workdir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    options: dict[str, Any] = {"num": 4, "batch": 2, "steps": 4, "dequantisation": "variational"}
    kept = []
    for seed in (0, 1):
        train_dequantiser(folder, num=64, batch=32, seed=seed)
        with pytest.MonkeyPatch.context() as patch:  # interrupted when all is done but the report
            patch.setattr("scorefield.commands.likelihood.command.write_json", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                likelihood(folder, **options)
        kept.append(set(folder.glob(".likelihood*/ode_*.npz")))
    assert len(kept[1]) == 2 * len(kept[0]) == 4  # the second has other parts
    mine = next(iter(kept[1] - kept[0])).parent / "ode_000000002.npz"
    with np.load(mine) as file:
        arrays = dict(file)
    arrays["ode"] = np.array([1.0, 2.0])
    np.savez(mine, **arrays)
    likelihood(folder, **options)
    with np.load(folder / "likelihood_test.npz") as file:
        np.testing.assert_allclose(file["ode"][2:], -np.array([1.0, 2.0]) / (64 * math.log(2)))
    assert len(json.loads((folder / "likelihood_test.json").read_text())["dequantiser_sha256"]) == 64


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_change_from_half_the_steps_is_that_of_two_runs(workdir: Path, tmp_path: Path) -> None:
    how = {"num": 2, "divergence": "hutchinson:fresh=False", "solver": "heun", "grid": "log_snr"}
    every_step, half = (report_of(workdir, tmp_path / "h.json", steps=steps, **how) for steps in (4, 2))
    change = every_step["estimates"]["ode"]["change_from_half_the_steps"]
    assert change == pytest.approx(half["bits_per_dim"] - every_step["bits_per_dim"], rel=1e-4)


def test_of_one_image_no_error_is_printed(workdir: Path, tmp_path: Path) -> None:
    lines = likelihood(workdir, num=1, steps=2, output=str(tmp_path / "one.json"))
    assert re.fullmatch(r"\d+\.\d{4} \(n = 1, .*", lines["ode, bits_per_dim"])


@pytest.mark.parametrize(("change", "said"), [(0.0099, False), (0.0101, True), (-0.0101, True), (None, False)])
def test_steps_that_are_too_few_are_said(
    change: float | None, said: bool, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(DatasetScorer, "change_from_half_the_steps", lambda *_, **__: change)
    likelihood(workdir, num=2, steps=2, output=str(tmp_path / "few.json"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("half the steps")]
    assert len(lines) == said
    if said:
        assert f"by {change:+.3g} bits/dim, above 0.01" in lines[0] and "Take more --steps" in lines[0]


def test_continuous_data_gets_nats_and_no_bits(tmp_path: Path) -> None:
    config = own.get_config("toy")
    config.training.update(images=256, batch=64, sample_every=0)
    train(tmp_path / "run", config)
    names = ["ode", "dsm", "elbo", "vlb"]
    options: dict[str, Any] = {"num": 4, "estimators": names, "draws": 4}
    for more, line in (({"steps": 4}, "change from half the steps"), ({"tolerance": 0.5}, "solver's error")):
        lines = likelihood(tmp_path / "run", output=str(tmp_path / "toy.json"), **options, **more)
        assert "nats/dim" in lines[line]
        assert "bits" not in str({key: value for key, value in lines.items() if key != "files"})
    report = json.loads((tmp_path / "toy.json").read_text())
    assert report["unit"].startswith("nats/dim")
    assert "bits" not in json.dumps(report)
    assert math.isfinite(report["nats_per_dim"])
    assert "Exact" in report["estimates"]["ode"]["divergence"]
    with pytest.raises(ValueError, match="bits/dim, which count levels, are refused"):
        likelihood(tmp_path / "run", num=2, dequantisation="uniform")


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    config = own.get_config("array")
    config.data.path = str(tmp_path / "x.npy")
    config.training.update(images=64, batch=32, sample_every=0)
    train(tmp_path / "run", config)
    x[-1, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"NaN|finite"):
        likelihood(tmp_path / "run", steps=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"estimators": ["ode", "nll"]}, "ode, dsm, vlb, elbo"),
        ({"estimators": ["ode", "ode"]}, "each once"),
        ({"tolerance": 1e-3, "steps": 5}, "got both"),
        ({"tolerance": -1.0}, "--tolerance above 0"),
        ({"prior": "wide"}, "standard or data"),
        ({"variance": "huge"}, "small or large"),
        ({"steps": 0}, "--steps of at least 1"),
        ({"tolerance": 0.1, "estimators": ["elbo"]}, "which is not among"),
        ({"draws": 1}, "--draws of at least 2"),
        ({"chain": 0}, "--chain of at least 1"),
        ({"dequantisation": "variational"}, "train_dequantiser"),
        ({"dequantisation": "uniform:samples=0"}, "samples of 1"),
        ({"dequantisation": "truncated"}, "did you mean 'truncated_normal'"),
        ({"divergence": "hutch"}, "expected one of exact, hutchinson, hutchpp"),
        ({"num": 0}, "--num"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_any_work(options: dict[str, Any], says: str, workdir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        likelihood(workdir, output=str(tmp_path / "m.json"), **options)
    assert not list(tmp_path.iterdir())


def test_an_adaptive_solve_that_fails_names_the_image_and_keeps_the_rest(workdir: Path, tmp_path: Path) -> None:
    # From the fifth image on, the flow is one for which no step is small enough.
    class NotFinite(GaussianMixture):
        def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            return torch.full_like(x, math.nan)

    class Scorer(DatasetScorer):
        def ode(self, rows: slice, *args: Any) -> Any:
            easy = Gaussian(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
            self.denoiser = NotFinite(easy.means, easy.stds, easy.weights) if rows.start == 4 else easy
            return super().ode(rows, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer_module, "DatasetScorer", Scorer)
        with pytest.raises(
            ValueError, match=r"image 4: dopri5 on sample 0 at t = \S+: expected a step that meets the tolerance"
        ):
            likelihood(workdir, num=6, batch=2, solver="adaptive:rtol=0.01,atol=0.01", output=str(tmp_path / "f.json"))
    assert len(list(tmp_path.glob(".f*/ode_*.npz"))) == 2
