"""The U-Nets with tokens and with images beside x."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from scorefield.configs import build
from scorefield.models import ADM, Denoiser, UNet, precondition

SMALL: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "heads": 2}


def adm(**settings: Any) -> ADM:
    """With every weight random, as none is at the start of its training."""
    net = ADM(2, **{**SMALL, "head_width": None, "context": 6, "concat": 3, **settings})
    return alive(net)


def alive(net: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 1 / math.sqrt(max(weight[0].numel(), 8)), generator=generator)
    return net.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, C, CONTEXT, CONCAT = normal(3, 2, 6, 10), torch.linspace(-1, 1, 3), normal(3, 5, 6, seed=2), normal(3, 3, 6, 10)
MASK = torch.tensor([[True, True, False, True, False], [False] * 5, [True] * 5])
SWITCHES: dict[str, dict[str, Any]] = {
    "latent diffusion": {"scale_shift": False, "resample_blocks": False},
    "churches": {"scale_shift": True, "resample_blocks": True},
    "inpainting": {"scale_shift": False, "resample_blocks": True},
    "deep": {"transformer_depth": 2, "resample_blocks": False},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_keyword_counts(name: str) -> None:
    net = adm(**SWITCHES[name])
    answer = net(X, C, context=CONTEXT, concat=CONCAT)
    assert answer.shape == X.shape
    for other in (net(X, C, context=CONTEXT + 0.1, concat=CONCAT), net(X, C, context=CONTEXT, concat=CONCAT + 0.1)):
        assert bool(((other - answer).flatten(1).abs().amax(1) > 1e-4).all())


def test_absent_conditioning_is_nothing() -> None:
    net = adm(num_classes=4)
    label = torch.tensor([0, 3, 4])
    nothing = net(X, C, label)
    masked = net(X, C, label, context=CONTEXT, context_mask=torch.zeros(3, 5, dtype=torch.bool))
    assert torch.equal(masked, nothing)
    assert torch.equal(net(X, C, label, concat=torch.zeros_like(CONCAT)), nothing)
    some = net(X, C, label, context=CONTEXT, context_mask=MASK)
    assert_close(some[1], nothing[1], rtol=0, atol=0)
    assert not torch.allclose(some[0], nothing[0], atol=1e-4)


def test_masked_tokens_have_no_influence_and_no_gradient_through_the_network() -> None:
    net, context = adm(), CONTEXT.clone().requires_grad_()
    net(X, C, context=context, context_mask=MASK).square().sum().backward()
    assert context.grad is not None and bool((context.grad[~MASK] == 0).all())
    assert bool((context.grad[MASK] != 0).any(-1).all())


def test_samples_of_a_batch_are_independent() -> None:
    net = adm(resample_blocks=False)
    cond = {"context": CONTEXT, "context_mask": MASK, "concat": CONCAT}
    together = net(X, C, **cond)
    for i in range(3):
        alone = net(X[i : i + 1], C[i : i + 1], **{key: value[i : i + 1] for key, value in cond.items()})
        assert_close(alone, together[i : i + 1], rtol=1e-5, atol=1e-5)


def test_a_network_starts_as_nothing_and_every_weight_learns() -> None:
    net = ADM(2, **{**SMALL, "context": 6, "concat": 3, "resample_blocks": False, "head_width": None})
    assert_close(net(X, C, context=CONTEXT, concat=CONCAT), torch.zeros_like(X), rtol=0, atol=0)
    net = adm(dropout=0.0).requires_grad_()
    net(X, C, context=CONTEXT, concat=CONCAT).square().sum().backward()
    still = [name for name, weight in net.named_parameters() if not bool(weight.grad.abs().sum() > 0)]
    assert still == []


def test_forward_mode_derivatives_are_the_transpose_of_reverse_ones() -> None:
    net = adm(resample_blocks=False).double()
    x, v, context = X.double(), normal(3, 2, 6, 10, seed=5).double(), CONTEXT.double()

    def answer(x: Tensor) -> Tensor:
        output: Tensor = net(x, C.double(), context=context, context_mask=MASK)
        return output

    _, along = torch.func.jvp(answer, (x,), (v,))
    _, back = torch.func.vjp(answer, x)
    assert float((back(along)[0] * v).sum()) == pytest.approx(float(along.square().sum()), rel=1e-9)


def test_a_denoiser_passes_the_keywords_on() -> None:
    denoiser = Denoiser(adm(), precondition.eps)
    alpha, sigma = torch.tensor(0.8), torch.tensor(0.6)
    cond = {"context": CONTEXT, "concat": CONCAT}
    assert_close(denoiser(X, alpha, sigma, **cond), (X - sigma * denoiser.noise(X, alpha, sigma, **cond)) / alpha)


@pytest.mark.parametrize("settings", [{}, {"fourier": (1, 2)}, {"unit_range": True}, {"inputs": 2}])
def test_unet_sees_images_beside_x(settings: dict[str, Any]) -> None:
    """A first convolution of x and the images, so the images' part of it is added."""
    net = alive(UNet(2, **SMALL, **settings, concat=3))
    x = X if "inputs" not in settings else torch.cat([X, X + 1], 1)
    nothing, some = net(x, C), net(x, C, concat=CONCAT)
    assert nothing.shape == X.shape and not torch.allclose(nothing, some, atol=1e-3)
    plain = alive(UNet(2, **SMALL, **settings))
    seen = net.stem.weight.shape[1] - 3
    plain.load_state_dict({**net.state_dict(), "stem.weight": net.stem.weight[:, :seen]})
    assert_close(plain(x, C), nothing, rtol=1e-5, atol=1e-5)


def test_a_spec_of_before_means_the_same_network() -> None:
    """The keywords added since are those of ADM as it was published."""
    old = {"name": "adm", "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_width": 4}
    net = build.build(build.NETWORKS, old, channels=3)
    assert (net.settings["scale_shift"], net.settings["resample_blocks"]) == (True, True)
    assert (net.settings["context"], net.settings["concat"]) == (None, 0)
    names = {name.split(".")[-2] for name in net.state_dict() if ".attention." in name}
    assert names == {"norm", "qkv", "project"}


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "context of another width": ({}, {"context": normal(3, 5, 7)}, r"expected a context \(3, M, 6\), got \(3, 5, 7\)"),
    "no context": ({"context": None}, {"context": CONTEXT}, "expected no context, got"),
    "context of a matrix": ({}, {"context": CONTEXT[:, 0]}, r"expected a context \(3, M, 6\)"),
    "mask alone": ({}, {"context_mask": MASK}, "expected a context with context_mask"),
    "mask of numbers": ({}, {"context": CONTEXT, "context_mask": MASK.float()}, r"\(3, 5\) of booleans"),
    "concat of another size": ({}, {"concat": CONCAT[..., 1:]}, r"of shape \(3, 3, 6, 10\), got \(3, 3, 6, 9\)"),
    "no concat": ({"concat": 0}, {"concat": CONCAT}, "leave them out, or make the network with net.concat"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_in_one_line(what: str) -> None:
    settings, cond, match = WRONG[what]
    with pytest.raises(ValueError, match=match) as caught:
        adm(**settings)(X, C, **cond)
    assert "\n" not in str(caught.value)
