"""The reverse-time SDE with adaptive steps for each sample."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.sde_lib import expand, predict_noise
from scorefield.sde_lib.denoiser import BoundDenoiser, DenoiserLike
from scorefield.sde_lib.sde import Noise
from scorefield.solvers import variables
from scorefield.solvers.ode.adaptive_rk import MAX_EVALUATIONS, spent, step_factor, with_rows
from scorefield.solvers.scales import Scales
from scorefield.solvers.schedule import Schedule
from scorefield.solvers.solver import History, OnStep, Progress, Solver
from scorefield.solvers.variables import IntegrationVariable

Segment = tuple[float, Tensor]  # how long, and the Brownian motion over it


@dataclass(frozen=True)
class AdaptiveSDE(Solver):
    """Euler-Maruyama, checked by and extrapolated to stochastic Heun, from the grid's first time to its last.

    Jolicoeur-Martineau et al. 2021, "Gotta go fast when generating data with score-based models", Alg. 1:

        x'  = x + h F(c, x) + G(c) W,    x'' = (x' + x + h F(c + h, x') + G(c + h) W) / 2,    W ~ N(0, h)
        E   = rms((x' - x'') / max(atol, rtol max(|x'|, |x'_before|)))

    A step with E <= 1 is accepted, with x'', and the next is  h safety E^-exponent.  Two evaluations a step. To discard
    the noise of a rejected step would prefer small noise. So the shorter steps in its place share it, by Brownian
    bridges. Each sample has its own time, steps and noise, and none depends on its batch.

    Args:
        rtol, atol: relative and absolute tolerance. The defaults are the paper's for images in [-1, 1] of 256 levels.
        safety, exponent: of the next step's size.
        first: the first step, as a share of the interval.
        per_sample: with False the batch shares its steps, by its mean error.
        variable: integration variable: "time" as in the paper, "sigma", "log_snr", "soft_clipped", or an
            `IntegrationVariable`.
        max_evaluations: of the denoiser, for a sample.

    Raises:
        ValueError: for settings that are not positive, when no step is small enough, or for more evaluations.
    """

    rtol: float = 0.05
    atol: float = 0.0078
    safety: float = 0.9
    exponent: float = 0.9
    first: float = 0.01
    per_sample: bool = True
    variable: str | IntegrationVariable = "log_snr"
    max_evaluations: int = field(default=MAX_EVALUATIONS, repr=False)

    def __post_init__(self) -> None:
        if not (min(self.rtol, self.atol, self.exponent, self.first) > 0 and 0 < self.safety <= 1):
            raise ValueError(f"expected positive settings and safety of at most 1, got {self}")
        variables.find(self.variable)

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def restartable(self) -> bool:
        return False

    @property
    def fixed_grid(self) -> bool:
        return False

    @property
    def splits_batch(self) -> bool:
        return self.per_sample

    def run(self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, noise: Noise, on_step: OnStep) -> Tensor:
        variable, ends = variables.find(self.variable), schedule.ts[[0, -1]]
        origin, end = variable.value(schedule.sde, ends)
        length, direction = float((end - origin).abs()), float((end - origin).sign())
        done = torch.zeros(len(x), dtype=torch.float64)
        size = torch.full_like(done, self.first * length)
        kept: list[list[Segment]] = [[] for _ in range(len(x))]
        before, evaluations = x, 0
        while bool((done < length).any()):
            evaluations += 2
            if evaluations > self.max_evaluations:
                raise ValueError(spent(type(self).__name__, self.max_evaluations, float(done.min()) / length))
            z = noise(x)  # of all rows: the stream of a sample must not depend on when others arrive
            rows = torch.nonzero(done < length).flatten()
            h, w = self._increments(rows, size.minimum(length - done), kept, z)
            after = torch.where(done[rows] + h < length * (1 - 1e-12), done[rows] + h, length)
            at, to = (
                variables.scales_at(schedule.sde, variable, origin + direction * s, ends) for s in (done[rows], after)
            )
            model, y = denoiser.take(rows), x[rows]
            plain = _step(model, y, y, at, h, w, variable)
            better = (plain + _step(model, y, plain, to, h, w, variable)) / 2
            error = self._error(plain, better, before[rows])
            self._guard(error, h / length)
            accepted = error <= 1
            size[rows] = (h * step_factor(error, self.safety, self.exponent)).clamp(max=length)
            for i, row in enumerate(rows.tolist()):
                if not accepted[i]:
                    kept[row].append((float(h[i]), w[i]))
            there = rows[accepted]
            done[there] = after[accepted]
            x, before = with_rows((x, before), there, (better, plain), accepted)
            if on_step is not None and len(there):
                arrived = int((done >= length).sum())
                on_step(Progress(arrived, len(x), math.nan, x))
        return x

    def step(
        self, denoiser: BoundDenoiser, x: Tensor, schedule: Schedule, i: int, noise: Noise, memory: History | None
    ) -> tuple[Tensor, History | None]:
        """One interval of the grid, for composition with a corrector."""
        return self.run(denoiser, x, schedule.interval(i), noise, None), None

    def _increments(self, rows: Tensor, longest: Tensor, kept: list[list[Segment]], z: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes of these rows, at most `longest`, and the Brownian motion over them."""
        sizes, increments = [], []
        for row in rows.tolist():
            h = float(longest[row])
            if not kept[row]:
                w = math.sqrt(h) * z[row]
            elif kept[row][-1][0] <= h * (1 + 1e-9):
                h, w = kept[row].pop()
            else:
                length, over = kept[row].pop()
                w = h / length * over + math.sqrt(h * (length - h) / length) * z[row]
                kept[row].append((length - h, over - w))
            sizes.append(h)
            increments.append(w)
        return torch.tensor(sizes, dtype=torch.float64), torch.stack(increments)

    def _error(self, plain: Tensor, better: Tensor, before: Tensor) -> Tensor:
        scale = (self.rtol * torch.maximum(plain.abs(), before.abs())).clamp(min=self.atol)
        error = ((plain - better) / scale).flatten(1).square().mean(1).sqrt().detach().cpu().double()
        return error if self.per_sample else error.square().mean().sqrt().expand_as(error)

    def _guard(self, error: Tensor, share: Tensor) -> None:
        if not bool(error.isfinite().all()) or bool(((share < 1e-9) & (error > 1)).any()):
            raise ValueError(
                f"expected a step that meets the tolerance, got an error of {float(error.max()):g} at the smallest "
                f"step of {self}: look for NaN in the input or the weights, or take larger tolerances"
            )


def _step(
    denoiser: DenoiserLike, x: Tensor, y: Tensor, at: Scales, h: Tensor, w: Tensor, variable: IntegrationVariable
) -> Tensor:
    """The reverse-time SDE's step  x + h F(y) + G w  in the variable, with the coefficients at y."""
    speed = 1 / variable.derivative(at).abs()
    # dt = -speed |dc|:  F = -speed (f y + g^2 eps / sigma)
    eps = predict_noise(denoiser, y, at.alpha, at.sigma)
    drift = expand(-speed * at.drift * h, x) * y - expand(speed * at.diffusion**2 / at.sigma * h, x) * eps
    return x + drift + expand(speed.sqrt() * at.diffusion, x) * w
