"""Conditioners: what they make of raw keywords, and that nothing is the same however it is said."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.conditioners import (
    READY,
    Boxes,
    ClassTokens,
    Conditioner,
    LowResolution,
    MaskedImage,
    SemanticMap,
    TextTransformer,
)

GENERATOR = torch.Generator().manual_seed(0)
X, C_NOISE = torch.randn(3, 2, 4, 4, generator=GENERATOR), torch.tensor([-1.0, 0.5, 1.0])
SIZE = (4, 4)
SMALL: Mapping[str, Any] = {"width": 8, "layers": 2, "heads": 2, "head_width": 4}
IMAGES = torch.randn(3, 2, 4, 4, generator=GENERATOR)
BOXES = torch.tensor(
    [
        [[0, 0.0, 0.0, 0.5, 1.0], [2, 0.25, 0.5, 1.0, 1.0]],
        [[1, 0.1, 0.2, 0.3, 0.4], [-1, 0, 0, 0, 0]],
        [[2, 0.9, 0.0, 1.0, 0.2], [0, 0.5, 0.5, 0.6, 0.6]],
    ]
)
CASES: dict[str, tuple[Callable[[], Conditioner], dict[str, Tensor]]] = {
    "class_tokens": (lambda: ClassTokens(5, 8), {"label": torch.tensor([0, 4, 2])}),
    "text": (
        lambda: TextTransformer(9, length=4, **SMALL),
        {"tokens": torch.tensor([[2, 5, 3, 0], [2, 8, 3, 0], [2, 1, 1, 3]])},
    ),
    "text, masked": (
        lambda: TextTransformer(9, length=4, masked=True, empty=(2, 3), **SMALL),
        {"tokens": torch.tensor([[2, 5, 3], [2, 8, 3], [2, 1, 3]])},
    ),
    "boxes": (lambda: Boxes(3, 2, 8, **SMALL), {"boxes": BOXES}),
    "boxes, published": (lambda: Boxes(3, 3, 8, masked=False, vocabulary=70, crop=True, **SMALL), {"boxes": BOXES}),
    "map": (lambda: SemanticMap(3, 1, 2), {"map": torch.randint(-1, 3, (3, 8, 8), generator=GENERATOR)}),
    "low": (lambda: LowResolution(2), {"low": IMAGES}),
    "masked": (lambda: MaskedImage(2), {"masked": IMAGES, "mask": torch.rand(3, 1, 8, 8, generator=GENERATOR) < 0.5}),
}
cases = pytest.mark.parametrize("case", CASES)


class Stub(nn.Module):
    """A network with one cross-attention over the context, and a kernel over the images beside x."""

    def __init__(self, channels: int, context: int | None = None, concat: int = 0) -> None:
        super().__init__()
        self.q = nn.Conv2d(channels, 6, 1)
        self.kv = None if context is None else nn.Linear(context, 6 + channels)
        self.beside = nn.Conv2d(channels + concat, channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        out = self.beside(x if concat is None else torch.cat([x, concat], 1)) * c_noise[:, None, None, None]
        if self.kv is None:
            return out
        assert context is not None
        q, (k, v) = self.q(x).flatten(2).transpose(1, 2), self.kv(context).split([6, x.shape[1]], 2)
        scores = q @ k.transpose(1, 2)
        if context_mask is not None:
            scores = scores.masked_fill(~context_mask[:, None], -math.inf)
        return out + (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)


def network(case: str, **options: Any) -> tuple[ConditionedNetwork, dict[str, Tensor]]:
    torch.manual_seed(1)
    make, raw = CASES[case]
    conditioner = make()
    return ConditionedNetwork(Stub(2, conditioner.context, conditioner.concat), conditioner, **options), raw


@cases
def test_nothing_is_the_same_by_absence_and_by_known_and_alone(case: str) -> None:
    """In one batch with samples that have something, to the bit."""
    net, raw = network(case)
    absent, something = net(X, C_NOISE), net(X, C_NOISE, **raw)
    known = torch.tensor([True, False, True])
    mixed = net(X, C_NOISE, known=known, **raw)
    assert torch.equal(mixed[1], absent[1])
    assert torch.equal(mixed[known], something[known])
    assert torch.equal(net(X, C_NOISE, known=~known.new_ones(3), **raw), absent)
    assert_close(net(X[1:2], C_NOISE[1:2]), absent[1:2], rtol=1e-6, atol=1e-6)
    assert ((something - absent).flatten(1).abs().amax(1) > 1e-6).all()  # they differ where there is something


@cases
def test_prepared_is_unprepared_to_the_bit(case: str) -> None:
    net, raw = network(case)
    known = torch.tensor([True, False, True])
    prepared = net.conditioner.prepare({**raw, "known": known, "other": 3}, SIZE)
    assert prepared.pop("other") == 3
    assert {*prepared} <= {*READY} and prepared
    assert torch.equal(net(X, C_NOISE, **prepared), net(X, C_NOISE, known=known, **raw))
    assert torch.equal(net(X, C_NOISE, known=known, **net.conditioner.prepare(raw, SIZE)), net(X, C_NOISE, **prepared))
    assert net.conditioner.prepare({}) == {}


@cases
def test_dropped_conditioning_has_no_influence_and_the_rest_has(case: str) -> None:
    net, raw = network(case)
    known = torch.tensor([True, False, True])
    floats = [value.requires_grad_() for value in map(torch.clone, raw.values()) if value.is_floating_point()]
    if case == "low":
        net(X, C_NOISE, low=floats[0], known=known).square().sum().backward()
        assert floats[0].grad is not None
        assert torch.equal(floats[0].grad.flatten(1).abs().amax(1) > 0, known)
    net.zero_grad()
    net(X[1:2], C_NOISE[1:2], known=known[1:2], **{key: value[1:2] for key, value in raw.items()}).sum().backward()
    if isinstance(net.conditioner, ClassTokens):
        grad = net.conditioner.embed.weight.grad
        assert grad is not None
        assert torch.equal(grad.abs().amax(1) > 0, torch.arange(6) == 5)


def test_what_is_unknown_or_empty_is_nothing() -> None:
    for case, key, value in (("class_tokens", "label", 5), ("text", "tokens", 0), ("boxes", "boxes", -1)):
        net, raw = network(case)
        empty = torch.full_like(raw[key], value)
        assert torch.equal(net(X, C_NOISE, **{key: empty}), net(X, C_NOISE)), case
