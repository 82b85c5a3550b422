"""Denoising score matching."""

from typing import Any

from torch import Tensor

from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import DenoiserLike, predict_x0
from scorefield.training import weighting
from scorefield.training.weighting import Weighting


def dsm_loss(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    *,
    weight: Weighting = weighting.simple,
    **cond: Any,
) -> Tensor:
    """w(t) |D(alpha x0 + sigma eps) - x0|^2 / D for each example, shape (B,): the mean over its D dimensions.

    Vincent 2011, "A Connection Between Score Matching and Denoising Autoencoders"; Song et al. 2021, Eq. 7. There is no
    randomness inside: times `t (B,)` and standard normals `eps (B, *D)` come in, so a loss can be repeated.
    """
    alpha, sigma = sde.scales(t)
    error = predict_x0(denoiser, sde.perturb(x0, t, eps), alpha, sigma, **cond) - x0
    return weight(sde, t).to(error) * error.square().flatten(1).mean(1)
