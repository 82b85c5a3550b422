"""--mode=tune on a run whose denoiser and flow are exact, and --solver=tuned in sample and compare."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_runs import configuration, new_run, untrained_run

from scorefield.commands import compare as compare_command
from scorefield.commands import sample as sample_command
from scorefield.commands.budget import fitting
from scorefield.commands.guidance import Guidance
from scorefield.commands.trained import Trained, open_trained
from scorefield.commands.tune import candidates as tune_candidates
from scorefield.commands.tune import command as tune_command
from scorefield.commands.tune import measures as tune_measures
from scorefield.commands.tune.candidates import FLOW, STOCHASTIC
from scorefield.commands.tune.grid import moved
from scorefield.commands.tune.search import Halving
from scorefield.configs import build
from scorefield.evaluation.metrics.estimate import Estimate
from scorefield.evaluation.metrics.kernel import kernel_distance
from scorefield.models import CountCalls
from scorefield.models.analytic import Gaussian
from scorefield.sde_lib import SDE
from scorefield.solvers import PerSampleNoise
from scorefield.solvers import sample as solve
from scorefield.training.data import digits

DATA = Gaussian(torch.linspace(-0.5, 0.5, 64).reshape(1, 8, 8), torch.linspace(0.1, 1.5, 64).reshape(1, 8, 8))


def flow(sde: SDE, x: Tensor) -> Tensor:
    """Where the flow takes x, by the quantiles of a Gaussian, and the denoiser's answer there."""
    (a, s), (b, r) = (sde.scales(t) for t in (sde.t_max, sde.t_min))
    spread = (torch.hypot(scale * DATA.stds, noise) for scale, noise in ((b, r), (a, s)))
    end = b * DATA.means + (x - a * DATA.means) * next(spread) / next(spread)
    return DATA(end, b, r)


def solved(sde: SDE, setting: dict[str, Any], num: int, seed: int, workdir: Path) -> tuple[Tensor, float]:
    """Samples of a setting, and the evaluations of each."""
    counted = CountCalls(DATA)
    ts = build.build(build.GRIDS, setting["grid"], sde=sde, steps=setting["steps"], workdir=workdir)
    x = solve(
        counted, sde, (num, 1, 8, 8), solver=build.build(build.SOLVERS, setting["solver"]), grid=ts,
        denoise=setting["denoise"], seed=seed,
    )  # fmt: skip
    return x, counted.samples / num


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short table of candidates, and the exact denoiser in the place of the network."""

    def exact(*args: Any, **keywords: Any) -> Trained:
        return dataclasses.replace(open_trained(*args, **keywords), denoiser=DATA)  # type: ignore[arg-type]

    for module in (tune_command, sample_command, compare_command):
        monkeypatch.setattr(module, "open_trained", exact)
    monkeypatch.setattr(sample_command, "plot_samples", lambda *_: None)
    monkeypatch.setattr(compare_command, "plot_rows", lambda *_: None)
    monkeypatch.setattr(tune_command, "SOLUTION", 30)
    monkeypatch.setattr(tune_candidates, "FLOW", ("ddim", "unipc:order=2", "heun:variable=sigma"))
    monkeypatch.setattr(tune_candidates, "GRIDS", ("log_snr", "karras:rho=5.0"))


@pytest.fixture(scope="module")
def untuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("untuned"))


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return untrained_run(tmp_path / "run")


def settings_in(workdir: Path, budget: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workdir / "tuned.json").read_text())["budgets"][str(budget)]
    return found


def test_what_is_reported_is_the_distance_from_the_exact_flow_on_noise_of_another_seed(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_command, "SOLUTION", 100)
    tune_command.tune(workdir, budget=5, num=24, seed=3)
    found, sde = settings_in(workdir, 5), new_run(workdir).sde
    start = sde.prior((24, 1, 8, 8), noise=PerSampleNoise(3, range(24)))
    squares = {}
    for key in ("winner", "default"):
        x, nfe = solved(sde, found[key], 24, 3, workdir)
        assert nfe == found[key]["nfe"] <= 5
        squares[key] = (x - flow(sde, start)).square().flatten(1).mean(1).double()
        distance = found[key]["value"]["value"]
        # The flow is solved in 100 steps, to 1e-5 of its values.
        assert distance == pytest.approx(float(squares[key].mean().sqrt()), abs=3e-5)
    assert found["ratio"]["value"] < 0.5
    assert {key: found[key] for key in ("solver", "grid", "steps", "denoise")}.items() <= found["winner"].items()

    # Standard errors by leaving out one sample after another.
    def without(key: str) -> Tensor:
        return ((squares[key].sum() - squares[key]) / 23).sqrt()

    for jackknife, estimate in (
        (without("winner"), found["winner"]["value"]),
        (without("default"), found["default"]["value"]),
        (without("winner") / without("default"), found["ratio"]),
    ):
        error = float(jackknife.std(correction=0)) * math.sqrt(23)
        assert estimate["standard_error"] == pytest.approx(error, rel=0.1)


def test_a_seed_gives_one_file_and_budgets_stand_side_by_side(workdir: Path) -> None:
    tune_command.tune(workdir, budget=4, num=4)
    first = (workdir / "tuned.json").read_bytes()
    tune_command.tune(workdir, budget=4, num=4, batch=3)
    again = settings_in(workdir, 4)
    assert {**again, "value": None} == {**json.loads(first)["budgets"]["4"], "value": None}
    tune_command.tune(workdir, budget=1, num=4)
    assert settings_in(workdir, 4) == again
    one = settings_in(workdir, 1)
    assert one["nfe"] == 1
    assert not one["denoise"]
    assert (workdir / "tuned.png").is_file()


def test_sampling_with_the_tuned_setting_is_sampling_with_it_spelled_out(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for budget in (3, 5):
        tune_command.tune(workdir, budget=budget, num=4)

    def drawn(name: str, **options: Any) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        sample_command.sample(workdir, num=6, output=str(tmp_path / f"{name}.npz"), **options)
        return np.load(tmp_path / f"{name}.npz")["x"], json.loads((tmp_path / f"{name}.json").read_text())

    kept = ("solver", "grid", "steps", "denoise")
    for name, options, budget in (
        ("named", {"solver": "tuned:budget=3"}, 3),
        ("below", {"solver": "tuned", "steps": 4}, 3),
        ("within", {"solver": "tuned", "budget": 4}, 3),
    ):
        x, report = drawn(name, **options)
        setting = settings_in(workdir, budget)
        spelled, _ = drawn(f"{name} spelled out", **{key: setting[key] for key in kept})
        assert np.array_equal(x, spelled)
        assert report["tuned"]["budget"] == budget
        assert report["nfe"] == setting["nfe"]
        assert report["steps"] == setting["steps"]
    assert "other weights" not in capsys.readouterr().err
    assert drawn("raw", solver="tuned", ema=False)[1]["tuned"]["budget"] == 5
    assert capsys.readouterr().err.count("tuned for other weights") == 1


def test_compare_gives_the_tuned_setting_its_own_grid_and_the_flow_of_the_run(workdir: Path, tmp_path: Path) -> None:
    tune_command.tune(workdir, budget=5, num=8, seed=2)
    place = tmp_path / "c.npz"
    compare_command.compare(workdir, solver=("tuned", "ddim"), steps=(3, 5), num=8, seed=2, output=str(place))
    below, tuned, plain, _ = json.loads(place.with_suffix(".json").read_text())["table"]
    assert "found 5" in below["failed"]
    assert tuned["nfe"] == settings_in(workdir, 5)["nfe"]
    assert tuned["distance"] == pytest.approx(settings_in(workdir, 5)["value"]["value"], abs=1e-3)
    assert plain["nfe"] == 4


def test_a_default_that_is_not_worse_is_kept(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune_candidates, "FLOW", ("ddim",))
    monkeypatch.setattr(tune_candidates, "GRIDS", ("quadratic",))
    monkeypatch.setattr("scorefield.commands.tune.search.MOVED", 0)
    tune_command.tune(workdir, budget=12, num=8)
    found = settings_in(workdir, 12)
    assert not found["better"]
    assert found["ratio"]["value"] > 1
    assert (found["solver"], found["grid"], found["steps"]) == ("adams:variable=soft_clipped", "soft_clipped", 11)
    assert found["value"] == found["default"]["value"]
    assert "the default is kept" in capsys.readouterr().out


def test_kid_is_that_of_the_features_of_samples_and_takes_solvers_with_noise(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_candidates, "FLOW", ("ddim",))
    monkeypatch.setattr(tune_candidates, "STOCHASTIC", ("ancestral",))
    monkeypatch.setattr(tune_measures, "REFERENCES", 2000)  # all of them
    tune_command.tune(workdir, budget=4, num=12, seed=1, metric="kid", features="pixels")
    found, run = settings_in(workdir, 4), new_run(workdir)
    x, nfe = solved(run.sde, found["winner"], 12, 1, workdir)
    assert nfe == 4
    samples, data = (torch.as_tensor(each).flatten(1).double() / 16 for each in (run.to_stored(x), digits("train").x))
    expected = kernel_distance(samples, data)
    assert found["winner"]["value"]["value"] == pytest.approx(expected.value, rel=1e-4)
    assert found["winner"]["value"]["standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)
    assert {each["solver"] for each in found["rounds"][0]["best"]} == {"ddim", "ancestral"}
    difference = found["winner"]["value"]["value"] - found["default"]["value"]["value"]
    assert found["difference"]["value"] == pytest.approx(difference)


@pytest.mark.parametrize("path", ["vp", "subvp", "ve", "edm", "cosine", "flow", "ddpm", "learned"])
def test_a_budget_pays_for_as_many_steps_as_fit_on_every_path(path: str, tmp_path: Path) -> None:
    config = configuration()
    config.sde = build.spec(build.SDES, path)
    run = new_run(tmp_path, config)
    sde = run.sde.requires_grad_(False) if isinstance(run.sde, torch.nn.Module) else run.sde
    few = ("ddim", "heun:variable=sigma")
    for solver in (*FLOW, *STOCHASTIC) if path == "vp" else few:
        each = 2 if solver.startswith("heun") else 1
        for budget in (1, 4) if solver in few else (4,):
            grid = "geometric" if solver == "ddim" else "log_snr"  # which counts times
            setting = fitting(run, budget, Guidance(run), {})({"solver": solver, "grid": grid, "denoise": budget > 1})
            if budget < each:
                assert setting is None
                continue
            assert setting is not None
            assert solved(sde, setting, 1, 0, tmp_path)[1] <= budget
            assert solved(sde, {**setting, "steps": setting["steps"] + 1}, 1, 0, tmp_path)[1] > budget


def test_settings_that_fail_are_dropped_and_nan_is_the_worst() -> None:
    class Nearest:
        gain, equal = "ratio", 1.0

        def rows(self, x: Tensor, first: int) -> Tensor:
            return x

        def estimate(self, rows: Tensor) -> Estimate:
            return Estimate(float(rows.mean()))

        def compared(self, rows: Tensor, others: Tensor) -> Estimate:
            raise AssertionError

    def draws(setting: dict[str, Any], first: int, count: int) -> tuple[Tensor, float]:
        if setting["solver"] == "fails":
            raise ValueError("not on this path")
        # `late` is NaN from the seventh noise on.
        values = {"nan": math.nan, "good": 1.0, "late": 0.5, "costly": 0.1}
        x = torch.full((count,), values.get(setting["solver"], 2.0))
        if setting["solver"] == "late":
            x[torch.arange(first, first + count) >= 6] = math.nan
        return x, 9.0 if setting["solver"] == "costly" else 5.0

    search = Halving(Nearest(), draws, 5, (2, 4, 8))  # type: ignore[arg-type]
    names = ["nan", "fails", "late", "good", "costly", *"abcd"]
    best = search.best([{"solver": name, "grid": "log_snr", "steps": 5, "denoise": False} for name in names])
    assert best.sampling["solver"] == "good"
    assert search.dropped == {("fails", "not on this path"): 1, ("costly", "9 evaluations of a sample"): 1}
    assert [each["settings"] for each in search.rounds] == [7, 4, 4]
    assert search.rounds[0]["best"][0]["solver"] == "late"


def test_times_move_to_the_least_squares_and_stay_in_order_within_the_path() -> None:
    goal = torch.tensor([-4.0, -3.0, 0.5, 1.0, 6.0], dtype=torch.float64)
    mixing = torch.eye(5, dtype=torch.float64) + 0.3 * torch.ones(5, 5, dtype=torch.float64)

    def residual(log_snr: Tensor) -> Tensor:
        assert bool((log_snr.diff() > 0).all())
        assert -5 <= float(log_snr[0]) < float(log_snr[-1]) <= 5
        return mixing @ (log_snr - goal)

    found = moved(torch.linspace(-5, 5, 5, dtype=torch.float64), residual, (-5.0, 5.0))
    # The last goal is beyond the path, where the time stays; the others make up for it.
    others = torch.linalg.lstsq(mixing[:, :4], mixing @ goal - 5 * mixing[:, 4]).solution
    torch.testing.assert_close(found, torch.cat([others, found.new_tensor([5.0])]), atol=0.01, rtol=0)


def test_wrong_flags_are_refused_in_a_line(untuned: Path, tmp_path: Path) -> None:
    for message, command, options in (
        ("--features with --metric=kid", tune_command.tune, {"features": "pixels"}),
        ("no --grid beside", sample_command.sample, {"solver": "tuned", "grid": "log_snr"}),
        ("no --denoise beside", sample_command.sample, {"solver": "tuned", "denoise": False}),
        ("no --grid beside", compare_command.compare, {"solver": ("ddim", "tuned"), "grid": "log_snr"}),
        ("whole number", sample_command.sample, {"solver": "tuned:budget=many"}),
        ("whole number", sample_command.sample, {"solver": "tuned:steps=3"}),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            command(untuned, **options)
        assert len(str(caught.value)) <= 300
    torn = untrained_run(tmp_path / "torn")
    (torn / "tuned.json").write_text('{"budgets": {"5": {}}}')
    with pytest.raises(ValueError, match="tune again"):
        sample_command.sample(torn, solver="tuned")
