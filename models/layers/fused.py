"""`activation` in loops of C, compiled once for this processor: an image is read twice and written once.

PyTorch's operations go through memory eight times on the way and fifteen on the way back, these three and six times.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("fused.c")
# As IEEE has it, but for errno and traps: what vectors need.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
WIDEST = 1 << 16  # channels whose sums fit on a thread's stack
TYPES = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}


class How(NamedTuple):
    """A probability of dropout, the groups and the eps of a normalisation, and whether there is a silu."""

    p: float
    groups: int
    eps: float
    act: bool


class _Norm(ctypes.Structure):
    """As fused.c has it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "mask", "weight", "bias", "added", "centre", "scale", "spread")),
        *((name, ctypes.c_int64) for name in ("batch", "pixels", "channels", "groups", "told")),
        *((name, ctypes.c_float) for name in ("eps", "kept")),
        ("silu", ctypes.c_int),
    )


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The loops for images of a type, compiled at the first call on a machine (a second or two) and kept.

    By the compiler that $CC names, or cc, into $XDG_CACHE_HOME/scorefield or ~/.cache/scorefield.

    Raises:
        ValueError: where there is no C compiler with OpenMP.
    """
    try:
        command = (*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, *TYPES[dtype])
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scorefield"
        made_of = repr((command, _processor())).encode() + SOURCE.read_bytes()
        file = folder / f"fused-{hashlib.sha256(made_of).hexdigest()[:16]}.so"
        with contextlib.suppress(OSError):  # it is not there, or not whole
            return ctypes.CDLL(str(file))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            built = Path(part) / file.name
            subprocess.run([*command, str(SOURCE), "-lm", "-o", str(built)], check=True, capture_output=True, text=True)
            os.replace(built, file)
        return ctypes.CDLL(str(file))
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", "")).strip() or str(error)
        raise ValueError(
            "expected a C compiler with OpenMP ($CC, or cc) and room for what it makes in $XDG_CACHE_HOME or ~/.cache, "
            f"got: {said.splitlines()[-1]} (without it: --nocompile, training.compile=false)"
        ) from None


def _processor() -> list[str]:
    """What the loops are compiled for: a home directory may be seen by several machines."""
    file = Path("/proc/cpuinfo")
    said = file.read_text().split("\n\n")[0].splitlines() if file.exists() else [platform.processor()]
    return [line for line in said if "MHz" not in line]


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the loops are for such images and weights."""
    return x.dtype in TYPES and weight.dtype == torch.float32 and x.shape[1] <= WIDEST


def activated(
    x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, mask: Tensor | None, how: How
) -> tuple[Tensor, ...]:
    """dropout(silu(weight norm(x + added) + bias)), and three tensors (B, C) that `gradients` wants.

    Args:
        x: (B, C, H, W), float32 or bfloat16.
        weight: float32, (B, C) or (C,).
        bias: as weight.
        added: float32, (B, C).
        mask: bytes, 0 where a value is dropped, as x.
        how: the rest.
    """
    x, mask, weight, bias, added = _last(x), _last(mask), _dense(weight), _dense(bias), _dense(added)
    y, found = torch.empty_like(x), torch.empty(3, *x.shape[:2]).unbind()
    norm = _norm(how, x, mask, weight, bias, added, *found)
    library(x.dtype).activated(norm, ctypes.c_void_p(y.data_ptr()))
    return y, *found


def gradients(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, found: Sequence[Tensor], how: How
) -> tuple[Tensor, ...]:
    """The gradients by x, weight, bias and added, each (B, C) but the first.

    Args:
        g: by what `activated` gave.
        x: what it was given.
        weight: likewise.
        bias: likewise.
        mask: likewise.
        found: what else it gave.
        how: what it was given.
    """
    x, mask, g, weight, bias = _last(x), _last(mask), _last(g.to(x.dtype)), _dense(weight), _dense(bias)
    by = torch.empty_like(x), *torch.empty(3, *x.shape[:2]).unbind()
    norm = _norm(how, x, mask, weight, bias, None, *found)
    library(x.dtype).gradients(norm, *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (g, *by)))
    return by


Some = TypeVar("Some", Tensor, Tensor | None)


def _last(x: Some) -> Some:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _dense(x: Some) -> Some:
    return None if x is None else x.float().contiguous()


def _norm(how: How, x: Tensor, mask: Tensor | None, weight: Tensor, *others: Tensor | None) -> "ctypes._CArgObject":
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in (x, mask, weight, *others)]
    batch, channels, height, width = x.shape
    sizes = batch, height * width, channels, how.groups, channels if weight.ndim == 2 else 0
    return ctypes.byref(_Norm(*pointers, *sizes, how.eps, 1 / (1 - how.p), how.act))
