"""Autoencoders, for --mode=train_autoencoder; runs in their codes take --config.autoencoder=WORKDIR.

Small ones for two cores: fashion_f2, fashion_f4, fashion_f8, mnist_f4, canvas_f4, cifar10_f2, and digits, which takes
seconds. own is for a folder of images, --config.data.path=PATH, or other data, --config.data=array:path=PATH. A name
ends with f, how many pixels of a side make a code.

Published (Rombach et al. 2022, Table 8), for images of 256x256 in a folder: kl_f4, kl_f8 (Stable Diffusion's first
stage), kl_f16, kl_f32, vq_f4, vq_f8, vq_f16. They need LPIPS: --config.loss.perceptual=lpips:weights=PATH.
How long they train is ours.
"""

from collections.abc import Callable
from functools import partial

import ml_collections
from ml_collections.config_dict import placeholder

from scorefield.configs.autoencoder_defaults import autoencoder_defaults
from scorefield.configs.build import AUTOENCODERS, DATASETS, spec
from scorefield.configs.defaults import check_variant

# Of each published first stage: multipliers, channels of a code, levels with attention (counted from 0 at full size).
KL = {
    "kl_f4": ((1, 2, 4), 3, ()),
    "kl_f8": ((1, 2, 4, 4), 4, ()),
    "kl_f16": ((1, 1, 2, 2, 4), 16, (4,)),
    "kl_f32": ((1, 1, 2, 2, 4, 4), 64, (4, 5)),
}
# Then the vectors of the codebook; weight and start of the adversarial loss, and the discriminator's depth.
VQ = {
    "vq_f4": ((1, 2, 4), 3, (), 8192, 0.75, 1, 3),
    "vq_f8": ((1, 2, 2, 4), 4, (3,), 16_384, 0.6, 2, 2),
    "vq_f16": ((1, 1, 2, 2, 4), 8, (4,), 16_384, 0.75, 250_001, 3),
}


def get_config(variant: str = "fashion_f4") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "autoencoder")
    config = autoencoder_defaults()
    VARIANTS[variant](config)
    return config


def _small(config: ml_collections.ConfigDict, factor: int, *, width: int = 16, images: int = 36_000) -> None:
    """A network and an optimiser for images of some 30 pixels a side, by two cores in minutes.

    The KL has ten thousand times LDM's weight. On Fashion-MNIST at f = 4 that costs 0.2 dB, a number of the code has 2
    nats in place of 15, and diffusion in these smoother codes is better (docs/latent.md).
    """
    widths = {2: (1, 2), 4: (1, 2, 2), 8: (1, 2, 2, 2)}[factor]
    config.net = spec(
        AUTOENCODERS, "kl", code_channels=4, width=width, multipliers=widths, blocks=1, middle_attention=False
    )
    config.loss.update(perceptual="none", kl=1e-2)
    config.training.update(
        images=images, batch=16, learning_rate=4e-3, betas=(0.9, 0.99), clip=1.0, warmup=1_000, decay=True, ema=0.99,
        evaluate_every=images // 10, sample_every=images // 2, checkpoint_every=images // 2,
    )  # fmt: skip


def _greyscale(config: ml_collections.ConfigDict, name: str, factor: int) -> None:
    config.data = spec(DATASETS, name, size=32)  # codes of 8x8 can be halved, those of 28x28 pixels at f = 4 cannot
    _small(config, factor)


def _canvas(config: ml_collections.ConfigDict) -> None:
    config.data = spec(DATASETS, "canvas")
    _small(config, 4)


def _cifar10(config: ml_collections.ConfigDict) -> None:
    config.data = spec(DATASETS, "cifar10")
    config.transform.flip = True
    _small(config, 2, width=32, images=400_000)
    config.training.update(evaluate_every=20_000, sample_every=100_000, checkpoint_every=100_000)


def _digits(config: ml_collections.ConfigDict) -> None:
    _small(config, 2, width=8, images=8_000)
    config.training.update(evaluate_images=180, measure_images=1_000)


def _own(config: ml_collections.ConfigDict) -> None:
    config.data = spec(DATASETS, "folder", path="")
    _small(config, 4, width=32, images=200_000)
    with config.ignore_type():
        config.data.size = placeholder(int)


def _published(config: ml_collections.ConfigDict, steps: int) -> None:
    """Adam at 4.5e-6 for each image of a batch, betas 0.5 and 0.9; LPIPS; batches of 12 on one device."""
    config.data = spec(DATASETS, "folder", path="", size=256)
    config.transform.flip = True
    batch = 12
    config.loss.perceptual = "lpips"
    config.training.update(
        images=steps * batch, batch=batch, learning_rate=4.5e-6 * batch, evaluate_every=5_000 * batch,
        sample_every=5_000 * batch, checkpoint_every=5_000 * batch,
    )  # fmt: skip


def _published_kl(config: ml_collections.ConfigDict, name: str) -> None:
    multipliers, channels, attention = KL[name]
    config.net = spec(AUTOENCODERS, "kl", code_channels=channels, multipliers=multipliers, attention=attention)
    _published(config, 200_000)
    config.loss.update(adversarial=0.5, start=50_001, ramp=0)


def _published_vq(config: ml_collections.ConfigDict, name: str) -> None:
    """With the codebook as released: its weights of commitment and codebook changed places ("legacy")."""
    multipliers, channels, attention, size, adversarial, start, layers = VQ[name]
    quantiser = f"codebook:size={size},legacy=true,decay=None,restart=0.0"
    config.net = spec(
        AUTOENCODERS, "vq", quantiser=quantiser, code_channels=channels, multipliers=multipliers, attention=attention
    )
    _published(config, 400_000)
    config.loss.update(adversarial=adversarial, start=start, ramp=0, discriminator_layers=layers)


VARIANTS: dict[str, Callable[[ml_collections.ConfigDict], None]] = {
    **{f"fashion_f{f}": partial(_greyscale, name="fashion_mnist", factor=f) for f in (2, 4, 8)},
    "mnist_f4": partial(_greyscale, name="mnist", factor=4),
    "canvas_f4": _canvas,
    "cifar10_f2": _cifar10,
    "digits": _digits,
    "own": _own,
    **{name: partial(_published_kl, name=name) for name in KL},
    **{name: partial(_published_vq, name=name) for name in VQ},
}
