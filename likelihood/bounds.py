"""Lower bounds of log p(x0) under the SDE model, from the denoising loss alone: ELBO, DSM bound and DDPM's VLB.

All three are

    log p(x0) >= -KL(q(x_T | x0) || prior) - E[weighted |eps_hat - eps|^2] + E[log p(x0 | x_{t_min})],

and differ in the weights of the times. The bounded model starts from the prior, follows the reverse SDE (or the steps
of a chain) down to t_min, and ends with the decoder.

References:
    Kingma, Salimans, Poole and Ho 2021, "Variational Diffusion Models" (VDM).
    Song, Durkan, Murray and Ermon 2021, "Maximum Likelihood Training of Score-Based Diffusion Models" (ScoreFlow).
    Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models" (DDPM).
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scorefield.likelihood.decoders import Decoder, GaussianDecoder
from scorefield.likelihood.density import Density, check_samples
from scorefield.likelihood.prior import GaussianPrior
from scorefield.likelihood.progress import ShareDone
from scorefield.likelihood.quadrature import ChainSum, LogSNRIntegral, integral
from scorefield.sde_lib import SDE, MultivariateVP, PerDimensionVP
from scorefield.sde_lib.broadcast import expand, like, precise
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike, predict_noise
from scorefield.sde_lib.level_density import LevelDensity
from scorefield.sde_lib.sde import Noise

Prior = GaussianPrior | tuple[Tensor, Tensor]  # mean and std, each broadcasting with x0


def elbo(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    *,
    cond: Cond | None = None,
    decoder: Decoder,
    steps: int | None = None,
    ts: Tensor | None = None,
    draws: int | None = 32,
    density: LevelDensity | None = None,
    decodings: int = 4,
    prior: Prior | None = None,
    noise: Noise = torch.randn_like,
    uniform: Noise = torch.rand_like,
    progress: ShareDone = None,
) -> Density:
    """VDM's evidence lower bound, in continuous time or for a chain of T steps.

        continuous   diffusion = -1/2 int E|eps_hat - eps|^2 d lambda
        T steps      diffusion = -1/2 sum_i expm1(lambda_s - lambda_t) E|eps_hat - eps|^2,  s before t

    Kingma et al. 2021, Eq. 11; Eqs. 17 and 13-14 for the diffusion.

    In continuous time the times of each image are stratified and uniform in the log-SNR from t_min to t_max. With
    fewer draws than steps, the steps are a stratified random choice by weight and log-SNR. Otherwise each step is
    taken once.

    On a path with a noise level for each dimension the diffusion is a line integral, and times are uniform in t. A
    `MultivariateVP` has its codes drawn from q(c | x0), which costs the part "code", -KL(q || all codes equally likely)
    (Sahoo et al. 2024, Eq. 9).

    Args:
        denoiser: E[x0 | x], called with alpha and sigma (B,).
        sde: the path.
        x0: (B, *D), clean data in the model's units.
        cond: keywords for the denoiser. Tensors have a row for each sample, (B, ...).
        decoder: `LevelDecoder(levels)` or `DiscretisedDecoder(levels)` of integers, `GaussianDecoder()` of densities.
        steps: T, the number of equal steps in time from t_min to t_max; None is continuous time.
        ts: instead of `steps`, the chain's grid of T + 1 times, rising or falling.
        draws: evaluations of the diffusion term for each image; None takes every step, and needs steps or ts.
        density: of the times over the log-SNR, in continuous time; a measured one gives the same mean with less error.
        decodings: draws of x_{t_min} for the decoder.
        prior: a `GaussianPrior`, or mean and std that broadcast with x0, at the path's end; the path's by default.
        noise: source of the normals; `PerSampleNoise` gives each sample its stream.
        uniform: source of the times, `(B,) -> (B,)` on [0, 1); the `uniform` of a PerSampleNoise belongs here.
        progress: called with the share of the work that is done, 0 to 1.

    Returns:
        log_prob, an unbiased estimate of the bound in nats: the sum of the parts "prior", "diffusion" and
        "reconstruction". std_error is of these draws, from differences between neighbouring strata. Its mean is no
        smaller than the true one. It is larger where the strata's means differ: 1.6 times in 784 dimensions with 32
        draws, 1.2 with 128. It is None where either expectation has one draw. On a `MultivariateVP` there is a part
        "code"; one code is drawn for each image, and std_error and `each` are for that code.

    Raises:
        ValueError: for data that is not finite floating-point numbers (B, *D), counts below 1, an invalid grid, or a
            density of a chain's times.
    """
    if density is not None and not (steps is None and ts is None):
        raise ValueError("expected a density of times in continuous time, got steps or ts with it: leave one out")
    if isinstance(sde, MultivariateVP) and steps is None and ts is None:
        check_samples(x0)
        path, cond, kl = with_code(sde, x0, cond, uniform)
        bound = elbo(
            denoiser, path, x0, cond=cond, decoder=decoder, draws=draws, density=density, decodings=decodings,
            prior=prior, noise=noise, uniform=uniform, progress=progress,
        )  # fmt: skip
        return replace(bound, log_prob=bound.log_prob - kl, parts={**bound.parts, "code": -kl})
    times = integral(sde, density) if steps is None and ts is None else ChainSum.of(sde, steps, ts, x0)
    return _bound(denoiser, cond, sde, x0, times, decoder, None, draws, decodings, prior, noise, uniform, progress)


def with_code(
    sde: MultivariateVP, x0: Tensor, cond: Cond | None, uniform: Noise
) -> tuple[PerDimensionVP, dict[str, Any], Tensor]:
    """The paths of codes drawn from q(c | x0), the conditioning with these codes, and what they cost in nats, (B,).

    log p(x0) >= log p(x0 | c) - KL(q(c | x0) || all codes equally likely), in the mean over c.
    """
    with torch.no_grad():
        code, kl = sde.infer(x0, uniform)
        return sde.given(code), {**(cond or {}), "code": code}, kl


def dsm_bound(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    *,
    cond: Cond | None = None,
    draws: int = 32,
    density: LevelDensity | None = None,
    decodings: int = 4,
    prior: Prior | None = None,
    noise: Noise = torch.randn_like,
    uniform: Noise = torch.rand_like,
    progress: ShareDone = None,
) -> Density:
    """The denoising-score-matching bound of continuous data, corrected for t_min.

        log p(x0) >= E[log prior(x_T)] - 1/2 int E[g^2 |s - grad log q(x_t | x0)|^2 - g^2 |grad log q|^2 - 2 div f] dt
                     + E[log N(x0; D(x_{t_min}), sigma^2 / alpha^2) - log q(x_{t_min} | x0)]

    Song, Durkan, Murray and Ermon 2021, Theorem 3 and Appendix B. The terms without the network are known. The
    integrals of g^2 |grad log q|^2 and div f are together D log(sigma_T / sigma_{t_min}), which turns the entropy of
    q(x_{t_min} | x0) into that of q(x_T | x0). With E[log prior] that is -KL(q(x_T | x0) || prior). The rest is half
    the integral of |eps_hat - eps|^2 over the log-SNR, since g^2 / sigma^2 = -d lambda / dt. So this is `elbo` with a
    `GaussianDecoder`, and has its arguments, results and errors.
    """
    return elbo(
        denoiser, sde, x0, cond=cond, decoder=GaussianDecoder(), draws=draws, density=density, decodings=decodings,
        prior=prior, noise=noise, uniform=uniform, progress=progress,
    )  # fmt: skip


def vlb(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    *,
    cond: Cond | None = None,
    decoder: Decoder,
    steps: int | None = None,
    ts: Tensor | None = None,
    variance: str = "small",
    draws: int | None = None,
    decodings: int = 4,
    prior: Prior | None = None,
    noise: Noise = torch.randn_like,
    uniform: Noise = torch.rand_like,
    progress: ShareDone = None,
) -> Density:
    """DDPM's variational bound -(L_T + sum_t L_{t-1} + L_0) for a chain of Gaussian steps  (Ho et al. 2020, Eq. 5).

    L_{t-1} = KL(q(x_s | x_t, x0) || p(x_s | x_t)) of two Gaussians with means a x_t + b x0 and a x_t + b D. The first
    has the variance beta_tilde = sigma_s^2 sigma_{t|s}^2 / sigma_t^2, where sigma_{t|s}^2 = sigma_t^2 (1 - SNR_t /
    SNR_s). The second has beta_tilde ("small") or sigma_{t|s}^2 ("large", DDPM's beta_t). Their ratio is
    r = sigma_s^2 / sigma_t^2.

        small   L_{t-1} = 1/2 expm1(lambda_s - lambda_t) |eps_hat - eps|^2, the chain of `elbo`
        large   L_{t-1} = 1/2 r expm1(lambda_s - lambda_t) |eps_hat - eps|^2 + D/2 (r - 1 - log r)

    A `DiscretisedDecoder` without a std takes, with "small", that of the step next to the data, as DDPM clips its
    first variance. On a grid much finer there than sigma(t_min) this is too narrow: pass a std. With "large" it takes
    sigma / alpha at t_min, where Ho et al.'s code keeps the small one. A DDPM of N steps is `DiscreteVPSDE(...)` with
    N - 1 steps here: its last, from t_min to the data, is L_0.

    Arguments and results are those of `elbo`, except: one of `steps` and `ts` is needed; `draws=None` takes every
    step, with one normal each; `variance` is "small" or "large".

    Raises:
        ValueError: as `elbo`, and for neither steps nor ts, or an unknown variance.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"expected variance 'small' or 'large', got {variance!r}")
    if steps is None and ts is None:
        raise ValueError("expected steps or ts, got neither: pass steps=1000, or use elbo for continuous time")
    chain = ChainSum.of(sde, steps, ts, x0, variance)
    std = chain.first_std if variance == "small" else None
    return _bound(denoiser, cond, sde, x0, chain, decoder, std, draws, decodings, prior, noise, uniform, progress)


def _bound(
    denoiser: DenoiserLike,
    cond: Cond | None,
    sde: SDE,
    x0: Tensor,
    times: LogSNRIntegral | ChainSum,
    decoder: Decoder,
    std: Tensor | None,
    draws: int | None,
    decodings: int,
    prior: Prior | None,
    noise: Noise,
    uniform: Noise,
    progress: ShareDone,
) -> Density:
    """The three parts; each evaluation sees the complete batch."""
    check_samples(x0)
    for name, count in (("draws", draws), ("decodings", decodings)):
        if count is not None and count < 1:
            raise ValueError(f"expected {name} of 1 or more, got {count}")
    model = BoundDenoiser(denoiser, cond, len(x0))
    blank = precise(torch.zeros(len(x0), dtype=x0.dtype, device=x0.device))
    if len(x0) == 0:
        return Density(blank, None, 0.0, blank, dict.fromkeys(("prior", "diffusion", "reconstruction"), blank))
    with torch.no_grad():
        losses, errors = [], []
        diffusion_of_each, decoded_of_each = (precise(torch.zeros_like(x0)) for _ in range(2))
        for t, weight in times.points(draws, uniform, blank):
            eps = noise(x0)
            error = predict_noise(model, sde.perturb(x0, t, eps), *sde.scales(t)) - eps
            squares = precise(error).square()
            each = -expand(weight, squares) / 2 * squares
            diffusion_of_each += each
            losses.append(each.flatten(1).sum(1))
            errors.append(squares.flatten(1).mean(1))
            if progress is not None:
                progress(len(losses) / (times.count(draws) + decodings))
        t = torch.full_like(blank, times.start)
        decoded = []
        for _ in range(decodings):
            each = decoder.log_prob_of_each(model, x0, sde.perturb(x0, t, noise(x0)), *sde.scales(t), std)
            decoded_of_each += like(each, x0, "the decoder")
            decoded.append(each.flatten(1).sum(1))
        if progress is not None:
            progress(1.0)
        diffusion, reconstruction = torch.stack(losses) / len(losses), torch.stack(decoded)
        if not isinstance(prior, GaussianPrior):
            prior = GaussianPrior(*prior) if prior else GaussianPrior.standard(sde)
        prior_of_each = -prior.kl_of_each(sde, x0, times.end)
        parts = {
            "prior": prior_of_each.flatten(1).sum(1),
            "diffusion": diffusion.sum(0) - times.variance_cost * x0[0].numel(),
            "reconstruction": reconstruction.mean(0),
        }
        log_prob = torch.stack(list(parts.values())).sum(0)
        each = prior_of_each + diffusion_of_each / len(losses) - times.variance_cost + decoded_of_each / decodings
        std_error = None
        if len(losses) > 1 and decodings > 1:
            std_error = (_paired_variance(diffusion) + reconstruction.var(0) / decodings).sqrt()
    nfe = len(losses) + decodings * decoder.evaluations
    return Density(log_prob, None, float(nfe), std_error, parts, each=each, errors=torch.stack(errors))


def _paired_variance(terms: Tensor) -> Tensor:
    """Variance of a sum of K independent terms (K, B), each seen once, by pairs of neighbours (the last may be 3).

    The difference of neighbours' means adds to it: conservative (Cochran 1977, "Sampling Techniques", Section 5A.12).
    """
    starts = range(0, len(terms) - 1, 2)
    groups = [terms[i : len(terms) if i == starts[-1] else i + 2] for i in starts]
    return torch.stack([len(group) * group.var(0) for group in groups]).sum(0)
