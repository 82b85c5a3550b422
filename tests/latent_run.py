"""A tiny autoencoder of the digits, and a run in its codes."""

from pathlib import Path

import ml_collections
import torch

from scorefield.commands.autoencoder_files import StoredAutoencoder, write_autoencoder
from scorefield.commands.codes import measure_codes
from scorefield.configs import build, latent
from scorefield.training.data import digits

NET = "kl:width=8,multipliers=(1,2),blocks=1,middle_attention=False,code_channels=3"


def stored_autoencoder(seed: int = 0, net: str = NET) -> StoredAutoencoder:
    """An autoencoder of random weights, with the measured scale of its codes."""
    torch.manual_seed(seed)
    spec = build.spec(build.AUTOENCODERS, net)
    module = build.build(build.AUTOENCODERS, spec, channels=1).eval().requires_grad_(False)
    data = build.spec(build.DATASETS, "digits")
    stored = StoredAutoencoder(module, spec, (1, 8, 8), 17, data=data)
    return stored.with_statistics(measure_codes(stored, digits("train"), 64, show=False), "digits")


def write_random_autoencoder(folder: Path, seed: int = 0) -> Path:
    write_autoencoder(folder, stored_autoencoder(seed))
    return folder


def configuration(autoencoder: Path, images: int = 96) -> ml_collections.ConfigDict:
    config = latent.get_config()
    config.autoencoder = str(autoencoder)
    config.data = build.spec(build.DATASETS, "digits")
    config.net = build.spec(build.NETWORKS, "mlp", width=16, blocks=1)
    config.sampling.steps = 2
    config.training.update(images=images, batch=32, log_every=2, sample_every=0, warmup=0, ema=0.5)
    return config
