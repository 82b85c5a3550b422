"""Score a data set by several estimators, some samples at a time; the draws of a sample do not depend on its batch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scorefield.likelihood.bounds import dsm_bound, elbo, vlb, with_code
from scorefield.likelihood.choose_solver import TRIAL_SAMPLES, choose_solver, first_steps, solvers_for
from scorefield.likelihood.columns import Columns, of_bound, of_flow
from scorefield.likelihood.decoders import DiscretisedDecoder, GaussianDecoder, LevelDecoder
from scorefield.likelihood.density import Density, log_likelihood
from scorefield.likelihood.dequantisation import Dequantisation, Uniform
from scorefield.likelihood.divergence import Divergence, Exact, Hutchinson
from scorefield.likelihood.flow import draws_fresh, with_kept_probes
from scorefield.likelihood.plan import Plan, grid_of
from scorefield.likelihood.prior import GaussianPrior
from scorefield.likelihood.progress import ShareDone, part_of
from scorefield.sde_lib import SDE, MultivariateVP
from scorefield.sde_lib.denoiser import DenoiserLike, take_rows
from scorefield.sde_lib.level_density import LevelDensity
from scorefield.sde_lib.quantise import cell_centres
from scorefield.solvers import FlowSolver, PerSampleNoise, grids
from scorefield.solvers.ode.adaptive_rk import UnsolvedError

MAX_PROBES = 16
PROBE_SAMPLES = 8  # the first samples, on which the number of probes is chosen
EXACT_DIMS = 16  # dimensions up to which the exact divergence is the default


@dataclass
class DatasetScorer:
    """A data set, a model, and the settings of the estimators "ode", "dsm", "vlb" and "elbo".

    The method of an estimator's name scores a slice of the samples, and calls `progress` with the share that is done,
    0 to 1. It gives columns, (B,): the log-likelihood in nats
    under its name, its parts, its error, and the evaluations.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        stored: integers 0 .. levels - 1, or continuous values in the model's units, (N, *D).
        levels: of the integers; None for continuous values.
        prior: at t_max.
        dequantisation: for the density of integers; not used for continuous values.
        cond: conditioning of the denoiser, with a row for each of the N samples.
        low: lower end of the first level's cell, in the model's values.
        high: upper end of the last level's cell.
        seed: of all random numbers.
        draws: evaluations of a bound's diffusion term, for each sample.
        density: of these evaluations' times, for "dsm" and "elbo"; uniform in the log-SNR by default.
        chain: number of steps of the vlb.
        variance: of these steps, "small" or "large".
        solver: of the ode; by default `Adaptive()`.
        ts: its rising grid.
        plan: of the ode, in place of a solver and a grid; see `choose`.
        divergence: of the ode.
        device: of the denoiser.
        first: number of the first sample among all, for its random numbers.
        stream: numbers that begin the name of each stream of random numbers, where a seed serves several scorers.
        details: "dsm" and "elbo" have the columns "elbo_each", (B, *D), and "elbo_errors", (B, K), too: see `Density`.
    """

    denoiser: DenoiserLike
    sde: SDE
    stored: Tensor
    levels: int | None
    prior: GaussianPrior
    dequantisation: Dequantisation = field(default_factory=Uniform)
    cond: Mapping[str, Any] = field(default_factory=dict)
    low: float = -1.0
    high: float = 1.0
    seed: int = 0
    draws: int = 32
    density: LevelDensity | None = None
    chain: int = 1000
    variance: str = "small"
    solver: FlowSolver | None = None
    ts: Tensor | None = None
    plan: Plan | None = None
    divergence: Divergence = field(default_factory=Hutchinson)
    device: torch.device | str = "cpu"
    first: int = 0
    stream: tuple[int, ...] = ()
    details: bool = False

    @property
    def dims(self) -> int:
        """D, the dimensions of a sample."""
        return math.prod(self.stored.shape[1:])

    @property
    def unit(self) -> float:
        """Nats in one bit/dim, or for continuous values in one nat/dim."""
        return self.dims * (math.log(2) if self.levels is not None else 1.0)

    def values(self, rows: slice) -> Tensor:
        """Samples in the model's units, (B, *D); integers at the centres of their cells."""
        stored = self.stored[rows]
        if self.levels is None:
            return stored.float().to(self.device)
        return cell_centres(stored, self.levels, low=self.low, high=self.high).to(self.device)

    def dequantised(self, rows: slice, how: Dequantisation, draw: int = 0) -> tuple[Tensor, Tensor]:
        """Points x (B, *D) in the cells of integers, and log q(x | k) in nats (B,). Continuous values are unchanged."""
        stored = self.stored[rows]
        if self.levels is None:
            return stored.float().to(self.device), torch.zeros(len(stored), dtype=torch.float64)
        uniform = self.noise_of(rows, 0, draw).uniform
        x, log_q = how(stored.to(self.device), self.levels, self.sde, uniform, low=self.low, high=self.high)
        return x, log_q.cpu()

    def ode(self, rows: slice, progress: ShareDone = None) -> Columns:
        """The probability flow. All draws of a sample use the same probes, so the weights share the probes' error.

        On a path with a latent code, the code of a sample is drawn from q(c | x0), which costs the column ode_code.

        Raises:
            ValueError: if an adaptive solver fails; it names the sample.
        """
        weights, densities, latent = [], list[Density](), torch.zeros(0)
        count = 1 if self.levels is None else self.dequantisation.samples
        path, cond, of_code = self.sde, self.cond_of(rows), None
        if isinstance(self.sde, MultivariateVP):
            path, cond, of_code = with_code(self.sde, self.values(rows), cond, self.noise_of(rows, 7).uniform)
        for draw in range(count):
            x, log_q = self.dequantised(rows, self.dequantisation, draw)
            try:
                density = log_likelihood(
                    self.denoiser, path, x, cond=cond, divergence=self.divergence, solver=self.solver,
                    ts=self.ts, plan=self.plan, noise=self.noise_of(rows, 1), prior_log_prob=self.prior,
                    progress=part_of(progress, draw / count, (draw + 1) / count),
                )  # fmt: skip
            except UnsolvedError as error:
                first = self.first + rows.start
                several = f"images {first} to {first + len(x) - 1}"
                which = several if error.sample < 0 else f"image {first + error.sample}"
                raise ValueError(f"{which}: {error}") from error
            weights.append(density.log_prob.double().cpu() - log_q)
            if draw == 0 and density.latent is not None:
                latent = density.latent.cpu()
            densities.append(replace(density, latent=None))  # of several draws, one latent is enough to keep
        return of_flow(weights, densities, latent, of_code)

    def dsm(self, rows: slice, progress: ShareDone = None) -> Columns:
        """The bound of uniformly dequantised, or continuous, values."""
        x, log_q = self.dequantised(rows, Uniform())
        settings = self._bound_settings(rows, 2, progress)
        bound = dsm_bound(self.denoiser, self.sde, x, draws=self.draws, density=self.density, **settings)
        return of_bound("dsm", bound, log_q, details=self.details)

    def elbo(self, rows: slice, progress: ShareDone = None) -> Columns:
        """VDM's bound, on the centres of the integers' cells or on continuous values."""
        decoder = GaussianDecoder() if self.levels is None else LevelDecoder(self.levels, self.low, self.high)
        settings = self._bound_settings(rows, 3, progress)
        bound = elbo(
            self.denoiser, self.sde, self.values(rows), decoder=decoder, draws=self.draws, density=self.density,
            **settings,
        )  # fmt: skip
        return of_bound("elbo", bound, details=self.details)

    def vlb(self, rows: slice, progress: ShareDone = None) -> Columns:
        """DDPM's bound, for a chain of equal steps in log-SNR.

        On equal steps in time, the first step of a path that begins near the data costs tens of bits. The posterior of
        such a short step is too narrow for a decoder: the decoder's std is sigma / alpha.
        """
        alpha, sigma = (float(scale) for scale in self.sde.scales(self.sde.t_min))
        decoder = (
            GaussianDecoder()
            if self.levels is None
            else DiscretisedDecoder(self.levels, self.low, self.high, std=sigma / alpha)
        )
        return of_bound("vlb", vlb(
            self.denoiser, self.sde, self.values(rows), decoder=decoder, ts=grids.log_snr(self.sde, self.chain),
            variance=self.variance, draws=min(self.draws, self.chain), **self._bound_settings(rows, 4, progress),
        ))  # fmt: skip

    @property
    def unit_of_points(self) -> float:
        """The unit of a value in bits/dim of the flow's points: 1 for bits/dim, 1 / log 2 for nats/dim."""
        return self.unit / (self.dims * math.log(2))

    def choose(
        self, tolerance: float, choose_divergence: bool, progress: ShareDone = None, *, batch: int = 128
    ) -> dict[str, Any]:
        """Choose a plan for a tolerance by the first samples; gives facts for a report.

        The tolerance is in bits/dim, or for continuous values in nats/dim. With `choose_divergence` the divergence is
        chosen too: exact in up to 16 dimensions, else with few probes. `batch` is the most samples at once.
        """
        facts: dict[str, Any] = {"tolerance": tolerance}
        if choose_divergence:
            self.divergence = Exact() if self.dims <= EXACT_DIMS else Hutchinson()
        rows = slice(0, min(TRIAL_SAMPLES, len(self.stored)))
        x, _ = self.dequantised(rows, self.dequantisation)
        points = tolerance * self.unit_of_points
        self.plan = choose_solver(
            self.denoiser, self.sde, x, points, cond=self.cond_of(rows), divergence=self.divergence,
            noise=self.noise_of(rows, 1), prior_log_prob=self.prior, batch=batch, progress=part_of(progress, 0.0, 0.8),
        )  # fmt: skip
        facts |= {"trial_images": len(x), "trial_evaluations": self.plan.trial_nfe}
        if isinstance(self.divergence, Hutchinson):
            last = part_of(progress, 0.8, 1.0)
            facts |= self._choose_probes(first_steps(points), choose_divergence, batch, last)
        return facts

    def _choose_probes(self, steps: int, choose: bool, batch: int, progress: ShareDone) -> dict[str, Any]:
        """The smallest number of probes, up to 16, whose variance is below a hundredth of that between samples."""
        assert isinstance(self.divergence, Hutchinson)
        several, densities = replace(self.divergence, probes=max(3, self.divergence.probes)), list[Density]()
        solver = solvers_for(self.sde, self.dequantised(slice(0, TRIAL_SAMPLES), self.dequantisation)[0])[-1]
        count = min(PROBE_SAMPLES, len(self.stored))
        for start in range(0, count, batch):
            rows = slice(start, min(start + batch, count))
            x, _ = self.dequantised(rows, self.dequantisation)
            densities.append(log_likelihood(
                self.denoiser, self.sde, x, cond=self.cond_of(rows), divergence=several, solver=solver,
                ts=grid_of(solver, self.sde, steps), noise=self.noise_of(rows, 5), prior_log_prob=self.prior,
                progress=part_of(progress, start / count, rows.stop / count),
            ))  # fmt: skip
        errors = torch.cat([density.std_error for density in densities if density.std_error is not None]).double()
        values = torch.cat([density.log_prob for density in densities]).double()
        one_probe = float(errors.square().mean()) * several.probes  # its variance, in nats^2
        if self.plan is not None and draws_fresh(self.divergence, solver):
            one_probe *= solver.evaluations(steps) / solver.evaluations(self.plan.steps)  # one a step, independent
        between = float(values.var()) if count > 1 else math.inf
        if choose:
            probes = math.ceil(100 * one_probe / between) if between > 0 else 1
            self.divergence = replace(self.divergence, probes=max(1, min(MAX_PROBES, probes)))
        return {
            "probe_error_of_one": one_probe**0.5 / self.unit,
            "probes": self.divergence.probes,
            "probe_share_of_variance": one_probe / self.divergence.probes / between if between > 0 else None,
            "probe_evaluations": solver.evaluations(steps) * count,
        }

    def change_from_half_the_steps(self, progress: ShareDone = None, *, batch: int = 128) -> float | None:
        """The mean effect of half the steps on the first samples, in the unit of the data; None without a fixed grid.

        Probes stay the same for both, where the divergence has them. `batch` is the most samples at once.
        """
        if self.solver is None or not self.solver.fixed_grid or self.ts is None or len(self.ts) < 3:
            return None
        fine = replace(self, divergence=with_kept_probes(self.divergence))
        coarse = replace(fine, ts=torch.cat([self.ts[:-1:2], self.ts[-1:]]))
        count, changes = min(TRIAL_SAMPLES, len(self.stored)), list[Tensor]()
        for start in range(0, count, batch):
            rows, stop = slice(start, min(start + batch, count)), min(start + batch, count)
            parts = [
                part_of(progress, (start + share * (stop - start)) / count, stop / count) for share in (0.0, 2 / 3)
            ]
            changes.append(fine.ode(rows, parts[0])["ode"] - coarse.ode(rows, parts[1])["ode"])
        return float(torch.cat(changes).mean()) / self.unit

    def cond_of(self, rows: slice) -> dict[str, Any]:
        """The conditioning of some samples, on the device."""
        cond = take_rows(self.cond, rows, len(self.stored))
        return {name: each.to(self.device) if isinstance(each, Tensor) else each for name, each in cond.items()}

    def noise_of(self, rows: slice, *stream: int) -> PerSampleNoise:
        """The random numbers of some samples; a stream has numbers of its own.

        Dequantisation has the stream 0, with the number of the draw; dsm, elbo and vlb have 2, 3 and 4. Probes have 1,
        or 5 where their number is chosen. Latent codes have 7, and codes of images 8.
        """
        start, stop, _ = rows.indices(len(self.stored))
        return PerSampleNoise(self.seed, range(self.first + start, self.first + stop), (*self.stream, *stream))

    def _bound_settings(self, rows: slice, stream: int, progress: ShareDone) -> dict[str, Any]:
        noise = self.noise_of(rows, stream)
        cond = self.cond_of(rows)
        return {"cond": cond, "prior": self.prior, "noise": noise, "uniform": noise.uniform, "progress": progress}
