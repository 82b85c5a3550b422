"""Your own data, --config.data.path=PATH.

Variants: folder of images (the default), array (.npy, .npz), and toy (points in the plane).
"""

import ml_collections

from configs.build import DATASETS, NETWORKS, spec
from configs.defaults import check_variant, defaults

VARIANTS = ("folder", "array", "toy")


def get_config(variant: str = "folder") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "own")
    config = defaults()
    given = {"kind": "moons"} if variant == "toy" else {"path": ""}
    config.data = spec(DATASETS, variant, **given)
    config.net = spec(NETWORKS, "unet", width=64) if variant == "folder" else spec(NETWORKS, "mlp")
    return config
