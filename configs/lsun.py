"""LSUN bedrooms, churches and towers, from a folder of images (--config.data.path=PATH).

Variants are CATEGORY_NETWORK. For bedroom and church at 256x256: ncsnpp (Song et al. 2021 on VE) and ddpm (Ho et al.
2020). For bedroom and tower at 128x128 and church at 96x96: ncsnv2 (Song and Ermon 2020).
"""

import ml_collections

from scorefield.configs.build import DATASETS, spec
from scorefield.configs.defaults import check_variant, defaults
from scorefield.configs.papers import ddpm_256, ncsnpp_256, ncsnv2, optimise

VARIANTS = (
    *("bedroom_ncsnpp", "church_ncsnpp", "bedroom_ddpm", "church_ddpm"),
    *("bedroom_ncsnv2", "church_ncsnv2", "tower_ncsnv2"),
)


def get_config(variant: str = "church_ncsnpp") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "lsun")
    config = defaults()
    config.data = spec(DATASETS, "folder", path="")
    category, network = variant.split("_")
    if network == "ncsnpp":
        ncsnpp_256(config, 378.0 if category == "bedroom" else 380.0)
    if network == "ddpm":
        ddpm_256(config, 2_400_000 if category == "bedroom" else 1_200_000)
        config.transform.flip = category != "bedroom"
    if network == "ncsnv2":
        if category == "church":
            ncsnv2(config, sigma_max=140.0, levels=788, steps=4, epsilon=4.9e-6, depth=5)
        else:
            ncsnv2(config, sigma_max=190.0, levels=1086, steps=3, epsilon=1.8e-6, depth=5)
        optimise(config, 200_000 if category == "church" else 150_000, 128, 1e-4, ema=0.999)
    return config
