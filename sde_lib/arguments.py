"""Checks of what is passed to solvers, losses and bounds, and how an error shows a value."""

import inspect
from collections.abc import Callable, Mapping, Sized
from typing import Any

from torch import Tensor, nn

MOST = 100  # characters of a value in an error


def shown(value: object) -> str:
    """A value for an error: on one line, and short, whatever it holds."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    if isinstance(value, nn.Module) or hasattr(value, "shape") or type(value).__repr__ is object.__repr__:
        shape = getattr(value, "shape", None)
        return type(value).__name__ + (f" {tuple(shape)}" if isinstance(shape, tuple) else "")
    if isinstance(value, list | tuple) and any(hasattr(each, "shape") for each in value):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(map(shown, value[:3]))}"
    text = " ".join((f"{type(value).__name__}: {value}" if isinstance(value, Exception) else repr(value)).split())
    if isinstance(value, Mapping):
        text = f"a dict of {', '.join(f'{key}: {shown(each)}' for key, each in value.items())}"
    if len(text) <= MOST:
        return text
    count = f" ({len(value)} in all)" if isinstance(value, Sized) else ""
    return f"{text[:MOST]} ...{count}"


def check_denoiser(denoiser: Callable[..., Tensor], cond: Mapping[str, Any]) -> None:
    """Raises ValueError for what cannot be called as `denoiser(x, alpha, sigma, **cond)`, such as a bare network."""
    expected = "expected a denoiser, called as D(x, alpha, sigma, **cond)"
    if isinstance(denoiser, type) or not callable(denoiser):
        raise ValueError(f"{expected}, got {shown(denoiser)}: pass the denoiser first, as solver(denoiser, sde, x, ts)")
    try:
        signature = inspect.signature(denoiser.forward if isinstance(denoiser, nn.Module) else denoiser)
    except (TypeError, ValueError):  # of some built-in functions
        return
    called = f"{shown(denoiser)}, called with ({', '.join(signature.parameters)})"
    try:
        third = signature.parameters[[*signature.bind_partial(0, 1, 2).arguments][-1]]
        optional = third.default is not inspect.Parameter.empty and third.name != "sigma"  # as in (x, t, label=None)
        network = isinstance(denoiser, nn.Module) and optional
    except TypeError:
        network = True
    if network:
        raise ValueError(f"{expected}, got {called}: wrap a network, as Denoiser(net, precondition.eps)")
    try:
        signature.bind_partial(0, 1, 2, **cond)
    except TypeError as error:
        raise ValueError(f"{expected}, got {called} and {error}: change cond={{...}} or the denoiser") from None


def check_samples(x: Tensor) -> None:
    """Raises ValueError unless x is a tensor of floating-point numbers."""
    if not isinstance(x, Tensor):
        raise ValueError(f"expected samples x as a tensor (B, *D), got {shown(x)}: use torch.as_tensor(x)")
    if x.is_complex():
        raise ValueError(
            f"expected real samples, got {x.dtype}: make two channels of them by torch.view_as_real, moved to axis 1"
        )
    if not x.is_floating_point():
        raise ValueError(f"expected floating-point samples, got {x.dtype}: dequantise integers, or cast them")
