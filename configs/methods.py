"""Methods for inverse problems: how each wraps a denoiser, and which solver runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scorefield.models.guidance import (
    DDNM,
    DPS,
    MMPS,
    TMPD,
    DiffPIR,
    InverseProblem,
    JacobianFree,
    PiGDM,
    PosteriorVariance,
)
from scorefield.models.measurements import Measurement
from scorefield.sde_lib.denoiser import DenoiserLike
from scorefield.solvers import DDIM, Solver, Twisted
from scorefield.solvers.restoration import DAPS, DDRM, RePaint, SplitGibbs

WIDER = 2.0  # a potential that is too narrow loses modes for good (docs/control.md)
ANCESTRAL = DDIM(eta=1.0)  # nearer to exact posteriors than the solvers of the probability flow (docs/control.md)


@dataclass(frozen=True)
class Facts:
    """What methods ask of a run.

    Args:
        data_std: standard deviation of the data in a dimension.
        variance: of x0 given x by noise level, as the denoiser's own error, where it was measured.
        bounds: the range of the model's values, where they have one.
        log_snr_step: mean step of the grid.
    """

    data_std: float = 1.0
    variance: PosteriorVariance | None = None
    bounds: tuple[float, float] | None = None
    log_snr_step: float = 0.2


@dataclass(frozen=True)
class Method:
    """A way to draw samples of a posterior.

    Args:
        wrap: (denoiser, measurement, noise_std, Facts) to a denoiser with a measurement.
        solver: that runs it.
        own_run: whether the solver is the method, so that no other can take its place.
        uses_variance: whether it asks for the measured variance of x0 given x.
    """

    wrap: Callable[[DenoiserLike, Measurement, float, Facts], InverseProblem]
    solver: Solver = ANCESTRAL
    own_run: bool = False
    uses_variance: bool = False

    def problem(
        self, denoiser: DenoiserLike, measurement: Measurement, noise_std: float, facts: Facts
    ) -> InverseProblem:
        """The denoiser E[x0 | x] with the measurement A; its guided answers are kept within the range of the data.

        Raises:
            ValueError: for a measurement or a noise level that the method cannot take.
        """
        problem = self.wrap(denoiser, measurement, noise_std, facts)
        problem.bounds = facts.bounds
        return problem

    def solved_by(self, solver: Solver | None) -> Solver:
        """The method's solver, or another in its place.

        Raises:
            ValueError: for another solver, where the method is its solver.
        """
        if solver is None:
            return self.solver
        if self.own_run:
            raise ValueError(
                f"expected no --solver for a method with a run of its own, as {type(self.solver).__name__}, got "
                f"{solver}: leave it out, or choose mmps, pigdm or dps"
            )
        return solver


def twisted(
    particles: int = 8, threshold: float = 0.5, order: int = 2, guide: str = "", data_std: float | None = None
) -> Method:
    """Sequential Monte Carlo (Wu et al. 2023): weighted particles, guided by jacobian_free, or dps if nonlinear.

    `guide` is another: jacobian_free, pigdm, dps or mmps.
    """
    guides: dict[str, Callable[..., InverseProblem]] = {
        "jacobian_free": JacobianFree, "pigdm": PiGDM, "dps": DPS, "mmps": MMPS,
    }  # fmt: skip
    if guide and guide not in guides:
        raise ValueError(f"expected a guide of {', '.join(guides)}, got {guide!r}: leave it out for the default")

    def wrap(denoiser: DenoiserLike, measurement: Measurement, noise_std: float, facts: Facts) -> InverseProblem:
        name = guide or ("jacobian_free" if measurement.linear else "dps")
        if name == "mmps":
            return MMPS(denoiser, measurement, noise_std, iterations=measurement.size)
        more = {"spread": 1.0} if name == "dps" else {}
        spread = _spread(data_std, facts)
        spread = spread.times(WIDER) if isinstance(spread, PosteriorVariance) else spread
        return guides[name](denoiser, measurement, noise_std, data_std=spread, **more)

    return Method(wrap, Twisted(particles, threshold, order), own_run=True, uses_variance=data_std is None)


def pigdm(data_std: float | None = None) -> Method:
    """Pseudo-inverse guidance (Song et al. 2023), as a posterior score."""
    return _by_variance(PiGDM, data_std)


def jacobian_free(data_std: float | None = None) -> Method:
    """Guidance without a derivative of the denoiser: half the cost, and no sampler of a posterior."""
    return _by_variance(JacobianFree, data_std)


def dps(scale: float | None = None, spread: float = 0.0, data_std: float | None = None) -> Method:
    """Diffusion posterior sampling (Chung et al. 2023): its formula, or with a scale its published steps."""

    def wrap(denoiser: DenoiserLike, measurement: Measurement, noise_std: float, facts: Facts) -> InverseProblem:
        return DPS(denoiser, measurement, noise_std, scale, spread, _spread(data_std, facts), facts.log_snr_step)

    return Method(wrap, uses_variance=spread > 0 and data_std is None)


def mmps(iterations: int = 5, tolerance: float = 1e-4) -> Method:
    """Moment matching (Rozet et al. 2024): the covariance of x0 given x, by linear systems of so many iterations."""
    return _simple(MMPS, iterations=iterations, tolerance=tolerance)


def tmpd() -> Method:
    """Moment matching by the sums of the covariance's rows (Boys et al. 2023)."""
    return _simple(TMPD)


def diffpir(lam: float = 1.0) -> Method:
    """A proximal step at each level (Zhu et al. 2023)."""
    return _simple(DiffPIR, lam=lam)


def ddnm() -> Method:
    """The null space by the denoiser, and the rest by the measurement (Wang et al. 2023)."""
    return _simple(DDNM)


def ddrm(eta: float = 0.85, eta_b: float = 1.0) -> Method:
    """Restoration by singular values (Kawar et al. 2022)."""
    return _own_run(DDRM(eta, eta_b))


def repaint(jump: int = 10, times: int = 10) -> Method:
    """Known pixels pasted at each level, with jumps back to noise (Lugmayr et al. 2022); for masks."""
    return _own_run(RePaint(jump, times))


def replacement() -> Method:
    """Known pixels pasted at each level (Song et al. 2021); for masks."""
    return _own_run(RePaint(1, 1))


def daps(steps: int = 5, langevin: int = 100) -> Method:
    """Decoupled annealing (Zhang et al. 2024): x0 by the flow, moved to the measurement, and noised again."""
    return _own_run(DAPS(steps, langevin))


def split_gibbs(steps: int = 10, langevin: int = 100) -> Method:
    """Split Gibbs sampling (Wu et al. 2024, PnP-DM): the measurement and the prior in turn."""
    return _own_run(SplitGibbs(steps, langevin=langevin))


def _spread(data_std: float | None, facts: Facts) -> float | PosteriorVariance:
    """The standard deviation that a spec gives, or else the variance that was measured, or the data's own."""
    if data_std is not None:
        return data_std
    return facts.data_std if facts.variance is None else facts.variance


def _by_variance(kind: Callable[..., InverseProblem], data_std: float | None) -> Method:
    def wrap(denoiser: DenoiserLike, measurement: Measurement, noise_std: float, facts: Facts) -> InverseProblem:
        return kind(denoiser, measurement, noise_std, data_std=_spread(data_std, facts))

    return Method(wrap, uses_variance=data_std is None)


def _simple(kind: Callable[..., InverseProblem], **settings: Any) -> Method:
    return Method(lambda denoiser, measurement, noise_std, _: kind(denoiser, measurement, noise_std, **settings))


def _own_run(solver: Solver) -> Method:
    def wrap(denoiser: DenoiserLike, measurement: Measurement, noise_std: float, _: Facts) -> InverseProblem:
        return InverseProblem(denoiser, measurement, noise_std)

    return Method(wrap, solver, own_run=True)
