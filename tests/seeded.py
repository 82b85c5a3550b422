"""Weights that any program can draw again from their names: what the fixtures of tests/fixtures were run with.

A tensor is drawn from a generator seeded with the CRC-32 of its name, in float64, and then scaled by what it is
for, so that no layer is zero (many networks start with some that are) and activations keep about their size.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"


def seeded_normal(name: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers of this shape, float64, the same for the same name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def seeded(name: str, shape: Sequence[int]) -> Tensor:
    """The parameter of this name: r / sqrt(fan in) from two axes on, gains 1 + 0.2 r, biases and the rest 0.2 r.

    A table of gains looked up by class ("...embed.weight") is gains as well.
    """
    r = seeded_normal(name, shape)
    if f".{name}".endswith(".embed.weight"):
        return 1 + 0.2 * r
    if r.ndim >= 2:
        return r / math.sqrt(r.numel() / r.shape[0])
    if name.endswith(("weight", "gamma", "alpha")):
        return 1 + 0.2 * r
    return 0.2 * r


def seeded_input(shape: Sequence[int]) -> Tensor:
    """What the networks were shown: standard normal, float64."""
    return seeded_normal("input", shape)


def state_dict(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Every parameter of a network from its name and shape."""
    return {name: seeded(name, shape) for name, shape in shapes.items()}


def load(name: str) -> dict[str, Any]:
    """The fixture of this name: tests/fixtures/README.md says what its entries are."""
    fixture: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    return fixture
