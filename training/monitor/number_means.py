"""Means of what the steps report between two rows of a training log."""

import torch
import torch.distributed as dist
from torch import Tensor

from scorefield.training.distributed.ranks import Ranks


class NumberMeans:
    """Sums of named numbers over the steps between two rows, on the device of the steps.

    Sums are float64 and added in the order of the steps: with `state_dict` in a checkpoint, an interrupted window ends
    at the same bits. Only `means` and `state_dict` wait for the device. A name may come later than the others.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, **numbers: Tensor) -> None:
        """Count numbers (B,), or one number."""
        for name, values in numbers.items():
            values = values.detach().double().reshape(-1)
            pair = torch.stack((values.sum(), values.new_tensor(float(len(values)))))
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def means(self) -> dict[str, float]:
        """The mean of each number over all processes, which must all call with the same names."""
        if not self._sums:
            return {}
        sums = torch.stack([*self._sums.values()])
        if Ranks.current().world > 1:
            dist.all_reduce(sums)
        return dict(zip(self._sums, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))

    def clear(self) -> None:
        """Start the next window."""
        self._sums.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """This process's sums, on the CPU."""
        return {name: pair.cpu().clone() for name, pair in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Continue from these sums."""
        self._sums = {name: pair.to(device) for name, pair in state.items()}
