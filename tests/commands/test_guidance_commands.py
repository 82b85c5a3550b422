"""Guidance and editing from the command line: of exact class Gaussians, and of tiny runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from class_gaussians import MEANS, SPREAD, class_run, labelled

from scorefield.commands.compare import compare
from scorefield.commands.edit import edit
from scorefield.commands.sample import sample
from scorefield.commands.train.command import train
from scorefield.commands.train_classifier import train_classifier
from scorefield.configs import build, digits

MEAN = MEANS.numpy()


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of exact classes, with 40 points of each."""
    folder = tmp_path_factory.mktemp("points")
    x, label = labelled(160, (0, 1, 2, 3))
    np.savez(folder / "points.npz", x=x, label=label, x_test=x, label_test=label)
    class_run(folder / "run", folder / "points.npz", dropout=0.1)
    return folder / "run"


@pytest.fixture(scope="module")
def vp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of digits without classes, with two checkpoints and a classifier."""
    folder = tmp_path_factory.mktemp("guided")
    config = digits.get_config("vp")
    config.net = build.spec(build.NETWORKS, "mlp", width=8, blocks=1)
    config.training.update(images=64, batch=32, sample_every=0, checkpoint_every=32)
    train(folder / "vp", config, device="cpu")
    train_classifier(folder / "vp", num=64, batch=32, device="cpu")
    return folder / "vp"


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def report(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return content


def test_a_class_becomes_another_and_the_rest_stays(points: Path, tmp_path: Path) -> None:
    """Each class is the same Gaussian elsewhere, so a point is moved by the difference of the means."""
    path = tmp_path / "edited.npz"
    for to, atol in ((2, 0.05), (1, 1e-5)):
        edit(points, split="test", from_label=1, to_label=to, num=5, steps=60, output=str(path), device="cpu")
        found = arrays(path)
        assert found["x"].shape == (5, 1, 2) and (found["label"] == to).all()
        assert (np.abs(found["input"] - MEAN[1]) < 6 * SPREAD).all()
        np.testing.assert_allclose(found["x"][:, 0] - MEAN[to], found["input"] - MEAN[1], atol=atol)
    assert {key: report(path)[key] for key in ("from", "to", "solver")} == {
        "from": {"label": 1}, "to": {"label": 1}, "solver": "belm",
    }  # fmt: skip


def test_sdedit_forgets_by_its_strength(points: Path, tmp_path: Path) -> None:
    """Little noise keeps the input; a lot makes a draw of the class; draws differ, and no batch decides them."""
    path, other = tmp_path / "edited.npz", tmp_path / "other.npz"
    options: dict[str, Any] = {"split": "test", "num": 4, "samples": 3, "steps": 40, "device": "cpu"}
    edit(points, strength=0.0, output=str(path), **options)
    found = arrays(path)
    assert (found["x"] == found["input"][:, None]).all()
    edit(points, strength=0.8, label=3, output=str(path), **options)
    edit(points, strength=0.8, label=3, output=str(other), batch=5, **options)
    far = arrays(path)["x"]
    np.testing.assert_allclose(far, arrays(other)["x"], atol=1e-5)
    assert np.abs(far - MEAN[3]).max() < 6 * SPREAD and np.abs(far[:, 0] - far[:, 1]).min() > 1e-4
    edit(points, strength=0.1, label=3, output=str(path), **options)
    assert np.abs(arrays(path)["x"] - found["x"]).max() < 0.3
    assert report(path)["strength"] == 0.1


def test_autoguidance_by_an_equal_run_or_snapshot_changes_nothing(points: Path, vp: Path, tmp_path: Path) -> None:
    def x(workdir: Path, **options: Any) -> Any:
        sample(workdir, num=4, steps=3, device="cpu", output=str(tmp_path / "x.npz"), **options)
        return arrays(tmp_path / "x.npz")["x"].astype(float)

    twin = shutil.copytree(points, tmp_path / "twin")
    np.testing.assert_allclose(x(points), x(points, guide=str(twin), guidance=3.0), atol=1e-6)
    names = sorted(path.name for path in (vp / "checkpoints").iterdir())
    assert len(names) >= 2
    plain = x(vp)
    assert (x(vp, guide=names[-1], guidance=3.0) == plain).all()
    for guide in (names[0], str(vp / "checkpoints" / names[0])):
        moved = x(vp, guide=guide, guidance=30.0)
        assert (moved != plain).any()
    assert report(tmp_path / "x.npz")["guide"]["checkpoint"] == names[0]


def test_a_classifier_guides_a_run_without_classes(vp: Path, tmp_path: Path) -> None:
    facts = json.loads((vp / "classifier.json").read_text())
    assert set(facts["history"][-1]["accuracy"]) == {"0.1", "0.3", "1", "3", "10"}
    path = tmp_path / "x.npz"
    options: dict[str, Any] = {"num": 4, "steps": 3, "device": "cpu", "output": str(path)}
    sample(vp, **options)
    plain = arrays(path)["x"]
    sample(vp, label=3, classifier=50.0, **options)
    assert (arrays(path)["label"] == 3).all() and (arrays(path)["x"] != plain).any()
    assert report(path)["classifier"] == 50.0
    sample(vp, classifier=0.0, **options)
    assert (arrays(path)["x"] == plain).all() and arrays(path)["label"].tolist() == [0, 1, 2, 3]
    compare(vp, solver=("ddim",), steps=(2,), classifier=1.0, num=2, device="cpu", output=str(path))


def test_mistakes_get_one_line(points: Path, vp: Path, tmp_path: Path) -> None:
    def refused(says: str, mode: Any, workdir: Path, **options: Any) -> None:
        with pytest.raises(ValueError, match=rf"^expected [^\n]*{says}") as caught:
            mode(workdir, device="cpu", **options)
        assert len(str(caught.value)) < 420

    refused("no --guidance, because .* without classes", sample, vp, guidance=2.0, classifier=1.0)
    refused("a classifier in .* found no classifier.safetensors", sample, points, classifier=1.0)
    refused("--guide to be a run with the same shape", sample, vp, guide=str(points), guidance=2.0)
    refused("--guidance beside --guide, got none", sample, vp, guide="64")
    refused("--guidance beside --guidance_rescale", sample, points, guidance_rescale=0.5)
    refused("rescale to be a share", sample, points, guidance=2.0, guidance_rescale=1.5)
    refused("a norm above 0", sample, points, guidance=2.0, guidance_norm=0.0)
    refused("a run in .*nowhere", sample, points, guide=str(tmp_path / "nowhere"), guidance=2.0)
    refused("--strength within 0 .. 1, got 2", edit, points, strength=2.0)
    refused("--to_label beside --from_label", edit, points, from_label=1)
    refused("no --strength beside --to_label", edit, points, strength=0.5, to_label=1)
    refused("no --label, because this run was trained without classes", edit, vp, to_label=1)
    refused("--label within 0 .. 3, got 9", edit, points, from_label=1, to_label=9)
    np.savez(tmp_path / "bare.npz", x=np.zeros((9, 2), np.float32), x_test=np.zeros((9, 2), np.float32))
    bare = shutil.copytree(points, tmp_path / "bare")
    config = json.loads((bare / "config.json").read_text())
    config["data"]["num_classes"] = None
    config["config"]["training"]["labels"] = False
    (bare / "config.json").write_text(json.dumps(config))
    refused("data with classes for a classifier", train_classifier, bare)
