"""DINOv2 and CLIP, against numbers of the authors' network and of transformers at toy size."""

from pathlib import Path

import pytest
import seeded
import torch
from image_files import refused
from safetensors.torch import save_file
from torch import Tensor

from scorefield.configs.specs import build
from scorefield.configs.tables import FEATURES
from scorefield.evaluation.features import CLIP, DINOV2, OfTransformer, StoredAs

FIXTURE = seeded.load("features/vision_transformers")
COLOUR = StoredAs((3, 24, 32), 256)


def images() -> Tensor:
    return (128 + 64 * seeded.seeded_normal("images", (2, 3, 24, 32))).clamp(0, 255).byte()


def saved(name: str, path: Path) -> Path:
    """The weights of a fixture in a file, with what such files also hold."""
    state = seeded.state_dict(FIXTURE[name]["shapes"])
    state = {key: tensor.float() for key, tensor in state.items()} | {"logit_scale": torch.ones(())}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("name", "file", "recipe"),
    [
        ("dinov2", "dinov2_vitl14_pretrain.pth", "dinov2 of 2 blocks, 128 wide, pil resize to 224"),
        ("dino_transformers", "model.safetensors", "dinov2 of 2 blocks, 128 wide, pil resize to 224"),
        ("clip", "pytorch_model.bin", "clip of 2 blocks, 128 wide, torch resize to 56"),
    ],
)
def test_features_are_those_of_the_original(name: str, file: str, recipe: str, tmp_path: Path) -> None:
    saved(name, tmp_path / file)
    kind = "clip" if name == "clip" else "dino"
    features = build(FEATURES, f"{kind}:weights='{tmp_path}'", stored_as=COLOUR, device=torch.device("cpu"))
    assert features.recipe == recipe
    found, expected = features(images())["features"], torch.tensor(FIXTURE[name]["features"])
    stride = found.shape[1] // expected.shape[1]
    assert (found[:, ::stride] - expected).abs().max() < 2e-5 * expected.abs().max()
    assert torch.equal(features(images()[1:])["features"], found[1:])


def test_what_is_no_such_network_is_refused(tmp_path: Path) -> None:
    dino = saved("dino_transformers", tmp_path / "model.safetensors")
    refused("projection.weight", OfTransformer, COLOUR, CLIP, dino, "torch")
    refused("resize to be one of pil, torch, tf", OfTransformer, COLOUR, DINOV2, dino, "clean")
    (tmp_path / "cut.bin").write_bytes(dino.read_bytes()[:1000])
    refused("does not read", OfTransformer, COLOUR, DINOV2, tmp_path / "cut.bin", "pil")
    state = seeded.state_dict(FIXTURE["dino_transformers"]["shapes"])
    del state["encoder.layer.1.mlp.fc2.bias"]
    torch.save(state, tmp_path / "less.bin")
    refused("blocks.1.fc2.bias", OfTransformer, COLOUR, DINOV2, tmp_path / "less.bin", "pil")
    refused(
        "facebook/dinov2-large", build, FEATURES, f"dino:weights='{tmp_path / 'none'}'", stored_as=COLOUR, device="cpu"
    )
