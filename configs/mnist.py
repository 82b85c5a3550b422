"""MNIST, 28x28: a small U-Net.

Variants: vp (the default), ve, subvp, edm, cosine, flow; for bits/dim vdm, vdm_learned, scoreflow, idode.
"""

import ml_collections

from scorefield.configs.greyscale import VARIANTS, greyscale

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "vp") -> ml_collections.ConfigDict:
    """The configuration of a variant."""
    return greyscale("mnist", variant)
