"""Cross-attention and the spatial transformer: torch's own attention, and what masked tokens may not do."""

import math

import pytest
import torch
from seeded import seeded_normal
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.functional import gelu, group_norm, layer_norm, multi_head_attention_forward
from torch.testing import assert_close

from scorefield.models.layers.attention import CrossAttention
from scorefield.models.layers.transformer import SpatialTransformer, TransformerBlock


def alive(net: nn.Module) -> nn.Module:
    """With every weight random, in float64."""
    net.double()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            weight.copy_(seeded_normal(name, weight.shape) / math.sqrt(max(weight[0].numel(), 4)))
    return net.eval().requires_grad_(False)


def normal(name: str, *shape: int) -> Tensor:
    return seeded_normal(name, shape)


MASK = torch.tensor([[True, True, False, True, False], [False] * 5, [True] * 5])


@pytest.mark.parametrize("context", [None, 6])
def test_cross_attention_is_torchs_own(context: int | None) -> None:
    layer = alive(CrossAttention(8, 2, context))
    tokens, other = normal("tokens", 3, 4, 8), normal("context", 3, 5, context or 8)
    seen = tokens if context is None else other
    mask = MASK[:, : seen.shape[1]].clone()
    mask[1, 0] = True  # torch's own gives NaN where all are masked
    expected, _ = multi_head_attention_forward(
        tokens.transpose(0, 1), seen.transpose(0, 1), seen.transpose(0, 1), 8, 2, None, None, None, None, False, 0.0,
        layer.project.weight, layer.project.bias, key_padding_mask=~mask, use_separate_proj_weight=True,
        q_proj_weight=layer.query.weight, k_proj_weight=layer.key.weight, v_proj_weight=layer.value.weight,
        training=False,
    )  # fmt: skip
    found = layer(tokens, None if context is None else other, mask)
    assert_close(found, expected.transpose(0, 1), rtol=0, atol=1e-12)


def test_masked_tokens_have_exactly_no_influence() -> None:
    layer = alive(CrossAttention(8, 2, 6))
    tokens, context = normal("tokens", 3, 4, 8), normal("context", 3, 5, 6)
    answer = layer(tokens, context, MASK)
    assert torch.equal(answer[1], torch.zeros(4, 8).double())  # all of its tokens are masked: no bias either
    for junk in (1e9, math.inf, math.nan):
        other = torch.where(MASK[:, :, None], context, junk)
        assert torch.equal(layer(tokens, other, MASK), answer)
    # A sample alone with the tokens that count gives the same.
    assert_close(layer(tokens[:1], context[:1, MASK[0]]), answer[:1], rtol=0, atol=1e-12)


def test_gradients_of_masked_tokens_are_exactly_zero_and_nothing_is_nan() -> None:
    layer = alive(CrossAttention(8, 2, 6)).requires_grad_()
    tokens, context = normal("tokens", 3, 4, 8).requires_grad_(), normal("context", 3, 5, 6).requires_grad_()
    layer(tokens, context, MASK).square().sum().backward()
    assert context.grad is not None and tokens.grad is not None
    assert bool((context.grad[~MASK] == 0).all()) and bool((context.grad[MASK] != 0).any(-1).all())
    assert bool((tokens.grad[1] == 0).all()) and bool(tokens.grad.isfinite().all())
    assert all(bool(weight.grad.isfinite().all()) for weight in layer.parameters() if weight.grad is not None)


def test_the_order_of_the_context_does_not_matter() -> None:
    layer, tokens, context = alive(CrossAttention(8, 2, 6)), normal("tokens", 2, 4, 8), normal("context", 2, 5, 6)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert_close(layer(tokens, context[:, order]), layer(tokens, context), rtol=0, atol=1e-12)


def test_a_spatial_transformer_by_its_equation() -> None:
    layer = alive(SpatialTransformer(32, 4, 6, depth=2))
    x, context = normal("x", 2, 32, 3, 5), normal("context", 2, 5, 6)
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]])

    def normed(norm: nn.LayerNorm, h: Tensor) -> Tensor:
        return layer_norm(h, (32,), norm.weight, norm.bias, 1e-5)

    h = group_norm(x, 32, layer.norm.weight, layer.norm.bias, 1e-6)
    h = torch.einsum("oi,bihw->bhwo", layer.expand.weight[:, :, 0, 0], h).flatten(1, 2) + layer.expand.bias
    for block in layer.blocks:
        assert isinstance(block, TransformerBlock)
        h = h + block.self_attention(normed(block.norm_self, h))
        h = h + block.cross_attention(normed(block.norm_context, h), context, mask)
        inner = normed(block.norm_perceptron, h) @ block.expand.weight.T + block.expand.bias
        inner = inner[..., :128] * gelu(inner[..., 128:])
        h = h + inner @ block.contract.weight.T + block.contract.bias
    h = h @ layer.project.weight[:, :, 0, 0].T + layer.project.bias
    expected = x + h.transpose(1, 2).reshape(x.shape)
    assert_close(layer(x, context, mask), expected, rtol=0, atol=1e-11)


def test_positions_are_sines_and_cosines_of_the_column_and_then_of_the_row() -> None:
    layer = SpatialTransformer(8, 2, 6, depth=0, positions=True)
    with torch.no_grad():
        layer.project.weight.copy_(torch.eye(8)[:, :, None, None])
        layer.expand.weight.zero_(), layer.expand.bias.zero_()
        found = layer(torch.zeros(1, 8, 2, 3))[0]
    for row in range(2):
        for column in range(3):
            of_place = [f(place * rate) for place in (column, row) for f in (math.sin, math.cos) for rate in (1, 0.01)]
            assert_close(found[:, row, column], torch.tensor(of_place), rtol=0, atol=1e-6)


def test_a_spatial_transformer_starts_as_nothing() -> None:
    x = normal("x", 2, 8, 3, 5).float()
    assert torch.equal(SpatialTransformer(8, 2, 6)(x, normal("context", 2, 5, 6).float()), x)


def test_no_context_is_a_masked_one_and_an_empty_one() -> None:
    layer = alive(SpatialTransformer(8, 2, 6))
    x, context = normal("x", 3, 8, 3, 5), normal("context", 3, 5, 6)
    without, masked = layer(x), layer(x, context, MASK)
    assert torch.equal(masked[1], without[1]) and not torch.allclose(masked[0], without[0], atol=1e-3)
    assert torch.equal(layer(x, context[:, :0]), without)


def test_derivatives_are_difference_quotients_in_both_modes() -> None:
    layer = alive(SpatialTransformer(4, 2, 3))
    x, context = normal("x", 1, 4, 1, 2).requires_grad_(), normal("context", 1, 3, 3).requires_grad_()
    mask = torch.tensor([[True, False, True]])
    assert gradcheck(lambda x, y: layer(x, y, mask), (x, context), check_forward_ad=True, fast_mode=True)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="expected heads that divide 8 channels, got 3"):
        SpatialTransformer(8, 3, 6)
    with pytest.raises(ValueError, match=r"expected channels that divide by 4 with net\.positions, got 6: change"):
        SpatialTransformer(6, 3, 6, positions=True)
