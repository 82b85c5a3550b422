"""Step-for-step agreement with diffusers' schedulers, and with EDM's algorithms written out from the paper.

Both sides follow the same toy network along the same levels, and every state on the way is compared. Diffusers keeps
its tables of alpha-bar and sigma in float32, which loses half their digits near the data (1 - alpha-bar is 1e-4 at the
first timestep). So each comparison runs twice: as released, to 2e-4, and with those tables replaced by float64 ones,
where only formulas are left to differ. A step to sigma = 0, with which diffusers ends, is our last denoising.

The largest differences measured, of states of size one to three: as released 6.4e-5 (SDE-DPM-Solver++; 2e-6 for DDIM
and DDPM, 3e-5 for DPM-Solver++, 4e-5 for DEIS, 5e-5 for UniPC, Heun and Euler), in float64 1e-12, and 7e-7 where
diffusers casts every state to float32 (multistep DPM-Solver and Euler). UniPC of order 3 that predicts eps is the
exception, up to 1.8e-4: how the tables round differs between instruction sets. Released bounds are three times that.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may go out

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from scorefield.models import precondition
from scorefield.models.denoiser import Denoiser
from scorefield.sde_lib import EDMSDE, SDE, DiscreteVPSDE
from scorefield.solvers import (
    DDIM,
    DEIS,
    Adams,
    Ancestral,
    Churn,
    DPMSolver,
    Euler,
    Heun,
    SASolver,
    Solver,
    StochasticDPMSolver,
    UniPC,
    grids,
)

pytestmark = pytest.mark.agreement

BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
PATH = DiscreteVPSDE("linear")
RELEASED = 2e-4  # of every state, with diffusers as it is
EXACT = 1e-11  # with float64 tables
SINGLE = 2e-6  # with float64 tables, where diffusers casts every state to float32


class Toy(nn.Module):
    """Predicts noise as a trained network does: sigma x + alpha v, with v of fixed random weights and of size one.

    Its x0 is then alpha x - sigma v, of size one too; of a network that is random outright it would be 157 at the
    first timestep, where alpha is 1 / 157, and errors likewise.
    """

    def __init__(self, features: int = 3, width: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inwards = torch.randn(features + 1, width, generator=generator, dtype=torch.float64)
        self.outwards = torch.randn(width, features, generator=generator, dtype=torch.float64) / width**0.5

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        c = c_noise.reshape(-1, 1)
        v = torch.tanh(torch.cat([x, c], 1) @ self.inwards) @ self.outwards
        return torch.sigmoid(8 * c).sqrt() * x + torch.sigmoid(-8 * c).sqrt() * v


NET = Toy()
DENOISER = Denoiser(NET, precondition.eps)


def start(rows: int = 5) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# How the two are laid side by side


def levels(sde: SDE, ts: Tensor) -> Tensor:
    """n = sigma / alpha, which diffusers calls sigma."""
    return (-sde.log_snr(ts) / 2).exp()


def draws(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def our_states(solver: Solver, sde: SDE, denoiser: Denoiser, x: Tensor, ts: Tensor) -> list[Tensor]:
    """x after each step, and at the end its denoising at the last level."""
    states: list[Tensor] = []
    noise = iter(draws(len(ts)))
    solver(denoiser, sde, x, ts, noise=lambda like: next(noise), on_step=lambda progress: states.append(progress.x))
    return [*states, denoiser(states[-1], *sde.scales(ts[-1]))]


def their_states(scheduler: Any, x: Tensor, **options: Any) -> list[Tensor]:
    """prev_sample after each call, the network being told of the noise by the scheduler's own tables."""
    states, noise = [], draws(len(scheduler.timesteps))
    has_sigmas = hasattr(scheduler, "sigmas")
    for i, k in enumerate(scheduler.timesteps):
        bar = scheduler.alphas_cumprod[int(k)].double()
        n = scheduler.sigmas[i].double() if has_sigmas else ((1 - bar) / bar).sqrt()
        eps = NET(scheduler.scale_model_input(x, k), (n.log() / 4).expand(len(x)))
        if "variance_noise" in options:
            options["variance_noise"] = noise[i]
        x = scheduler.step(eps, k if has_sigmas else int(k), x, **options).prev_sample
        states.append(x)
    return states


def in_float64(scheduler: Any, n: Tensor) -> None:
    """The scheduler's tables as they would be without float32: alpha-bar, and where it has them the levels n."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.final_alpha_cumprod = scheduler.one = torch.ones((), dtype=torch.float64)
    if hasattr(scheduler, "sigmas"):
        # 8e-5 is what is lost of 1 - alpha-bar at the first timestep, and grids between the ends inherit it.
        torch.testing.assert_close(scheduler.sigmas.double(), n, rtol=3e-4, atol=0.0)
        scheduler.sigmas = n


def assert_agree(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs) > 1
    difference = torch.stack([(a - b).abs().max() for a, b in zip(ours, theirs, strict=True)])
    assert bool((difference <= tolerance).all()), difference


def compare(
    make: Callable[[], Any],
    steps: int,
    solver: Solver,
    ts: Tensor,
    end: str,
    exact: float,
    released: float = RELEASED,
    **options: Any,
) -> None:
    """All states of a scheduler that `make`s sigmas against the solver's on ts, as released and in float64.

    `end`: how its list of sigmas ends, after our last level: "zero", which is our denoising; "twice", a step that
    stands still; or "" where the last level is the end.
    """
    x = start()
    n = levels(PATH, ts)
    full = {"zero": torch.cat([n, n.new_zeros(1)]), "twice": torch.cat([n, n[-1:]]), "": n}[end]
    ours = our_states(solver, PATH, DENOISER, x, ts)
    for sharp in (False, True):
        scheduler = make()
        scheduler.set_timesteps(steps)
        assert len(scheduler.sigmas) == len(full)
        if sharp:
            in_float64(scheduler, full)
        theirs = their_states(scheduler, x, **options)
        if end != "zero":
            ours, theirs = ours[: len(ts) - 1], theirs[: len(ts) - 1]
        assert_agree(ours, theirs, exact if sharp else released)


# Timesteps


def tied(exact: Tensor) -> Tensor:
    return (exact - exact.floor() - 0.5).abs() < 1e-6


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_diffusers(spacing: str) -> None:
    # For every number of steps, but where a timestep falls half way between two, which rounding of the quotient then
    # decides, not the same way in both (n = 48, trailing: 62.5). For some n (61, trailing) their count by np.arange is
    # one too many, a timestep of -1. Diffusers' multistep schedulers leave out the last but in "trailing".
    one, many = DDIMScheduler(timestep_spacing=spacing, **BETAS), DPMSolverMultistepScheduler(timestep_spacing=spacing)
    for n in range(2, 1000):
        i = torch.arange(n, dtype=torch.float64)
        exact = {
            "leading": (n - 1 - i) * (1000 // n),
            "trailing": 1000 * (n - i) / n - 1,
            "linspace": 999 * (n - 1 - i) / (n - 1),
        }[spacing]
        ours = getattr(grids, spacing)(PATH, n) * 1000 - 1
        one.set_timesteps(n)
        many.set_timesteps(n if spacing == "trailing" else n - 1)
        others = many.timesteps if spacing == "trailing" else torch.cat([many.timesteps, one.timesteps[-1:]])
        for theirs in (one.timesteps, others):
            assert len(theirs) == n or (spacing == "trailing" and theirs.tolist()[n:] == [-1])
            difference = (theirs[:n] - ours).abs()
            assert bool((difference[~tied(exact)] < 1e-6).all())
            assert bool((difference < 1 + 1e-6).all())


# DDIM and DDPM, whose tables are alpha-bar. DDIM goes 1000 // n timesteps down whatever its list says, so that its
# "linspace", and "trailing" where n does not divide 1000, do not arrive at their own next timestep: not compared.


@pytest.mark.parametrize(("eta", "spacing", "n"), [(0.0, "leading", 7), (0.5, "trailing", 20), (1.0, "leading", 10)])
def test_ddim(eta: float, spacing: str, n: int) -> None:
    x, ts = start(), getattr(grids, spacing)(PATH, n)
    ours = our_states(DDIM(eta), PATH, DENOISER, x, ts)
    for sharp in (False, True):
        scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=False, **BETAS)
        scheduler.set_timesteps(n)
        if sharp:
            in_float64(scheduler, ts)
        theirs = their_states(scheduler, x, eta=eta, variance_noise=None)
        assert_agree(ours, theirs, EXACT if sharp else RELEASED)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("spacing", "n"), [("leading", 10), ("linspace", 25)])
def test_ddpm(variance: str, spacing: str, n: int) -> None:
    x, ts = start(), getattr(grids, spacing)(PATH, n)
    ours = our_states(Ancestral(variance), PATH, DENOISER, x, ts)
    # As released a thousand steps add up to 2e-4: beta is there 1 - alpha-bar / alpha-bar before, in float32.
    for sharp in (False, True) if n < 1000 else (True,):
        kind = f"fixed_{variance}"
        scheduler = DDPMScheduler(timestep_spacing=spacing, variance_type=kind, clip_sample=False, **BETAS)
        scheduler.set_timesteps(n)
        if sharp:
            in_float64(scheduler, ts)
        theirs = their_states(scheduler, x, generator=torch.Generator().manual_seed(2))  # the seed of `draws`
        assert_agree(ours, theirs, EXACT if sharp else RELEASED)


# Multistep solvers. With final_sigmas_type="sigma_min" their n steps end at the first timestep, as our grids of n + 1
# times do; with "zero" the last of them is our denoising.

MULTISTEP_GRIDS: dict[str, tuple[dict[str, Any], Callable[[int], Tensor], str]] = {
    "leading": ({"timestep_spacing": "leading"}, lambda n: grids.leading(PATH, n + 1), ""),
    "linspace": ({"timestep_spacing": "linspace"}, lambda n: grids.linspace(PATH, n + 1), ""),
    "trailing-zero": ({"timestep_spacing": "trailing"}, lambda n: grids.trailing(PATH, n), "zero"),
    "leading-zero": ({"timestep_spacing": "leading"}, lambda n: grids.leading(PATH, n + 1)[:-1], "zero"),
    "karras-zero": ({"use_karras_sigmas": True}, lambda n: grids.karras(PATH, n - 1), "zero"),
    "exponential-zero": ({"use_exponential_sigmas": True}, lambda n: grids.log_snr(PATH, n - 1), "zero"),
    "karras-twice": ({"use_karras_sigmas": True}, lambda n: grids.karras(PATH, n - 1), "twice"),
    "exponential-twice": ({"use_exponential_sigmas": True}, lambda n: grids.log_snr(PATH, n - 1), "twice"),
}


def multistep(kind: Any, solver: Solver, grid: str, n: int, exact: float, options: dict[str, Any], **step: Any) -> None:
    settings, ts, end = MULTISTEP_GRIDS[grid]
    if kind is not DEISMultistepScheduler:
        options = {"final_sigmas_type": "zero" if end == "zero" else "sigma_min", **options}
    compare(lambda: kind(**settings, **options, **BETAS), n, solver, ts(n), end, exact, **step)


every_grid = pytest.mark.parametrize("grid", ["linspace", "karras-zero"])
ENDING_HIGH = [grid for grid in MULTISTEP_GRIDS if "zero" not in grid]
ending_high = pytest.mark.parametrize("grid", ["linspace"])
deprecated = pytest.mark.filterwarnings("ignore:.algorithm_types:FutureWarning")


@every_grid
@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [
        (1, "midpoint", DPMSolver(1)),
        (2, "midpoint", DPMSolver(2)),
        (3, "midpoint", DPMSolver(3, released=True)),
        (2, "heun", Adams(2, corrector=False)),
    ],
)
def test_dpm_solver_plus_plus(grid: str, order: int, kind: str, solver: Solver) -> None:
    options = {"solver_order": order, "solver_type": kind, "lower_order_final": False}
    multistep(DPMSolverMultistepScheduler, solver, grid, 20, SINGLE, options)


@ending_high
@deprecated
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver(grid: str, order: int) -> None:
    options = {"solver_order": order, "algorithm_type": "dpmsolver", "lower_order_final": False}
    solver = DPMSolver(order, predict="eps", released=order == 3)
    multistep(DPMSolverMultistepScheduler, solver, grid, 20, SINGLE, options)


@pytest.mark.parametrize("grid", ["leading", "linspace"])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_lowers_its_last_orders_as_diffusers_does_for_few_steps(grid: str, order: int) -> None:
    solver = DPMSolver(order, released=order == 3, lower_order_final=True)
    multistep(DPMSolverMultistepScheduler, solver, grid, 10, SINGLE, {"solver_order": order})


@every_grid
@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [
        (1, "midpoint", StochasticDPMSolver(1)),
        (2, "midpoint", StochasticDPMSolver(2)),
        (2, "heun", SASolver(2, corrector=False)),
    ],
)
def test_stochastic_dpm_solver_plus_plus(grid: str, order: int, kind: str, solver: Solver) -> None:
    # Order 3 is not compared: diffusers' weight of its second difference has -1/2 for the +1/2 of the integral, and
    # does not vanish with the step.
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": order, "solver_type": kind}
    options |= {"lower_order_final": False}
    multistep(DPMSolverMultistepScheduler, solver, grid, 20, SINGLE, options, variance_noise=None)


@pytest.mark.parametrize(
    ("grid", "lower"),
    [("linspace", True), ("karras-twice", False), ("exponential-twice", False)],
)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("variant", "predict"), [("bh1", "x0"), ("bh2", "eps")])
def test_unipc(grid: str, order: int, variant: str, predict: str, lower: bool) -> None:
    options = {"solver_order": order, "solver_type": variant, "predict_x0": predict == "x0", "lower_order_final": lower}
    solver = UniPC(order, predict=predict, variant=variant, lower_order_final=lower)
    # The rounding of the released tables decides it: 2e-5 with one instruction set, 1.8e-4 with another.
    released = 6e-4 if predict == "eps" and order == 3 and "twice" in grid else RELEASED
    multistep(UniPCMultistepScheduler, solver, grid, 20, EXACT, options, released=released)


@pytest.mark.parametrize("grid", ["trailing-zero"])
@pytest.mark.parametrize("order", [1, 2])
def test_unipc_to_zero(grid: str, order: int) -> None:
    # Diffusers lowers its last step, to zero, to order 1, and the one before to 2, though it is the last that ours
    # sees. Order 3 has no name for that: only its way to the first timestep is compared, above.
    multistep(UniPCMultistepScheduler, UniPC(order), grid, 12, EXACT, {"solver_order": order})


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("grid", "steps"), [("leading", 12), ("karras-twice", 20)])
def test_deis(grid: str, order: int, steps: int) -> None:
    solver = DEIS(order, plain_start=True, lower_order_final=steps < 15)
    multistep(DEISMultistepScheduler, solver, grid, steps, EXACT, {"solver_order": order})


# Solvers in x / alpha = x sqrt(1 + n^2), diffusers' "sigma space"


SCALED_GRIDS: dict[str, tuple[int, dict[str, Any], Callable[[int], Tensor]]] = {
    # "linspace" rounds only ours: 9 steps of 111 timesteps are whole.
    "linspace": (10, {"timestep_spacing": "linspace"}, lambda n: grids.linspace(PATH, n)),
    "leading": (20, {"timestep_spacing": "leading"}, lambda n: grids.leading(PATH, n)),
    "trailing": (20, {"timestep_spacing": "trailing"}, lambda n: grids.trailing(PATH, n)),
    "karras": (20, {"use_karras_sigmas": True}, lambda n: grids.karras(PATH, n - 1)),
    "exponential": (20, {"use_exponential_sigmas": True}, lambda n: grids.log_snr(PATH, n - 1)),
}


@pytest.mark.parametrize("grid", ["trailing", "karras"])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun_in_sigma(grid: str, name: str) -> None:
    steps, settings, make = SCALED_GRIDS[grid]
    kind, solver = (
        (EulerDiscreteScheduler, Euler("sigma")) if name == "euler" else (HeunDiscreteScheduler, Heun("sigma"))
    )
    x, ts = start(), make(steps)
    n = levels(PATH, ts)
    ours = our_states(solver, PATH, DENOISER, x, ts)
    for sharp in (False, True):
        scheduler = kind(**settings, **BETAS)
        scheduler.set_timesteps(steps)
        full = torch.cat([n, n.new_zeros(1)])
        if name == "heun":  # each level within is visited twice, and only the second visit is a step's end
            full = torch.cat([n[:1], n[1:].repeat_interleave(2), n.new_zeros(1)])
        if sharp:
            in_float64(scheduler, full)
        theirs = their_states(scheduler, x * (1 + n[0] ** 2).sqrt())
        theirs = [*theirs[1:-1:2], theirs[-1]] if name == "heun" else theirs
        scales = [*(1 / (1 + n[1:] ** 2).sqrt()), 1.0]
        exact = EXACT if name == "heun" else SINGLE  # Euler's states too are cast
        assert_agree(ours, [y * s for y, s in zip(theirs, scales, strict=True)], exact if sharp else RELEASED)


# DPM-Solver, singlestep. Diffusers takes the stages from the grid itself: they are a half, or a third and two thirds
# of a step in log-SNR where that is uniform. Its last level comes twice, so the last step is left out.


@deprecated
@pytest.mark.parametrize("predict", ["x0", "eps"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_singlestep_dpm_solver(order: int, predict: str) -> None:
    # In order 3 the paper (DPM-Solver, Alg. 2) integrates a line in the second stage, as diffusers does for "heun" and
    # not for "midpoint", and a line again in the last, as it does for "midpoint"; for "heun" it has a parabola there.
    steps, x = 24, start()
    fine = grids.log_snr(PATH, steps - 1)
    ours = our_states(DPMSolver(order, multistep=False, predict=predict), PATH, DENOISER, x, fine[::order])[:-1]
    for sharp in (False, True):
        scheduler = DPMSolverSinglestepScheduler(
            solver_order=order,
            algorithm_type="dpmsolver++" if predict == "x0" else "dpmsolver",
            lower_order_final=False,
            final_sigmas_type="sigma_min",
            use_exponential_sigmas=True,
            **BETAS,
        )
        scheduler.set_timesteps(steps)
        if sharp:
            n = levels(PATH, fine)
            in_float64(scheduler, torch.cat([n, n[-1:]]))
        inner = scheduler.step

        def step(eps: Tensor, k: Tensor, x: Tensor, scheduler: Any = scheduler, inner: Any = inner) -> Any:
            second = order == 3 and (scheduler.step_index or 0) % 3 == 1
            scheduler.register_to_config(solver_type="heun" if second else "midpoint")
            return inner(eps, k, x)

        scheduler.step = step
        theirs = their_states(scheduler, x)[order - 1 :: order][: len(ours)]
        assert_agree(ours, theirs, EXACT if sharp else RELEASED)


# EDM, from the paper: Karras et al. 2022, Table 1, Eq. 5, Alg. 1 and Alg. 2 (of which Alg. 1 is S_churn = 0)


def edm_denoised(x: Tensor, t: float, data: float = 0.5) -> Tensor:
    total = t**2 + data**2
    network = NET(x / math.sqrt(total), torch.full((len(x),), math.log(t) / 4, dtype=torch.float64))
    return data**2 / total * x + t * data / math.sqrt(total) * network


def edm_levels(n: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> list[float]:
    ramp = [high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho)) for i in range(n)]
    return [root**rho for root in ramp] + [0.0]


def edm_states(
    x: Tensor, t: list[float], noise: Sequence[Tensor], amount: float, low: float, high: float, loud: float
) -> list[Tensor]:
    n, states = len(t) - 1, []
    for i in range(n):
        gamma = min(amount / n, math.sqrt(2) - 1) if low <= t[i] <= high else 0.0
        raised = t[i] * (1 + gamma)
        x = x + math.sqrt(raised**2 - t[i] ** 2) * loud * noise[i]
        slope = (x - edm_denoised(x, raised)) / raised
        after = x + (t[i + 1] - raised) * slope
        if t[i + 1] > 0:
            again = (after - edm_denoised(after, t[i + 1])) / t[i + 1]
            after = x + (t[i + 1] - raised) * (slope + again) / 2
        states.append(x := after)
    return states


EDM = Denoiser(NET, precondition.edm(0.5))


@pytest.mark.parametrize("n", [2, 18])
@pytest.mark.parametrize("solver", [Heun("sigma"), Heun(), Churn(amount=0.0)])
def test_edms_heun_on_its_grid(n: int, solver: Solver) -> None:
    x, ts = 80 * start(), grids.karras(EDMSDE(), n - 1)
    assert_agree(our_states(solver, EDMSDE(), EDM, x, ts), edm_states(x, edm_levels(n), draws(n), 0, 0, 0, 0), EXACT)


@pytest.mark.parametrize("n", [18])
@pytest.mark.parametrize("amount", [5.0, 30.0])
def test_edms_churn(n: int, amount: float) -> None:
    # 30 meets the bound of sqrt(2) - 1, and 5 does not. The paper's n counts the step to zero, which is our denoising
    # (and too quiet to churn); Churn shares its amount among the steps of its grid, one fewer.
    x, ts = 80 * start(), grids.karras(EDMSDE(), n - 1)
    theirs = edm_states(x, edm_levels(n), draws(n), amount, 0.05, 50.0, 1.003)
    solver = Churn(amount, 0.05, 50.0, 1.003)
    assert_agree(our_states(solver, EDMSDE(), EDM, x, ts), theirs, EXACT)
