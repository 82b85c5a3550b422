"""A variance-preserving path that is learned: both ends of its log-SNR, and how it falls between them.

References:
    Kingma et al. 2021, "Variational Diffusion Models" (VDM), Section 3.2 and Appendix H.
    Sahoo et al. 2024, "Diffusion Models With Learned Adaptive Noise" (MuLAN), for the polynomial.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from scorefield.sde_lib.broadcast import as_tensor
from scorefield.sde_lib.paths import LogSNRVP

LINE = 1e-3  # of every interior is a straight line, so that no weights make it flat


class Interior(abc.ABC):
    """A family of rising functions of t in [0, 1]; `rise` is normalised afterwards to rise from 0 to 1."""

    @abc.abstractmethod
    def initial(self) -> list[Tensor]:
        """The weights of a new path, 1-D each."""

    @abc.abstractmethod
    def rise(self, t: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """A function that does not fall, shaped as t."""

    def share(self, t: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The share of the log-SNR's range that has passed at t: 0 at 0, 1 at 1, rising strictly (VDM, Appendix H)."""
        ends = self.rise(torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device), weights)
        risen = (self.rise(t, weights) - ends[0]) / (ends[1] - ends[0]).clamp(min=torch.finfo(t.dtype).tiny)
        return LINE * t + (1 - LINE) * risen


class Linear(Interior):
    """The straight line, without weights."""

    def initial(self) -> list[Tensor]:
        return []

    def rise(self, t: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return t


@dataclass(frozen=True)
class Monotone(Interior):
    """VDM's network:  |w| t + mean_i |v_i| sigmoid(|u_i| t + b_i)  with `size` features i (Appendix H).

    The sigmoids' steps are spread evenly over the path at first; in VDM's code all of them are in its middle. Theirs
    has 1024 features. On Gaussian data 64 came as near to the least variance.
    """

    size: int = 128

    def initial(self) -> list[Tensor]:
        steepness = torch.full((self.size,), 16.0)
        middle = (torch.arange(self.size) + 0.5) / self.size
        return [torch.ones(()), steepness, -steepness * middle, torch.ones(self.size)]

    def rise(self, t: Tensor, weights: Sequence[Tensor]) -> Tensor:
        line, steepness, shift, height = weights
        features = torch.sigmoid(t[..., None] * steepness.abs() + shift)
        return line.abs().sum() * t + features @ height.abs() / len(height)


class Polynomial(Interior):
    """int_0^t (a s^2 + b s + c)^2 ds, of degree five (MuLAN, Section 3.2)."""

    def initial(self) -> list[Tensor]:
        return [torch.tensor([0.0, 0.0, 1.0])]

    def rise(self, t: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return quintic(t, *weights[0])


@dataclass(frozen=True)
class Bins(Interior):
    """Straight lines between `size` + 1 equally spaced times; the softmax of the weights is their rises."""

    size: int = 64

    def initial(self) -> list[Tensor]:
        return [torch.zeros(self.size)]

    def rise(self, t: Tensor, weights: Sequence[Tensor]) -> Tensor:
        rises = weights[0].softmax(0)
        before = rises.cumsum(0) - rises
        i = (t * len(rises)).long().clamp(0, len(rises) - 1)
        return before[i] + (t * len(rises) - i) * rises[i]


def quintic(t: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """int_0^t (a s^2 + b s + c)^2 ds; coefficients broadcast with t."""
    return t * (c**2 + t * (b * c + t * ((b**2 + 2 * a * c) / 3 + t * (a * b / 2 + t * a**2 / 5))))


INTERIORS: dict[str, type[Interior]] = {
    "linear": Linear,
    "monotone": Monotone,
    "polynomial": Polynomial,
    "bins": Bins,
}


class LearnedVP(LogSNRVP, nn.Module):
    """A learned path:  lambda(t) = high - (high - low) share(t),  alpha^2 = sigmoid(lambda),  t from 0 to 1.

    Both ends are parameters, and the share goes from 0 to 1 exactly, whatever its weights are: the path begins at
    `high` and ends at `low`. Parameters follow the dtype and the device of t. `training.objectives.elbo` trains it.

    Kingma et al. 2021, Section 3.2, Appendix H and I.2.

    Args:
        interior: "linear", "monotone" (VDM's network), "polynomial" (MuLAN's) or "bins".
        low: the log-SNR at the noisy end, t = 1.
        high: the log-SNR at the end next to the data, t = 0.
        size: features of "monotone" (128 by default), or the number of "bins" (64).

    Raises:
        ValueError: for an unknown interior, ends in the wrong order, or a size that the interior does not take.
    """

    t_min = 0.0
    t_max = 1.0

    def __init__(
        self, interior: str = "monotone", low: float = -5.0, high: float = 13.3, size: int | None = None
    ) -> None:
        super().__init__()
        self.interior, self._interior = interior, _interior(interior, size)
        _check_ends(low, high)
        self.low = nn.Parameter(torch.tensor(float(low)))
        gap = high - low
        self.span = nn.Parameter(torch.tensor(gap + math.log(-math.expm1(-gap))))  # softplus(span) = high - low
        self.weights = nn.ParameterList(self._interior.initial())

    @property
    def high(self) -> Tensor:
        """The log-SNR at the end next to the data, which is always above `low`."""
        return self.low + softplus(self.span)

    def share(self, t: Tensor) -> Tensor:
        """The share of the log-SNR's range that has passed at t, shaped as t."""
        return self._interior.share(t, [weight.to(t) for weight in self.weights])

    def share_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The share and its derivative by t, with a graph to the interior's weights alone."""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            share = self.share(t)
            (slope,) = torch.autograd.grad(share.sum(), t, create_graph=len(self.weights) > 0)
        return (share, slope) if len(self.weights) else (share.detach(), slope)

    def ends(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high) in the dtype and on the device of t."""
        low = self.low.to(t)
        return low, low + softplus(self.span.to(t))

    def log_snr(self, t: Tensor | float) -> Tensor:
        t = as_tensor(t)
        low, high = self.ends(t)
        return torch.lerp(high, low, self.share(t))

    def time(self, log_snr: Tensor | float) -> Tensor:
        if self.interior != "linear":
            with torch.no_grad():
                return super().time(log_snr)
        target = as_tensor(log_snr).double()
        low, high = self.ends(target)
        return ((high - target) / (high - low)).clamp(0, 1).to(as_tensor(log_snr).dtype)

    def frozen(self) -> "FrozenVP":
        """The same path without parameters, as it is now."""
        low, high = (float(end.detach()) for end in self.ends(torch.zeros((), dtype=torch.float64)))
        weights = tuple(tuple(weight.detach().double().flatten().tolist()) for weight in self.weights)
        return FrozenVP(self.interior, low, high, weights)


@dataclass(frozen=True)
class FrozenVP(LogSNRVP):
    """A learned path that is no longer trained, as numbers: `LearnedVP.frozen` makes it.

    Args:
        interior: as in `LearnedVP`.
        low: the log-SNR at the noisy end, t = 1.
        high: the log-SNR at the end next to the data, t = 0.
        weights: of the interior.
    """

    interior: str = "linear"
    low: float = -5.0
    high: float = 13.3
    weights: tuple[tuple[float, ...], ...] = ()
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_ends(self.low, self.high)
        lengths = [len(weight) for weight in self.weights]
        longest = max(lengths, default=0)
        expected = [longest if each.numel() > 3 else each.numel() for each in _interior(self.interior, None).initial()]
        numbers = [number for weight in self.weights for number in weight]
        if lengths != expected or not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"expected {len(expected)} lists of finite weights of the interior {self.interior}, got lengths "
                f"{lengths}: take a path of LearnedVP.frozen()"
            )

    def log_snr(self, t: Tensor | float) -> Tensor:
        t = as_tensor(t)
        weights = [t.new_tensor(weight) for weight in self.weights]
        share = _interior(self.interior, None).share(t, weights)
        return torch.lerp(t.new_tensor(self.high), t.new_tensor(self.low), share)


def _interior(name: str, size: int | None) -> Interior:
    if name not in INTERIORS:
        raise ValueError(f"expected an interior of {', '.join(INTERIORS)}, got {name!r}")
    if size is None:
        return INTERIORS[name]()
    if name not in ("monotone", "bins") or size < 2:
        raise ValueError(f"expected a size of 2 or more, of a monotone interior or of bins, got {size} of {name}")
    return INTERIORS[name](size)  # type: ignore[call-arg]


def _check_ends(low: float, high: float) -> None:
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"expected a log-SNR that falls from high to low, got high={high:g} and low={low:g}: the end next to the "
            "data has the higher one, as low=-5, high=13.3"
        )
