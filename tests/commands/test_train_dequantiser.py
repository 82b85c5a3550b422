"""`--mode=train_dequantiser`: what it writes, and what `load_dequantiser` refuses."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

import scorefield.commands.train_dequantiser as command
from scorefield.commands.train.command import train
from scorefield.commands.train_dequantiser import load_dequantiser, train_dequantiser
from scorefield.commands.trained import open_trained
from scorefield.configs import digits, own
from scorefield.models.networks.unet import UNet


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, with classes, and its dequantiser."""
    folder = tmp_path_factory.mktemp("runs") / "vp"
    config = digits.get_config("vp")
    config.net.width = 8
    config.training.update(images=64, batch=32, labels=True, sample_every=0, decay=False)
    train(folder, config, device="cpu")
    train_dequantiser(folder, num=80, batch=32, seed=3, device="cpu")
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_command_writes_what_it_says_and_load_finds_it(workdir: Path, tmp_path: Path) -> None:
    trained = open_trained(workdir, "cpu")
    module, facts = load_dequantiser(trained)
    assert not module.training and not any(weight.requires_grad for weight in module.parameters())
    assert facts["checkpoint_sha256"] == trained.described["checkpoint_sha256"]
    assert facts["images"] == 96 and facts["seed"] == 3 and facts["levels"] == 17
    assert [row["images"] for row in facts["history"]] == [32, 64, 96]
    assert all(math.isfinite(row["gain"]) and row["gain_error"] > 0 for row in facts["history"])
    generator = Generator().manual_seed(0)
    image, uniform = (torch.rand(2, 1, 8, 8, generator=generator) for _ in range(2))
    assert (module(2 * image - 1, uniform)[1] != 0).all()

    copy = Path(shutil.copytree(workdir, tmp_path / "vp"))
    summary = train_dequantiser(copy, num=80, batch=32, seed=3, device="cpu")
    assert [Path(file).suffix for file in summary["files"]] == [".safetensors", ".json", ".png"]
    assert all(Path(file).stat().st_size > 0 for file in summary["files"])
    assert contents(copy)["dequantiser.safetensors"] == contents(workdir)["dequantiser.safetensors"]
    train_dequantiser(copy, num=80, batch=32, seed=4, device="cpu")
    assert contents(copy)["dequantiser.safetensors"] != contents(workdir)["dequantiser.safetensors"]


def test_a_run_with_classes_is_asked_for_the_score_of_each_image_s_own(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled, real = [], UNet.forward

    def forward(self: UNet, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        labelled.append(label is not None and len(label) == len(x) and int(label.max()) < 10)
        return real(self, x, c_noise, label)

    monkeypatch.setattr(UNet, "forward", forward)
    train_dequantiser(Path(shutil.copytree(workdir, tmp_path / "vp")), num=64, batch=32, device="cpu")
    assert len(labelled) > 4 and all(labelled)


@pytest.mark.parametrize("flags", [{"num": 0}, {"batch": 0}, {"seed": -1}, {"device": "abacus"}])
def test_a_mistake_gets_one_line_and_nothing_is_overwritten(workdir: Path, flags: dict[str, Any]) -> None:
    before = contents(workdir)
    with pytest.raises(ValueError, match=r"^expected [^\n]*$"):
        train_dequantiser(workdir, **flags)
    assert contents(workdir) == before


@pytest.mark.parametrize(("dtype", "says"), [(np.float32, "needs no dequantiser"), (np.uint8, "uniform noise")])
def test_continuous_data_and_vectors_are_refused(dtype: Any, says: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9, size=(40, 6))
    np.save(tmp_path / "data.npy", (values if dtype == np.float32 else 28 * values).astype(dtype))
    config = own.get_config("array")
    config.data.path = str(tmp_path / "data.npy")
    config.training.update(images=32, batch=32, sample_every=0)
    train(tmp_path / "run", config, device="cpu")
    with pytest.raises(ValueError, match=f"^expected i[^\n]*{says}$"):
        train_dequantiser(tmp_path / "run", num=32, device="cpu")
    with pytest.raises(ValueError, match="--mode=train_dequantiser"):
        load_dequantiser(open_trained(tmp_path / "run", "cpu"))


def test_load_refuses_what_is_missing_broken_or_of_other_weights(workdir: Path, tmp_path: Path) -> None:
    def refused(folder: Path, says: str, ema: bool = True) -> None:
        with pytest.raises(ValueError, match=says) as caught:
            load_dequantiser(open_trained(folder, "cpu", ema))
        assert f"--mode=train_dequantiser --workdir={folder}" in str(caught.value)

    refused(workdir, r"other weights, ema of 0000000064 \(\w{12}\), than these, raw of 0000000064 \(\w{12}\)", False)
    copy = Path(shutil.copytree(workdir, tmp_path / "vp"))
    config = open_trained(copy, "cpu").run.config
    config.training.images = 128
    train(copy, config, device="cpu")
    refused(copy, "ema of 0000000064 .* than these, ema of 0000000128")
    train_dequantiser(copy, num=32, batch=32, device="cpu")
    facts = load_dequantiser(open_trained(copy, "cpu"))[1]

    report = copy / "dequantiser.json"
    report.write_text(json.dumps({**facts, "dequantiser": {"channels": 2}}))
    refused(copy, "another architecture")
    report.write_text(json.dumps({**facts, "dequantiser": {"channel": 1}}))
    refused(copy, "another architecture")
    report.write_text("{")
    refused(copy, "does not read")
    report.write_text(json.dumps(facts))
    shutil.copy(workdir / "dequantiser.safetensors", copy)
    refused(copy, "not the file that dequantiser.json describes")
    (copy / "dequantiser.safetensors").unlink()
    refused(copy, "found no dequantiser.safetensors")


@pytest.mark.parametrize("where", ["dequantiser_gain", "write_tensors", "write_json"])
def test_ctrl_c_leaves_no_half_of_anything(
    workdir: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(workdir, tmp_path / "vp"))
    before = contents(copy)

    def interrupted(path: object, *_: object, **__: object) -> None:
        if where == "write_tensors":
            assert isinstance(path, Path)
            path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(command, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_dequantiser(copy, num=32, batch=32, seed=9, device="cpu")
    if where == "write_json":  # the new weights lie beside the old report: seen, and said
        with pytest.raises(ValueError, match="not the file that"):
            load_dequantiser(open_trained(copy, "cpu"))
    else:
        assert contents(copy) == before


def test_a_dequantiser_that_stops_being_a_number_is_not_saved(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(workdir, tmp_path / "vp"))
    before = contents(copy)
    monkeypatch.setattr(command, "LEARNING_RATE", math.inf)
    with pytest.raises(ValueError, match="nothing was saved"):
        train_dequantiser(copy, num=64, batch=32, device="cpu")
    assert contents(copy) == before
