"""What several test files judge by: every path, every solver, and two data sets whose answers are exact."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scorefield.models.analytic import Gaussian, GaussianMixture
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, DiscreteVPSDE, RectifiedSDE, SubVPSDE, expand
from scorefield.solvers import (
    BELM,
    DDIM,
    DEIS,
    RK4,
    Adams,
    AdamsMoulton,
    Adaptive,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    Churn,
    ConsistentAnnealed,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    Midpoint,
    PredictorCorrector,
    ReverseDiffusion,
    SASolver,
    Solver,
    StochasticDPMSolver,
    UniPC,
)  # fmt: skip
from scorefield.solvers.variables import SoftClippedLogSNR

PATHS: dict[str, SDE] = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(sigma_max=20.0),
    "edm": EDMSDE(),
    "cosine": CosineSDE(),
    "rectified": RectifiedSDE(),
    "ddpm-linear": DiscreteVPSDE("linear"),
    "ddpm-scaled-linear": DiscreteVPSDE("scaled_linear"),
    "ddpm-cosine": DiscreteVPSDE("cosine"),
}


class Case(NamedTuple):
    """A solver of the tests; what it is, it says itself (`stochastic`, `fixed_grid`, `remembers`, ...).

    `order` is the nominal one where it is measured, and `kind` whether it stands for its class where all of a class
    take the same code.
    """

    solver: Solver
    order: int = 0
    kind: bool = False


CORRECTOR = AnnealedLangevin(snr=0.16)
SOLVERS: dict[str, Case] = {
    "ddim": Case(DDIM(), 1, True),
    "euler": Case(Euler(), 1),
    "euler-log_snr": Case(Euler("log_snr"), 1),
    "midpoint": Case(Midpoint(), 2),
    "heun": Case(Heun(), 2, True),
    "heun-sigma": Case(Heun("sigma"), 2),
    "heun-soft_clipped": Case(Heun(SoftClippedLogSNR(0.02, 10.0)), 2),
    "rk4-log_snr": Case(RK4("log_snr"), 4),
    "dpm1-eps": Case(DPMSolver(order=1, predict="eps"), 1),
    "dpm2m-x0": Case(DPMSolver(), 2),
    "dpm2m-eps": Case(DPMSolver(predict="eps"), 2),
    "dpm2s-x0": Case(DPMSolver(multistep=False), 2, True),
    "dpm2s-eps": Case(DPMSolver(multistep=False, predict="eps"), 2),
    "dpm3m-x0": Case(DPMSolver(order=3), 3),
    "dpm3m-eps": Case(DPMSolver(order=3, predict="eps"), 3),
    "dpm3m-lower": Case(DPMSolver(order=3, lower_order_final=True)),
    "dpm3s-x0": Case(DPMSolver(order=3, multistep=False), 3),
    "dpm3s-eps": Case(DPMSolver(order=3, multistep=False, predict="eps"), 3),
    "unip2-bh1": Case(UniPC(2, corrector=False, variant="bh1"), 2),
    "unip3": Case(UniPC(3, corrector=False), 3),
    "unipc1": Case(UniPC(1), 1),
    "unipc2-eps": Case(UniPC(2, predict="eps"), 2),
    "unipc3": Case(UniPC(3), 3, True),
    "unipc3-eps": Case(UniPC(3, predict="eps", variant="bh1"), 3),
    "deis2-time": Case(DEIS(2, "time"), 2),
    "deis3": Case(DEIS(3), 3),
    "deis3-sigma": Case(DEIS(3, "sigma"), 3),
    "ab2-eps": Case(Adams(2, corrector=False, predict="eps"), 2),
    "ab3": Case(Adams(3, corrector=False), 3),
    "ab4-x0": Case(Adams(4, corrector=False), 4),
    "abm2": Case(Adams(2), 2),
    "abm3-eps": Case(Adams(3, predict="eps"), 3),
    "abm3-soft_clipped": Case(Adams(3, variable="soft_clipped"), 3),
    "abm4": Case(Adams(4), 4, True),
    "belm": Case(BELM(), 2, True),
    "adams-moulton": Case(AdamsMoulton(), 0, True),
    "dopri5": Case(Adaptive(rtol=1e-3, atol=1e-3), 0, True),
    "bosh3-soft_clipped": Case(Adaptive("bosh3", 1e-3, 1e-3, variable="soft_clipped")),
    "scipy-rk45": Case(Adaptive("scipy:RK45", 1e-3, 1e-3), 0, True),
    "ddim-0.5": Case(DDIM(eta=0.5)),
    "em": Case(EulerMaruyama(), 0, True),
    "ancestral-large": Case(Ancestral("large")),
    "rd": Case(ReverseDiffusion()),
    "cas": Case(ConsistentAnnealed()),
    "churn": Case(Churn(), 0, True),
    "sdpm2": Case(StochasticDPMSolver()),
    "sdpm3": Case(StochasticDPMSolver(3, eta=0.5)),
    "sabm3": Case(SASolver(), 0, True),
    "sab2": Case(SASolver(2, 0.5, corrector=False, predict="eps")),
    "adaptive-sde": Case(AdaptiveSDE(rtol=0.2, atol=0.05), 0, True),
    "ncsn": Case(AnnealedLangevin(steps=3, step_size=1e-6), 0, True),
    "ncsnv2": Case(AnnealedLangevin(steps=3, step_size=None)),
    "langevin-sample": Case(AnnealedLangevin(snr=0.16, norms="sample", denoise=False), 0, True),
    "pc-em": Case(PredictorCorrector(EulerMaruyama(), CORRECTOR), 0, True),
    "pc-dpm2m": Case(PredictorCorrector(DPMSolver(), CORRECTOR)),
    "pc-dopri5": Case(PredictorCorrector(Adaptive(rtol=1e-2, atol=1e-2), CORRECTOR)),
    "cp-abm": Case(PredictorCorrector(Adams(3, corrector=False), CORRECTOR, order="correct_first"), 0, True),
}

SHAPES: tuple[tuple[int, ...], ...] = ((2,), (3, 8, 8), (2, 5, 7))


def gaussian(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """N(m, s^2), no two coordinates alike: means within [-0.8, 0.8], standard deviations within [0.3, 1]."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    mean, std = 0.8 * torch.sin(1.0 + 1.7 * i), 0.65 + 0.35 * torch.cos(2.3 * i)
    return Gaussian(mean.reshape(shape).to(dtype), std.reshape(shape).to(dtype))


class Plain(GaussianMixture):
    """A Gaussian with both its answers written out: the same numbers as a mixture of one, several times quicker."""

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.means[0] + alpha * self.stds[0] ** 2 * self._pull(x, alpha, sigma)

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma * self._pull(x, alpha, sigma)

    def _pull(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - alpha * self.means[0]) / ((alpha * self.stds[0]) ** 2 + sigma**2)


def plain(shape: tuple[int, ...]) -> Plain:
    """`gaussian`, for many calls with one scale for the batch."""
    model = gaussian(shape)
    return Plain(model.means, model.stds, model.weights)


class Direct:
    """`Plain`, for scales of either shape."""

    def __init__(self, model: Plain) -> None:
        self.model = model

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.model(x, expand(alpha, x), expand(sigma, x))

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.model.noise(x, expand(alpha, x), expand(sigma, x))


def mixture(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """Two modes of weights 0.3 and 0.7, a unit from the origin each way along a slanted line, with
    standard deviations of 0.5 and 0.7: in any dimension they overlap a little, so both matter."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    direction = 1.5 + torch.sin(1.0 + 1.7 * i)
    mean = (direction / direction.norm()).reshape(shape)
    stds, weights = torch.tensor([0.5, 0.7], dtype=dtype), torch.tensor([0.3, 0.7], dtype=dtype)
    return GaussianMixture(torch.stack([mean, -mean]).to(dtype), stds, weights)


def batch(model: GaussianMixture, n: int, seed: int = 0) -> Tensor:
    """n samples of a model, the same whenever asked."""
    return model.sample((n,), generator=torch.Generator().manual_seed(seed))
