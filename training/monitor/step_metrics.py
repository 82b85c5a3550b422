"""Sums over the steps between two rows of a training log, on the device of the steps."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scorefield.sde_lib import SDE
from scorefield.training.engine import Step

WIDTH = 2.0  # of a bin, in log-SNR
FAR = 20.0  # the largest log-SNR of an edge: a path may start without noise or end without signal


class StepMetrics:
    """Sums over steps: the loss, the gradient's norm, and by noise level the loss and the error in the noise.

        eps_error = SNR |D - x0|^2 / D = |eps_hat - eps|^2 / D,

    the loss without its weight (DDPM's `simple`), which compares runs of different weightings. Whatever else an
    objective reports, such as the parts of a bound, gets a mean with its standard error. Bins of log-SNR are 2
    wide at multiples of 2, from one end of the path to the other, so they are the same for every path. A level beyond
    the last edge counts in the last bin. Sums are float64 and added in the order of the steps: with `state_dict` in a
    checkpoint, an interrupted window ends at the same bits. Only `means` and `state_dict` wait for the device.

    Args:
        sde: the path, for the log-SNR of a time.
        device: of the steps.
        parts: of the loss, which the objective reports. The "diffusion" part is also divided among the bins.
        numbers: what else it reports beside eps_error, of which the mean is kept.
    """

    def __init__(
        self,
        sde: SDE,
        device: torch.device | str = "cpu",
        parts: Sequence[str] = (),
        numbers: Sequence[str] = (),
    ) -> None:
        self.sde, self.parts, self.numbers = sde, tuple(parts), tuple(numbers)
        self.edges = level_edges(sde)
        self._inner = torch.tensor(self.edges[1:-1], dtype=torch.float64, device=device)
        self._bins = torch.arange(len(self.edges) - 1, device=device)
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=device)
        self._levels = zeros(4, len(self._bins))  # count, loss, eps error, diffusion
        self._totals = zeros(4)  # steps, loss, norm of the gradient, examples
        self._largest = zeros(())  # norm of the gradient
        # Of the sum of the parts, of each part and of each number: the sum, and that of squares.
        self._parts = zeros(2, 1 + len(self.parts) + len(self.numbers))

    @torch.no_grad()
    def add(self, step: Step) -> None:
        """Count a step."""
        log_snr, losses = self.sde.log_snr(step.times), step.losses.double()
        diffusion = step.numbers.get("diffusion", torch.zeros_like(losses))
        values = torch.stack((torch.ones_like(losses), losses, step.numbers["eps_error"].double(), diffusion.double()))
        inside = torch.bucketize(log_snr.double(), self._inner, right=True)[:, None] == self._bins
        self._levels += (values[:, :, None] * inside).sum(1)  # an index_add_ would add in any order on CUDA
        norm = step.grad_norm.double()
        self._totals += torch.stack((torch.ones_like(norm), step.loss.double(), norm, values[0].sum()))
        self._largest = torch.maximum(self._largest, norm)
        reported = [step.numbers[name].double() for name in (*self.parts, *self.numbers)]
        bound = torch.stack(reported[: len(self.parts)]).sum(0) if self.parts else losses  # the loss may have more
        parts = torch.stack((bound, *reported))
        self._parts += torch.stack((parts.sum(1), parts.square().sum(1)))

    def means(self) -> dict[str, Any]:
        """The numbers of the window over all processes, which must all call. Empty bins have None."""
        levels, totals, largest, parts = (each.clone() for each in self._sums().values())
        if dist.is_available() and dist.is_initialized():
            for each, how in (
                (levels, dist.ReduceOp.SUM), (totals, dist.ReduceOp.SUM), (largest, dist.ReduceOp.MAX),
                (parts, dist.ReduceOp.SUM),
            ):  # fmt: skip
                dist.all_reduce(each, how)
        counts, *sums, diffusion = levels.tolist()
        steps, loss, norm, examples = totals.tolist()
        loss_levels, errors = ([s / n if n else None for s, n in zip(row, counts, strict=True)] for row in sums)
        result: dict[str, Any] = {
            "loss": loss / steps,
            "grad_norm": norm / steps,
            "grad_norm_max": float(largest),
            "levels": {
                "edges": self.edges,
                "count": [int(count) for count in counts],
                "loss": loss_levels,
                "eps_error": errors,
            },
        }
        mean, square = (parts / examples).unbind()
        result |= dict(zip(self.numbers, mean[1 + len(self.parts) :].tolist(), strict=True))
        if self.parts:
            error = ((square - mean.square()).clamp(min=0) / max(examples - 1, 1)).sqrt()
            names = ("total", *self.parts)
            pairs = torch.stack((mean, error), 1)[: len(names)].tolist()
            result["parts"] = dict(zip(names, pairs, strict=True))
            result["levels"]["diffusion"] = [each / examples for each in diffusion]
        return result

    def clear(self) -> None:
        """Start the next window."""
        for each in self._sums().values():
            each.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """This process's sums, on the CPU."""
        return {name: each.cpu().clone() for name, each in self._sums().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from these sums; sums of other bins (of another path) are ignored."""
        ours = self._sums()
        if all(name in state and state[name].shape == each.shape for name, each in ours.items()):
            for name, each in ours.items():
                each.copy_(state[name])

    def _sums(self) -> dict[str, Tensor]:
        return {"levels": self._levels, "totals": self._totals, "largest": self._largest, "parts": self._parts}


def level_edges(sde: SDE) -> list[float]:
    """Multiples of 2 in log-SNR, from below the path's noisy end to above its clean one, within [-20, 20].

    A learned path, whose ends move, has all of them.
    """
    if isinstance(sde, nn.Module):
        return [WIDTH * i for i in range(-round(FAR / WIDTH), round(FAR / WIDTH) + 1)]
    ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    low, high = sde.log_snr(ends).clamp(-FAR, FAR).tolist()
    first, last = math.floor(low / WIDTH), math.ceil(high / WIDTH)
    return [WIDTH * i for i in range(first, max(last, first + 1) + 1)]
