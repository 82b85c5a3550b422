"""Training a dequantiser for a denoiser that is done: the bound on log P(k) raised by the score alone."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import expand, precise
from scorefield.sde_lib.denoiser import Cond, DenoiserLike
from scorefield.sde_lib.quantise import cell_to_value, cell_width
from scorefield.training.engine import Batch, TrainingState, _split, cycle


class DequantiserStep(NamedTuple):
    """What happened in a step. The tensors are left on their device: read them when you need them."""

    step: int
    images: int
    log_q: Tensor  # the batch's mean of log q(u | k), in nats a dimension: 0 is uniform, more is narrower
    grad_norm: Tensor
    learning_rate: float


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
) -> Iterator[DequantiserStep]:
    """Steps up  E_q[log p(x) - log q(u | k)],  x = low + (high - low) (k + u) / levels  (Ho et al. 2019, Eq. 13).

    Only the gradient of log p is needed, and that is the score at t_min, which the denoiser knows: one evaluation of
    it a step, and none of its backward pass or of the flow's ODE. The loss whose gradient is right is

        L = (log q(u | k) - <stopped(s), x>) / D,   s = score(x, t_min)

    That is exact of an exact denoiser. A network's score at t_min is near the gradient of its flow's density only if it
    is well trained; where it is not, q is less tight, and the bound is a bound all the same.

    Args:
        dequantiser: trained in place; `models.Dequantiser`.
        denoiser: fixed.
        sde: its path.
        loader: yields integers k (B, *D), or a dict with them as "x0" and conditioning of the denoiser.
        levels: of the integers.
        low: where the cells begin.
        high: where they end.
        images: the length of training, counted from the start, not from where `state` stands.
        state: optimiser, EMA, generator and progress; a new one by default, with Adam at 1e-3.
        schedule: factor on the optimiser's learning rate, as a function of the images seen.
        time: of the score, t_min by default. A network that is poor at t_min may be smoother a little later.
        limit: |sigma s|, the noise the network sees, is cut at this: off the data it sees more than there is.
        clip: largest norm of the gradient, None for no limit.

    Raises:
        ValueError: if the loader has nothing to give, or the time is not within the path.
    """
    state = state or TrainingState(dequantiser, torch.optim.Adam(dequantiser.parameters(), lr=1e-3))
    device = next(dequantiser.parameters()).device
    time = _within(sde, time)
    rates = [group.setdefault("initial_lr", group["lr"]) for group in state.optimizer.param_groups]
    batches = cycle(loader)
    dequantiser.train()
    while state.images < images:
        k, cond = _split(next(batches), device)
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(state.images)

        image = cell_to_value(k.float() + 0.5, levels)
        uniform = torch.rand(image.shape, generator=state.generator, device=device, dtype=image.dtype)
        u, log_q = dequantiser(image, uniform)
        x = cell_to_value(k + u, levels, low=low, high=high)
        with torch.no_grad():
            score, most = sde.score(denoiser, x.detach(), time, **cond), expand(limit / sde.scales(time)[1], x)
            score = score.clamp(-most, most)
        dims = k[0].numel()
        loss = (log_q - (score * x).flatten(1).sum(1)).mean() / dims
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(dequantiser.parameters(), float("inf") if clip is None else clip)
        state.optimizer.step()
        state.ema.update(dequantiser)

        state.step += 1
        state.images += len(k)
        rate = float(state.optimizer.param_groups[0]["lr"])
        yield DequantiserStep(state.step, state.images, log_q.detach().mean() / dims, norm, rate)


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
    """What q adds to the uniform bound at these draws, in nats, (B,): an estimate that follows no ODE.

        log p(x_q) - log q(u | k) - log p(x_U),   log p(x_q) - log p(x_U) = int_0^1 <score(x_r), x_q - x_U> dr

    along the straight line x_r between the two, by Gauss and Legendre's rule.

    What the flow itself gains, two of its integrations tell: for a network whose score is not the gradient of its
    flow's density the two differ, by a factor of several after a short training.

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
    u, log_q = dequantiser(cell_to_value(k.float() + 0.5, levels), uniform)
    total = -precise(log_q)
    for node, weight in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):
        r = (float(node) + 1) / 2
        x = cell_to_value(k + uniform + r * (u - uniform), levels, low=low, high=high)
        score = sde.score(denoiser, x, time, **(cond or {}))
        total = total + float(weight) / 2 * precise(score * width * (u - uniform)).flatten(1).sum(1)
    return total


def _within(sde: SDE, time: float | None) -> float:
    if time is not None and not sde.t_min <= time <= sde.t_max:
        raise ValueError(f"expected a time within the path's {sde.t_min} .. {sde.t_max}, got {time}")
    return sde.t_min if time is None else time
