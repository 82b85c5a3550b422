"""Features of a user's own module or function."""

import contextlib
import hashlib
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scorefield.evaluation.features.base import Features, StoredAs
from scorefield.evaluation.features.own import averaged


class OfModule(Features):
    """What a module or function makes of samples in float32: levels as 0 .. 1, continuous values unchanged.

    It takes (N, *D) and answers with (N, d); further axes are averaged. A module is in evaluation mode.

    Args:
        function: the module or function.
        name: for the recipe.
        stored_as: how samples are stored.
        device: that computes.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], name: str, stored_as: StoredAs, device: torch.device | str = "cpu"
    ) -> None:
        self.name, self.stored_as, self.device = name, stored_as, torch.device(device)
        self.function = function
        if isinstance(function, nn.Module):
            self.function = function.to(self.device).eval().requires_grad_(False)

    @property
    def recipe(self) -> str:
        return self.name

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"module {self.name} {self.stored_as}".encode())
        if isinstance(self.function, nn.Module):
            for name, value in sorted(self.function.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            with contextlib.suppress(OSError, TypeError):  # of a function without a file
                digest.update(inspect.getsource(self.function).encode())
        return digest.hexdigest()

    @torch.no_grad()
    def __call__(self, stored: Tensor) -> dict[str, Tensor]:
        unit = self.stored_as.unit(stored).to(self.device)
        try:
            h = self.function(unit)
        except Exception as error:  # it is code of a user's, which may raise anything
            what = " ".join(f"{type(error).__name__}: {error}".split())[:150]
            raise ValueError(
                f"expected {self.name} to take float32 samples {tuple(unit.shape)} as features, got {what}: "
                "correct it, or take other features"
            ) from error
        if not isinstance(h, Tensor) or h.ndim < 2 or len(h) != len(stored):
            got = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise ValueError(
                f"expected {self.name} to answer with a tensor ({len(stored)}, d), got {got}: return a row for each "
                "sample"
            )
        return {"features": averaged(h, len(self.stored_as.shape)).float().cpu()}
