"""Training a dequantiser for a trained denoiser: the score alone raises the bound on log P(k)."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Generator, Tensor, nn

from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import expand, like, one_each, precise
from scorefield.sde_lib.denoiser import Cond, DenoiserLike
from scorefield.sde_lib.quantise import cell_centres, cell_width, place_in_cell
from scorefield.training.engine import Batch, Objective, Step, run
from scorefield.training.model import Model
from scorefield.training.state import TrainingState


def objective(
    denoiser: DenoiserLike,
    sde: SDE,
    optimizer: torch.optim.Optimizer,
    *,
    levels: int,
    low: float = -1.0,
    high: float = 1.0,
    time: float | None = None,
    limit: float = 5.0,
) -> Objective:
    """The bound as an objective of the engine; `train_dequantiser` has the formula and describes the arguments.

    It reports log_q, log q(u | k) in nats a dimension (B,): 0 is uniform, more is narrower.
    """
    time = _within(sde, time)

    def draw(model: Model, batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        return {"uniform": torch.rand(batch["x0"].shape, generator=generator, device=generator.device)}

    def loss(model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        k, cond = batch["x0"], {name: value for name, value in batch.items() if name not in ("x0", "uniform")}
        assert model.dequantiser is not None
        u, log_q = _placed(model.dequantiser, k, batch["uniform"], levels)
        x = place_in_cell(k, u, levels, low=low, high=high)
        with torch.no_grad():
            score, largest = sde.score(denoiser, x.detach(), time, **cond), expand(limit / sde.scales(time)[1], x)
            score = score.clamp(-largest, largest)
        dims = k[0].numel()
        return (log_q - (score * x).flatten(1).sum(1)) / dims, {"log_q": log_q / dims}

    return Objective(optimizer, loss, draw)


def train_dequantiser(
    dequantiser: nn.Module,
    denoiser: DenoiserLike,
    sde: SDE,
    loader: Iterable[Batch],
    *,
    levels: int,
    low: float = -1.0,
    high: float = 1.0,
    images: int,
    state: TrainingState | None = None,
    schedule: Callable[[int], float] = lambda images: 1.0,
    time: float | None = None,
    limit: float = 5.0,
    clip: float | None = 1.0,
) -> Iterator[Step]:
    """Raise  E_q[log p(x) - log q(u | k)],  x = low + (high - low) (k + u) / levels  (Ho et al. 2019, Eq. 13).

    Only the gradient of log p is needed. That is the score at t_min, one evaluation of the denoiser a step, without a
    backward pass through it or through the flow's ODE. The loss with this gradient is

        L = (log q(u | k) - <stopped(s), x>) / D,   s = score(x, t_min)

    This is exact for an exact denoiser. A network's score at t_min is near the gradient of its flow's density only if
    it is well trained. Where it is not, q is less tight, and the bound is a bound all the same.

    Args:
        dequantiser: trained in place; `models.Dequantiser`.
        denoiser: fixed.
        sde: its path.
        loader: yields integers k (B, *D), or a dict with them as "x0" and conditioning of the denoiser.
        levels: of the integers.
        low: where the cells begin.
        high: where they end.
        images: the length of training, counted from the start and not from the state's position.
        state: optimiser, EMA, generator and progress; a new one by default, with Adam at 1e-3. Its model is
            `Model(dequantiser=dequantiser)`.
        schedule: factor on the optimiser's learning rate, as a function of the images seen.
        time: of the score, t_min by default. A network that is poor at t_min may be smoother a little later.
        limit: the noise that the network sees, |sigma s|, is clamped to this; off the data it sees more than there is.
        clip: largest norm of the gradient, None for no limit.

    Raises:
        ValueError: if the loader is empty, the time is outside the path, or the state is of another dequantiser.
    """
    if state is None:
        state = TrainingState(Model(dequantiser=dequantiser), torch.optim.Adam(dequantiser.parameters(), lr=1e-3))
    if state.model.dequantiser is not dequantiser:
        raise ValueError("expected a state of this dequantiser: build TrainingState(Model(dequantiser=dequantiser))")
    bound = objective(
        denoiser, sde, state.optimizer, levels=levels, low=low, high=high, time=time, limit=limit
    )  # fmt: skip
    return (step for (step,) in run(state, [bound], loader, images=images, schedule=schedule, clip=clip))


@torch.no_grad()
def dequantiser_gain(
    dequantiser: nn.Module,
    denoiser: DenoiserLike,
    sde: SDE,
    k: Tensor,
    uniform: Tensor,
    *,
    cond: Cond | None = None,
    levels: int,
    low: float = -1.0,
    high: float = 1.0,
    time: float | None = None,
    nodes: int = 4,
) -> Tensor:
    """What q adds to the uniform bound at these draws, in nats, (B,): an estimate without the ODE.

        log p(x_q) - log q(u | k) - log p(x_U),   log p(x_q) - log p(x_U) = int_0^1 <score(x_r), x_q - x_U> dr

    along the straight line x_r between the two, by Gauss and Legendre's rule.

    The gain of the flow itself takes two integrations of its ODE. The two gains differ where the network's score is not
    the gradient of its flow's density: after a short training, by a factor of several.

    Args:
        dequantiser: as for training.
        denoiser: as for training.
        sde: its path.
        k: integers, (B, *D).
        uniform: U, of the same shape, uniform on [0, 1).
        cond: keywords for the denoiser.
        levels: of the integers.
        low: where the cells begin.
        high: where they end.
        time: of the score, t_min by default.
        nodes: evaluations of the denoiser.
    """
    time = _within(sde, time)
    width = cell_width(levels, low=low, high=high)
    u, log_q = _placed(dequantiser, k, uniform, levels)
    total = -precise(log_q)
    for node, weight in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):
        r = (float(node) + 1) / 2
        x = place_in_cell(k, uniform + r * (u - uniform), levels, low=low, high=high)
        score = sde.score(denoiser, x, time, **(cond or {}))
        total = total + float(weight) / 2 * precise(score * width * (u - uniform)).flatten(1).sum(1)
    return total


def _placed(dequantiser: nn.Module, k: Tensor, uniform: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    u, log_q = dequantiser(cell_centres(k, levels), uniform)
    return like(u, k, "the dequantiser"), one_each(log_q, len(k), "the dequantiser's log_q")


def _within(sde: SDE, time: float | None) -> float:
    if time is not None and not sde.t_min <= time <= sde.t_max:
        raise ValueError(f"expected a time within the path's {sde.t_min} .. {sde.t_max}, got {time}")
    return sde.t_min if time is None else time
