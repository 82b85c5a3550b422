"""Your own data, --config.data.path=PATH.

Variants for images: folder (the default), archive (.zip, .tar, .tar.gz), shards (WebDataset's tars) and huggingface (a
folder or a name on the hub). For other data: array (.npy, .npz, raw) and toy (points in the plane). The variant ddpm is
folder with DDPM's path, prediction and network, which --mode=export --to=diffusers needs. For images of mixed sizes add
--config.data.size=64.
"""

import ml_collections

from scorefield.configs.build import DATASETS, NETWORKS, PRECONDITIONS, SDES, spec
from scorefield.configs.defaults import check_variant, defaults

IMAGES = ("folder", "archive", "shards", "huggingface")
VARIANTS = (*IMAGES, "array", "toy", "ddpm")


def get_config(variant: str = "folder") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "own")
    config = defaults()
    keywords = {"kind": "moons"} if variant == "toy" else {"path": ""}
    config.data = spec(DATASETS, "folder" if variant == "ddpm" else variant, **keywords)
    # Near the prior, an error in predicted noise grows by sigma / alpha in x0, and an error in v does not. With
    # little or low-dimensional data, predicted noise gives outliers.
    config.precondition = spec(PRECONDITIONS, "v")
    config.net = spec(NETWORKS, "unet", width=64) if variant in IMAGES else spec(NETWORKS, "mlp")
    if variant == "ddpm":
        config.sde = spec(SDES, "ddpm")
        config.precondition = spec(PRECONDITIONS, "time_conditioned", predicts="eps", scale=1000.0, shift=-1.0)
        config.net = spec(NETWORKS, "unet", width=64, frequencies="timesteps", smallest_group=1)
    return config
