"""ImageNet with its classes, from a folder with a sub-folder a class (--config.data.path=PATH).

- adm_64, adm_128, adm_256, adm_512: Dhariwal and Nichol 2021. edm_64: Karras et al. 2022, ADM's network.
- dit_s, dit_b, dit_l, dit_xl: Peebles and Xie 2023, patches of 2. The data is an array of latents,
  `x (N, 4, H / 8, W / 8)` and `label (N,)`, which includes those of flipped images.

ADM and DiT also learn the variance of a sampling step; ours is that of DDPM.
"""

import ml_collections

from scorefield.configs.build import DATASETS, GRIDS, NETWORKS, SOLVERS, spec
from scorefield.configs.defaults import check_variant, defaults
from scorefield.configs.papers import ddpm, edm, optimise

# Dhariwal and Nichol 2021, Table 11. Heads are 64 channels wide, except at 128x128, which has four heads.
ADM = {
    "adm_64": {"width": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": (1, 2, 3), "dropout": 0.1},
    "adm_128": {
        "width": 256, "multipliers": (1, 1, 2, 3, 4), "blocks": 2, "attention": (2, 3, 4), "dropout": 0.0,
        "head_width": None, "heads": 4,
    },
    "adm_256": {"width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (3, 4, 5), "dropout": 0.0},
    "adm_512": {
        "width": 256, "multipliers": (0.5, 1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (4, 5, 6), "dropout": 0.0,
    },
}  # fmt: skip
STEPS = {"adm_64": 540_000, "adm_128": 4_360_000, "adm_256": 1_980_000, "adm_512": 1_940_000}
# Peebles and Xie 2023, Table 1.
DIT = {
    "dit_s": {"width": 384, "depth": 12, "heads": 6},
    "dit_b": {"width": 768, "depth": 12, "heads": 12},
    "dit_l": {"width": 1024, "depth": 24, "heads": 16},
    "dit_xl": {"width": 1152, "depth": 28, "heads": 16},
}
VARIANTS = (*ADM, "edm_64", *DIT)


def get_config(variant: str = "adm_64") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "imagenet")
    config = defaults()
    config.data = spec(DATASETS, "array" if variant in DIT else "folder", path="")
    config.training.update(labels=True, label_dropout=0.0)
    if variant in ADM:
        config.net = spec(NETWORKS, "adm", frequencies="open_timesteps", **ADM[variant])
        small = variant == "adm_64"
        ddpm(config, betas="cosine" if small else "linear")
        optimise(config, STEPS[variant], 2048 if small else 256, 3e-4 if small else 1e-4)
        config.sampling.update(grid=spec(GRIDS, "linspace"), steps=250)
    if variant == "edm_64":
        config.net = spec(NETWORKS, "adm", frequencies="open_timesteps")
        edm(config, 2500, 4096, 1e-4, half_life=50.0, intervals=255)
        config.transform.flip = False
        config.sampling.solver = spec(SOLVERS, "churn")  # 256 steps of their stochastic sampler, 511 evaluations
    if variant in DIT:
        config.net = spec(NETWORKS, "dit", frequencies="open_timesteps", **DIT[variant])
        ddpm(config)
        config.transform.flip = False
        config.training.label_dropout = 0.1
        optimise(config, 7_000_000 if variant == "dit_xl" else 400_000, 256, 1e-4)
        config.sampling.update(grid=spec(GRIDS, "linspace"), steps=250)
    return config
