"""FFHQ from a folder of images (--config.data.path=PATH), with published hyper-parameters.

Variants, each at the size in its name: ncsnpp_256 and ncsnpp_1024 (Song et al. 2021 on VE), ncsnv2_256 (Song and Ermon
2020), edm_64 and edm_ncsnpp_64 (Karras et al. 2022, DDPM++ and NCSN++).
"""

import ml_collections

from scorefield.configs.build import DATASETS, NETWORKS, spec
from scorefield.configs.defaults import check_variant, defaults
from scorefield.configs.papers import DDPMPP, edm, ncsnpp_256, ncsnpp_1024, ncsnv2, optimise

VARIANTS = ("ncsnpp_256", "ncsnpp_1024", "ncsnv2_256", "edm_64", "edm_ncsnpp_64")


def get_config(variant: str = "ncsnpp_256") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "ffhq")
    config = defaults()
    config.data = spec(DATASETS, "folder", path="")
    if variant == "ncsnpp_256":
        ncsnpp_256(config, 348.0)
    if variant == "ncsnpp_1024":
        ncsnpp_1024(config)
    if variant == "ncsnv2_256":
        ncsnv2(config, sigma_max=348.0, levels=2311, steps=3, epsilon=0.9e-6, depth=6)
        optimise(config, 80_000, 32, 1e-4, ema=0.999, adam_eps=1e-3)
    if variant in ("edm_64", "edm_ncsnpp_64"):
        edm(config, 200, 256, 2e-4, intervals=39)  # 40 steps, 79 evaluations
        switches = DDPMPP if variant == "edm_64" else {}
        config.net = spec(NETWORKS, "ncsnpp", attention=(2,), dropout=0.05, label_first=True, **switches)
    return config
