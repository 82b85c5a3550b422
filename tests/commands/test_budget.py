"""--budget: the most steps of each solver within a number of network evaluations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import refused
from training_runs import configuration, untrained_run

from scorefield.commands.compare import compare
from scorefield.commands.evaluate.command import evaluate
from scorefield.commands.sample import sample
from scorefield.commands.tune.command import tune


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = configuration()
    config.training.labels = True
    return untrained_run(tmp_path_factory.mktemp("runs") / "digits", config)


def drawn(run: Path, output: Path, **options: Any) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    sample(run, num=3, output=str(output), **options)
    with np.load(output) as file:
        return file["x"], json.loads(output.with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("solver", "guidance", "steps", "nfe"),
    [
        ("ddim", 1.0, 8, 9),  # one evaluation a step, and the last denoising
        ("heun:variable=log_snr", 1.0, 4, 9),  # two a step
        ("ddim", 2.0, 3, 8),  # guidance doubles them
    ],
)
def test_samples_are_those_of_the_most_steps_that_the_budget_pays_for(
    run: Path, solver: str, guidance: float, steps: int, nfe: int, tmp_path: Path
) -> None:
    x, report = drawn(run, tmp_path / "a.npz", solver=solver, guidance=guidance, budget=9)
    assert (report["steps"], report["nfe"]) == (steps, nfe)
    same, _ = drawn(run, tmp_path / "b.npz", solver=solver, guidance=guidance, steps=steps)
    assert np.array_equal(x, same)


def test_compare_has_each_solver_within_each_budget(run: Path, tmp_path: Path) -> None:
    compare(run, solver=("ddim", "heun:variable=log_snr"), budget=(2, 9), num=3, output=str(tmp_path / "c.npz"))
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["budget"] == [2, 9]
    assert [row.get("steps") for row in report["table"]] == [1, 8, None, 4]
    assert [row["budget"] for row in report["table"]] == [2, 9, 2, 9]
    assert [row.get("nfe") for row in report["table"]] == [2, 9, None, 9]
    assert "at least 3 for one step of heun" in report["table"][2]["failed"]
    with np.load(tmp_path / "c.npz") as file:
        assert set(file.files) == {"flow", "ddim 1", "ddim 8", "heun:variable=log_snr 4"}


def test_evaluate_has_a_row_for_each_number_of_steps_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {
        "features": "pixels",
        "num": 8,
        "metrics": ("kid",),
        "solver": ("heun:variable=log_snr",),
    }
    evaluate(run, budget=(3, 7, 8, 9), output=str(tmp_path / "e.json"), **options)
    report = json.loads((tmp_path / "e.json").read_text())
    assert [(row["steps"], row["nfe"]) for row in report["rows"]] == [(1, 3), (3, 7), (4, 9)]
    assert report["asked"]["budget"] == [3, 7, 8, 9]
    assert "within --budget=8 has the steps of a smaller one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grid", "budget", "steps", "nfe"),
    [
        ("trailing:of=10", 40, 10, 10),  # it counts times, and has no more than ten
        ("trailing", 1000, 1000, 1000),
        ("geometric", 3, 3, 3),
        ("log_snr", 100, 99, 100),
    ],
)
def test_a_grid_may_have_fewer_steps_and_may_count_times(
    run: Path, grid: str, budget: int, steps: int, nfe: int, tmp_path: Path
) -> None:
    _, report = drawn(run, tmp_path / "a.npz", solver="ddim", grid=grid, budget=budget)
    assert (report["steps"], report["nfe"]) == (steps, nfe)


def test_compare_goes_on_where_a_grid_is_too_short(run: Path, tmp_path: Path) -> None:
    compare(run, solver=("ddim",), budget=(1, 40), grid="trailing:of=10", num=2, output=str(tmp_path / "c.npz"))
    first, second = json.loads((tmp_path / "c.json").read_text())["table"]
    assert "failed" in first and second["steps"] == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 9, "steps": 4}, "--steps or --budget"),
        ({"budget": 0}, "--budget of at least 1"),
        ({"budget": 1}, "--nodenoise"),
        ({"budget": 9, "solver": "adaptive"}, "tolerances decide"),
        ({"budget": 9, "grid": "sigmas:levels=(10,1,0.1)"}, "names its times"),
        ({"budget": 1, "grid": "geometric"}, "at least 2 for one step"),
        ({"budget": 9, "solver": "tuned"}, "--mode=tune --budget=9"),
        ({"budget": 9, "solver": "tuned:budget=10"}, "within --budget=9"),
    ],
)
def test_a_budget_that_does_not_fit_is_refused_in_a_line(run: Path, options: dict[str, Any], said: str) -> None:
    refused(said, sample, run, num=1, **options)


def test_a_tuned_setting_that_guidance_takes_above_the_budget_is_refused(tmp_path: Path) -> None:
    config = configuration()
    config.training.labels = True
    workdir = untrained_run(tmp_path / "run", config)
    tune(workdir, budget=4, num=4)
    refused("got 8 evaluations", sample, workdir, num=1, solver="tuned", budget=4, guidance=2.0)
    compare(workdir, solver=("tuned",), budget=(4, 8), guidance=2.0, num=1, output=str(tmp_path / "c.npz"))
    first, second = json.loads((tmp_path / "c.json").read_text())["table"]
    assert "got 8 evaluations" in first["failed"] and second["nfe"] == 8
