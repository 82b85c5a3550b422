"""Matrices that act on the two sides of images."""

import torch
from torch import Tensor


def weigh_sides(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    """Rows x columns^T of each channel, (B, C, H, W) -> (B, C, H', W').

    Each channel is a product of its own, so that a sample's result does not depend on the size of its batch.

    Args:
        rows: (H', H).
        x: (B, C, H, W).
        columns: (W', W).
    """
    images = x.flatten(0, 1)
    images = torch.bmm(rows.expand(len(images), -1, -1), images)
    images = torch.bmm(images, columns.mT.expand(len(images), -1, -1))
    return images.reshape(*x.shape[:2], *images.shape[1:])
