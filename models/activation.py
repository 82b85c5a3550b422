"""Group normalisation, silu and dropout as one: on CPUs most of what a network costs beside its convolutions."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm (Wu and He 2018), several times as fast on CPUs where channels come last.

    y = gain (x - mean) / std + shift,    with the mean and the variance + eps of an image's group of channels
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return self.activated(input, act=False)

    def activated(
        self, x: Tensor, p: float = 0.0, told: tuple[Tensor, Tensor] | None = None, act: bool = True
    ) -> Tensor:
        """dropout(silu((1 + scale) norm(x) + shift)), shape (B, C, H, W).

        Args:
            x: (B, C, H, W).
            p: probability of dropout, which comes with the silu.
            told: scale and shift, each (B, C).
            act: whether there is a silu.
        """
        assert act or p == 0
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if told is not None:
            weight, bias = weight + weight * told[0], torch.addcmul(told[1], bias, 1 + told[0])
        ahead = torch.autograd.forward_ad._current_level >= 0
        if x.device.type == "cpu":
            x = x.to(weight.dtype)  # under autocast too: torch's backward pass of 16-bit images is slow
        ours = x.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        if not ours or x.ndim != 4 or x.numel() == 0 or torch.compiler.is_compiling():
            x = x.contiguous() if ahead else x  # torch's forward-mode derivative refuses channels-last images
            y = group_norm(x, self.num_groups, None if told else weight, None if told else bias, self.eps)
            y = torch.addcmul(bias[:, :, None, None], y, weight[:, :, None, None]) if told else y
            return nn.functional.dropout(silu(y) if act else y, p)
        plain = ahead or torch._C._are_functorch_transforms_active()
        if x.requires_grad and torch.is_grad_enabled() and not plain:
            with torch.no_grad():
                mean, scale = _moments(x, self.num_groups, self.eps)
            output: Tensor = _Activated.apply(
                x, weight, bias, mean, scale, _dropped(x, p), p, self.num_groups, self.eps, act
            )  # type: ignore[no-untyped-call]
            return output
        return _plain(x, weight, bias, _dropped(x, p), p, self.num_groups, self.eps, act)


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


def _mask(x: Tensor, dropped: Tensor, p: float) -> Tensor:
    mask = torch.full_like(x, 1 / (1 - p))
    _flat(mask).index_fill_(0, dropped, 0.0)
    return mask


def _flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


def _moments(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / std of each channel's group, both (B, C)."""
    batch, channels = x.shape[:2]
    sums = torch.stack([x.sum((2, 3)), (x * x).sum((2, 3))]).view(2, batch, groups, -1)
    mean, square = (sums.sum(-1, keepdim=True) * (groups / x[0].numel())).expand_as(sums).reshape(2, batch, channels)
    return mean, (square - mean * mean).clamp(min=0).add(eps).rsqrt()


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    gain = weight * scale
    return torch.addcmul((bias - mean * gain)[:, :, None, None], x, gain[:, :, None, None])


def _plain(
    x: Tensor, weight: Tensor, bias: Tensor, dropped: Tensor | None, p: float, groups: int, eps: float, act: bool
) -> Tensor:
    y = _affine(x, weight, bias, *_moments(x, groups, eps))
    y = silu(y, inplace=not y.requires_grad) if act else y
    return y if dropped is None else y * _mask(y, dropped, p)


class _Activated(torch.autograd.Function):
    """`_plain` with few and small temporaries, where it is differentiated: the backward pass computes y again."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor,
        dropped: Tensor | None, p: float, groups: int, eps: float, act: bool,
    ) -> Tensor:  # fmt: skip
        y = _affine(x, weight, bias, mean, scale)
        y = silu(y, inplace=True) if act else y
        return y if dropped is None else _drop_(y, dropped, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.settings = inputs[6:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale, dropped = ctx.saved_tensors
        p, groups, _, act = ctx.settings
        # A second derivative is to follow, or many gradients at once (vmap), where nothing may be done in place.
        if torch.is_grad_enabled() or _batched(g):
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                # By other names: a gradient by the weight must not go on through x to an earlier use of it.
                again = x.view_as(x), weight.view_as(weight), bias.view_as(bias)
                y = _plain(*again, dropped, *ctx.settings)
            wanted = [tensor for tensor in again if tensor.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, g, create_graph=create_graph))
            return *(next(found) if tensor.requires_grad else None for tensor in (x, weight, bias)), *(None,) * 7
        if act:
            y = _affine(x, weight, bias, mean, scale)
            g = torch.ops.aten.silu_backward.grad_input(g, y, grad_input=y)
            g = g if dropped is None else _drop_(g, dropped, p)
        product = g * x
        by_bias = g.sum((2, 3))
        by_weight = (product.sum((2, 3)) - mean * by_bias) * scale
        # Per group: what the mean and the standard deviation take from the gradient.
        pulls = (torch.stack([by_bias, by_weight]) * weight).view(2, len(x), groups, -1)
        pull, stretch = (pulls.sum(-1, keepdim=True) * (groups / x[0].numel())).expand_as(pulls).reshape(2, *mean.shape)
        slope = -scale.square() * stretch
        torch.addcmul((-scale * pull - mean * slope)[:, :, None, None], x, slope[:, :, None, None], out=product)
        product.addcmul_(g, (weight * scale)[:, :, None, None])
        return product, by_weight.sum_to_size(weight.shape), by_bias.sum_to_size(bias.shape), *(None,) * 7


def _batched(g: Tensor) -> bool:
    return torch._C._functorch.is_legacy_batchedtensor(g) or torch._C._functorch.is_batchedtensor(g)


def _drop_(x: Tensor, dropped: Tensor, p: float) -> Tensor:
    _flat(x.mul_(1 / (1 - p))).index_fill_(0, dropped, 0.0)
    return x
