"""Which solver by default? Measured on problems that no setting of this library was chosen on.

    python -m scorefield.benchmarks.held_out [--run NAME=WORKDIR ...] [--only mixtures|runs] [--quick]

Eight random mixtures, whose denoiser is exact, and trained runs. Every solver starts from the same noise, in float64.
The error is the root mean square distance from the flow's end over the data's root mean square, where the reference is
RK4 in log-SNR. diffusers' schedulers run beside ours on the mixtures, along the paths that preserve variance.
"""

import argparse
import functools
import itertools
import math
import platform
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from scorefield.benchmarks.solvers import (
    Errors,
    Grid,
    Methods,
    Mixture,
    Problem,
    describe,
    installed,
    measure,
    of_diffusers,
)
from scorefield.commands.trained import open_trained
from scorefield.sde_lib import EDMSDE, SDE, VPSDE, CosineSDE
from scorefield.sde_lib.denoiser import DenoiserLike
from scorefield.solvers import DDIM, DEIS, RK4, Adams, DPMSolver, Heun, Solver, UniPC, grids
from scorefield.solvers.variables import IntegrationVariable, SoftClippedLogSNR

NFES = (5, 10, 15, 20, 25, 50)
RUN_NFES = NFES[:-1]
FIRST_SEED = 1001
MIXTURE_STEPS, RUN_STEPS = 2000, 150  # of the reference
PATHS: dict[str, SDE] = {"vp": VPSDE(), "cosine": CosineSDE(), "edm": EDMSDE()}
# Path, dimensions, and whether covariances have the spectrum of images.
MIXTURES = (
    ("vp", 2, False), ("cosine", 3, False), ("edm", 8, False), ("vp", 16, False),
    ("cosine", 64, False), ("vp", 64, True), ("cosine", 768, True), ("edm", 768, True),
)  # fmt: skip
GRIDS: dict[str, Grid] = {
    "log_snr": grids.log_snr,
    "soft_clipped": grids.soft_clipped,
    "karras": grids.karras,
    "uniform": grids.uniform,
}
PEERS = ("DEISMultistep(solver_order=3", "UniPCMultistep(solver_order=2", "UniPCMultistep(solver_order=3")
SHOWN = 12  # rows of a table: the best, and those of the defaults that were
ALWAYS = ("`DPMSolver(order=2)`, log_snr", "`DDIM()`, log_snr", "`DEIS(order=3)`, log_snr")
Held = tuple[Problem, SDE]


def mixture(path: str, dims: int, as_images: bool, seed: int) -> Held:
    """A random mixture, and draws of the path's prior."""
    generator, sde = torch.Generator().manual_seed(seed), PATHS[path]
    means, stds = random_mixture(dims, as_images, generator)
    x = sde.prior((8 if dims > 100 else 64, dims), noise=lambda x: torch.randn(x.shape, generator=generator))
    kind = "image-like" if as_images else f"{len(means)} modes"
    return problem(f"{path}, d = {dims}, {kind}", Mixture(means, stds), sde, x, MIXTURE_STEPS)


def random_mixture(dims: int, as_images: bool, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A random number of components with random means and deviations; images have 3 channels and a 1/f spectrum."""
    uniform = functools.partial(torch.rand, generator=generator)
    count = int(torch.randint(3, 31, (), generator=generator))
    if as_images:
        channels = 3 if dims % 3 == 0 else 1
        row = torch.arange(math.isqrt(dims // channels)).double()
        spectrum = (1 + torch.hypot(row[:, None], row)) ** -(0.8 + 0.6 * uniform(()))
        stds = spectrum.expand(channels, *spectrum.shape).flatten() * (0.2 + uniform(count, 1))
        means = stds.mean(0) * torch.randn(count, dims, generator=generator) * (0.5 + uniform(()))
    else:
        stds = (0.03 * 10 ** uniform(count, 1)).expand(count, dims)  # 0.03 to 0.3
        means = torch.randn(count, dims, generator=generator)
    size = 0.5 / (means.square() + stds.square()).mean().sqrt()
    return size * means, size * stds


def trained(name: str, workdir: Path) -> Held:
    opened = open_trained(workdir, "cpu")
    run, network = opened.run, opened.denoiser.double()
    x = run.sde.prior((4, *run.data.shape), noise=lambda x: torch.randn(x.shape, generator=_seeded()))
    return problem(f"network, {name}", network, run.sde, x, RUN_STEPS)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(FIRST_SEED)


def problem(name: str, denoiser: DenoiserLike, sde: SDE, x: torch.Tensor, steps: int) -> Held:
    """A problem whose reference's doubt is its distance from one of half the steps, rms."""
    half, end = (RK4("log_snr")(denoiser, sde, x, grids.log_snr(sde, n)) for n in (steps // 2, steps))
    found = Problem(name, denoiser, x, end, float((half - end).square().mean().sqrt()))
    print(
        f"{name}: {len(x)} samples of rms {end.square().mean().sqrt():.2f}, reference good to {found.doubt:.0e}",
        flush=True,
    )
    return found, sde


def few() -> Methods:
    """The solvers that a default could be."""
    single: list[Solver] = [DDIM(), DEIS(3, "soft_clipped")]
    for order in (2, 3):
        single += [DPMSolver(order), UniPC(order), UniPC(order, predict="eps"), DEIS(order)]
    variables: list[str | IntegrationVariable] = ["log_snr", "soft_clipped", SoftClippedLogSNR(0.05, 20.0)]
    single += [Adams(order, variable=variable) for order, variable in itertools.product((3, 4), variables)]
    return {describe(solver): (solver, each) for solver, each in [*((one, 1) for one in single), (Heun("log_snr"), 2)]}


def more() -> Methods:
    """Further settings, on mixtures."""
    solvers: list[tuple[Solver, int]] = [(Heun("sigma"), 2)]
    for order in (2, 3):
        solvers += [(kind(order, lower_order_final=True), 1) for kind in (DPMSolver, UniPC, DEIS)]
        solvers += [(DPMSolver(order, multistep=False), order)]
    return {describe(solver): (solver, each) for solver, each in solvers}


def peers() -> Methods:
    return {name: each for name, each in installed(of_diffusers).items() if any(peer in name for peer in PEERS)}


def errors_of(held: Held, methods: Methods, chosen: Sequence[str], nfes: Sequence[int]) -> Errors:
    """Relative errors of every method on every grid."""
    task, sde = held
    size = float(task.end.square().mean().sqrt())
    out: Errors = {}
    for grid in chosen:
        for name, row in measure(task, sde, methods, GRIDS[grid], nfes).items():
            out[f"`{name}`, {grid}"] = {nfe: (error / size, calls) for nfe, (error, calls) in row.items()}
    return out


def table(title: str, problems: Sequence[Errors], nfes: Sequence[int]) -> None:
    """Geometric means over problems of the methods that all of them have; the best of each column is bold."""
    names = [name for name in problems[0] if all(name in each for each in problems)]
    means = {
        name: [math.exp(sum(math.log(each[name][n][0]) for each in problems) / len(problems)) for n in nfes]
        for name in names
    }
    best = [min(column) for column in zip(*means.values(), strict=True)]
    print(f"\n### {title}\n\n| |" + "".join(f" {n} |" for n in nfes) + "\n|---|" + "---|" * len(nfes))
    order = sorted(names, key=lambda name: math.prod(means[name]))
    for name in [name for i, name in enumerate(order) if i < SHOWN or name.startswith(ALWAYS)]:
        cells = [f"**{e:.1e}**" if e == least else f"{e:.1e}" for e, least in zip(means[name], best, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", default=[], help="NAME=WORKDIR of a trained run; repeat it")
    parser.add_argument("--only", choices=("mixtures", "runs"), help="one part")
    parser.add_argument("--quick", action="store_true", help="two small mixtures")
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    print(f"{date.today()}, {platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}")
    started, others = time.perf_counter(), peers()
    mixtures: list[Errors] = []
    for i, settings in enumerate(MIXTURES[: 2 if args.quick else None] if args.only != "runs" else ()):
        held = mixture(*settings, FIRST_SEED + i)
        mixtures.append(errors_of(held, few() | more() | (others if settings[0] != "edm" else {}), tuple(GRIDS), NFES))
        table(held[0].name, mixtures[-1:], NFES)
    networks: list[Errors] = []
    for name, workdir in (each.split("=", 1) for each in (args.run if args.only != "mixtures" else ())):
        held = trained(name, Path(workdir))
        networks.append(errors_of(held, few(), ("log_snr", "soft_clipped"), RUN_NFES))
        table(held[0].name, networks[-1:], RUN_NFES)
    for title, found, nfes in (("All mixtures", mixtures, NFES), ("All networks", networks, RUN_NFES)):
        if len(found) > 1:
            table(f"{title}: geometric means", found, nfes)
            for nfe in nfes:
                table(f"{title} at {nfe}", found, (nfe,))
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
