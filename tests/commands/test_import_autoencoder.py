"""`--mode=import` of autoencoders: a directory that later commands open."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeded import load, seeded_input, state_dict

from scorefield.commands.autoencoder_files import read_autoencoder
from scorefield.commands.codes import codes
from scorefield.commands.import_checkpoint import import_checkpoint
from scorefield.models.checkpoints.autoencoders import load_autoencoder_checkpoint


def checkpoint(name: str, folder: Path, **others: Any) -> Path:
    """A file of latent-diffusion."""
    state = state_dict(load(f"autoencoders/{name}")["shapes"])
    torch.save({"state_dict": {**state, **others}}, folder / "model.ckpt")
    return folder / "model.ckpt"


@pytest.mark.parametrize("name", ["kl", "vq_noattn"])
@torch.no_grad()
def test_an_imported_autoencoder_is_read_back(name: str, tmp_path: Path) -> None:
    file, workdir = checkpoint(name, tmp_path, scale_factor=torch.tensor(0.5)), tmp_path / "run"
    summary = import_checkpoint(workdir, file=str(file), source="latent_diffusion", architecture="resolution=32")
    assert "as in the checkpoint" in summary["scale and shift of the codes"]
    assert all(Path(written).is_file() for written in summary["files"])
    stored, opened = read_autoencoder(workdir), load_autoencoder_checkpoint(file, "latent_diffusion")
    images = seeded_input((1, 3, 8, 12)).float()
    assert torch.equal(stored.module(images), opened.module(images))
    assert stored.shape == (3, 32, 32) and (stored.scale, stored.shift) == ((0.5,), (0.0,))
    assert json.loads((workdir / "import.json").read_text())["missing"] == []
    with pytest.raises(ValueError, match="an autoencoder already"):
        import_checkpoint(workdir, file=str(file), source="latent_diffusion")


def test_its_codes_are_measured_on_the_data_that_it_is_given(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8)).astype(np.uint8))
    file, workdir = checkpoint("kl", tmp_path), tmp_path / "run"
    data = f"array:path='{tmp_path / 'images.npy'}'"
    summary = import_checkpoint(workdir, file=str(file), source="latent_diffusion", data=data)
    assert "not known" in summary["scale and shift of the codes"] and "--data" not in str(summary)
    codes(workdir)
    scaled = read_autoencoder(workdir).scaled
    assert scaled.scale.shape == (3, 1, 1) and not torch.equal(scaled.scale, torch.ones(3, 1, 1))


def test_what_is_wrong_with_an_import_comes_before_anything_is_written(tmp_path: Path) -> None:
    file, workdir = checkpoint("kl", tmp_path), tmp_path / "run"
    np.save(tmp_path / "grey.npy", np.zeros((4, 1, 8, 8), np.uint8))
    for keywords, said in (
        ({"source": "latent_difusion"}, "latent_diffusion"),
        ({"source": "taesd"}, "NAME_encoder"),
        ({"source": "latent_diffusion", "architecture": "widths=3"}, "does not have"),
        ({"source": "latent_diffusion", "data": f"array:path='{tmp_path / 'grey.npy'}'"}, "3 channels"),
    ):
        with pytest.raises(ValueError, match=said):
            import_checkpoint(workdir, file=str(file), **keywords)
    assert not workdir.exists()
