"""When to train: functions `(sde, n, generator) -> t (n,)`, float64, within [t_min, t_max]."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from scorefield.sde_lib import SDE

Times = Callable[[SDE, int, Generator | None], Tensor]


def uniform(sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
    """Independent and uniform in time."""
    return _between(sde, _uniforms(n, generator))


def stratified(sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
    """Uniform in time, one in each n-th of the path: the same mean with less noise.

    Kingma et al. 2021, Appendix I.1.
    """
    strata = torch.arange(n, dtype=torch.float64, device=generator.device if generator else None)
    return _between(sde, (strata + _uniforms(n, generator)) / n)


def log_snr(sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
    """Uniform in the log-SNR, stratified: with the `simple` weight, the continuous ELBO on every path.

    Kingma et al. 2021, Eq. 12 and Appendix I.1; its weight in time is `weighting.elbo`.
    """
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    strata = torch.arange(n, dtype=torch.float64, device=generator.device if generator else None)
    return sde.time(ends[0] + (ends[1] - ends[0]) * (strata + _uniforms(n, generator)) / n)


def log_normal(mean: float = -1.2, std: float = 1.2) -> Times:
    """log(sigma / alpha) ~ N(mean, std^2), clamped to the path (Karras et al. 2022, Table 1)."""

    def sample(sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
        device = generator.device if generator else None
        normal = torch.randn(n, dtype=torch.float64, generator=generator, device=device)
        return sde.time(-2 * (mean + std * normal))

    return sample


def discrete(sigmas: Sequence[float]) -> Times:
    """One of a list of noise levels sigma / alpha, each as likely (Song and Ermon 2019, Section 4.2)."""
    log_snr = -2 * torch.tensor(list(sigmas), dtype=torch.float64).log()

    def sample(sde: SDE, n: int, generator: Generator | None = None) -> Tensor:
        device = generator.device if generator else None
        level = torch.randint(len(log_snr), (n,), generator=generator, device=device)
        return sde.time(log_snr.to(level.device)[level])

    return sample


def _uniforms(n: int, generator: Generator | None) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=generator, device=generator.device if generator else None)


def _between(sde: SDE, u: Tensor) -> Tensor:
    return sde.t_min + (sde.t_max - sde.t_min) * u
