"""A run finds its data from any folder, and a relative place that is not there says below which folder it was."""

import json
import re
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from scorefield.commands.data_places import make_absolute
from scorefield.commands.encode import encode
from scorefield.commands.run import open_run
from scorefield.commands.train.command import train
from scorefield.configs import build, own


def configuration(path: str, images: int = 32) -> ml_collections.ConfigDict:
    config = own.get_config("array")
    config.data.path = path
    config.net = build.spec(build.NETWORKS, "mlp", width=4, blocks=1)
    config.training.update(images=images, batch=16, sample_every=0)
    return config


def test_a_run_on_a_relative_path_is_used_and_resumed_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home, other):
        folder.mkdir()
    np.save(home / "x.npy", np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), np.uint8))
    monkeypatch.chdir(home)
    config = configuration("x.npy")
    train(tmp_path / "run", config, device="cpu")
    assert config.data.path == "x.npy"  # the caller's own
    file = tmp_path / "run" / "config.json"
    assert json.loads(file.read_text())["config"]["data"]["path"] == str(home / "x.npy")
    monkeypatch.chdir(other)
    encode(tmp_path / "run", num=2, steps=2, device="cpu")
    monkeypatch.chdir(home)
    assert train(tmp_path / "run", configuration("x.npy", 64), device="cpu")["images_this_time"] == 32

    saved = json.loads(file.read_text())  # of an older version
    saved["config"]["data"]["path"] = "x.npy"
    file.write_text(json.dumps(saved))
    assert len(open_run(tmp_path / "run", "cpu").dataset("test")) == 2
    monkeypatch.chdir(other)
    said = f"(path=x.npy was looked for below the current folder, {other}: run the command from the folder that has it"
    with pytest.raises(FileNotFoundError, match=re.escape(said)):
        encode(tmp_path / "run", num=2, steps=2, device="cpu")
    with pytest.raises(FileNotFoundError, match=re.escape(said)):
        train(tmp_path / "run", configuration("x.npy", 96), device="cpu")


@pytest.mark.parametrize(
    ("spec", "key", "made"),
    [
        ("folder:path=there", "path", "HERE/there"),
        ("folder:path=there,cache=there", "cache", "HERE/there"),
        ("folder:path=there,cache=off", "cache", "off"),
        ("folder:path=there", "cache", ""),
        ("folder:path=/data/photos", "path", "/data/photos"),
        ("mnist:root=there", "root", "HERE/there"),
        ("mnist", "root", None),
        ("shards:path='there/a-{000..012}.tar'", "path", "HERE/there/a-{000..012}.tar"),
        ("huggingface:path=there", "path", "HERE/there"),
        ("huggingface:path=uoft-cs/cifar10", "path", "uoft-cs/cifar10"),
        ("digits", "path", None),
    ],
)
def test_places_become_absolute_and_names_do_not(
    spec: str, key: str, made: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there", "off"):
        (tmp_path / name).mkdir()
    data = build.spec(build.DATASETS, spec)
    make_absolute(data)
    assert data.get(key) == (made and made.replace("HERE", str(tmp_path)))
