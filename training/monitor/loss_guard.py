"""A check of every step: it stops at a loss that is not finite or explodes, and names the layer."""

import math
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scorefield.sde_lib import SDE
from scorefield.training import weighting
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.engine import Step
from scorefield.training.monitor.find_nonfinite import BatchLoss, find_nonfinite, keep_batch
from scorefield.training.objectives.dsm import batch_loss

WARM_UP = 100  # steps before a loss can be called exploding, and the length of the running mean
OWN = 2  # a verdict; 1 where the step is bad in another process only
BEHIND = 4  # steps on a device whose verdicts need not have been read


class LossGuard:
    """Raises at the step whose loss or gradient is not finite, or whose loss is `explosion` times the running mean.

    Its method `accept` is passed to `train`, which calls it before the optimiser moves. Weights, moments and averages
    stay unchanged, and the batch can be run again on them to find the layer. On the CPU the error comes at the step
    itself. On CUDA nothing waits: verdicts are copied to the host when they are ready and read at most 4 steps later,
    while a flag on the device refuses those steps.

    Args:
        sde: the path in training, or None where there is none.
        denoiser: the module in training; without it no layer is named.
        loss: the losses of that module on a batch, by default those of `dsm.batch_loss` with the weighting `simple`.
        precision: bfloat16 or float16 where the network runs under autocast. With float16, whose gradients overflow
            now and then, an overflow costs only its step.
        explosion: the largest multiple of its running mean over some 100 steps that the loss may be, after 100 steps;
            0 for any.
        folder: where the batch is written, as bad_batch.pt; by default the current one.
    """

    def __init__(
        self,
        sde: SDE | None,
        denoiser: nn.Module | None = None,
        *,
        loss: BatchLoss | None = None,
        precision: torch.dtype = torch.float32,
        explosion: float = 1e3,
        folder: Path | str = ".",
    ) -> None:
        if math.isnan(explosion) or explosion < 0 or 0 < explosion <= 1:
            raise ValueError(f"expected an explosion to be 0 or more than 1 times the mean loss, got {explosion}")
        self.sde, self.denoiser, self.precision = sde, denoiser, precision
        if loss is None and sde is None:
            raise ValueError("expected the loss of a model without a path, got none: give it")
        self.loss: BatchLoss = loss or (lambda model, batch: batch_loss(model, sde, batch, weighting.simple))  # type: ignore[arg-type]
        self.explosion, self.folder = explosion, Path(folder)
        self._gradients = precision != torch.float16
        self._mean, self._seen = torch.zeros((), dtype=torch.float64), 0
        self._pending: deque[_Verdict] = deque()
        self._stopped = torch.zeros((), dtype=torch.bool)

    def accept(self, step: Step) -> Tensor:
        """Whether to take the step, () of bool; no step is taken after a bad one.

        Raises:
            ValueError: naming the step, the noise level and the layer, if it or one of the 4 before it is bad.
        """
        loss = step.loss.double()
        self._mean = mean = self._mean.to(loss.device)
        bad = ~loss.isfinite()
        if self._gradients:
            bad = bad | ~step.grad_norm.isfinite()
        if self.explosion and self._seen >= WARM_UP:
            bad = bad | (loss > self.explosion * mean)
        self._seen += 1
        self._mean = torch.where(bad, mean, torch.lerp(mean, loss, 1 / min(self._seen, WARM_UP)))
        anywhere = _anywhere(bad)  # no process takes a step that another does not
        self._stopped = self._stopped.to(loss.device) | anywhere
        accepted = step.grad_norm.isfinite() & ~self._stopped
        self._pending.append(_Verdict(step, mean, *_to_host(bad.int() + anywhere.int())))
        while self._pending and (len(self._pending) > BEHIND or self._pending[0].ready):
            self._read()
        return accepted

    def settle(self) -> None:
        """Read every verdict, waiting for the device, for example before a checkpoint.

        Raises:
            ValueError: as `accept` does.
        """
        while self._pending:
            self._read()

    def state_dict(self) -> dict[str, Any]:
        """The running mean."""
        return {"mean": float(self._mean), "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a running mean."""
        self._mean, self._seen = torch.tensor(state["mean"], dtype=torch.float64), int(state["seen"])

    def _read(self) -> None:
        verdict = self._pending.popleft()
        if verdict.event is not None:
            verdict.event.synchronize()
        if int(verdict.bad):
            self._pending.clear()
            self._stopped = torch.zeros_like(self._stopped)  # for a caller who continues after the error
        if int(verdict.bad) == OWN:
            raise ValueError(self._report(verdict.step, float(verdict.mean)))

    @torch.no_grad()
    def _report(self, step: Step, mean: float) -> str:
        losses = step.losses.double()
        finite = losses.isfinite()
        worst = int((~finite).double().argmax() if not bool(finite.all()) else losses.argmax())
        where_in_path, facts = "", dict[str, float](example=worst)
        if self.sde is not None:
            facts["log_snr"] = log_snr = float(self.sde.log_snr(step.times[worst]))
            where_in_path = f" at log-SNR {log_snr:.4g} (t = {float(step.times[worst]):.4g})"
        loss, norm, ranks = float(step.loss), float(step.grad_norm), Ranks.current()
        if not math.isfinite(loss):
            what = f"the loss is {loss}, in {int((~finite).sum())} of {len(losses)} examples"
        elif not math.isfinite(norm) and self._gradients:
            what = f"the gradient's norm is {norm} at a loss of {loss:.4g}"
        else:
            what = f"the loss is {loss:.4g}, {loss / mean:.3g} times its mean {mean:.4g}"
        if ranks.world > 1 and bool(finite.all()):
            what = f"of process {ranks.rank} of {ranks.world}, whose own examples have a finite loss, {what}"
        where = find_nonfinite(self.denoiser, step, self.loss, self.precision) if self.denoiser else ""
        try:
            kept = f"in {keep_batch(step, self.folder, **facts)}"
        except (OSError, RuntimeError) as error:  # the report matters more
            kept = f"not kept ({error})"
        return (
            f"step {step.step} ({step.images:,} images): {what}; the worst is example {worst}"
            f"{where_in_path}; {where and where + '; '}the batch is {kept}, earlier checkpoints are valid: lower "
            "training.learning_rate or training.clip"
        )


class _Verdict(NamedTuple):
    step: Step
    mean: Tensor
    bad: Tensor
    event: "torch.cuda.Event | None"

    @property
    def ready(self) -> bool:
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]


def _anywhere(bad: Tensor) -> Tensor:
    if Ranks.current().world == 1:
        return bad
    flag = bad.to(torch.uint8)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag.bool()


def _to_host(flag: Tensor) -> "tuple[Tensor, torch.cuda.Event | None]":
    """The flag on the host, to be read once its event is over."""
    if flag.device.type != "cuda":
        return flag, None
    host = torch.empty((), dtype=flag.dtype, pin_memory=True)
    host.copy_(flag, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(flag.device))
    return host, event
