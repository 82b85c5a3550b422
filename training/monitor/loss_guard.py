"""What looks at every step for a loss that is no number or explodes, and says where it came from."""

import math
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scorefield.sde_lib import SDE
from scorefield.training import weighting
from scorefield.training.checkpoints.randomness import processes, rank
from scorefield.training.engine import Step
from scorefield.training.monitor.find_nonfinite import find_nonfinite, keep_batch
from scorefield.training.weighting import Weighting

WARM_UP = 100  # steps before a loss can be called exploding, and the length of the mean it is held against
OURS = 2  # a verdict: 1 where the step is bad in another process alone
BEHIND = 4  # steps that may be under way on the device before their verdicts are waited for


class LossGuard:
    """Raises at the step whose loss or gradient is not finite, or whose loss is `explosion` times the running mean.

    Given to `train` as `sound`, it also keeps that step, and any after it, from being taken: weights, moments and
    averages stay what they were, and the batch can be run again on them to find the layer. On the CPU the verdict comes
    at the step itself. On CUDA nothing waits: verdicts are copied to the host as they get ready and read at most 4
    steps later, when a flag on the device has already kept those steps from being taken.

    Args:
        sde: the path in training.
        denoiser: the module in training; without it no layer is named.
        weight: of the loss.
        precision: bfloat16 or float16 where the network runs under autocast. With float16, in which gradients overflow
            now and then, that costs the step alone.
        explosion: how many times its running mean over some 100 steps the loss may be, once there were 100; 0 for any.
        folder: where the batch is kept, as bad_batch.pt; by default the present one.
    """

    def __init__(
        self,
        sde: SDE,
        denoiser: nn.Module | None = None,
        *,
        weight: Weighting = weighting.simple,
        precision: torch.dtype = torch.float32,
        explosion: float = 1e3,
        folder: Path | str = ".",
    ) -> None:
        if math.isnan(explosion) or explosion < 0 or 0 < explosion <= 1:
            raise ValueError(f"expected an explosion to be 0 or more than 1 times the mean loss, got {explosion}")
        self.sde, self.denoiser, self.weight, self.precision = sde, denoiser, weight, precision
        self.explosion, self.folder = explosion, Path(folder)
        self._gradients = precision != torch.float16
        self._mean, self._seen = torch.zeros((), dtype=torch.float64), 0
        self._pending: deque[_Verdict] = deque()
        self._stopped = torch.zeros((), dtype=torch.bool)
        self._judged: tuple[Tensor, Tensor] | None = None  # mean and verdict of a step that is not seen yet

    def sound(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Judge a step before it is taken, for `train`: whether it may be, () of bool; never after a bad one."""
        loss = loss.double()
        self._mean = mean = self._mean.to(loss.device)
        bad = ~loss.isfinite()
        if self._gradients:
            bad = bad | ~grad_norm.isfinite()
        if self.explosion and self._seen >= WARM_UP:
            bad = bad | (loss > self.explosion * mean)
        self._seen += 1
        self._mean = torch.where(bad, mean, torch.lerp(mean, loss, 1 / min(self._seen, WARM_UP)))
        anywhere = _anywhere(bad)  # no process takes a step that another does not
        self._judged, self._stopped = (mean, bad.int() + anywhere.int()), self._stopped.to(loss.device) | anywhere
        return grad_norm.isfinite() & ~self._stopped

    def see(self, step: Step) -> None:
        """Tell of a step, once `train` has given it.

        Raises:
            ValueError: that names the step, the noise level and the layer, if it (or one shortly before) is bad.
        """
        if self._judged is None:
            self.sound(step.loss, step.grad_norm)
        assert self._judged is not None
        (mean, bad), self._judged = self._judged, None
        self._pending.append(_Verdict(step, mean, *_to_host(bad)))
        while self._pending and (len(self._pending) > BEHIND or self._pending[0].ready):
            self._read()

    def settle(self) -> None:
        """Read every verdict, waiting for the device; before a checkpoint, say.

        Raises:
            ValueError: as `see` does.
        """
        while self._pending:
            self._read()

    def state_dict(self) -> dict[str, Any]:
        """The running mean."""
        return {"mean": float(self._mean), "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from that mean."""
        self._mean, self._seen = torch.tensor(state["mean"], dtype=torch.float64), int(state["seen"])

    def _read(self) -> None:
        verdict = self._pending.popleft()
        if verdict.event is not None:
            verdict.event.synchronize()
        if int(verdict.bad):
            self._pending.clear()
            self._stopped = torch.zeros_like(self._stopped)  # whoever goes on all the same may
        if int(verdict.bad) == OURS:
            self._tell(verdict.step, float(verdict.mean))

    def _tell(self, step: Step, mean: float) -> None:
        losses = step.losses.double()
        finite = losses.isfinite()
        worst = int((~finite).double().argmax() if not bool(finite.all()) else losses.argmax())
        t = float(step.times[worst])
        log_snr = float(self.sde.log_snr(step.times[worst]))
        loss, norm = float(step.loss), float(step.grad_norm)
        if not math.isfinite(loss):
            what = f"the loss is {loss}, in {int((~finite).sum())} of {len(losses)} examples"
        elif not math.isfinite(norm) and self._gradients:
            what = f"the gradient's norm is {norm} at a loss of {loss:.4g}"
        else:
            what = f"the loss is {loss:.4g}, {loss / mean:.3g} times its mean {mean:.4g}"
        if processes() > 1 and bool(finite.all()):
            what = f"of process {rank()} of {processes()}, whose own examples have a finite loss, {what}"
        where = find_nonfinite(self.denoiser, self.sde, step, self.weight, self.precision) if self.denoiser else ""
        try:
            kept = f"in {keep_batch(step, self.folder, log_snr=log_snr, example=worst)}"
        except (OSError, RuntimeError) as error:  # what it has to say is worth more
            kept = f"not kept ({error})"
        raise ValueError(
            f"step {step.step} ({step.images:,} images): {what}; the worst is example {worst} at log-SNR {log_snr:.4g} "
            f"(t = {t:.4g}); {where and where + '; '}the batch is {kept}, earlier checkpoints are whole: lower "
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
    if processes() == 1:
        return bad
    flag = bad.to(torch.uint8)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag.bool()


def _to_host(flag: Tensor) -> "tuple[Tensor, torch.cuda.Event | None]":
    """The flag where it can be read once its event is over."""
    if flag.device.type != "cuda":
        return flag, None
    host = torch.empty((), dtype=flag.dtype, pin_memory=True)
    host.copy_(flag, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(flag.device))
    return host, event
