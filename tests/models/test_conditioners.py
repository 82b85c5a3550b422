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
def test_dropped_conditioning_has_exactly_no_influence(case: str) -> None:
    """Gradients by weights and by what is given are exactly 0, and the null's alone are not."""
    net, raw = network(case)
    raw = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in raw.items()}
    known = torch.tensor([True, False, True])
    net(X, C_NOISE, known=known, **raw).square().sum().backward()
    for value in raw.values():
        if value.grad is not None and case != "boxes" and case != "boxes, published":  # numbers of a grid have none
            assert torch.equal(value.grad.flatten(1).abs().amax(1) > 0, known)
    net.zero_grad()
    net(X, C_NOISE, known=torch.zeros(3, dtype=torch.bool), **raw).square().sum().backward()
    dropped = [weight.grad for weight in net.parameters()]
    net.zero_grad()
    net(X, C_NOISE).square().sum().backward()
    for name, weight in net.named_parameters():
        other = dropped.pop(0)
        if other is None or weight.grad is None:
            assert not any(each is not None and each.any() for each in (other, weight.grad)), name
        else:
            assert_close(other, weight.grad, rtol=1e-5, atol=1e-6)


def test_prepared_conditioning_of_another_kind_is_refused_where_some_is_dropped() -> None:
    net, _ = network("text")
    known, tokens = torch.tensor([True, False, True]), torch.zeros(3, 4, 8)
    with pytest.raises(ValueError, match="expected context, as the conditioner makes it, got context and context_mask"):
        net(X, C_NOISE, known=known, context=tokens, context_mask=torch.ones(3, 4, dtype=torch.bool))


def test_only_the_token_of_nothing_learns_of_dropped_classes() -> None:
    net, raw = network("class_tokens")
    net(X, C_NOISE, known=torch.tensor([True, False, True]), **raw).square().sum().backward()
    assert isinstance(net.conditioner, ClassTokens)
    grad = net.conditioner.embed.weight.grad
    assert grad is not None
    assert grad.abs().amax(1).gt(0).tolist() == [True, False, True, False, False, True]  # not of class 4, dropped


def test_what_is_unknown_or_empty_is_nothing() -> None:
    for case, key, value in (("class_tokens", "label", 5), ("text", "tokens", 0), ("boxes", "boxes", -1)):
        net, raw = network(case)
        empty = torch.full_like(raw[key], value)
        assert torch.equal(net(X, C_NOISE, **{key: empty}), net(X, C_NOISE)), case


@pytest.mark.parametrize("masked", [False, True])
def test_the_transformer_is_that_of_torch(masked: bool) -> None:
    """With heads that share the width, and attention without biases in."""
    torch.manual_seed(2)
    conditioner = TextTransformer(9, length=4, masked=masked, **SMALL).double()
    tokens = CASES["text"][1]["tokens"]
    encoder = nn.ModuleList()
    for layer in conditioner.layers:
        other = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True).double()
        attention = layer.attention
        other.self_attn.in_proj_weight.data = torch.cat(
            [attention.query.weight, attention.key.weight, attention.value.weight]
        )
        other.self_attn.in_proj_bias.data.zero_()
        for ours, theirs in (
            (attention.project, other.self_attn.out_proj), (layer.norm_attention, other.norm1),
            (layer.norm_perceptron, other.norm2), (layer.expand, other.linear1), (layer.contract, other.linear2),
        ):  # fmt: skip
            theirs.load_state_dict(ours.state_dict())
        encoder.append(other)
    h = conditioner.token.weight[tokens] + conditioner.position.weight
    for other in encoder:
        h = other(h, src_key_padding_mask=tokens == 0 if masked else None)
    found = conditioner.prepare({"tokens": tokens})
    expected = nn.functional.layer_norm(h, (8,), conditioner.norm.weight, conditioner.norm.bias)
    seen = tokens != 0 if masked else tokens >= 0
    assert_close(found["context"][seen], expected[seen], rtol=1e-12, atol=1e-12)
    assert torch.equal(found["context_mask"], seen) if masked else "context_mask" not in found
    assert_close(conditioner.prepare({"tokens": tokens[:, :3]})["context"][:2], found["context"][:2])  # padded


def test_the_parameters_of_the_text_transformer_are_those_counted_by_hand() -> None:
    """By which the published one, 32 layers of 1280 with 8 heads of 64, has 543 million."""

    def count(vocabulary: int, length: int, width: int, layers: int, inner: int) -> int:
        layer = 4 * width * inner + width + 8 * width**2 + 5 * width + 4 * width
        return (vocabulary + length) * width + layers * layer + 2 * width

    conditioner = TextTransformer(11, width=24, layers=3, heads=2, head_width=5, length=6)
    assert sum(p.numel() for p in conditioner.parameters()) == count(11, 6, 24, 3, 10)
    assert count(30_522, 77, 1280, 32, 512) == 542_895_360


def test_boxes_are_classes_and_corners_on_a_grid() -> None:
    ours, published = Boxes(3, 2, 8), Boxes(3, 3, 8, vocabulary=70, crop=True)
    corner = lambda x, y: round(y * 7) * 8 + round(x * 7)  # noqa: E731
    rows = BOXES.tolist()
    for conditioner, shift, none in ((ours, 3, 67), (published, 0, 69)):
        numbers = conditioner.numbers(BOXES)
        for row, boxes in zip(numbers.tolist(), rows, strict=True):
            expected = []
            for kind, x0, y0, x1, y1 in boxes:
                box = [int(kind), shift + corner(x0, y0), shift + corner(x1, y1)]
                expected += [none] * 3 if kind < 0 else box
            expected += [none] * 3 + [0, 63] if conditioner.crop else []
            assert row == expected
    theirs = Boxes(182, 30, 90, vocabulary=8192, crop=True, **SMALL)
    assert theirs.position.weight.shape == (92, 8) and theirs.token.weight.shape == (8192, 8)


def test_absent_boxes_have_no_influence_unless_published() -> None:
    more = torch.cat([BOXES, torch.full((3, 1, 5), -1.0)], 1)
    for masked in (True, False):
        torch.manual_seed(3)
        net = ConditionedNetwork(Stub(2, 8), Boxes(3, 3, 8, masked=masked, **SMALL))
        assert torch.equal(net(X, C_NOISE, boxes=more), net(X, C_NOISE, boxes=BOXES))  # as many places
        assert isinstance(net.conditioner, Boxes)
        before = net(X, C_NOISE, boxes=BOXES)
        net.conditioner.token.weight.data[-1] += 1.0
        assert torch.equal(net(X, C_NOISE, boxes=BOXES), before) == masked


def test_a_map_is_its_mean_over_squares_by_a_kernel() -> None:
    conditioner = SemanticMap(3, 2, 2).double()
    kinds = torch.randint(-1, 3, (2, 8, 12), generator=GENERATOR)
    planes = torch.stack([kinds == number for number in range(3)], 1).double()
    expected = torch.einsum(
        "oc,bchw->bohw", conditioner.project.weight[:, :, 0, 0], nn.functional.avg_pool2d(planes, 4)
    )
    assert_close(conditioner.prepare({"map": kinds}, (2, 3))["concat"], expected, rtol=1e-12, atol=1e-12)
    assert SemanticMap(182).project.weight.shape == (3, 182, 1, 1)  # LDM's


def test_images_beside_x_are_as_given_or_resized() -> None:
    assert torch.equal(LowResolution(2).prepare({"low": IMAGES}, SIZE)["concat"], IMAGES)
    flat = LowResolution(2).prepare({"low": torch.full((3, 2, 2, 3), 0.5)}, SIZE)["concat"]
    assert_close(flat, torch.full((3, 2, 4, 4), 0.5))
    raw = CASES["masked"][1]
    concat = MaskedImage(2).prepare(raw, SIZE)["concat"]
    assert torch.equal(concat[:, :2], IMAGES)
    assert torch.equal(concat[:, 2] > 0, raw["mask"][:, 0, ::2, ::2]) and concat[:, 2].abs().eq(1).all()
    at_size = {**raw, "mask": raw["mask"][:, :, ::2, ::2].float()}
    assert torch.equal(MaskedImage(2).prepare(at_size, SIZE)["concat"], concat)
    missing = {"masked": torch.zeros(3, 2, 4, 4), "mask": torch.ones(3, 1, 8, 8)}
    assert torch.equal(MaskedImage(2).prepare(missing, SIZE)["concat"], MaskedImage(2).nothing(3, SIZE)["concat"])


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_of_a_caption_start_as_different_as_their_embeddings(masked: bool) -> None:
    torch.manual_seed(0)
    text = TextTransformer(30, 64, heads=4, head_width=16, length=12, masked=masked)
    tokens = torch.tensor([[2, 7, 20, 21, 9, 3], [2, 9, 20, 21, 7, 3]])
    with torch.no_grad():
        context = text.prepare({"tokens": tokens})["context"][:, :6]
    # Normalised tokens that have nothing in common differ by 1 in each feature, from their mean. Here what attention
    # adds to all takes a part of that; with embeddings of 0.02 they differed by 0.13.
    assert float(context.std(1).mean()) > 0.7
    assert float((context[0, 1] - context[1, 1]).square().mean().sqrt()) > 0.5  # "3 left of 5", "5 left of 3"
