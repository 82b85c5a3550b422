"""CelebA-HQ from a folder of images (--config.data.path=PATH), with published hyper-parameters.

Variants: ncsnpp_256 and ncsnpp_1024 (Song et al. 2021 on VE), ddpm_256 (Ho et al. 2020), each at the size in its name.
"""

import ml_collections

from scorefield.configs.build import DATASETS, spec
from scorefield.configs.defaults import check_variant, defaults
from scorefield.configs.papers import ddpm_256, ncsnpp_256, ncsnpp_1024

VARIANTS = ("ncsnpp_256", "ncsnpp_1024", "ddpm_256")


def get_config(variant: str = "ncsnpp_256") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "celebahq")
    config = defaults()
    config.data = spec(DATASETS, "folder", path="")
    if variant == "ncsnpp_256":
        ncsnpp_256(config, 348.0)
    if variant == "ncsnpp_1024":
        ncsnpp_1024(config)
    if variant == "ddpm_256":
        ddpm_256(config, 500_000)
    return config
