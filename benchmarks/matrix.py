"""docs/solvers.md, from the code: what each solver is, and its order as measured.

python -m scorefield.benchmarks.matrix > docs/solvers.md
"""

import inspect
import math

import numpy as np
import torch
from torch import Tensor

from scorefield.configs import build
from scorefield.models import CountCalls, Gaussian
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, RectifiedSDE, SubVPSDE
from scorefield.solvers import (
    Adams,
    AdamsMoulton,
    Adaptive,
    AdaptiveSDE,
    AnnealedLangevin,
    DPMSolver,
    LinearMultistep,
    PredictorCorrector,
    RungeKutta,
    Solver,
    UniPC,
    grids,
)  # fmt: skip

PATHS: dict[str, SDE] = {
    "VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE(), "EDM": EDMSDE(), "cosine": CosineSDE(), "line": RectifiedSDE(),
}  # fmt: skip
# As on the command line; where a setting changes the row, a row of its own.
ROWS = (
    "ddim", "euler", "euler:variable=log_snr", "midpoint:variable=log_snr", "heun", "heun:variable=sigma",
    "heun:variable=log_snr",
    "heun:variable=soft_clipped", "rk4:variable=log_snr", "dpm:order=1", "dpm:order=2", "dpm:order=3",
    "dpm:order=3,released=True",
    "dpm:order=2,multistep=False", "dpm:order=3,multistep=False", "dpm:order=2,predict=eps", "dpm:order=3,predict=eps",
    "unipc:order=1", "unipc:order=2", "unipc:order=3", "deis:order=1", "deis:order=2", "deis:order=3",
    "deis:order=3,variable=time", "adams:order=2,corrector=False", "adams:order=3,corrector=False",
    "adams:order=4,corrector=False", "adams:order=2", "adams:order=3", "adams:order=4",
    "adams_moulton:order=2", "adams_moulton:order=3", "adams_moulton:order=4", "belm", "adaptive",
    "adaptive:method=dopri8", 'adaptive:method="scipy:RK45"', 'adaptive:method="scipy:DOP853"',
    'adaptive:method="scipy:LSODA"', "ddim:eta=1.0", "ancestral", "ancestral:variance=large", "euler_maruyama",
    "reverse_diffusion", "stochastic_dpm:order=1", "stochastic_dpm:order=2", "stochastic_dpm:order=3",
    "sa_solver", "sa_solver:tau=0.5", "churn", "adaptive_sde", "langevin", "langevin:step_size=None",
    "langevin:snr=0.16", "consistent", "pc", "pc:order=correct_first",
)  # fmt: skip

HEAD = """# Solvers

Written by `python -m scorefield.benchmarks.matrix > docs/solvers.md`; do not edit.

Every solver is `solver(denoiser, sde, x, ts, *, cond, noise, on_step) -> x`, for any path, parameterisation and grid.
On the command line it is `--solver=NAME:SETTING=VALUE,...`, as in the first column.

- **order**: the slope of log error against log steps, for the exact denoiser of a Gaussian in the plane. The first
  column is the least of six paths. Steps are equal in log-SNR, or in its own variable for `adams_moulton`: {steps}
  steps, and more for `adams:order=2` and `adams_moulton`. Some slopes are above the nominal order: the denoiser is
  constant at both ends of a path, so leading errors cancel. For a stochastic solver it is the exponent of the bias of
  the variance. `-`: steps adapt, or a corrector has a bias.
- **both ways**: a solver samples along a falling grid and encodes along a rising one. A stochastic solver only
  samples.
- **variable**: the integration variable. `grid` means that steps are exact in the grid's own.
- **NFE a step**: evaluations of the denoiser, counted by `CountCalls` over 100 steps. For adaptive solvers it is the
  total for a sample at the default tolerance, with three evaluations that check the batch.

| solver | order | {paths} | stochastic | both ways | variable | NFE a step |
|---|---|{columns}|---|---|---|---|"""

TAIL = """
A pair that cannot work is refused when it is made, with the reason and a replacement. Examples are a multistep solver
in `churn`, or a solver with a corrector as the predictor of `pc`. Some depend on the grid, and are refused before the
first step: a stochastic solver on a rising grid, or `consistent` with an eta that its steps exceed.

The released DPM-Solver++ (3M) halves its second difference and starts with lower orders only. `released=True` does
the same, and has order 2. Our methods of order 3 and 4 correct their first steps with evaluations that they make
anyway (order 4 makes one more).

Which one? The default, `adams:variable=soft_clipped` on the grid `soft_clipped`, was the best with 15 to 25 evaluations
on held-out problems. With 50 take `adams:order=4,variable=soft_clipped`. With 8 and fewer take
`deis:variable=soft_clipped`, on the same grid. The held-out problems are the eight random mixtures of
`benchmarks/held_out.py` and six trained networks: no setting was chosen on them. Those of `benchmarks/solvers.py` are
not held out, because settings were chosen on them. benchmarks/RESULTS.md has the figures. On a barely trained network
`--grid=log_snr` was better. `--grid=optimal` is measured for the run. In thousands of dimensions a corrector of the
noise (`predict=eps` in `adams` and `unipc`) is unstable below some 20 evaluations, in every implementation. `belm` has
an exact inverse, and at 10 steps is behind `ddim`. `--mode=compare` compares solvers on your model.
"""


GRIDS = """
## Grids

As `--grid=NAME:SETTING=VALUE,...`, or functions of `solvers.grids`. `--steps` counts steps, or times where the meaning
says so. Sampling ends with one more evaluation, the last denoising, unless `--nodenoise` is set. A measured grid
(`--mode=grid --order=2`) is best for solvers of its order with 15 steps or more.

| name | settings and their defaults | meaning |
|---|---|---|
"""


TUNED = """
## A setting for a run

`--mode=tune --budget=10` searches for the best setting at that many network evaluations of a sample, and writes it to
`tuned.json` in the run. `--solver=tuned` takes it in `sample`, `compare` and `evaluate`, with its grid, steps and last
denoising. So `--grid` and `--denoise` are refused beside it. Several budgets stand in one file: `tuned:budget=10` names
one. By default it is the largest, or with `--steps` the largest that is not above them. A line on stderr says if it was
tuned for other weights.

- **Measure.** `--metric=distance` is the root mean square distance, in the model's values, from the probability flow's
  solution from the same noise. The solution ends with the configuration's own denoising, whatever the setting ends
  with. `--metric=kid` is the kernel distance of features of samples from those of the training data, and `--features`
  names them. It takes solvers that add noise too.
- **Search.** Successive halving (Jamieson and Talwalkar 2016). There are 16 solvers, 8 grids or 9 with a measured one,
  and both ends, 256 settings. All are tried on 4 noises, the best third on 16, and the last ones on 128. The times of
  the three best grids are moved by least squares, and such a grid is written as `sigmas:levels=(...)`. With kid no grid
  is moved, and there are 64, 256 and 512 samples.
- **Budget.** Evaluations are counted, the last denoising and both halves of guidance among them.
- **Judgement.** The winner and the default are measured on 128 noises that the search did not see, with standard
  errors. A default that is not worse is kept. The default is the configuration's setting. Where that adds noise, it has
  no distance from the flow, and the default of this package stands in for it.

Distances on 128 unseen noises, 64 for edm, with standard errors. The search takes about a minute of one core at 10
evaluations. `digits:vp` is trained on 175,000 images, and `digits:edm` on 50,000. Nothing was chosen on the latter.

| run | seed | evaluations | default | tuned | ratio |
|---|---|---|---|---|---|
| digits:vp | 0 | 5 | 1.053 ± 0.011 | 0.0907 ± 0.0131 | 0.09 ± 0.01 |
| digits:vp | 1 | 5 | 1.060 ± 0.012 | 0.0645 ± 0.0059 | 0.06 ± 0.01 |
| digits:vp | 2 | 5 | 1.069 ± 0.012 | 0.0568 ± 0.0077 | 0.05 ± 0.01 |
| digits:vp | 0 | 10 | 0.142 ± 0.016 | 0.0283 ± 0.0085 | 0.20 ± 0.06 |
| digits:vp | 1 | 10 | 0.087 ± 0.011 | 0.0185 ± 0.0018 | 0.21 ± 0.03 |
| digits:vp | 2 | 10 | 0.112 ± 0.016 | 0.0286 ± 0.0093 | 0.26 ± 0.07 |
| digits:vp | 0 | 20 | 0.024 ± 0.009 | 0.0129 ± 0.0051 | 0.54 ± 0.05 |
| digits:edm | 0 | 10 | 0.032 ± 0.007 | 0.0137 ± 0.0014 | 0.43 ± 0.07 |

At 10 evaluations the best setting of the list is about 3 times nearer than the default, and its moved grid wins the
rest. A few noises whose samples end elsewhere decide a distance, hence the errors. `--num` takes more noises.
"""


def main() -> None:
    paths = " | ".join(PATHS)
    print(HEAD.format(steps="96, 192, 384", paths=paths, columns="---|" * (len(PATHS) - 1) + "---"))
    for name in ROWS:
        solver: Solver = build.build(build.SOLVERS, build.parse(name))
        orders = [order(solver, sde) for sde in PATHS.values()]
        least = min((o for o in orders if o is not None), default=None)
        noisy = ["yes", "no"] if solver.stochastic else ["no", "yes"]
        cells = [f"`{name}`", _shown(least), *map(_shown, orders), *noisy, _variable(solver), _nfe(solver)]
        print(f"| {' | '.join(cells)} |")
    print(TAIL, end="")
    print("\n## Settings\n\n| name | settings and their defaults |\n|---|---|")
    for name, constructor in build.SOLVERS.items():
        settings = [f"`{p.name}={_default(p.default)}`" for p in inspect.signature(constructor).parameters.values()]
        print(f"| `{name}` | {', '.join(settings) or 'none'} |")
    print(GRIDS, end="")
    for name, constructor in build.GRIDS.items():
        parameters = inspect.signature(constructor).parameters.values()
        own = [f"`{p.name}={_default(p.default)}`" for p in parameters if p.name not in ("sde", "steps", "workdir")]
        meaning = " ".join((constructor.__doc__ or "").split("\n\n")[0].split())
        print(f"| `{name}` | {', '.join(own) or 'none'} | {meaning} |")
    print(TUNED, end="")


def order(solver: Solver, sde: SDE) -> float | None:
    """The slope over three grids, of the error at the end or of the variance's bias."""
    if isinstance(solver, Adaptive | AdaptiveSDE | AnnealedLangevin | PredictorCorrector):
        return None
    slow = isinstance(solver, AdamsMoulton) or (isinstance(solver, Adams) and solver.corrector and solver.order == 2)
    steps = [768, 1536, 3072] if slow else [96, 192, 384]
    errors = [bias(solver, sde, n) if solver.stochastic else error(solver, sde, n) for n in steps]
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


MODEL = Gaussian(torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([0.9, 0.4], dtype=torch.float64))


def spread(sde: SDE, t: float) -> Tensor:
    alpha, sigma = sde.scales(t)
    return torch.sqrt((alpha * MODEL.stds[0]) ** 2 + sigma**2)


def error(solver: Solver, sde: SDE, steps: int) -> float:
    """The distance from the exact flow, which carries a Gaussian's quantiles."""
    offsets = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start, end = (sde.scales(t)[0] * MODEL.means[0] + offsets * spread(sde, t) for t in (sde.t_max, sde.t_min))
    own = isinstance(solver, AdamsMoulton)  # equal steps by its own variable
    ts = grids.soft_clipped(sde, steps, 0.02, 10.0) if own else grids.log_snr(sde, steps)
    return float((solver(MODEL, sde, start, ts) - end).norm())


def bias(solver: Solver, sde: SDE, steps: int) -> float:
    """How far the output is from the exact variance; its own is the sum of squared answers to impulses of noise."""
    x = (sde.scales(sde.t_max)[0] * MODEL.means[0]).expand(2 + steps, 2).clone()
    x[1] += spread(sde, sde.t_max)
    row = 1

    def impulse(like: Tensor) -> Tensor:
        nonlocal row
        row += 1
        return torch.zeros_like(like).index_fill_(0, torch.tensor([row]), 1.0)

    out = solver(MODEL, sde, x, grids.log_snr(sde, steps), noise=impulse)
    variance = (out[1:] - out[0]).square().sum(0)
    return float((variance / spread(sde, sde.t_min) ** 2 - 1).norm())


def _nfe(solver: Solver) -> str:
    counted, sde = CountCalls(MODEL), PATHS["VP"]
    adapts = isinstance(solver, Adaptive | AdaptiveSDE)
    solver(counted, sde, sde.prior((8, 2), dtype=torch.float64), grids.log_snr(sde, 100))
    return f"{counted.samples / 8:.0f} in all" if adapts else f"{math.floor(counted.calls / 100)}"


def _variable(solver: Solver) -> str:
    if isinstance(solver, RungeKutta | Adaptive | AdaptiveSDE):
        return str(solver.variable)
    if isinstance(solver, AdamsMoulton):
        return "soft_clipped"
    inner = getattr(solver, "solver", None)
    if isinstance(inner, RungeKutta):
        return str(inner.variable)
    exponential = isinstance(solver, DPMSolver | UniPC | LinearMultistep) and solver.order > 1
    return str(getattr(solver, "variable", "log_snr")) if exponential else "grid"


def _shown(order: float | None) -> str:
    return "-" if order is None else f"{order:.1f}"


def _default(value: object) -> str:
    return "required" if value is inspect.Parameter.empty else str(value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
