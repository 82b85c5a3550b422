"""Evaluation by the command: one number from a run and from its file, by parts and at once, and what is refused."""

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from class_gaussians import MEANS, SPREAD, class_run, labelled
from image_files import refused
from latent_run import configuration, write_random_autoencoder
from PIL import Image
from training_runs import new_run, new_state, untrained_run

from scorefield.commands.evaluate import subjects
from scorefield.commands.evaluate.baseline import check_comparable
from scorefield.commands.evaluate.command import evaluate
from scorefield.commands.evaluate.numbers import Side, numbers_of
from scorefield.commands.evaluate.opened import open_samples
from scorefield.commands.evaluate.reference import reference_of_file
from scorefield.commands.evaluate.report import best_of, name_of_row, pareto_of
from scorefield.commands.evaluate.store import digest
from scorefield.commands.features import open_features
from scorefield.commands.sample import sample
from scorefield.commands.statistics import statistics
from scorefield.commands.trained import open_trained
from scorefield.evaluation.features import StoredAs
from scorefield.evaluation.metrics.frechet import frechet_distance
from scorefield.training import save
from scorefield.training.data import digits

PLAIN: dict[str, Any] = {"features": "pixels", "num": 40, "batch": 16, "metrics": ("fid", "kid", "pr", "dc")}
MOMENTS: dict[str, Any] = {**PLAIN, "metrics": ("fid",)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOREFIELD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("runs") / "digits")


def evaluated(workdir: Path, output: Path, **options: Any) -> dict[str, Any]:
    files = evaluate(workdir, output=str(output), **{**PLAIN, **options})["files"]
    assert all(Path(file).is_file() for file in files)
    report: dict[str, Any] = json.loads(output.read_text())
    return report


def numbers(report: dict[str, Any]) -> list[Any]:
    return [row["numbers"] for row in report["rows"]]


def test_a_run_and_its_file_have_the_same_numbers_which_are_those_of_the_samples(run: Path, tmp_path: Path) -> None:
    drawn = evaluated(run, tmp_path / "run.json", steps=(2,), seed=3)
    sample(run, num=40, steps=2, seed=3, batch=16, output=str(tmp_path / "s.npz"))
    stored = evaluated(run, tmp_path / "file.json", input=str(tmp_path / "s.npz"))
    assert numbers(stored) == numbers(drawn)
    with np.load(tmp_path / "s.npz") as file:
        x = torch.as_tensor(file["x"]).flatten(1) / 16
    reference = digits("train").subset(40, 0)
    real = torch.as_tensor(np.asarray(reference.x)).flatten(1) / 16
    row = drawn["rows"][0]
    assert row["numbers"]["fid"]["value"] == pytest.approx(frechet_distance(x, real), rel=1e-6)
    assert (row["numbers"]["fid"]["n"], row["numbers"]["fid"]["m"], row["nfe"]) == (40, 40, 3)  # two steps, and x0
    held_out = torch.as_tensor(np.asarray(digits("test").subset(40, 0).x)).flatten(1) / 16
    assert drawn["floor"]["fid"]["value"] == pytest.approx(frechet_distance(held_out, real), rel=1e-6)
    assert "64 values; 40 samples against 40 of digits train" in row["recipe"] and "seed 3" in row["recipe"]


def test_an_interrupted_sweep_goes_on_to_the_same_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep: dict[str, Any] = {"solver": ("ddim", "heun"), "steps": (1, 2), "metrics": ("fid", "kid"), "seed": 1}
    calls = []
    draw = subjects.Drawn.part

    def failing(self: Any, first: int, bar: Any = None) -> Any:
        calls.append((self.sampling["solver"], self.sampling["steps"], first))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return draw(self, first, bar)

    with monkeypatch.context() as patch:
        patch.setattr(subjects.Drawn, "part", failing)
        with pytest.raises(KeyboardInterrupt, match="goes on"):
            evaluated(run, tmp_path / "a.json", **sweep)
        assert not (tmp_path / "a.json").exists()
        first = calls[:4]
        evaluated(run, tmp_path / "a.json", **sweep)
        assert not set(first) & set(calls[5:-1])  # what was finished is not drawn again; the last is for the picture
    for folder in (run / ".evaluate", tmp_path / "cache"):
        shutil.rmtree(folder)
    whole = evaluated(run, tmp_path / "b.json", **sweep)
    interrupted = json.loads((tmp_path / "a.json").read_text())
    assert numbers(interrupted) == numbers(whole) and interrupted["floor"] == whole["floor"]
    kid = {row["name"]: row["numbers"]["kid"]["value"] for row in whole["rows"]}
    for row in whole["rows"]:
        if "kid_above_best" in row:
            assert row["kid_above_best"]["value"] == pytest.approx(kid[row["name"]] - min(kid.values()), abs=1e-9)
    assert sum("kid_above_best" in row for row in whole["rows"]) == 3
    assert [row["name"] for row in whole["rows"]] == ["ddim 1 steps", "ddim 2 steps", "heun 1 steps", "heun 2 steps"]


def test_two_ranks_give_the_numbers_of_one(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [f"--workdir={run}", "--features=pixels", "--num=40", "--batch=8", "--seed=5", "--metrics=fid,kid"]
    processes = warm.ranks("--mode=evaluate", *options, "--likelihood", f"--output={tmp_path / 'two.json'}")
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for folder in (run / ".evaluate", tmp_path / "cache"):
        shutil.rmtree(folder)
    one = evaluated(run, tmp_path / "one.json", batch=8, seed=5, metrics=("fid", "kid"))
    two = json.loads((tmp_path / "two.json").read_text())
    assert numbers(two) == numbers(one) and two["floor"] == one["floor"]
    assert set(two["rows"][0]["bits_per_dim"]) == {"test", "train"}


def test_other_features_and_sizes_are_not_taken_from_what_is_kept(run: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": (1,), "metrics": ("kid",), "reference_images": 30}
    for change, dims, floor in (({}, 64, 40), ({"features": "random"}, 384, 40), ({"num": 30}, 64, 30)):
        report = evaluated(run, tmp_path / f"{dims}_{floor}.json", **{**options, **change})
        assert (report["rows"][0]["dimensions"], report["floor"]["kid"]["n"]) == (dims, floor)


def test_the_best_row_and_the_front_by_metrics_of_both_directions() -> None:
    def rows(metric: str, values: tuple[float, ...]) -> list[dict[str, Any]]:
        return [{"nfe": nfe, "numbers": {metric: {"value": value}}} for nfe, value in enumerate(values)]

    for metric, values, best, front in (
        ("kid", (3.0, 1.0, 2.0, 0.5), 3, [0, 1, 3]),
        ("recall", (0.3, 0.1, 0.6, 0.5), 2, [0, 2]),
    ):
        table = rows(metric, values)
        assert best_of(table) is table[best]
        assert [row["nfe"] for row in pareto_of(table, metric)] == front


def test_features_of_one_name_and_other_weights_are_not_compared() -> None:
    recipe = {"features": "mine", "features_sha256": "a", "reference": {}, "samples": 4}
    check_comparable(recipe, {"recipe": dict(recipe)}, "old.json")
    refused("features_sha256 b there", check_comparable, recipe, {"recipe": {**recipe, "features_sha256": "b"}}, "old")


def test_the_error_of_the_inception_score_is_that_of_the_mean_of_its_parts() -> None:
    p = torch.rand(100, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    found = numbers_of(["is"], {"features": p, "probabilities": p}, Side(None, None, {}))["is"]
    order = np.random.RandomState(2020).permutation(100)
    parts = p.double()[order].reshape(10, 10, 3)
    scores = (parts * (parts / parts.mean(1, keepdim=True)).log()).sum(2).mean(1).exp()
    assert found["standard_error"] == pytest.approx(float(scores.std()) / math.sqrt(10), rel=1e-6)


def test_samples_of_a_grid_that_is_measured_again_are_drawn_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = {"solver": "ddim", "grid": "optimal", "steps": 1, "denoise": True}
    drawn, keys = subjects.Drawn(open_trained(run, "cpu"), sampling, 4, 4, 0, run), set()
    for end in (0.1, 0.2):
        monkeypatch.setattr(subjects, "grid", lambda *_, end=end: torch.tensor([1.0, end]))
        keys.add(digest(drawn.key))
    assert len(keys) == 2


def test_a_tuned_row_has_a_name_of_its_own() -> None:
    rows: list[dict[str, Any]] = [{"solver": "ddim", "steps": 3}, {"solver": "ddim", "steps": 3, "tuned": {}}]
    assert [name_of_row(row, rows) for row in rows] == ["ddim 3 steps", "tuned 3 steps"]


def test_samples_of_codes_are_kept_by_the_tiles_and_weights_that_decode_them(tmp_path: Path) -> None:
    codes = new_run(tmp_path / "run", configuration(write_random_autoencoder(tmp_path / "first")))
    codes.save()
    save(codes.workdir / "checkpoints", new_state(codes))
    sampling, keys = {"solver": "ddim", "grid": "log_snr", "steps": 1, "denoise": True}, set()
    for tile, seed in ((0, 0), (2, 0), (0, 1)):
        write_random_autoencoder(codes.workdir, seed)
        trained = open_trained(codes.workdir, "cpu")
        trained.run.in_tiles_of(tile)
        keys.add(digest(subjects.Drawn(trained, sampling, 4, 4, 0, tmp_path).key))
    assert len(keys) == 3


def test_an_exact_run_is_at_the_floor_and_its_classes_are_told_apart(tmp_path: Path) -> None:
    x, label = labelled(600, range(4))
    order = np.random.default_rng(0).permutation(600)  # every tenth is the test split, which has all classes then
    x, label = x[order], label[order]
    np.savez(tmp_path / "points.npz", x=x, label=label)
    class_run(tmp_path / "run", tmp_path / "points.npz")
    report = evaluated(tmp_path / "run", tmp_path / "e.json", num=400, steps=(30,), metrics=("fid", "kid"))
    row = report["rows"][0]
    # Four standard errors: 6e-5 for a normal, twice.
    kid = row["numbers"]["kid"]
    assert abs(kid["value"]) < 4 * kid["standard_error"]
    assert row["numbers_at_floor_size"]["fid"]["value"] < 5 * report["floor"]["fid"]["value"]
    assert list(row["per_class"]) == ["0", "1", "2", "3"]
    for found in row["per_class"].values():
        assert abs(found["value"]) < 5 * found["standard_error"]
    one = evaluated(tmp_path / "run", tmp_path / "o.json", num=100, steps=(30,), metrics=("fid",), label=1)
    assert one["rows"][0]["numbers"]["fid"]["value"] < 10 * SPREAD**2 < float(MEANS[0, 0] ** 2)
    assert one["recipe"]["reference"]["of"] == int((label[np.arange(600) % 10 > 0] == 1).sum())


def test_statistics_take_the_place_of_images_in_the_formats_of_others(run: Path, tmp_path: Path) -> None:
    images = evaluated(run, tmp_path / "i.json", steps=(2,), reference_images=2000)
    statistics(run, features="pixels", output=str(tmp_path / "ours.npz"))
    with np.load(tmp_path / "ours.npz") as file:
        mu, sigma, count = file["mu"], file["sigma"], int(file["count"])
    assert count == len(digits("train"))
    np.savez(tmp_path / "pytorch_fid.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8), mu=mu, sigma=sigma, mu_s=mu, sigma_s=sigma)
    with (tmp_path / "edm.pkl").open("wb") as out:
        pickle.dump({"mu": mu, "sigma": sigma}, out)
    with (tmp_path / "edm2.pkl").open("wb") as out:
        pickle.dump({"fid": {"mu": mu, "sigma": sigma}}, out)
    expected = numbers(images)[0]["fid"]["value"]
    for name in ("ours.npz", "pytorch_fid.npz", "adm.npz", "edm.pkl", "edm2.pkl"):
        report = evaluated(run, tmp_path / f"{name}.json", steps=(2,), reference=str(tmp_path / name), metrics=("fid",))
        assert numbers(report)[0]["fid"]["value"] == pytest.approx(expected, rel=1e-6), name
        assert report["floor"] == {} and list(numbers(report)[0]) == ["fid"]
    refused("not fitted to data", statistics, run, features="pca:components=4", output=str(tmp_path / "pca.npz"))
    refused("images, got --reference", evaluate, run, metrics=("fid", "nn"), reference=str(tmp_path / "ours.npz"))
    np.savez(tmp_path / "turned.npz", mu=mu[::-1], sigma=sigma[::-1, ::-1])  # of the same trace and mean
    plain, turned = (
        reference_of_file(tmp_path / name, open_features("pixels", StoredAs((1, 8, 8), 17), torch.device("cpu")))
        for name in ("pytorch_fid.npz", "turned.npz")
    )
    assert plain.described["sha256"] != turned.described["sha256"]
    refused(
        "got those of pixels", evaluate, run, features="random", num=4, reference=str(tmp_path / "ours.npz"),
    )  # fmt: skip
    np.savez(tmp_path / "bad.npz", mu=mu, sigma=sigma[:3])
    refused("as the reference of kid, got statistics", evaluate, run, **PLAIN, reference=str(tmp_path / "ours.npz"))
    refused("symmetric covariance", evaluate, run, **MOMENTS, reference=str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "none.npz", x=mu)
    refused("a mean `mu`", evaluate, run, **MOMENTS, reference=str(tmp_path / "none.npz"))


def test_a_baseline_is_compared_by_the_same_recipe_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(run, tmp_path / "a.json", steps=(1,))
    lines = evaluate(run, **PLAIN, steps=(2,), baseline=str(tmp_path / "a.json"), output=str(tmp_path / "b.json"))
    assert any("before" in str(line) and "standard errors" in str(line) for line in lines.values())
    for options, said in (
        ({"num": 30}, "samples 40 there, 30 here"),
        ({"features": "random"}, "features pixels"),
        ({"split": "test"}, "reference"),
    ):
        refused(said, evaluate, run, **{**PLAIN, **options}, baseline=str(tmp_path / "a.json"))
    (tmp_path / "other.json").write_text("{}")
    refused("got another file", evaluate, run, **PLAIN, baseline=str(tmp_path / "other.json"))


def test_a_row_that_fails_says_so_and_the_others_go_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finite = subjects.finite

    def failing(x: torch.Tensor, sampling: Any) -> torch.Tensor:
        return finite(x / 0 if sampling["steps"] == 2 else x, sampling)

    monkeypatch.setattr(subjects, "finite", failing)
    report = evaluated(run, tmp_path / "a.json", steps=(2, 3), seed=9)
    first, second = report["rows"]
    assert "not finite" in first["failed"] and "fid" in second["numbers"] and report["best"] == second["name"]
    refused("not finite", evaluate, run, **PLAIN, steps=(2,), seed=9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": ("fid", "fidd")}, "--metrics among"),
        ({"metrics": ("nn",)}, "one beside nn"),
        ({"num": 1}, "--num of at least 2"),
        ({"split": "val"}, "train or test"),
        ({"input": "absent.npz"}, "which is not there"),
        ({"input": "absent.npz", "steps": (3,)}, "options of sampling"),
        ({"reference": "absent.npz", "metrics": ("fid",)}, "which is not there"),
        ({"reference": "absent.npz", "data": "digits", "metrics": ("fid",)}, "got both"),
        ({"label": 3}, "trained without"),
        ({"solver": ("ddim", "hoin")}, "hoin"),
        ({"baseline": "absent.json"}, "which is not there"),
        ({"checkpoint": ("77",)}, "--checkpoint to name"),
        ({"metrics": ("is",)}, "probabilities"),
        ({"metrics": ("sfid",)}, "spatial"),
        ({"metrics": ("fd_inf",)}, "at least 5000 samples for fd_inf, got 40"),
    ],
)
def test_wrong_options_end_in_a_line(run: Path, options: dict[str, Any], said: str) -> None:
    refused(said, evaluate, run, **{**PLAIN, **options})


def test_samples_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.asarray(digits("test").x[:50])
    np.save("s.npy", x)
    report = evaluated(Path("."), tmp_path / "e.json", input="s.npy", data="digits")
    assert len(report["rows"]) == 1 and report["rows"][0]["n"] == 40
    refused("got neither", evaluate, Path("."), input="s.npy", **PLAIN)
    dark_first = np.sort(x.reshape(50, -1).mean(1))[:, None].repeat(64, 1).reshape(x.shape).astype(np.uint8)
    np.save("ordered.npy", dark_first)
    part = open_samples(Path("ordered.npy"), None, 25, 25).part(0)["x"]
    assert part.max() > dark_first[:25].max()
    np.save("wide.npy", np.zeros((4, 1, 9, 9), np.uint8))
    refused("1x8x8 of 17 levels, got 1x9x9", evaluate, Path("."), input="wide.npy", data="digits", **PLAIN)
    np.save("one.npy", x[:1])
    refused("at least 2 samples", evaluate, Path("."), input="one.npy", data="digits", **PLAIN)


def test_planted_copies_are_named_with_their_originals(tmp_path: Path) -> None:
    training, held_out = (np.asarray(digits(split).x) for split in ("train", "test"))
    samples = np.concatenate([held_out[100:200], training[[7, 70, 700]]])
    np.save(tmp_path / "s.npy", samples)
    report = evaluated(
        tmp_path, tmp_path / "e.json", input=str(tmp_path / "s.npy"), data="digits", num=103, metrics=("kid", "nn")
    )
    copies = report["copies"]
    assert {100, 101, 102} <= set(copies["flagged"]) and copies["nearest"][100:] == [7, 70, 700]
    # Each of the others is flagged with probability 0.01: more than 6 of 100 has 1e-4.
    assert len(copies["flagged"]) <= 9 and copies["distance"][100:] == [0, 0, 0]


def test_levels_of_samples_without_a_run_are_those_of_their_report_or_statistics(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sample(run, num=40, steps=2, output="s.npz")
    statistics(Path("."), data="digits", features="pixels", output="ours.npz")
    against: dict[str, Any] = {"reference": "ours.npz", "metrics": ("fid",)}
    expected = numbers(evaluated(run, tmp_path / "a.json", steps=(2,), batch=256, **against))
    assert numbers(evaluated(Path("."), tmp_path / "b.json", input="s.npz", **against)) == expected
    statistics(Path("."), input="s.npz", features="pixels", output="of_samples.npz")
    with np.load("of_samples.npz") as file, np.load("s.npz") as samples:
        x = samples["x"]
        np.testing.assert_allclose(file["mu"], x.reshape(40, -1).mean(0) / 16, rtol=1e-6)
    (tmp_path / "png").mkdir()
    for i, image in enumerate(x):
        Image.fromarray(np.rint(image[0] * (255 / 16)).astype(np.uint8)).save(tmp_path / "png" / f"{i:03d}.png")
    capsys.readouterr()
    assert numbers(evaluated(Path("."), tmp_path / "c.json", input="png", **against)) == expected
    assert "256 levels are rounded to the 17" in capsys.readouterr().err
    np.save("dark.npy", x)
    statistics(Path("."), input="dark.npy", features="pixels", output="dark.npz")
    assert "its largest value is 16" in capsys.readouterr().err
