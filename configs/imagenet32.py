"""ImageNet 32x32 with published hyper-parameters, for bits/dim, from a folder of yours (DATA_ROOT).

Two sets have this name, and a report says which (see `imagenet32` in training/data/sources).

- vdm: Kingma et al. 2021. scoreflow: Song, Durkan et al. 2021. Both are on the old set.
- idode: Zheng et al. 2023 on the new set. idode_old: theirs on the old one, with batches four times as large.
"""

from collections.abc import Callable
from functools import partial

import ml_collections

from scorefield.configs.build import DATASETS, NETWORKS, spec
from scorefield.configs.defaults import check_variant, defaults
from scorefield.configs.papers import idode, optimise, scoreflow, vdm


def _vdm(config: ml_collections.ConfigDict) -> None:
    """Kingma et al. 2021, Appendix B, and the configuration in their code."""
    vdm(config)
    config.net = spec(NETWORKS, "vdm", width=256)
    optimise(config, 10_000_000, 128, 2e-4, warmup=100, weight_decay=0.01)


def _scoreflow(config: ml_collections.ConfigDict) -> None:
    """Song, Durkan et al. 2021, and the configuration in their code: without a flip, and without dropout."""
    scoreflow(config)
    config.transform.flip = False


def _idode(config: ml_collections.ConfigDict, batch: int) -> None:
    """Zheng et al. 2023, and the configurations in their code."""
    idode(config)
    config.net = spec(NETWORKS, "vdm", width=256)
    optimise(config, 2_000_000, batch, 2e-4, warmup=100, weight_decay=0.01)


VARIANTS: dict[str, Callable[[ml_collections.ConfigDict], None]] = {
    "vdm": _vdm,
    "scoreflow": _scoreflow,
    "idode": partial(_idode, batch=128),
    "idode_old": partial(_idode, batch=512),
}


def get_config(variant: str = "vdm") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "imagenet32")
    config = defaults()
    config.data = spec(DATASETS, "imagenet32", version="new" if variant == "idode" else "old")
    VARIANTS[variant](config)
    return config
