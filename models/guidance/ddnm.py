"""Denoising with the null space: the measured part is replaced."""

import torch
from torch import Tensor

from scorefield.models.guidance.inverse_problem import ratio
from scorefield.models.guidance.jacobian_free import GradientFree
from scorefield.sde_lib.broadcast import Scale, expand


class DDNM(GradientFree):
    """D_y = D + V diag(g / s) U^T (y - A D),  g = min(1, rho s / noise_std),  rho = sigma / alpha,  A = U diag(s) V^T.

    Wang et al. 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model". Without noise it is
    D + A^+ (y - A D). With noise it has the idea of their DDNM+: a singular direction is corrected only so far that the
    noise which y brings into it stays below that of x. DDNM+ counts the noise of its own ancestral step instead.

    Args:
        denoiser: E[x0 | x] of the prior.
        measurement: A, linear, with known singular values.
        noise_std: of the measurement; 0 is allowed.

    Raises:
        ValueError: for measurements that are not linear; when called, for one of unknown singular values.
    """

    def correction(self, residual: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        svd = self.measurement.svd()
        if self.noise_std == 0 or svd is None:
            return self.measurement.pinv(residual)  # which refuses without singular values
        spectral, s = svd.u_t(residual), svd.s.to(residual)
        rho = expand(ratio(alpha, sigma).sqrt(), residual.flatten(1))
        known = s > 1e-6 * s.max()
        safe = torch.where(known, s, 1.0)
        gain = torch.where(known, (rho * safe / self.noise_std).clamp(max=1.0) / safe, 0.0)
        return svd.v(gain * spectral)
