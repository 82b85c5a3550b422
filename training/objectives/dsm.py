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

DRAWN = ("x0", "eps", "times", "importance", "probe")  # of a batch; the rest is conditioning


def dsm_loss(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    *,
    weight: Weighting = weighting.simple,
    **cond: Any,
) -> Tensor:
    """w(t) |D(alpha x0 + sigma eps) - x0|^2 / D for each example, shape (B,): the mean over its D dimensions.

    Vincent 2011, "A Connection Between Score Matching and Denoising Autoencoders"; Song et al. 2021, Eq. 7. The times
    `t (B,)` and the standard normal `eps (B, *D)` are arguments, so a loss can be computed again.

    Raises:
        ValueError: if the noise, the denoiser's answer or the weight has another shape.
    """
    error = _squared_error(denoiser, sde, x0, t, eps, cond)
    return one_each(weight(sde, t).to(error) * error, len(x0), "the weight")


def batch_loss(
    denoiser: DenoiserLike, sde: SDE, batch: dict[str, Tensor], weight: Weighting, second_order: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """`dsm_loss` of a batch of x0, eps, times and conditioning, times its importance weights, (B,).

    `second_order` times `second_order_loss` is added to |eps_hat - eps|^2 / D. So both have the same weights.

    It reports eps_error, |eps_hat - eps|^2 / D = SNR |D - x0|^2 / D, (B,), which compares runs of other weightings; and
    second_order, (B,), where it is in the loss.
    """
    x0, eps, t, importance = batch["x0"], batch["eps"], batch["times"], batch.get("importance")
    cond = {name: value for name, value in batch.items() if name not in DRAWN}
    error = _squared_error(denoiser, sde, x0, t, eps, cond)
    snr = sde.log_snr(t).double().exp()
    numbers = {"eps_error": error.detach().double() * snr}
    if second_order:
        x, scales = sde.perturb(x0, t, eps), sde.scales(t)
        divergence = second_order_loss(denoiser, x, *scales, eps, batch["probe"], **cond)
        numbers["second_order"] = divergence.detach()
        error = error + second_order * divergence / snr.to(error)
    losses = one_each(weight(sde, t).to(error) * error, len(error), "the weight")
    return losses if importance is None else losses * importance.to(losses), numbers


def _squared_error(
    denoiser: DenoiserLike, sde: SDE, x0: Tensor, t: Tensor, eps: Tensor, cond: Mapping[str, Any]
) -> Tensor:
    error = predict_x0(denoiser, sde.perturb(x0, t, eps), *sde.scales(t), **cond) - x0
    return error.square().flatten(1).mean(1)


def objective(
    sde: SDE,
    optimizer: torch.optim.Optimizer,
    *,
    weight: Weighting = weighting.simple,
    times: Times = times_.stratified,
    second_order: float = 0.0,
    accept: Callable[[Step], Tensor] = finite,
) -> Objective:
    """Denoising score matching as an objective of the engine.

    Args:
        sde: the path; a learned one is the model's own.
        optimizer: of the weights.
        weight: see `training.weighting`.
        times: see `training.times`.
        second_order: how much of `second_order_loss` is added, for fine-tuning.
        accept: see `Objective`.
    """
    draw = Draw(sde, times, more=("probe",) if second_order else ())

    def loss(model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return batch_loss(model.denoiser, sde, batch, weight, second_order)

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
    dsm = objective(sde, state.optimizer, weight=weight, times=times, accept=accept)
    steps = run(
        state, [dsm], loader, images=images, schedule=schedule, clip=clip, precision=precision, accumulate=accumulate,
        recompute=recompute,
    )  # fmt: skip
    return (step for (step,) in steps)
