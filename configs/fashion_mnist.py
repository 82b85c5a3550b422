"""Fashion-MNIST, 28x28, as configs/mnist.py. Variants: vp (the default), ve, subvp, edm, cosine, flow, vdm."""

import ml_collections

from scorefield.configs.greyscale import greyscale


def get_config(variant: str = "vp") -> ml_collections.ConfigDict:
    """The configuration of a variant."""
    return greyscale("fashion_mnist", variant)
