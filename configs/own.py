"""Your own data, --config.data.path=PATH.

Variants: folder of images (the default), array (.npy, .npz), and toy (points in the plane).
"""

import ml_collections

from configs.build import DATASETS, NETWORKS, PRECONDITIONS, spec
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
    # Near the prior an error in the noise is multiplied by sigma / alpha in x0, an error in v is not: with little or
    # low-dimensional data that is the difference between samples and outliers.
    config.precondition = spec(PRECONDITIONS, "v")
    config.net = spec(NETWORKS, "unet", width=64) if variant == "folder" else spec(NETWORKS, "mlp")
    return config
