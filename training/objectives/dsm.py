"""Denoising score matching."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from scorefield.sde_lib import SDE
from scorefield.sde_lib.arguments import check_denoiser
from scorefield.sde_lib.broadcast import one_each
from scorefield.sde_lib.denoiser import DenoiserLike, predict_x0
from scorefield.sde_lib.sde import check_path
from scorefield.training import times as times_
from scorefield.training import weighting
from scorefield.training.data.units import FirstBatch
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.engine import Batch, Objective, Step, finite, run
from scorefield.training.model import Model
from scorefield.training.objectives.second_order import second_order_loss
from scorefield.training.state import TrainingState
from scorefield.training.times import ImportanceTimes, Measured, Times
from scorefield.training.weighting import Weighting

NORMS = ("l2", "l1")  # of the error
DRAWN = ("x0", "eps", "times", "importance", "probe")  # of a batch; the rest is conditioning


def dsm_loss(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    *,
    weight: Weighting = weighting.simple,
    norm: str = "l2",
    **cond: Any,
) -> Tensor:
    """w(t) |D(alpha x0 + sigma eps) - x0|^2 / D for each example, shape (B,): the mean over its D dimensions.

    Vincent 2011, "A Connection Between Score Matching and Denoising Autoencoders"; Song et al. 2021, Eq. 7. The times
    `t (B,)` and the standard normal `eps (B, *D)` are arguments, so a loss can be computed again.

    With the norm "l1" it is  sqrt(w) |D - x0|_1 / D.  At the weight `simple` that is the mean of |eps_hat - eps|, as
    four recipes of Rombach et al. 2022 have it. Its minimiser is the median of the noise, not the mean.

    Raises:
        ValueError: if the noise, the denoiser's answer or the weight has another shape, or for another norm.
    """
    error = _error(denoiser, sde, x0, t, eps, cond)
    return _weighted(error, weight(sde, t), norm)


def batch_loss(
    denoiser: DenoiserLike,
    sde: SDE,
    batch: dict[str, Tensor],
    weight: Weighting,
    second_order: float = 0.0,
    norm: str = "l2",
) -> tuple[Tensor, dict[str, Tensor]]:
    """`dsm_loss` of a batch of x0, eps, times and conditioning, times its importance weights, (B,).

    `second_order` times `second_order_loss` is added to |eps_hat - eps|^2 / D. So both have the same weights.

    It reports eps_error, |eps_hat - eps|^2 / D = SNR |D - x0|^2 / D, (B,), which compares runs of other weightings and
    norms; and second_order, (B,), where it is in the loss.

    Raises:
        ValueError: as `dsm_loss`, or for another norm than "l2" with the second-order loss.
    """
    x0, eps, t, importance = batch["x0"], batch["eps"], batch["times"], batch.get("importance")
    cond = {name: value for name, value in batch.items() if name not in DRAWN}
    error = _error(denoiser, sde, x0, t, eps, cond)
    squared = error.detach().square().flatten(1).mean(1).double()
    numbers = {"eps_error": squared * sde.log_snr(t).double().exp()}
    losses = _weighted(error, weight(sde, t), norm)
    if second_order:
        if norm != "l2":
            raise ValueError(f"expected the norm l2 with the second-order loss, got {norm}: leave one of them out")
        x, scales = sde.perturb(x0, t, eps), sde.scales(t)
        divergence = second_order_loss(denoiser, x, *scales, eps, batch["probe"], **cond)
        numbers["second_order"] = divergence.detach()
        losses = losses + second_order * (weight(sde, t) / sde.log_snr(t).exp()).to(losses) * divergence
    return losses if importance is None else losses * importance.to(losses), numbers


def _error(denoiser: DenoiserLike, sde: SDE, x0: Tensor, t: Tensor, eps: Tensor, cond: Mapping[str, Any]) -> Tensor:
    return predict_x0(denoiser, sde.perturb(x0, t, eps), *sde.scales(t), **cond) - x0


def _weighted(error: Tensor, weight: Tensor, norm: str) -> Tensor:
    """The mean of an error (B, *D) in a norm, of a weight (B,) of its square, (B,)."""
    if norm not in NORMS:
        raise ValueError(f"expected a norm among {', '.join(NORMS)}, got {norm!r}")
    values, weight = (error.square(), weight) if norm == "l2" else (error.abs(), weight.sqrt())
    mean = values.flatten(1).mean(1)
    return one_each(weight.to(mean) * mean, len(mean), "the weight")


def objective(
    sde: SDE,
    optimizer: torch.optim.Optimizer,
    *,
    weight: Weighting = weighting.simple,
    times: Times = times_.stratified,
    second_order: float = 0.0,
    norm: str = "l2",
    accept: Callable[[Step], Tensor] = finite,
) -> Objective:
    """Denoising score matching as an objective of the engine.

    Args:
        sde: the path; a learned one is the model's own.
        optimizer: of the weights.
        weight: see `training.weighting`.
        times: see `training.times`.
        second_order: how much of `second_order_loss` is added, for fine-tuning.
        norm: of the error, "l2" or "l1"; see `dsm_loss`.
        accept: see `Objective`.
    """
    draw = Draw(sde, times, more=("probe",) if second_order else ())

    def loss(model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return batch_loss(model.denoiser, sde, batch, weight, second_order, norm)

    return Objective(optimizer, loss, draw, accept=accept, after=draw.after)


class Draw:
    """The random numbers of a batch: times with their importance weights, and standard normals.

    Args:
        sde: the path.
        times: see `training.times`; `Measured` times see the errors of every step.
        more: names of further standard normals of the shape of x0.
    """

    def __init__(self, sde: SDE, times: Times, more: Sequence[str] = ()) -> None:
        self.sde, self.times, self.more = sde, times, more
        self._in_units = FirstBatch()

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        x0 = self._in_units(batch["x0"], next(model.parameters()).dtype)
        t = self.times(self.sde, len(x0), generator)
        drawn = {"x0": x0, "times": t}
        for name in ("eps", *self.more):
            drawn[name] = torch.randn(x0.shape, generator=generator, device=generator.device, dtype=x0.dtype)
        if isinstance(self.times, ImportanceTimes):
            drawn["importance"] = self.times.weight(self.sde, t)
        return drawn

    def after(self, step: Step) -> None:
        """Give `Measured` times the errors of the step, those of all processes."""
        if isinstance(self.times, Measured):
            ranks = Ranks.current()
            at, errors = self.sde.log_snr(step.times).detach(), step.numbers["eps_error"]
            self.times.see(self.sde, ranks.all_gather(at), ranks.all_gather(errors))


def train(
    denoiser: nn.Module,
    sde: SDE,
    loader: Iterable[Batch],
    *,
    images: int,
    weight: Weighting = weighting.simple,
    times: Times = times_.stratified,
    norm: str = "l2",
    state: TrainingState | None = None,
    schedule: Callable[[int], float] = lambda images: 1.0,
    clip: float | None = 1.0,
    precision: torch.dtype = torch.float32,
    accumulate: int = 1,
    recompute: bool = False,
    accept: Callable[[Step], Tensor] = finite,
) -> Iterator[Step]:
    """Train a denoiser by denoising score matching until `images` have been seen: one record a step.

    A thin face of `training.engine.run`, which describes the other arguments and several processes.

    Args:
        denoiser: trained in place.
        sde: the path; one that is an `nn.Module` is trained with the denoiser.
        loader: see `run`.
        images: see `run`.
        weight: see `training.weighting`.
        times: see `training.times`.
        norm: of the error, "l2" or "l1"; see `dsm_loss`.
        state: optimiser, averages, generator and progress, to keep or to resume; a new one by default. With a learned
            path its model is `Model(denoiser, sde)`.
        schedule: see `run`.
        clip: see `run`.
        precision: see `run`.
        accumulate: see `run`.
        recompute: see `run`.
        accept: whether to take a step; see `Objective`, and `LossGuard` for one that stops at bad steps.

    Raises:
        ValueError: as `run` does, or if the state is of another denoiser or learned path.
    """
    check_path(sde)
    check_denoiser(denoiser, {})
    state = state or TrainingState(Model(denoiser, sde))
    if state.model.denoiser is not denoiser or (isinstance(sde, nn.Module) and state.model.sde is not sde):
        raise ValueError(
            "expected a state of this denoiser and learned path: build TrainingState(Model(denoiser, sde))"
        )
    dsm = objective(sde, state.optimizer, weight=weight, times=times, norm=norm, accept=accept)
    steps = run(
        state, [dsm], loader, images=images, schedule=schedule, clip=clip, precision=precision, accumulate=accumulate,
        recompute=recompute,
    )  # fmt: skip
    return (step for (step,) in steps)
