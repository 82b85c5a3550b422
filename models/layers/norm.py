"""Group normalisation, silu and dropout as one: on CPUs most of what a network costs beside its convolutions."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu

from scorefield.models.layers import fused
from scorefield.models.layers.fused import How


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm (Wu and He 2018), several times as fast on CPUs where channels come last.

    y = gain (x - mean) / std + shift,    with the mean and the variance + eps of an image's group of channels

    Where `compiled` is set, images on CPUs go through the loops of `models.layers.fused`.
    """

    compiled = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return self.activated(input, act=False)

    def activated(
        self,
        x: Tensor,
        p: float = 0.0,
        told: tuple[Tensor, Tensor] | None = None,
        added: Tensor | None = None,
        act: bool = True,
    ) -> Tensor:
        """dropout(silu((1 + scale) norm(x + added) + shift)), shape (B, C, H, W).

        Args:
            x: (B, C, H, W).
            p: probability of dropout, which comes with the silu.
            told: scale and shift, each (B, C).
            added: to each channel, (B, C).
            act: whether there is a silu.
        """
        assert act or p == 0
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if told is not None:
            weight, bias = weight + weight * told[0], torch.addcmul(told[1], bias, 1 + told[0])
        ahead = torch.autograd.forward_ad._current_level >= 0
        plain = ahead or torch._C._are_functorch_transforms_active()
        ours = x.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        ours = ours and x.ndim == 4 and x.numel() > 0 and not torch.compiler.is_compiling()
        looped = ours and self.compiled and not plain and fused.takes(x, weight)
        if x.device.type == "cpu" and not looped:
            x = x.to(weight.dtype)  # under autocast too: torch's backward pass of 16-bit images is slow
        if not ours:
            x = x if added is None else x + added.view(*added.shape, *(1,) * (x.ndim - 2))
            x = x.contiguous() if ahead else x  # torch's forward-mode derivative refuses channels-last images
            y = group_norm(x, self.num_groups, None if told else weight, None if told else bias, self.eps)
            y = torch.addcmul(bias[:, :, None, None], y, weight[:, :, None, None]) if told else y
            return nn.functional.dropout(silu(y) if act else y, p)
        inputs = x, weight, bias, None if added is None else added.to(weight.dtype).expand(x.shape[:2])
        how = How(p, self.num_groups, self.eps, act)
        if looped:
            rows = [each.expand(x.shape[:2]) if told else each for each in (weight, bias)]
            return _Looped.apply(x, *rows, inputs[3], _bytes(x, p), how)[0]  # type: ignore[no-any-return, no-untyped-call]
        if x.requires_grad and torch.is_grad_enabled() and not plain:
            return _Activated.apply(*inputs, _dropped(x, p), how)[0]  # type: ignore[no-any-return, no-untyped-call]
        return _plain(*inputs, _dropped(x, p), how)


def _dropped(x: Tensor, p: float) -> Tensor | None:
    """Places in memory of the values to drop, each with probability p and apart from the others.

    Uniform, as many as a Poisson variable of mean -n log(1 - p): so the hits of each place are independent Poisson
    variables, and zero with probability 1 - p. For small p far fewer draws than one for each value.
    """
    if p == 0:
        return None
    size = x.numel()
    hits = torch.poisson(torch.tensor(-math.log1p(-p) * size, dtype=torch.float64))
    return torch.randint(size, (int(hits),))


def _bytes(x: Tensor, p: float) -> Tensor | None:
    """The same as bytes, 0 where a value is dropped."""
    dropped = _dropped(x, p)
    if dropped is None:
        return None
    mask = torch.ones_like(x, dtype=torch.uint8, memory_format=torch.channels_last)
    _flat(mask).index_fill_(0, dropped, 0)
    return mask


def _mask(x: Tensor, dropped: Tensor, p: float) -> Tensor:
    if dropped.dtype == torch.uint8:
        return dropped.to(x.dtype) / (1 - p)
    mask = torch.full_like(x, 1 / (1 - p))
    _flat(mask).index_fill_(0, dropped, 0.0)
    return mask


def _flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


def _moments(x: Tensor, added: Tensor | None, how: How) -> tuple[Tensor, Tensor, Tensor]:
    """What the norm of x + added takes from x; 1 / std of each channel's group; and the sum of x less the first."""
    pixels = x.shape[2] * x.shape[3]
    total, square = x.sum((2, 3)), (x * x).sum((2, 3))
    if added is not None:
        square = square + added * (2 * total + pixels * added)
        total = total + pixels * added
    mean, power = _shared(total, square, pixels, how.groups)
    scale = (power - mean * mean).clamp(min=0).add(how.eps).rsqrt()
    return mean if added is None else mean - added, scale, total - pixels * mean


def _shared(a: Tensor, b: Tensor, pixels: int, groups: int) -> Tensor:
    """Means over each group from sums over each channel's pixels, (2, B, C)."""
    sums = torch.stack([a, b]).view(2, len(a), groups, -1)
    means = sums.sum(-1, keepdim=True) * (groups / (pixels * a.shape[1]))
    return means.expand_as(sums).reshape(2, *a.shape)


def _affine(x: Tensor, gain: Tensor, bias: Tensor, centre: Tensor) -> Tensor:
    return torch.addcmul((bias - centre * gain)[:, :, None, None], x, gain[:, :, None, None])


def _plain(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, dropped: Tensor | None, how: How) -> Tensor:
    wide = x.to(weight.dtype)
    centre, scale, _ = _moments(wide, added, how)
    y = _affine(wide, weight * scale, bias, centre)
    y = silu(y, inplace=not y.requires_grad) if how.act else y
    return (y if dropped is None else y * _mask(y, dropped, how.p)).to(x.dtype)


class _Activated(torch.autograd.Function):
    """`_plain` with few and small temporaries, where it is differentiated: the backward pass computes y again."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, dropped: Tensor | None, how: How
    ) -> tuple[Tensor, ...]:
        centre, scale, spread = _moments(x, added, how)
        y = _affine(x, weight * scale, bias, centre)
        y = silu(y, inplace=True) if how.act else y
        return (y if dropped is None else _drop_(y, dropped, how.p)), centre, scale, spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:-1], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.how = inputs[-1]

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, bias, added, dropped, centre, scale, spread = ctx.saved_tensors
        how = ctx.how
        if _again(g):
            return *_twice(g, (x, weight, bias, added), dropped, how), None, None
        gain, pixels = weight * scale, x.shape[2] * x.shape[3]
        if how.act:
            y = _affine(x, gain, bias, centre)
            g = torch.ops.aten.silu_backward.grad_input(g, y, grad_input=y)
            g = g if dropped is None else _drop_(g, dropped, how.p)
        product = g * x
        by_bias = g.sum((2, 3))
        by_weight = (product.sum((2, 3)) - centre * by_bias) * scale
        # What the mean and the standard deviation of each group take from the gradient.
        pull, stretch = _shared(by_bias * weight, by_weight * weight, pixels, how.groups)
        slope, offset = -scale.square() * stretch, -scale * pull
        torch.addcmul((offset - centre * slope)[:, :, None, None], x, slope[:, :, None, None], out=product)
        by_x = product.addcmul_(g, gain[:, :, None, None])
        by_added = None if added is None else gain * by_bias + slope * spread + offset * pixels
        return by_x, by_weight.sum_to_size(weight.shape), by_bias.sum_to_size(bias.shape), by_added, None, None


class _Looped(_Activated):
    """The same by compiled loops."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, dropped: Tensor | None, how: How
    ) -> tuple[Tensor, ...]:
        return fused.activated(x, weight, bias, added, dropped, how)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, bias, added, dropped, *found = ctx.saved_tensors
        if _again(g):
            return *_twice(g, (x, weight, bias, added), dropped, ctx.how), None, None
        by_x, by_weight, by_bias, by_added = fused.gradients(g, x, weight, bias, dropped, found, ctx.how)
        by_weight, by_bias = by_weight.sum_to_size(weight.shape), by_bias.sum_to_size(bias.shape)
        return by_x, by_weight, by_bias, None if added is None else by_added, None, None


def _again(g: Tensor) -> bool:
    """Whether a second derivative is to follow, or many gradients come at once (vmap): nothing in place then."""
    batched = torch._C._functorch.is_legacy_batchedtensor(g) or torch._C._functorch.is_batchedtensor(g)
    return batched or torch.is_grad_enabled()


def _twice(g: Tensor, inputs: tuple[Tensor | None, ...], dropped: Tensor | None, how: How) -> list[Tensor | None]:
    """The gradients by the inputs, by operations that can be differentiated again."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # By other names: a gradient by the weight must not go on through x to an earlier use of it.
        again = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        y = _plain(*again, dropped, how)  # type: ignore[arg-type, call-arg]
    wanted = [tensor for tensor in again if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=create_graph))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]


def _drop_(x: Tensor, dropped: Tensor, p: float) -> Tensor:
    _flat(x.mul_(1 / (1 - p))).index_fill_(0, dropped, 0.0)
    return x
