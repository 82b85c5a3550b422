"""Features of a user's own module or function."""

import contextlib
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scorefield.evaluation.features.base import Features, StoredAs, fingerprint_of
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
            code = _source(type(function))
            self._fingerprint = fingerprint_of(function.state_dict(), "module", name, stored_as, code)
            return
        code = _source(getattr(function, "func", function))
        self._fingerprint = fingerprint_of({}, "function", name, stored_as, code)

    @property
    def recipe(self) -> str:
        return f"{self.name} ({self.fingerprint[:8]})"

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

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


def _source(of: Callable[..., object]) -> str:
    """The code of a class or a function; nothing where it has no file."""
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(of)
    return ""
