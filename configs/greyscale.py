"""The shared configuration of MNIST and Fashion-MNIST."""

from collections.abc import Callable
from functools import partial

import ml_collections

from scorefield.configs.build import DATASETS, NETWORKS, PRECONDITIONS, SDES, TIMES, spec
from scorefield.configs.defaults import along, check_variant, defaults

# A dequantised cell is 2 / 256 wide: the paths end at a noise of 0.002 to 0.01.
PATHS = {
    "vp": {"t_min": 1e-4},
    "ve": {},
    "subvp": {"t_min": 0.02},
    "edm": {},
    "cosine": {"t_min": 2e-3},
    "flow": {"t_min": 2e-3},
}
VDM_FOURIER = (7, 8)  # in two levels and in one the sines repeat (Kingma et al. 2021, Appendix C)
HIGH = 13.3  # the log-SNR next to the data (Kingma et al. 2021): a noise of a sixth of the levels' distance


def greyscale(name: str, variant: str) -> ml_collections.ConfigDict:
    """The configuration of a data set of 28x28 images.

    "vdm" is for the best bits/dim in an hour on two cores. As Kingma et al. 2021 it is trained with the ELBO on the
    levels themselves, and has Fourier features of the input. Times are measured, the parameterisation is ours, and its
    matrices are trained by Muon.

    The others have its network, and the rest as published. "vdm_learned" learns the path as Kingma et al. 2021.
    "scoreflow" is Song, Durkan et al. 2021 on sub-VP. "idode" is Zheng et al. 2023 on VP.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, name)
    config = defaults()
    config.data = spec(DATASETS, name)
    config.net = spec(NETWORKS, "unet", width=32, multipliers=(1, 2, 2), blocks=1, attention=(2,))
    config.training.update(
        images=6_000_000, learning_rate=1e-3, warmup=50_000, decay=True, ema=0.999,
        sample_every=500_000, checkpoint_every=250_000,
    )  # fmt: skip
    if variant in PATHS:
        along(config, spec(SDES, variant, **PATHS[variant]))
    if variant == "vp":
        config.training.times = spec(TIMES, "log_snr")
    if variant not in PATHS:
        _bound(config)
        RECIPES[variant](config)
    return config


def _bound(config: ml_collections.ConfigDict) -> None:
    config.transform.dequantise = False
    config.net.update(width=48, multipliers=(1, 1, 2), fourier=(6, 7))
    config.precondition = spec(PRECONDITIONS, "levels")
    config.sde = spec(SDES, "frozen", low=-6.0, high=HIGH)
    config.training.update(
        images=330_000, batch=32, learning_rate=2e-3, warmup=5_000, betas=(0.9, 0.99), loss="elbo", weight_decay=0.01,
        decay_biases=False, checkpoint_every=100_000, sample_every=200_000,
    )  # fmt: skip
    config.training.times = spec(TIMES, "measured")


def _vdm(config: ml_collections.ConfigDict) -> None:
    config.training.update(optimizer="muon", learning_rate=4e-3)


def _on_levels(config: ml_collections.ConfigDict, predicts: str, sde: str, times: str) -> None:
    config.net.fourier = VDM_FOURIER
    config.precondition = spec(PRECONDITIONS, predicts)
    config.sde = spec(SDES, sde, high=HIGH)
    config.training.times = spec(TIMES, times)


def _scoreflow(config: ml_collections.ConfigDict) -> None:
    config.transform.dequantise = True
    config.precondition = spec(PRECONDITIONS, "eps")
    config.sde = spec(SDES, "subvp", **PATHS["subvp"])
    config.training.update(loss="dsm", betas=(0.9, 0.999), weight_decay=0.0)
    config.training.times = spec(TIMES, "scoreflow")


RECIPES: dict[str, Callable[[ml_collections.ConfigDict], None]] = {
    "vdm": _vdm,
    "vdm_learned": partial(_on_levels, predicts="eps", sde="learned", times="stratified"),
    "scoreflow": _scoreflow,
    "idode": partial(_on_levels, predicts="v", sde="frozen", times="idode"),
}
VARIANTS = (*PATHS, *RECIPES)
