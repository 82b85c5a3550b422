"""Fashion-MNIST, 28x28, with the variants of configs/mnist.py."""

import ml_collections

from scorefield.configs.greyscale import VARIANTS, greyscale

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "vp") -> ml_collections.ConfigDict:
    """The configuration of a variant."""
    return greyscale("fashion_mnist", variant)
