"""What an evaluation buys: error at the end of the path against network evaluations, ours and other libraries'.

python -m scorefield.benchmarks.solvers          prints the tables; --quick for two small problems only

Every solver follows the flow of mixtures whose denoiser is known, from the prior to t_min, on DDPM's linear betas, in
float64. The error is the root mean square distance from the end of Adams(4) in very many steps. diffusers' schedulers
and k-diffusion's samplers run beside ours where they are installed, with the exact denoiser in float64.
"""

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import math
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorefield.models import CountCalls
from scorefield.models.analytic import GaussianMixture
from scorefield.sde_lib import SDE, DiscreteVPSDE, predict_noise
from scorefield.sde_lib.denoiser import DenoiserLike
from scorefield.solvers import BELM, DDIM, DEIS, RK4, Adams, DPMSolver, Heun, Midpoint, Solver, UniPC, grids
from scorefield.solvers.adaptive_grid import step_density
from scorefield.solvers.variables import IntegrationVariable, SoftClippedLogSNR

NFES = (5, 10, 15, 20, 25, 30, 50, 100)
PROBLEMS = ("d=2", "d=64", "d=3072", "image-like")

Grid = Callable[[SDE, int], Tensor]
Run = Callable[[DenoiserLike, SDE, Tensor, Tensor], Tensor]  # what a solver is: (denoiser, sde, x, ts) -> x


class Problem(NamedTuple):
    name: str
    denoiser: DenoiserLike
    x: Tensor  # where to start
    end: Tensor  # where the flow leads from there
    doubt: float  # how far from it half as many steps end


Methods = dict[str, tuple[Run, int]]  # by name: a solver, and how many evaluations it spends on a step
Errors = dict[str, dict[int, tuple[float, int]]]  # by method and column: the error, and the evaluations it took


@dataclasses.dataclass(frozen=True)
class Mixture:
    """`GaussianMixture` with equal weights for flat x (B, D), by matrix products: quick where D is large."""

    means: Tensor
    stds: Tensor

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variances = (alpha * self.stds).square() + sigma.square()
        pulled = alpha * self.means / variances
        squared = x.square() @ (1 / variances).T - 2 * x @ pulled.T + (alpha * self.means * pulled).sum(1)
        responsibility = (-(squared + variances.log().sum(1)) / 2).softmax(1)
        gain = alpha * self.stds.square() / variances
        return responsibility @ (self.means * (1 - alpha * gain)) + x * (responsibility @ gain)


def isotropic(dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ten components in the cube [-1, 1]^dims, standard deviations 0.05 to 0.2; and normals to start from."""
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.rand(10, dims, generator=generator) - 1
    stds = 0.05 + 0.15 * torch.rand(10, 1, generator=generator)
    return means, stds.expand_as(means), torch.randn(64 if dims < 100 else 8, dims, generator=generator)


def image_like(size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Ten components of 3 x size x size pixels of 0.5 rms, means and deviations with the spectrum 1/f of images.

    In the basis of cosines, where covariances are diagonal: the flow commutes with rotations, and errors keep length.
    """
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(size).double()
    spectrum = 1 / torch.hypot(row[:, None], row).clamp(min=1).expand(3, size, size).flatten()
    spectrum *= 0.5 / spectrum.square().mean().sqrt()
    share = 0.2 + 0.6 * torch.rand(10, 1, generator=generator)  # of a component's own variance; its mean has the rest
    means = (1 - share).sqrt() * spectrum * torch.randn(10, len(spectrum), generator=generator)
    return means, share.sqrt() * spectrum, torch.randn(8, len(spectrum), generator=generator)


def problem(name: str, sde: SDE) -> Problem:
    means, stds, x = image_like() if name == "image-like" else isotropic(int(name.removeprefix("d=")))
    denoiser, middle = Mixture(means, stds), sde.scales(torch.tensor(0.5))
    assert torch.allclose(denoiser(x, *middle), GaussianMixture(means, stds, torch.ones(10))(x, *middle), atol=1e-9)
    x = sde.scales(torch.tensor(sde.t_max))[1] * x
    half, end = (Adams(4)(denoiser, sde, x, grids.log_snr(sde, steps)) for steps in (1500, 3000))
    return Problem(name, denoiser, x, end, (half - end).square().mean().sqrt().item())


def ours() -> Methods:
    """Every deterministic solver of fixed steps, in the settings that make sense."""
    bounded: list[str | IntegrationVariable] = [
        "soft_clipped",
        SoftClippedLogSNR(0.05, 20.0),
        SoftClippedLogSNR(0.01, 5.0),
    ]
    single: list[Solver] = [DDIM(), BELM(), Adams(2, variable=SoftClippedLogSNR(0.1, 5.0))]
    single += [Adams(4, True, "eps", "soft_clipped", True)]
    more: list[tuple[Solver, int]] = [(Heun(variable), 2) for variable in ("time", "sigma", "log_snr", "soft_clipped")]
    more += [pair for variable in ("sigma", "log_snr") for pair in ((Midpoint(variable), 2), (RK4(variable), 4))]
    for predict in ("x0", "eps"):
        more += [(DPMSolver(order, multistep=False, predict=predict), order) for order in (2, 3)]
        for order, low in itertools.product((2, 3), (False, True)):
            single += [DPMSolver(order, predict=predict, lower_order_final=low)]
            single += [UniPC(order, predict=predict, lower_order_final=low)]
        single += [UniPC(order, predict=predict, variant="bh1") for order in (1, 2)] + [UniPC(1, predict=predict)]
        single += [Adams(order, corrector, predict) for order in (2, 3, 4) for corrector in (True, False)]
        single += [Adams(order, True, predict, variable) for order in (3, 4) for variable in bounded]
    single += [DEIS(2), *(DEIS(3, variable) for variable in ("log_snr", "soft_clipped", "time", "sigma"))]
    return {describe(solver): (solver, each) for solver, each in [(solver, 1) for solver in single] + more}


def describe(solver: Any) -> str:
    """A solver as one would write it: its order, and what is not as by default."""
    values = [(field, getattr(solver, field.name)) for field in dataclasses.fields(solver)]
    shown = [f"{field.name}={value!r}" for field, value in values if field.name == "order" or value != field.default]
    return f"{type(solver).__name__}({', '.join(shown)})"


def of_diffusers() -> Methods:
    """Deterministic schedulers; DPM-Solver++ of order 1 is DDIM."""
    package = importlib.import_module("diffusers")
    package.logging.set_verbosity_error()
    end: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
    out: Methods = {}

    def add(kind: str, each: int = 1, **settings: Any) -> None:
        shown = ", ".join(f"{key}={value}" for key, value in settings.items() if key not in (*end, "tau_func"))
        make = functools.partial(getattr(package, f"{kind}Scheduler"), **settings)
        out[f"diffusers {kind}({shown})"] = (functools.partial(_scheduled, make), each)

    add("DPMSolverMultistep", solver_order=1, **end)
    for order, low in itertools.product((2, 3), (False, True)):
        add("DPMSolverMultistep", solver_order=order, lower_order_final=low, **end)
        add("DPMSolverSinglestep", solver_order=order, lower_order_final=low, **end)
        add("DEISMultistep", solver_order=order, lower_order_final=low)
        for x0 in (True, False):
            add("UniPCMultistep", solver_order=order, lower_order_final=low, predict_x0=x0, **end)
    flow: dict[str, Any] = {"predictor_order": 3, "tau_func": lambda _: 0.0}
    for order, low, what in itertools.product((3, 4), (False, True), ("data_prediction", "noise_prediction")):
        add("SASolver", **flow, corrector_order=order, algorithm_type=what, lower_order_final=low)
    add("HeunDiscrete", 2)
    return out


def _scheduled(make: Callable[[], Any], denoiser: DenoiserLike, sde: SDE, x: Tensor, ts: Tensor) -> Tensor:
    (alphas, sigmas), scheduler, order = sde.scales(ts), make(), torch.arange(len(ts))
    scheduler.set_timesteps(len(ts) - 1)
    size = torch.ones_like(alphas)
    if hasattr(scheduler, "state_in_first_order"):  # Heun: its state is x / alpha, and it has each level twice
        size, order = alphas, order.repeat_interleave(2)[1:]
        scheduler.timesteps = torch.arange(len(order) - 1).flip(0)
    scheduler.sigmas, x = (sigmas / alphas)[order], x / size[0]
    scheduler.set_begin_index(0)
    for t, k in zip(scheduler.timesteps, order.tolist(), strict=False):
        eps = predict_noise(denoiser, size[k] * x, alphas[k], sigmas[k])
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    return size[-1] * x


def of_k_diffusion() -> Methods:
    """Deterministic samplers, and stochastic ones at eta = 0; the package imports much that they do not need."""
    spec = importlib.util.find_spec("k_diffusion")
    blanks = {"k_diffusion": list((spec and spec.submodule_search_locations) or ())}
    if importlib.util.find_spec("torchvision") is None:
        blanks |= {"torchvision": [], "torchvision.transforms": [], "torchvision.transforms.functional": []}
    for name, path in blanks.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = path
    sampling = importlib.import_module("k_diffusion.sampling")
    still: dict[str, Any] = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}

    def fast(model: Any, y: Tensor, levels: Tensor, disable: bool) -> Any:  # it makes its own grid
        return sampling.sample_dpm_fast(model, y, *levels[[-1, 0]].tolist(), len(levels) - 1, disable=disable)

    def method(name: str, each: int = 1, **settings: Any) -> tuple[str, tuple[Run, int]]:
        shown = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "noise_sampler")
        sample = fast if name == "dpm_fast" else getattr(sampling, f"sample_{name}")
        run = functools.partial(_sampled, functools.partial(sample, **settings))
        return f"k-diffusion {name}({shown})", (run, each)

    plain = [method(name) for name in ("euler", "lms", "dpm_fast", "dpmpp_2m")]
    twice = [method("heun", 2), method("dpm_2", 2), method("dpmpp_2s_ancestral", 2, **still)]
    return dict(plain + twice + [method("dpmpp_3m_sde", **still), method("dpmpp_2m_sde", **still, solver_type="heun")])


def _sampled(sample: Callable[..., Tensor], denoiser: DenoiserLike, sde: SDE, x: Tensor, ts: Tensor) -> Tensor:
    alphas, sigmas = sde.scales(ts)

    def denoised(y: Tensor, level: Tensor) -> Tensor:
        alpha = 1 / torch.hypot(torch.ones_like(level[0]), level[0])  # of a path that preserves variance
        return denoiser(alpha * y, alpha, alpha * level[0])

    return alphas[-1] * sample(denoised, x / alphas[0], sigmas / alphas, disable=True)


def installed(methods: Callable[[], Methods]) -> Methods:
    try:
        return methods()
    except ImportError as error:
        print(f"{methods.__name__}: left out. {error}")
        return {}


def measure(problem: Problem, sde: SDE, methods: Methods, grid: Grid, nfes: Sequence[int]) -> Errors:
    """The error of each method in as many steps as a column's evaluations allow."""
    out: Errors = {name: {} for name in methods}
    for (name, (run, each)), nfe in itertools.product(methods.items(), nfes):
        for steps in range(nfe // each, 0, -1):
            counted = CountCalls(problem.denoiser)
            end = run(counted, sde, problem.x, grid(sde, steps))
            if counted.calls <= nfe:
                break
        out[name][nfe] = ((end - problem.end).square().mean().sqrt().item(), counted.calls)
    return out


def table(title: str, errors: Errors, nfes: Sequence[int]) -> None:
    """A row for each method; the best of each column bold, evaluations in brackets where they are fewer."""
    print(f"\n### {title}\n\n| |" + "".join(f" {nfe} |" for nfe in nfes) + "\n|---|" + "---|" * len(nfes))
    least = {n: min(row[n][0] for row in errors.values()) for n in nfes}
    for name, row in errors.items():
        cells = [(f"**{e:.1e}**" if e == least[n] else f"{e:.1e}") + f" ({k})" * (k < n) for n, (e, k) in row.items()]
        print(f"| {name} | {' | '.join(cells)} |")


def summary(errors: dict[str, Errors], own: Methods, nfes: Sequence[int]) -> None:
    """Our best and the others' best for each problem and column, and their ratio."""
    print("\n## Best of ours and best of the others, log_snr\n")
    print("| problem | evaluations | ours | error | others | error | ratio |\n|---|---|---|---|---|---|---|")
    for (title, of), nfe in itertools.product(errors.items(), nfes):
        low, mine = min((row[nfe][0], name) for name, row in of.items() if name in own)
        high, theirs = min((row[nfe][0], name) for name, row in of.items() if name not in own)
        print(f"| {title} | {nfe} | {mine} | {low:.1e} | {theirs} | {high:.1e} | {high / low:.2f} |")


def ranking(errors: Iterable[Errors], nfes: Sequence[int]) -> list[tuple[float, str]]:
    """Methods by the geometric mean of their errors in these columns of all problems."""
    logs: dict[str, list[float]] = {}
    for name, row in itertools.chain.from_iterable(of.items() for of in errors):
        logs.setdefault(name, []).extend(math.log(row[nfe][0]) for nfe in nfes)
    return sorted((math.exp(statistics.fmean(of)), name) for name, of in logs.items())


def one_for_all(errors: dict[str, Errors], own: Methods, nfes: Sequence[int]) -> None:
    """The first six of ours and the first three of the others over all problems."""
    ranks = [(i, mean, name) for i, (mean, name) in enumerate(ranking(errors.values(), nfes), 1)]
    first = [row for row in ranks if row[2] in own][:6] + [row for row in ranks if row[2] not in own][:3]
    print(f"\n### One solver for all problems: {', '.join(map(str, nfes))} evaluations\n")
    print("| rank | solver | geometric mean of the errors |\n|---|---|---|")
    print("\n".join(f"| {rank} | {name} | {mean:.2e} |" for rank, mean, name in sorted(first)))


def report(task: Problem, sde: SDE, own: Methods, others: Methods, nfes: Sequence[int]) -> Errors:
    """All methods on the log-SNR grid, which is returned, and the best of ours and of the others on three more."""
    print(f"\n## {task.name}: {len(task.x)} samples, reference good to {task.doubt:.0e}")
    errors = measure(task, sde, own | others, grids.log_snr, nfes)
    table(f"{task.name}, log_snr", errors, nfes)
    order = [name for _, name in ranking([errors], [nfe for nfe in nfes if nfe > 5] or nfes)]
    few = [name for name in order if name in own][:6] + [name for name in order if name in others][:4]
    optimal = functools.partial(grids.optimal, measured=step_density(task.denoiser, sde, -task.x, order=3))
    more: dict[str, Grid] = {"karras": grids.karras, "soft_clipped": grids.soft_clipped, "optimal": optimal}
    for name, grid in more.items():
        table(f"{task.name}, {name}", measure(task, sde, {n: (own | others)[n] for n in few}, grid, nfes), nfes)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, help="d=NUMBER, or image-like")
    parser.add_argument("--nfe", nargs="+", type=int, default=NFES, help="columns, each 5 at least")
    parser.add_argument("--quick", action="store_true", help="two small problems, three columns")
    args = parser.parse_args()
    names, nfes = (PROBLEMS[:2], (10, 25, 50)) if args.quick else (args.problems, args.nfe)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    started, sde, own = time.perf_counter(), DiscreteVPSDE("linear"), ours()
    others = installed(of_diffusers) | installed(of_k_diffusion)
    errors = {name: report(problem(name, sde), sde, own, others, nfes) for name in names}
    if others:
        summary(errors, own, nfes)
    for group in ((10,), (15, 20, 25, 30), (50, 100)):
        if columns := [nfe for nfe in group if nfe in nfes]:
            one_for_all(errors, own, columns)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
