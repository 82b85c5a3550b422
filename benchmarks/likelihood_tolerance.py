"""Is the tolerance of a likelihood kept, for every sample? On mixtures with random numbers of their own.

    python -m scorefield.benchmarks.likelihood_tolerance [--count=2000] [--paths vp ve ...] [--problems 2 9 64 3072]

Each problem and path has a mixture that nothing was chosen on: 3 to 30 components, deviations of 0.03 to 0.3; 3,072
dimensions have the spectrum of images. Log-density and divergence are known in closed form, so errors are the solver's
only. "above" are samples whose error exceeds the tolerance, "above twice" those that exceed it by a factor of two and
are not named by their estimate. Errors are in bits/dim.
"""

import argparse
import itertools
import math
from dataclasses import dataclass, replace
from datetime import date

import torch
from torch import Tensor

from scorefield.benchmarks.held_out import random_mixture
from scorefield.benchmarks.likelihood_mixtures import PATHS, MixtureFlow, drawn
from scorefield.likelihood.choose_solver import TRIAL_SAMPLES, plan_by_trials, solvers_for
from scorefield.likelihood.divergence import Exact
from scorefield.likelihood.flow import FlowWithDivergence
from scorefield.likelihood.flow_integral import FlowIntegral
from scorefield.sde_lib import SDE
from scorefield.sde_lib.denoiser import BoundDenoiser
from scorefield.solvers.ode.flow import Rows, State
from scorefield.solvers.scales import Scales

TOLERANCES = (1e-2, 1e-3, 1e-4)
FIRST_SEED = 2001


class KnownFlow(FlowWithDivergence):
    """The flow of a mixture with its divergence in closed form."""

    def __init__(self, mixture: MixtureFlow, denoiser: BoundDenoiser) -> None:
        super().__init__(denoiser, Exact(), False, torch.randn_like)
        self.mixture = mixture

    def __call__(self, at: Scales, state: State, rows: Rows) -> State:
        self.counts[rows] += 1
        return self.mixture(at, state, rows)


@dataclass(frozen=True)
class MixtureIntegral(FlowIntegral):
    """The integral of a flow whose divergence is known."""

    mixture: MixtureFlow | None = None

    def flow(self) -> FlowWithDivergence:
        assert self.mixture is not None
        return KnownFlow(self.mixture, self.denoiser)


def integral_of(mixture: MixtureFlow, sde: SDE, x: Tensor) -> MixtureIntegral:
    bound = BoundDenoiser(mixture.denoiser, None, len(x))
    return MixtureIntegral(
        bound, sde, x, Exact(), solvers_for(sde, x[:TRIAL_SAMPLES])[0], torch.randn_like,
        lambda y: mixture.log_prob(y, sde.scales(sde.t_max)), mixture=mixture,
    )  # fmt: skip


def measure(mixture: MixtureFlow, sde: SDE, count: int, tolerance: float) -> dict[str, float]:
    """Numbers of a row."""
    x = drawn(mixture, sde, count, 1)
    unit = x.shape[1] * math.log(2)
    plan = plan_by_trials(integral_of(mixture, sde, x[:TRIAL_SAMPLES]), tolerance)
    integral = replace(integral_of(mixture, sde, x), solver=plan.solver)
    solution = integral.solve_within(plan)
    assert solution.estimate is not None
    error = (solution.log_prob - mixture.log_prob(x, sde.scales(sde.t_min))).abs() / unit
    named = plan.ratio * solution.estimate / unit > tolerance
    return {
        "steps": plan.steps,
        "evaluations": float(solution.counts.double().mean()),
        "to choose": plan.trial_nfe,
        "refined": float((solution.counts > solution.counts.min()).double().mean()),
        "above": float((error > tolerance).double().mean()),
        "above twice": int(((error > 2 * tolerance) & ~named).sum()),
        "named": int(named.sum()),
        "largest": float(error[~named].max()) / tolerance,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=list(PATHS))
    parser.add_argument("--problems", nargs="+", type=int, default=[2, 9, 64, 3072])
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    print(f"{date.today()}, {args.count} samples, torch {torch.__version__}\n")
    print("| dimensions | path | tolerance | steps | evaluations | to choose | refined | above | above twice, not "
          "not named | named | largest error not named, tolerances |\n|" + "---|" * 11)  # fmt: skip
    for dims, path in itertools.product(args.problems, args.paths):
        seed = FIRST_SEED + 10 * dims + list(PATHS).index(path)
        mixture = MixtureFlow(*random_mixture(dims, dims > 1000, torch.Generator().manual_seed(seed)))
        for tolerance in TOLERANCES:
            row = measure(mixture, PATHS[path], args.count, tolerance)
            print(
                f"| {dims} | {path} | {tolerance:.0e} | {row['steps']} | {row['evaluations']:.1f} | {row['to choose']} "
                f"| {row['refined']:.1%} | {row['above']:.2%} | {row['above twice']} | {row['named']} "
                f"| {row['largest']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
