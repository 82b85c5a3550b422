"""The numbers of RESULTS.md: ratios of times, measured interleaved in one run, as medians.

`python -m scorefield.benchmarks.run` prints the table; `make bench` runs it.
"""

import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor

from scorefield.likelihood import Hutchinson
from scorefield.models import Denoiser, UNet
from scorefield.models.precondition import eps
from scorefield.sde_lib import VPSDE
from scorefield.solvers import (
    BELM,
    DDIM,
    DEIS,
    Adams,
    Ancestral,
    AnnealedLangevin,
    Churn,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PerSampleNoise,
    PredictorCorrector,
    ReverseDiffusion,
    SASolver,
    Scales,
    Solver,
    StochasticDPMSolver,
    UniPC,
    grids,
    probability_flow,
)  # fmt: skip

ROUNDS = 15


def interleaved(ours: Callable[[], object], other: Callable[[], object]) -> tuple[float, float, float]:
    """Median seconds of each, and the median of their ratios, pair by pair, after a warm-up."""
    times: list[tuple[float, float]] = []
    for i in range(ROUNDS + 2):
        pair = []
        for run in (ours, other):
            start = time.perf_counter()
            run()
            pair.append(time.perf_counter() - start)
        if i >= 2:
            times.append((pair[0], pair[1]))
    ratio = statistics.median(a / b for a, b in times)
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times), ratio


def network() -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(UNet(1, width=32, multipliers=(1, 2), blocks=1), eps)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return denoiser.eval().requires_grad_(False)


def solver_loop() -> tuple[float, float, float]:
    """DDIM in 50 steps on 64 digits, against a loop for this case with its coefficients computed before."""
    sde, denoiser, x = VPSDE(), network(), torch.randn(64, 1, 8, 8)
    ts = grids.log_snr(sde, 50)
    alphas, sigmas = (scale.float() for scale in sde.scales(ts))
    c_noise = (-sde.log_snr(ts) / 8).float()

    def by_hand() -> Tensor:
        y = x
        with torch.no_grad():
            for i in range(50):
                noise = denoiser.net(y, c_noise[i].expand(64))
                x0 = (y - sigmas[i] * noise) / alphas[i]
                y = alphas[i + 1] * x0 + sigmas[i + 1] * noise
        return y

    assert torch.allclose(DDIM()(denoiser, sde, x, ts), by_hand(), atol=1e-3)
    return interleaved(lambda: DDIM()(denoiser, sde, x, ts), by_hand)


def divergence() -> tuple[float, float, float]:
    """The flow with its Hutchinson divergence, against the flow alone: 64 digits."""
    sde, denoiser, x = VPSDE(), network(), torch.randn(64, 1, 8, 8)
    at = Scales.at(sde, torch.tensor(0.5, dtype=torch.float64))
    hutchinson = Hutchinson()
    probes = hutchinson.directions(x, torch.randn_like)

    def both() -> object:
        with torch.no_grad():
            return hutchinson(lambda y: probability_flow(denoiser, y, at), x, probes)

    def alone() -> object:
        with torch.no_grad():
            return probability_flow(denoiser, x, at)

    return interleaved(both, alone)


def noise() -> tuple[float, float, float]:
    """Normals for 256 images of 3x32x32: one generator for each image, against one for all."""
    x = torch.empty(256, 3, 32, 32)
    own = PerSampleNoise(0, range(256))
    return interleaved(lambda: own(x), lambda: torch.randn_like(x))


class Timed:
    """A denoiser that takes about 10 ms for 16 images of 3x32x32, and sums its own time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.weight, self.work = torch.randn(600, 600) / 600**0.5, torch.randn(2, 600, 600)

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.01:
            torch.mm(self.work[0], self.weight, out=self.work[1])
        out: Tensor = 0.5 * x
        self.seconds += time.perf_counter() - start
        return out

    noise = __call__


def overhead(solver: Solver) -> float:
    """The share of time outside the network in 50 steps, median of several runs."""
    sde, x, shares = VPSDE(), torch.randn(16, 3, 32, 32), []
    ts = grids.log_snr(sde, 50)
    for _ in range(ROUNDS // 2):
        network, noise, start = Timed(), PerSampleNoise(0, range(16)), time.perf_counter()
        solver(network, sde, x, ts, noise=noise)
        shares.append((time.perf_counter() - start) / network.seconds - 1)
    return statistics.median(shares)


OVERHEAD = (
    DDIM(), DPMSolver(2), DPMSolver(3), UniPC(3), DEIS(3), Adams(4), Heun("log_snr"), BELM(), Ancestral(),
    EulerMaruyama(), StochasticDPMSolver(2), SASolver(3), Churn(),
    PredictorCorrector(ReverseDiffusion(), AnnealedLangevin(snr=0.16)),
)  # fmt: skip


def main() -> None:
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{date.today()}, {machine}, Python {platform.python_version()}, torch {torch.__version__}\n")
    print("| what | against | ours, ms | other, ms | ratio |\n|---|---|---|---|---|")
    rows = (
        ("DDIM, 50 steps, 64 digits, 0.7M U-Net", "a loop by hand for this case", solver_loop),
        ("flow with Hutchinson divergence, same network", "the flow alone", divergence),
        ("per-sample normals, 256 x 3x32x32", "`randn_like`", noise),
    )
    for what, against, measure in rows:
        ours, other, ratio = measure()
        print(f"| {what} | {against} | {1e3 * ours:.2f} | {1e3 * other:.2f} | {ratio:.2f} |")
    print("\n| solver, 50 steps of 16 images of 3x32x32 | beyond a network of 10 ms |\n|---|---|")
    for solver in OVERHEAD:
        print(f"| `{solver}` | {100 * overhead(solver):.1f}% |")


if __name__ == "__main__":
    main()
