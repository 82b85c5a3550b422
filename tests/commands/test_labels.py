"""The classes that a network is given: a run that was always given one is never used without."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_gaussians import MEANS, SPREAD, class_run, labelled, negative_log_density
from PIL import Image
from training_runs import new_run

from scorefield.commands.compare import compare
from scorefield.commands.encode import decode, encode
from scorefield.commands.grid import grid
from scorefield.commands.interpolate import interpolate
from scorefield.commands.labels import sampled_labels
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.run import open_run
from scorefield.commands.sample import sample
from scorefield.commands.train.command import train
from scorefield.configs import build, own
from scorefield.models import ClassifierFree, Denoiser
from scorefield.models.precondition import eps
from scorefield.training.data import folder

SOLVER: dict[str, Any] = {"solver": "heun", "steps": 40}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Points with labels, and beside them the same without."""
    x, label = labelled(40, (0, 1, 2, 3))
    x_test, label_test = labelled(24, (0, 1, 2, 3), seed=1)
    np.savez(tmp_path / "points.npz", x=x, label=label, x_test=x_test, label_test=label_test)
    np.savez(tmp_path / "bare.npz", x=x, x_test=x_test)
    return tmp_path / "points.npz"


def report(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def score(workdir: Path, data: Path, **options: Any) -> dict[str, Any]:
    path = workdir / f"{data.stem}.json"
    likelihood(workdir, data=f"array:path={str(data)!r}", solver="heun", steps=60, output=str(path), **options)
    return report(path)


def test_a_network_that_was_always_given_its_class_is_scored_with_one(data: Path, tmp_path: Path) -> None:
    run, bare = class_run(tmp_path / "run", data), data.with_name("bare.npz")
    x, label = labelled(24, (0, 1, 2, 3), seed=1)
    assert score(run.workdir, data)["nats_per_dim"] == pytest.approx(negative_log_density(x, label), abs=0.01)
    for estimators in (["ode"], ["elbo"], ["dsm"], ["vlb"]):
        settings = SOLVER if estimators == ["ode"] else {}
        with pytest.raises(ValueError, match=r"expected a class for each image, .*bare: give --label, .*\(0 .. 3\)"):
            likelihood(run.workdir, data=f"array:path={str(bare)!r}", estimators=estimators, **settings)
    # One class for all is what it says.
    found = score(run.workdir, bare, label="2")
    assert found["label"] == 2
    assert found["nats_per_dim"] == pytest.approx(negative_log_density(x, np.full(24, 2)), rel=0.01)


def test_with_labels_left_out_in_training_data_without_labels_is_scored_without(data: Path, tmp_path: Path) -> None:
    run = class_run(tmp_path / "run", data, dropout=0.1)
    found = score(run.workdir, data.with_name("bare.npz"))
    x, _ = labelled(24, (0, 1, 2, 3), seed=1)
    assert found["label"] == "none: the network is used without a class"
    assert found["nats_per_dim"] == pytest.approx(negative_log_density(x, np.full(24, 4)), rel=0.01)


def test_classes_come_with_the_latents(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = class_run(tmp_path / "run", data)
    x, label = labelled(12, (3, 1), seed=2)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "xy.npz", x=x, labels=label[:, None].astype(np.float32))  # whole floats, (N, 1)
    for mode in (encode, decode):
        source = tmp_path / "x.npy" if mode is encode else run.workdir / "latents.npz"
        if mode is decode:
            np.savez(source, latent=x)
        with pytest.raises(ValueError, match=r"expected a class for each image, .*: give --label"):
            mode(run.workdir, input=str(source), **SOLVER)

    latents, decoded = tmp_path / "latents.npz", tmp_path / "decoded.npz"
    encode(run.workdir, input=str(tmp_path / "xy.npz"), output=str(latents), **SOLVER)
    assert report(latents.with_suffix(".json"))["label"] == "of the images"
    # (x0 - mean) / SPREAD is the latent of a Gaussian, up to the prior's own deviation of one.
    with np.load(latents) as found:
        assert found["label"].tolist() == label.tolist()
        np.testing.assert_allclose(found["latent"], (x - MEANS.numpy()[label]) / SPREAD, atol=0.05)
    decode(run.workdir, input=str(latents), output=str(decoded))
    assert report(decoded.with_suffix(".json"))["round_trip_rms"] < 0.01

    encode(run.workdir, input=str(tmp_path / "x.npy"), label="1", output=str(latents), **SOLVER)
    capsys.readouterr()
    decode(run.workdir, input=str(latents), output=str(decoded))  # with the class that they were encoded with
    assert report(decoded.with_suffix(".json"))["round_trip_rms"] < 0.01
    assert "encoded by" not in capsys.readouterr().err
    decode(run.workdir, input=str(latents), output=str(decoded), label=3)
    assert "encoded by their own classes, not 3" in capsys.readouterr().err
    with np.load(decoded) as found, np.load(latents) as before:
        assert found["label"].tolist() == [3] * 12
        np.testing.assert_allclose(found["x"] - before["x"], np.tile(MEANS[3] - MEANS[1], (12, 1)), atol=0.02)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.array([0.5] * 12), "expected the number of a class for each of 12 images in .*, got labels of shape"),
        (np.array([0, 4] * 6), r"expected classes within 0 \.\. 3, .*, got 0 to 4 in"),
        (np.array([-1] * 12), r"expected classes within 0 \.\. 3, .*, got -1 to -1 in"),
        (np.zeros((12, 4), np.int64), r"expected the number of a class .*\(12, 4\) in int64"),
        (np.zeros(11, np.int64), r"expected the number of a class .*\(11,\) in int64"),
    ],
    ids=["fractions", "too large", "negative", "one-hot", "too few"],
)
def test_labels_of_latents_that_are_no_classes_are_refused(
    wrong: np.ndarray, says: str, data: Path, tmp_path: Path
) -> None:
    run = class_run(tmp_path / "run", data)
    np.savez(run.workdir / "latents.npz", latent=np.zeros((12, 2), np.float32), label=wrong)
    with pytest.raises(ValueError, match=says):
        decode(run.workdir, **SOLVER)


def test_interpolation_uses_the_class_of_each_end_or_one_for_both(data: Path, tmp_path: Path) -> None:
    run = class_run(tmp_path / "run", data)
    x, _ = labelled(24, (0, 1, 2, 3), seed=1)
    interpolate(run.workdir, pair=(0, 1), num=5, **SOLVER)
    with np.load(run.workdir / "interpolation.npz") as found:
        np.testing.assert_allclose(found["x"][[0, -1]], x[:2], atol=0.02)
    bare = class_run(tmp_path / "bare", data.with_name("bare.npz"))
    with pytest.raises(ValueError, match="expected a class for each image"):
        interpolate(bare.workdir, **SOLVER)
    interpolate(bare.workdir, pair=(0, 4), label="0", num=5, **SOLVER)
    assert report(bare.workdir / "interpolation.json")["label"] == 0


def test_classes_without_an_example_are_never_sampled(data: Path, tmp_path: Path) -> None:
    run = class_run(tmp_path / "run", data, counts=(0, 5, 0, 7), dropout=0.1)
    for guidance in (1.0, 1.5):
        path = tmp_path / "samples.npz"
        sample(run.workdir, num=9, guidance=guidance, output=str(path), **SOLVER)
        with np.load(path) as samples:
            assert samples["label"].tolist() == [1, 3] * 4 + [1]
            # Six deviations: one false alarm in 10^7 runs.
            assert np.abs(samples["x"] - guidance * MEANS.numpy()[samples["label"]]).max() < 6 * SPREAD
    assert report(tmp_path / "samples.json")["classes"] == [1, 3]
    for command in (sample, compare, grid):
        with pytest.raises(ValueError, match=r"with examples in the training data \(1, 3\), got 2, which had none"):
            command(run.workdir, label=2)  # type: ignore[operator]
    # Runs that did not count them have all.
    old = class_run(tmp_path / "old", data, counts=())
    sample(old.workdir, num=5, **SOLVER)
    with np.load(old.workdir / "samples.npz") as samples:
        assert samples["label"].tolist() == [0, 1, 2, 3, 0]
    assert "classes" not in report(old.workdir / "samples.json")


def test_compare_guides_at_the_noise_levels_of_sample(data: Path, tmp_path: Path) -> None:
    run, made = class_run(tmp_path / "run", data, dropout=0.1), []
    for interval in ((0.5, 5.0), None):
        options: dict[str, Any] = {"num": 4, "guidance": 2.0, "guidance_interval": interval}
        one, all_of = tmp_path / "one.npz", tmp_path / "all.npz"
        sample(run.workdir, solver="ddim", steps=4, output=str(one), **options)
        compare(run.workdir, solver=("ddim",), steps=(4,), output=str(all_of), **options)
        with np.load(one) as samples, np.load(all_of) as compared:
            np.testing.assert_array_equal(samples["x"], compared["ddim 4"])
            made.append(samples["x"])
        assert report(tmp_path / "all.json").get("guidance_interval") == (interval and list(interval))
    assert np.abs(made[0] - made[1]).max() > 0.01
    with pytest.raises(ValueError, match="expected --guidance_interval of two noise levels"):
        compare(run.workdir, num=4, guidance=2.0, guidance_interval=(1.0,))


def test_images_of_a_class_without_an_example_are_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = class_run(tmp_path / "run", data, counts=(5, 5, 0, 7))
    assert score(run.workdir, data)["of_classes_without_examples"] == 6
    assert "6 of 24 images are of classes that had no example in training" in capsys.readouterr().err


def test_a_class_is_named_by_its_name_or_its_number(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = class_run(tmp_path / "run", data, names=("bird", "flower", "3", "sky"))
    for label, number in (("flower", 1), ("3", 2), (3, 3), ("0", 0)):
        sample(run.workdir, num=2, label=label, output=str(tmp_path / "samples.npz"), **SOLVER)
        written = report(tmp_path / "samples.json")
        assert (written["label"], written["class"]) == (number, run.data.class_names[number])
    assert "--label=3 is the name of class number 2" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"\(bird, flower, 3, sky\), got 'flowr': did you mean 'flower'\?"):
        sample(run.workdir, label="flowr")
    for wrong in (4, "-1"):
        with pytest.raises(ValueError, match=rf"expected --label within 0 \.\. 3, got {wrong}"):
            sample(run.workdir, label=wrong)


def config(path: Path, **training: Any) -> Any:
    config = own.get_config("array")
    config.data.path = str(path)
    config.net = build.spec(build.NETWORKS, "mlp", width=8, blocks=1)
    config.training.update({"images": 32, "batch": 16, "sample_every": 0, "labels": True, **training})
    return config


def test_training_counts_the_classes_and_says_which_have_none(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, label = labelled(30, (1, 3))
    np.savez(data, x=x, label=label)
    train(tmp_path / "run", config(data), device="cpu")
    assert "2 of 4 classes have no example: they are never sampled" in capsys.readouterr().err
    file = tmp_path / "run" / "config.json"
    run = open_run(tmp_path / "run", "cpu")
    assert run.data.class_counts == (0, 12, 0, 15) and run.classes == [1, 3]  # every tenth is held out
    # A run that was begun without counts goes on, and has them then.
    saved = json.loads(file.read_text())
    saved["data"] = {key: value for key, value in saved["data"].items() if not key.startswith("class_")}
    file.write_text(json.dumps(saved))
    assert open_run(tmp_path / "run", "cpu").classes == [0, 1, 2, 3]
    train(tmp_path / "run", config(data), device="cpu")
    assert open_run(tmp_path / "run", "cpu").classes == [1, 3]


def test_a_run_without_classes_says_how_to_train_with_them(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    bare = replace(run, data=replace(run.data, num_classes=None))
    options: list[dict[str, Any]] = [{"label": 3}, {"guidance": 2.0}]
    for trained, how in ((run, "train with"), (bare, "train on data with classes with")):
        for option in options:
            with pytest.raises(ValueError, match=f"or {how} --config.training.labels=true in a new --workdir"):
                sampled_labels(trained, 2, **option)


def test_training_says_once_that_classes_are_not_used(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "classes are not used: --config.training.labels=true uses them"
    for name, images, count in (("points", 32, 1), ("points", 48, 0), ("bare", 32, 0)):
        train(tmp_path / name, config(data.with_name(f"{name}.npz"), images=images, labels=False), device="cpu")
        assert capsys.readouterr().out.count(line) == count


def test_labels_are_refused_before_anything_is_built(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected labels in bare, because training\.labels is True, got none"):
        train(tmp_path / "run", config(data.with_name("bare.npz")), device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_denoiser_that_requires_a_label_refuses_to_be_called_without(data: Path, tmp_path: Path) -> None:
    x, half = torch.zeros(2, 2), torch.tensor(0.5)
    for dropout, required in ((0.0, True), (0.1, False)):
        denoiser = class_run(tmp_path / str(dropout), data, dropout=dropout).new_denoiser()
        assert denoiser.label_required is required
    calls: tuple[Callable[..., Any], ...] = (
        strict := Denoiser(lambda x, c, **cond: x, eps, label_required=True),
        strict.noise,
    )
    with pytest.raises(ValueError, match="trained with some labels left out, got one that was always given a label"):
        ClassifierFree(strict, 2.0)
    for call in calls:
        call(x, half, half, label=torch.zeros(2, dtype=torch.long))
        for cond in ({}, {"label": None}):
            with pytest.raises(ValueError, match="expected a label, because this network was always given one"):
                call(x, half, half, **cond)


def test_classes_of_another_data_set_are_found_by_their_names(tmp_path: Path) -> None:
    for top, names in (("a", "cdf"), ("b", "fd"), ("odd", "cx")):
        for name in names:
            (tmp_path / top / name).mkdir(parents=True)
            for i in range(20):
                image = Image.new("L", (4, 4), 10 * ord(name) % 251)
                image.paste(255, (0, 2, 4, 4))
                image.save(tmp_path / top / name / f"{i}.png")
    train_set = folder(tmp_path / "a")
    run_config = config(tmp_path / "a")
    run_config.data = build.spec(build.DATASETS, "folder", path=str(tmp_path / "a"))
    run_config.transform.flip = False
    train(tmp_path / "run", run_config, device="cpu")
    run = open_run(tmp_path / "run", "cpu")
    assert run.data.class_names == train_set.class_names == ("c", "d", "f")
    other = run.on(f"folder:path={str(tmp_path / 'b')!r}").dataset("train")
    assert other.label is not None
    for x, label in zip(other.x, other.label, strict=True):
        assert x.flat[0] == 10 * ord(run.data.class_names[label]) % 251
    with pytest.raises(ValueError, match=r"expected classes .* \(c, d, f\), got 'x' in odd"):
        run.on(f"folder:path={str(tmp_path / 'odd')!r}").dataset("train")
    # So are those of images to encode, of all classes or of one.
    for source, expected in (("b", [1] * 20 + [2] * 20), ("b/f", [2] * 20)):
        encode(run.workdir, input=str(tmp_path / source), output=str(tmp_path / "latents.npz"), steps=2)
        with np.load(tmp_path / "latents.npz") as latents:
            assert latents["label"].tolist() == expected
