"""The second-order loss, which makes the divergence of the field right, for likelihoods by the flow."""

from typing import Any

import torch
from torch import Tensor

from scorefield.likelihood.divergence import Hutchinson, signs
from scorefield.sde_lib.broadcast import Scale, expand, like
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise


def second_order_loss(
    denoiser: DenoiserLike, x: Tensor, alpha: Scale, sigma: Scale, eps: Tensor, probe: Tensor, **cond: Any
) -> Tensor:
    """(sigma v . J v - (D - stopped |eps_hat - eps|^2))^2 / D for each example, (B,),  with J = d eps_hat / dx.

    For the exact denoiser  sigma div eps_hat(x) = D - E[|eps_hat - eps|^2 | x]  on every path, whatever the network
    predicts: both sides are D less the trace of eps's covariance given x. On the variance-preserving path this is the
    loss of the trace in Lu et al. 2022, "Maximum likelihood training for score-based diffusion ODEs by high-order
    denoising score matching". With the weight of the ELBO it is that of Zheng et al. 2023, "Improved techniques for
    maximum likelihood estimation for diffusion ODEs".

    Hutchinson's v . J v, with signs v, stands for the divergence. Its variance, 2 sigma^2 / D times the squares of J's
    symmetric part off the diagonal, is added to the mean of the loss.

    Args:
        denoiser: E[x0 | x], which is differentiated twice. Its gradient does not pass to the scales or to x.
        x: alpha x0 + sigma eps, (B, *D).
        alpha: of the signal, () or (B,).
        sigma: of the noise, () or (B,).
        eps: the noise in x, (B, *D).
        probe: standard normal, (B, *D), whose signs are v.
        cond: keywords for the denoiser.

    Raises:
        ValueError: if the noise, the probe or the denoiser's answer has another shape.
    """
    alpha, sigma = (scale.detach() if isinstance(scale, Tensor) else scale for scale in (alpha, sigma))
    dims = x[0].numel()
    scale = expand(sigma, x)
    scaled, divergence = Hutchinson()(
        lambda x: scale * predict_noise(denoiser, x, alpha, sigma, **cond),
        x.detach(),
        signs(like(probe, x, "the probe"))[None],
        differentiable=torch.is_grad_enabled(),
    )
    squared_error = (scaled.detach() / scale - like(eps, x, "the noise")).square().flatten(1).sum(1)
    return (divergence[:, 0] - (dims - squared_error)).square() / dims
