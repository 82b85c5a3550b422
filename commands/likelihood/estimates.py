"""The estimators of a data set's likelihood, each scoring some images of a trained run at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scorefield.commands.generate import label_cond
from scorefield.commands.run import Run, Trained
from scorefield.likelihood import (
    Density,
    Dequantisation,
    DiscretisedDecoder,
    Divergence,
    Exact,
    GaussianDecoder,
    GaussianPrior,
    Hutchinson,
    LevelDecoder,
    Uniform,
    choose_solver,
    dsm_bound,
    elbo,
    log_likelihood,
    vlb,
)
from scorefield.likelihood.choose_solver import PILOTS, Pilots
from scorefield.likelihood.dequantisation import combined
from scorefield.solvers import AdamsMoulton, FlowSolver, PerSampleNoise, grids
from scorefield.solvers.ode.adaptive_rk import UnsolvedError
from scorefield.solvers.solver import OnStep

MANY = 16  # probes at most
FEW = 16  # dimensions up to which an exact divergence costs less than the thought
MEANINGS = {
    "ode": "the probability flow's own log-likelihood",
    "dsm": "the denoising-score-matching bound, of uniformly dequantised data: no more than the log-likelihood of the "
    "SDE model that ends at t_min with a Gaussian",
    "vlb": "DDPM's variational bound: no more than the log-likelihood of its chain of Gaussian steps",
    "elbo": "VDM's continuous-time ELBO: no more than the log-likelihood of the SDE model that ends at t_min with a "
    "decoder",
}
Columns = dict[str, Tensor]


@dataclass
class Task:
    """What is scored, and how.

    Args:
        trained: the run and its denoiser.
        stored: values (N, *D).
        labels: the classes of a conditional run, (N,).
        dequantisation: for the estimators of densities; None where the data is continuous.
        prior: at t_max.
        seed: of everything random; an image's draws are its own, whatever the batch.
        draws: evaluations that a bound spends on its diffusion term, of an image.
        chain: steps of the variational bound.
        variance: of those steps, "small" or "large".
    """

    trained: Trained
    stored: Tensor
    labels: Tensor | None
    dequantisation: Dequantisation | None
    prior: GaussianPrior
    seed: int
    draws: int
    chain: int
    variance: str = "small"
    solver: FlowSolver | None = None
    ts: Tensor | None = None
    divergence: Divergence = field(default_factory=Hutchinson)

    @property
    def run(self) -> Run:
        return self.trained.run

    @property
    def dims(self) -> int:
        return math.prod(self.run.data.shape)

    @property
    def unit(self) -> float:
        """Nats in a bit/dim, or where the data is continuous in a nat/dim."""
        return self.dims * (math.log(2) if self.run.data.levels is not None else 1.0)

    def cond(self, rows: slice) -> dict[str, Any]:
        """The conditioning of these images: their classes."""
        return label_cond(self.labels, self.run.device, rows)

    def drawn(self, rows: slice, draw: int = 0, uniformly: bool = False) -> tuple[Tensor, Tensor]:
        """Points x (B, *D) of these images and log q(x | k) in nats (B,), zero where the data is continuous."""
        stored = self.stored[rows]
        if self.run.data.levels is None or self.dequantisation is None:
            return stored.float().to(self.run.device), torch.zeros(len(stored), dtype=torch.float64)
        noise = PerSampleNoise(self.seed + 1000 * draw, _indices(rows, stored))
        how = Uniform() if uniformly else self.dequantisation
        x, log_q = how(
            stored.to(self.run.device), self.run.data.levels, self.run.sde, noise.uniform,
            low=self.run.low, high=self.run.high,
        )  # fmt: skip
        return x, log_q.cpu()

    def ode(self, rows: slice, on_step: Callable[[int], OnStep] = lambda count: None) -> Columns:
        """The probability flow. The draws of an image share its probes, whose errors are then one for all."""
        count = 1 if self.dequantisation is None else self.dequantisation.samples
        weights, errors, found = [], [], list[Density]()
        for draw in range(count):
            x, log_q = self.drawn(rows, draw)
            try:
                density = log_likelihood(
                    self.trained.denoiser, self.run.sde, x, cond=self.cond(rows),
                    divergence=self.divergence, solver=self.solver, ts=self.ts,
                    noise=PerSampleNoise(self.seed + 1, _indices(rows, x)), on_step=on_step(len(x)),
                    prior_log_prob=self.prior,
                )  # fmt: skip
            except UnsolvedError as error:
                last = rows.start + len(x) - 1
                which = f"images {rows.start} to {last}" if error.sample < 0 else f"image {rows.start + error.sample}"
                raise ValueError(f"{which}: {error}") from error
            weights.append(density.log_prob.double().cpu() - log_q)
            errors.append(density.std_error)
            found.append(density)
        columns = {"ode": combined(torch.stack(weights)), "latent": _latent(found[0]).cpu()}
        known = [error.double().cpu() for error in errors if error is not None]
        if len(known) == count:
            columns["ode_error"] = torch.stack(known).square().mean(0).sqrt()
        most = max(density.nfe_max or 0 for density in found)
        return {**columns, **_spent("ode", sum(d.nfe for d in found), most, len(found[0].log_prob))}

    def dsm(self, rows: slice) -> Columns:
        """The bound of dequantised, or continuous, data."""
        x, log_q = self.drawn(rows, uniformly=True)
        noise = PerSampleNoise(self.seed + 2, _indices(rows, x))
        found = dsm_bound(
            self.trained.denoiser,
            self.run.sde,
            x,
            cond=self.cond(rows),
            draws=self.draws,
            prior=self._prior(),
            noise=noise,
            uniform=noise.uniform,
        )
        return _columns("dsm", replace(found, log_prob=found.log_prob.cpu() - log_q))

    def elbo(self, rows: slice) -> Columns:
        """VDM's bound, on the centres of the integers' cells, or on continuous data."""
        x = self.clean(rows)
        noise = PerSampleNoise(self.seed + 3, _indices(rows, x))
        decoder = LevelDecoder(**self._levels()) if self.run.data.levels else GaussianDecoder()
        return _columns("elbo", elbo(
            self.trained.denoiser, self.run.sde, x, cond=self.cond(rows),
            decoder=decoder, draws=self.draws, prior=self._prior(), noise=noise,
            uniform=noise.uniform,
        ))  # fmt: skip

    def vlb(self, rows: slice) -> Columns:
        """DDPM's bound, for a chain of equal steps in log-SNR.

        In time, the first step of a path that begins near the data costs tens of bits; and the posterior of so short a
        step is no decoder: its deviation is sigma / alpha.
        """
        x = self.clean(rows)
        noise = PerSampleNoise(self.seed + 4, _indices(rows, x))
        alpha, sigma = (float(scale) for scale in self.run.sde.scales(self.run.sde.t_min))
        levels = self.run.data.levels
        decoder = DiscretisedDecoder(**self._levels(), std=sigma / alpha) if levels else GaussianDecoder()
        return _columns("vlb", vlb(
            self.trained.denoiser, self.run.sde, x, cond=self.cond(rows),
            decoder=decoder, ts=grids.log_snr(self.run.sde, self.chain),
            variance=self.variance,
            draws=min(self.draws, self.chain), prior=self._prior(), noise=noise, uniform=noise.uniform,
        ))  # fmt: skip

    def clean(self, rows: slice) -> Tensor:
        """The images as the bounds of integers take them: the centres of their cells."""
        return self.run.centred(self.stored[rows]).to(self.run.device)

    def _levels(self) -> dict[str, Any]:
        return {"levels": self.run.data.levels, "low": self.run.low, "high": self.run.high}

    def _prior(self) -> tuple[Tensor, Tensor]:
        return self.prior.mean, self.prior.std

    def planned(self, tolerance: float, choose: bool) -> dict[str, Any]:
        """Solver, grid and probes for a tolerance in bits/dim, by the first images; what was found, for the report.

        The probes are as few as leave their variance below a hundredth of that between images, and no more than 16; the
        report has the share. `choose` says whether they are ours to choose.
        """
        rows = slice(0, min(PILOTS, len(self.stored)))
        x, _ = self.drawn(rows)
        indices = _indices(rows, x)
        if choose:
            self.divergence = Exact() if self.dims <= FEW else Hutchinson()
        plan = choose_solver(
            self.trained.denoiser, self.run.sde, x, tolerance, cond=self.cond(rows),
            divergence=self.divergence,
            noise=PerSampleNoise(self.seed + 1, indices), prior_log_prob=self.prior,
        )  # fmt: skip
        self.solver, self.ts = plan.solver, plan.ts
        found = {
            "tolerance": tolerance,
            "tolerance_met": plan.met,
            "solver_error": plan.error,
            "solver_bias": plan.bias,
            "pilots": len(x),
            "pilot_evaluations": plan.spent,
        }
        if not isinstance(self.divergence, Hutchinson):
            return found
        several = replace(self.divergence, probes=max(4, self.divergence.probes))
        density = log_likelihood(
            self.trained.denoiser, self.run.sde, x, cond=self.cond(rows),
            divergence=several, solver=plan.solver, ts=plan.ts,
            noise=PerSampleNoise(self.seed + 5, indices),
        )  # fmt: skip
        assert density.std_error is not None
        one = float(density.std_error.double().square().mean()) * several.probes
        spread = float(density.log_prob.double().var()) if len(x) > 1 else math.inf
        if choose:
            wanted = math.ceil(100 * one / spread) if spread > 0 else 1
            self.divergence = replace(self.divergence, probes=max(1, min(MANY, wanted)))
        shares = {"probe_error_of_one": one**0.5 / (self.dims * math.log(2)), "probes": self.divergence.probes}
        return {**found, **shares, "probe_share_of_variance": one / self.divergence.probes / spread}

    def checked(self) -> dict[str, Any]:
        """What twice the steps would change in images that were no pilots, evenly from the whole set."""
        assert isinstance(self.solver, AdamsMoulton)
        assert self.ts is not None
        others = len(self.stored) - PILOTS
        if others < 1:
            return {}
        stride = max(1, others // PILOTS)
        chosen = range(PILOTS, len(self.stored), stride)[:PILOTS]
        part = replace(self, stored=self.stored[chosen], labels=None if self.labels is None else self.labels[chosen])
        rows = slice(0, len(chosen))
        pilots = Pilots(
            self.trained.denoiser, self.run.sde, part.drawn(rows)[0], cond=part.cond(rows),
            divergence=self.divergence, prior_log_prob=self.prior,
            noise=PerSampleNoise(self.seed + 6, chosen),
        )  # fmt: skip
        error, bias = pilots.error(self.solver, len(self.ts) - 1)
        return {"solver_error_of_others": error, "solver_bias_of_others": bias, "others": len(chosen)}


def _latent(density: Density) -> Tensor:
    assert density.latent is not None
    return density.latent


def _indices(rows: slice, x: Tensor) -> range:
    return range(rows.start, rows.start + len(x))


def _columns(name: str, density: Density) -> Columns:
    columns = {name: density.log_prob.double().cpu()}
    columns |= {f"{name}_{part}": value.double().cpu() for part, value in density.parts.items()}
    if density.std_error is not None:
        columns[f"{name}_error"] = density.std_error.double().cpu()
    return columns | _spent(name, density.nfe, math.ceil(density.nfe), len(density.log_prob))


def _spent(name: str, nfe: float, most: int, count: int) -> Columns:
    return {
        f"{name}_nfe": torch.full((count,), nfe, dtype=torch.float64),
        f"{name}_nfe_max": torch.full((count,), float(most), dtype=torch.float64),
    }
