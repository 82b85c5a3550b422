"""Scikit-learn's 8x8 digits: no download, and minutes of training on two cores.

Variants: vp (the default), ve, subvp, edm, cosine, flow (the straight line), ncsn, vdm, and mulan. ncsn is Song and
Ermon 2019, small: network, path, loss and sampler. Its network predicts noise from an input of unit variance, and the
score is divided by sigma as in Song and Ermon 2020. vdm is for bits/dim in a minute: Kingma et al. 2021 with learned
ends, and with our measured times and parameterisation. mulan is Sahoo et al. 2024, small: a noise level for each pixel.
"""

import ml_collections

from scorefield.configs.build import GRIDS, NETWORKS, PRECONDITIONS, SDES, SOLVERS, TIMES, WEIGHTINGS, spec
from scorefield.configs.defaults import along, check_variant, defaults
from scorefield.configs.papers import mulan, vdm

# A dequantised cell is 2 / 17 wide, so the paths end at a noise of about a tenth of that.
PATHS = {
    "vp": {"t_min": 1e-3},
    "ve": {"sigma_max": 10.0},
    "subvp": {"t_min": 0.02},
    "edm": {"t_min": 0.01, "t_max": 20.0},
    "cosine": {"t_min": 0.005},
    "flow": {"t_min": 0.01},
}
VARIANTS = (*PATHS, "ncsn", "vdm", "mulan")


def get_config(variant: str = "vp") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "digits")
    config = defaults()
    config.net = spec(NETWORKS, "unet", width=32, multipliers=(1, 2), blocks=1, attention=(1,))
    config.training.update(
        images=175_000,
        batch=64,
        learning_rate=2e-3,
        warmup=10_000,
        decay=True,
        ema=0.995,
        sample_every=100_000,
        checkpoint_every=50_000,
    )
    if variant == "ncsn":
        _ncsn(config)
        return config
    if variant == "vdm":
        _vdm(config)
        return config
    if variant == "mulan":
        mulan(config)
        config.sde = spec(SDES, "mulan", high=7.5)  # levels are 2 / 17 apart
        config.sampling.update(solver=spec(SOLVERS, "heun"), steps=25, denoise=True)
        return config
    along(config, spec(SDES, variant, **PATHS[variant]))
    return config


def _vdm(config: ml_collections.ConfigDict) -> None:
    vdm(config)
    config.sde = spec(SDES, "learned", interior="linear", high=7.5)  # levels are 2 / 17 apart
    config.precondition = spec(PRECONDITIONS, "levels")
    config.training.update(images=57_600, warmup=5_000, weight_decay=0.01)
    config.training.times = spec(TIMES, "measured")
    config.sampling.steps = 100


def _ncsn(config: ml_collections.ConfigDict) -> None:
    levels = tuple(0.02 ** (i / 7) for i in range(8))
    config.transform.update(low=0.0, dequantise=False)  # the published network takes images in 0 .. 1
    config.sde = spec(SDES, "ve", sigma_min=levels[-1], sigma_max=levels[0])
    config.net = spec(NETWORKS, "ncsn", sigmas=levels, width=16)
    config.training.update(images=120_000, learning_rate=3e-3, warmup=6_000)
    config.training.weight = spec(WEIGHTINGS, "ncsn")
    config.training.times = spec(TIMES, "discrete", sigmas=levels)
    # Few large steps widen the distribution of a level; the next level and the last denoising correct that.
    config.sampling.solver = spec(SOLVERS, "langevin", steps=20, step_size=levels[-1] ** 2)
    config.sampling.grid = spec(GRIDS, "geometric")
    config.sampling.steps = len(levels)
