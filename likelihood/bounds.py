"""Lower bounds of log p(x0) under the SDE model, which need only the denoising loss: ELBO, DSM bound and DDPM's VLB.

All three are

    log p(x0) >= -KL(q(x_T | x0) || prior) - E[weighted |eps_hat - eps|^2] + E[log p(x0 | x_{t_min})],

and differ in the weights of the times. What is bounded is the model that starts from the prior, follows the reverse
SDE (or takes the chain's steps) down to t_min and ends with the decoder.

References:
    Kingma, Salimans, Poole and Ho 2021, "Variational Diffusion Models" (VDM).
    Song, Durkan, Murray and Ermon 2021, "Maximum Likelihood Training of Score-Based Diffusion Models" (ScoreFlow).
    Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models" (DDPM).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scorefield.likelihood.decoders import Decoder, GaussianDecoder
from scorefield.likelihood.density import Density
from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import expand, precise
from scorefield.sde_lib.denoiser import BoundDenoiser, Cond, DenoiserLike, predict_noise
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import Schedule, grids

Uniform = Callable[[Tensor], Tensor]
Prior = tuple[Tensor, Tensor]


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
    decodings: int = 4,
    prior: Prior | None = None,
    noise: Noise = torch.randn_like,
    uniform: Uniform = torch.rand_like,
) -> Density:
    """VDM's evidence lower bound, in continuous time or for a chain of T steps.

        continuous   diffusion = -1/2 int E|eps_hat - eps|^2 d lambda
        T steps      diffusion = -1/2 sum_i expm1(lambda_s - lambda_t) E|eps_hat - eps|^2,  s before t

    Kingma et al. 2021, Eq. 11, with 17 and 13-14 for the diffusion.

    In continuous time every image has its own times, stratified and uniform in the log-SNR from t_min to t_max: the
    integral's own importance sampling. Fewer draws than steps are a stratified random choice of steps, by weight and
    log-SNR; otherwise every step is taken once.

    Args:
        denoiser: E[x0 | x], called with alpha and sigma (B,).
        sde: the path.
        x0: (B, *D), clean data in the model's units.
        cond: keywords for the denoiser. Tensors have a row for each sample, (B, ...).
        decoder: `LevelDecoder(levels)` or `DiscretisedDecoder(levels)` of integers, `GaussianDecoder()` of densities.
        steps: T, for that many equal steps in time from t_min to t_max; None is continuous time.
        ts: the chain's own grid of T + 1 times instead, rising or falling.
        draws: evaluations of the diffusion term for each image; None, with steps, is all of them.
        decodings: draws of x_{t_min} for the decoder.
        prior: mean and std of a Gaussian prior at the path's end, each broadcasting with x0; the path's own by default.
        noise: source of the normals; `PerSampleNoise` gives each sample its own.
        uniform: source of the times, `(B,) -> (B,)` on [0, 1); a PerSampleNoise's `uniform` goes with it.

    Returns:
        log_prob, the bound's unbiased estimate in nats, the sum of the parts "prior", "diffusion" and "reconstruction".
        std_error is of these draws, from differences between neighbouring strata: on average no smaller than the truth,
        and larger by as much as the strata's means differ (1.6 times in 784 dimensions with 32 draws, 1.2 with 128).
        It is None where there is one draw of either expectation.

    Raises:
        ValueError: for data that is not finite floating-point numbers (B, *D), counts below 1, or a grid that is none.
    """
    if steps is None and ts is None:
        if draws is None:
            raise ValueError("expected a number of draws in continuous time, got None: pass draws=32, or steps=1000")
        return _bound(
            BoundDenoiser(denoiser, cond, len(x0)),
            sde,
            x0,
            _LogSNR.of(sde),
            draws,
            decoder,
            None,
            decodings,
            prior,
            noise,
            uniform,
        )
    chain = _Chain.of(sde, _grid(sde, steps, ts, x0), large=False)
    return _bound(
        BoundDenoiser(denoiser, cond, len(x0)), sde, x0, chain, draws, decoder, None, decodings, prior, noise, uniform
    )


def dsm_bound(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    *,
    cond: Cond | None = None,
    draws: int = 32,
    decodings: int = 4,
    prior: Prior | None = None,
    noise: Noise = torch.randn_like,
    uniform: Uniform = torch.rand_like,
) -> Density:
    """The denoising-score-matching bound of continuous data, corrected for t_min.

        log p(x0) >= E[log prior(x_T)] - 1/2 int E[g^2 |s - grad log q(x_t | x0)|^2 - g^2 |grad log q|^2 - 2 div f] dt
                     + E[log N(x0; D(x_{t_min}), sigma^2 / alpha^2) - log q(x_{t_min} | x0)]

    Song, Durkan, Murray and Ermon 2021, Theorem 3 and Appendix B. What has no network in it is known: the integrals of
    g^2 |grad log q|^2 and div f are D log(sigma_T / sigma_{t_min}) together, which turns the entropy of
    q(x_{t_min} | x0) into that of q(x_T | x0), and with E[log prior] that is -KL(q(x_T | x0) || prior). Since
    g^2 / sigma^2 = -d lambda / dt, the rest is half the integral of |eps_hat - eps|^2 over the log-SNR: this is `elbo`
    with a `GaussianDecoder`, and is computed so, by closed forms instead of draws of log prior and log q. Arguments,
    results and errors are those of `elbo`.
    """
    return elbo(
        denoiser, sde, x0, cond=cond, decoder=GaussianDecoder(), draws=draws, decodings=decodings, prior=prior,
        noise=noise, uniform=uniform,
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
    uniform: Uniform = torch.rand_like,
) -> Density:
    """DDPM's variational bound -(L_T + sum_t L_{t-1} + L_0) for a chain of Gaussian steps  (Ho et al. 2020, Eq. 5).

    L_{t-1} = KL(q(x_s | x_t, x0) || p(x_s | x_t)) of two Gaussians with means a x_t + b x0 and a x_t + b D. The first's
    variance is beta_tilde = sigma_s^2 sigma_{t|s}^2 / sigma_t^2 with sigma_{t|s}^2 = sigma_t^2 (1 - SNR_t / SNR_s), the
    second's beta_tilde ("small") or sigma_{t|s}^2 ("large", DDPM's beta_t); r = sigma_s^2 / sigma_t^2 is their ratio.

        small   L_{t-1} = 1/2 expm1(lambda_s - lambda_t) |eps_hat - eps|^2, the chain of `elbo`
        large   L_{t-1} = 1/2 r expm1(lambda_s - lambda_t) |eps_hat - eps|^2 + D/2 (r - 1 - log r)

    A `DiscretisedDecoder` without a std of its own has, with "small", that of the step next to the data, as DDPM clips
    its first variance; on a grid much finer there than sigma(t_min) that is too narrow: give it one. With "large" it
    has sigma / alpha at t_min, where Ho et al.'s code keeps the small one. A DDPM is `DiscreteVPSDE(...)` with steps
    one fewer than its own: the last, from t_min to the data, is L_0.

    Arguments and results are those of `elbo`, but that one of `steps` and `ts` is needed, that `draws=None` takes every
    step, with one normal each, and for `variance`: "small" or "large".

    Raises:
        ValueError: as `elbo`, and for neither steps nor ts, or an unknown variance.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"expected variance 'small' or 'large', got {variance!r}")
    if steps is None and ts is None:
        raise ValueError("expected steps or ts, got neither: pass steps=1000, or use elbo for continuous time")
    chain = _Chain.of(sde, _grid(sde, steps, ts, x0), large=variance == "large")
    std = chain.first_std if variance == "small" else None
    return _bound(
        BoundDenoiser(denoiser, cond, len(x0)), sde, x0, chain, draws, decoder, std, decodings, prior, noise, uniform
    )


@dataclass(frozen=True)
class _LogSNR:
    """int E|eps_hat - eps|^2 d lambda as an expectation over a uniform share of the way from t_min to t_max."""

    sde: SDE
    start: float
    end: float
    high: float
    low: float
    steps: int | None = None
    prior_kl: float = 0.0

    @classmethod
    def of(cls, sde: SDE) -> "_LogSNR":
        return cls(sde, sde.t_min, sde.t_max, float(sde.log_snr(sde.t_min)), float(sde.log_snr(sde.t_max)))

    def at(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """The time (B,) and the weight (B,) of |eps_hat - eps|^2 there."""
        length = self.high - self.low
        return self.sde.time(self.high - length * share), torch.full_like(share, length)


@dataclass(frozen=True)
class _Chain:
    """sum_i weight_i E|eps_hat - eps|^2 over steps as an expectation over a uniform share of their chances.

    Args:
        start: time of the chain's end next to the data.
        noisier: the other time of each step, (T,), rising.
        weight: (T,).
        chance: of each step to be drawn, (T,): half by its weight, half by its share of the log-SNR, where the sum is.
        mismatch: what the steps' variances cost, twice the nats a dimension.
        first_std: sqrt(beta_tilde) of the step next to the data, ().
    """

    start: float
    noisier: Tensor
    weight: Tensor
    chance: Tensor
    prior_kl: float
    first_std: Tensor

    @classmethod
    def of(cls, sde: SDE, ts: Tensor, large: bool) -> "_Chain":
        log_snr, log_sigma = sde.log_snr(ts), sde.log_sigma(ts)
        fall = log_snr[:-1] - log_snr[1:]
        log_ratio = 2 * (log_sigma[:-1] - log_sigma[1:])
        first_std = (log_sigma[0] + torch.log(-torch.expm1(-fall[0])) / 2).exp()
        weight, prior_kl = torch.expm1(fall), 0.0
        if large:
            weight, prior_kl = weight * log_ratio.exp(), float((torch.expm1(log_ratio) - log_ratio).sum())
        chance = (weight / weight.sum() + fall / fall.sum()) / 2
        return cls(float(ts[0]), ts[1:], weight, chance, prior_kl, first_std)

    @property
    def end(self) -> float:
        return float(self.noisier[-1])

    @property
    def steps(self) -> int:
        return len(self.noisier)

    def at(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """The time (B,) and the weight (B,) of |eps_hat - eps|^2 there."""
        i = torch.searchsorted(self.chance.cumsum(0).to(share), share, right=True).clamp(max=self.steps - 1)
        return self.noisier.to(share)[i], (self.weight / self.chance).to(share)[i]


def _bound(
    denoiser: BoundDenoiser,
    sde: SDE,
    x0: Tensor,
    times: _LogSNR | _Chain,
    draws: int | None,
    decoder: Decoder,
    std: Tensor | None,
    decodings: int,
    prior: Prior | None,
    noise: Noise,
    uniform: Uniform,
) -> Density:
    """The three parts, by one loop of evaluations over the whole batch for each expectation."""
    _check(x0, draws, decodings)
    blank = precise(torch.zeros(len(x0), dtype=x0.dtype, device=x0.device))
    if len(x0) == 0:
        return Density(blank, None, 0.0, blank, dict.fromkeys(("prior", "diffusion", "reconstruction"), blank))
    with torch.no_grad():
        losses = []
        if isinstance(times, _Chain) and (draws is None or draws >= times.steps):
            times = replace(times, chance=torch.full_like(times.chance, 1 / times.steps))
        for share in _strata(blank, draws, times.steps, uniform):
            t, weight = times.at(share)
            eps = noise(x0)
            error = predict_noise(denoiser, sde.perturb(x0, t, eps), *sde.scales(t)) - eps
            losses.append(-weight / 2 * precise(error).square().flatten(1).sum(1))
        t = torch.full_like(blank, times.start)
        decoded = [
            decoder.log_prob(denoiser, x0, sde.perturb(x0, t, noise(x0)), *sde.scales(t), std) for _ in range(decodings)
        ]
        diffusion, reconstruction = torch.stack(losses) / len(losses), torch.stack(decoded)
        parts = {
            "prior": -_prior_kl(sde, x0, times.end, prior),
            "diffusion": diffusion.sum(0) - times.prior_kl * x0[0].numel() / 2,
            "reconstruction": reconstruction.mean(0),
        }
        std_error = None
        if len(losses) > 1 and decodings > 1:
            std_error = (_collapsed(diffusion) + reconstruction.var(0) / decodings).sqrt()
    nfe = len(losses) + decodings * decoder.evaluations
    return Density(torch.stack(list(parts.values())).sum(0), None, float(nfe), std_error, parts)


def _strata(blank: Tensor, draws: int | None, steps: int | None, uniform: Uniform) -> Iterator[Tensor]:
    """Shares of the way (B,), one within each of `draws` equal strata; the middles where every step has its own."""
    every = steps is not None and (draws is None or draws >= steps)
    count = steps if every else draws
    assert count is not None
    for i in range(count):
        yield (i + (torch.full_like(blank, 0.5) if every else uniform(blank))) / count


def _collapsed(terms: Tensor) -> Tensor:
    """Variance of a sum of K independent terms (K, B), each seen once, by pairs of neighbours (the last may be 3).

    The difference of neighbours' means adds to it: conservative (Cochran 1977, "Sampling Techniques", Section 5A.12).
    """
    starts = range(0, len(terms) - 1, 2)
    groups = [terms[i : len(terms) if i == starts[-1] else i + 2] for i in starts]
    return torch.stack([len(group) * group.var(0) for group in groups]).sum(0)


def _prior_kl(sde: SDE, x0: Tensor, end: float, prior: Prior | None) -> Tensor:
    """KL(N(alpha_T x0, sigma_T^2) || N(mean, std^2)) in nats, (B,): `sde.prior_kl` for any Gaussian."""
    x0 = precise(x0)
    alpha, sigma = (expand(scale, x0) for scale in sde.scales(end))
    mean, std = (each.to(x0) for each in prior or (torch.zeros(()), sde.scales(sde.t_max)[1]))
    shift, ratio = (alpha * x0 - mean) / std, sigma / std
    return ((shift.square() + ratio.square() - 1) / 2 - ratio.log()).expand_as(x0).flatten(1).sum(1)


def _grid(sde: SDE, steps: int | None, ts: Tensor | None, x0: Tensor) -> Tensor:
    """The chain's times, rising, float64 on the CPU."""
    if ts is None:
        assert steps is not None
        ts = grids.uniform(sde, steps)
    elif steps is not None and steps != len(ts) - 1:
        raise ValueError(f"expected {steps + 1} times for {steps} steps, got {len(ts)}: pass steps or ts alone")
    if len(ts) < 2:
        raise ValueError(f"expected a grid of at least two times, got {len(ts)}: make one with solvers.grids")
    return Schedule(sde, ts, x0).ts.sort().values


def _check(x0: Tensor, draws: int | None, decodings: int) -> None:
    if not x0.is_floating_point():
        raise ValueError(
            f"expected floating-point x0 in the model's units, got {x0.dtype}: dequantise integers for a density, or "
            "pass the centres of their cells for a probability"
        )
    if x0.ndim < 2:
        raise ValueError(f"expected x0 (B, *D), got {tuple(x0.shape)}: add the dimension that is missing")
    bad = (~x0.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"expected finite x0, got NaN or infinity in {len(bad)} of {len(x0)} images, first {bad[0]}")
    for name, count in (("draws", draws), ("decodings", decodings)):
        if count is not None and count < 1:
            raise ValueError(f"expected {name} of 1 or more, got {count}")
