"""CIFAR-10 with published hyper-parameters.

Variants: ddpm (Ho et al. 2020: 35.7M parameters, 800,000 steps of 128), the continuous paths vp, subvp and ve with
the same network, and ncsn (Song and Ermon 2019: 30.1M parameters, 200,000 steps of 128).
"""

import ml_collections

from configs.build import DATASETS, GRIDS, NETWORKS, PRECONDITIONS, SDES, SOLVERS, TIMES, WEIGHTINGS, spec
from configs.defaults import along, check_variant, defaults

PATHS = {"ddpm": spec(SDES, "ddpm"), "vp": spec(SDES, "vp"), "subvp": spec(SDES, "subvp"), "ve": spec(SDES, "ve")}


def get_config(variant: str = "ddpm") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, (*PATHS, "ncsn"), "cifar10")
    config = defaults()
    config.data = spec(DATASETS, "cifar10")
    config.transform.flip = True
    config.training.update(sample_every=1_280_000, checkpoint_every=640_000)
    if variant == "ncsn":
        _ncsn(config)
        return config
    config.net = spec(NETWORKS, "unet", width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.1)
    config.transform.dequantise = False
    config.training.update(
        images=800_000 * 128, batch=128, learning_rate=2e-4, warmup=5_000 * 128, clip=1.0, ema=0.9999
    )
    config.sampling.solver = spec(SOLVERS, "ddim", eta=1.0)
    config.sampling.grid = spec(GRIDS, "uniform")
    config.sampling.steps = 999  # and the last denoising: 1000 evaluations
    along(config, PATHS[variant])
    return config


def _ncsn(config: ml_collections.ConfigDict) -> None:
    levels = tuple(0.01 ** (i / 9) for i in range(10))
    config.transform.low = 0.0  # images in 0 .. 1
    config.sde = spec(SDES, "ve", sigma_min=levels[-1], sigma_max=levels[0])
    config.net = spec(NETWORKS, "ncsn", sigmas=levels, width=128)
    config.precondition = spec(PRECONDITIONS, "score")
    config.training.update(images=200_000 * 128, batch=128, learning_rate=1e-3, clip=0.0, ema=0.0)
    config.training.weight = spec(WEIGHTINGS, "ncsn")
    config.training.times = spec(TIMES, "discrete", sigmas=levels)
    config.sampling.solver = spec(SOLVERS, "langevin", steps=100, step_size=2e-5, denoise=False)
    config.sampling.grid = spec(GRIDS, "geometric")
    config.sampling.steps = len(levels)
    config.sampling.denoise = False
