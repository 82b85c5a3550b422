"""Muon against the polynomial on singular values, torch's own for matrices, and Adam for the rest."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.init import orthogonal_
from torch.testing import assert_close

from scorefield.models import UNet
from scorefield.sde_lib import LearnedVP
from scorefield.training import Model
from scorefield.training.adam import adam
from scorefield.training.muon import ITERATIONS, POLYNOMIAL, Muon, muon, orthogonal

RATE, BETAS, EPS, DECAY, MU = 0.01, (0.9, 0.99), 1e-8, 0.1, 0.9


def polynomial(values: Tensor) -> Tensor:
    """What the iteration makes of singular values."""
    a, b, c = POLYNOMIAL
    values = values / values.norm()
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    return values


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_singular_values_become_those_of_the_polynomial_and_vectors_stay(shape: tuple[int, int]) -> None:
    """In float64 to rounding, which the steep polynomial scales by 3.44^5."""
    torch.manual_seed(0)
    rank = min(shape)
    values = torch.logspace(0, -2, rank, dtype=torch.float64)
    left = orthogonal_(torch.empty(shape[0], rank, dtype=torch.float64))
    right = orthogonal_(torch.empty(shape[1], rank, dtype=torch.float64))
    result = orthogonal(3 * left * values @ right.T)
    assert_close(result, left * polynomial(values) @ right.T, rtol=0, atol=1e-12)
    assert polynomial(values).min() > 0.6 and polynomial(values).max() < 1.3


def test_no_gradient_is_no_direction() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_a_gradient_that_vanishes_leaves_weights_finite() -> None:
    """Its momentum falls through all numbers whose squares are 0 in float32."""
    torch.manual_seed(0)
    matrix = torch.randn(16, 16)
    for exponent in range(-44, -8, 2):
        assert orthogonal(matrix * 10.0**exponent).norm() < 4, exponent


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.Conv2d(16, 20, 3), nn.Linear(16, 3), nn.Embedding(16, 16))


def gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in module.parameters():
        weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator))


def test_matrices_move_as_by_torchs_muon_and_other_weights_as_by_adam() -> None:
    """Torch iterates in bfloat16, 2^-8 apart: five of its products move a direction by some per cent."""
    ours = layers()
    reference, alone = copy.deepcopy(ours), copy.deepcopy(ours)
    optimizer = muon(ours, adam(ours, RATE, BETAS, EPS, DECAY), MU)
    others = adam(alone, RATE, BETAS, EPS, DECAY)
    flat = [nn.Parameter(reference[i].weight.detach().flatten(1)) for i in (0, 1)]  # type: ignore[index,operator,union-attr]
    theirs = torch.optim.Muon(flat, RATE, DECAY, MU, adjust_lr_fn="match_rms_adamw")
    before = [weight.detach().clone() for weight in flat]
    for step in range(3):
        gradients(ours, step)
        for module in (reference, alone):
            for weight, of_ours in zip(module.parameters(), ours.parameters(), strict=True):
                weight.grad = of_ours.grad
        for i, weight in enumerate(flat):
            gradient = list(reference.children())[i].weight.grad
            assert isinstance(gradient, Tensor)
            weight.grad = gradient.flatten(1)
        for each in (optimizer, others, theirs):
            each.step()
    names = {name for name, _ in ours.named_parameters()}
    for name in names - {"0.weight", "1.weight"}:
        assert torch.equal(ours.get_parameter(name), alone.get_parameter(name)), name
    for i, (weight, start) in enumerate(zip(flat, before, strict=True)):
        moved = ours.get_parameter(f"{i}.weight").detach().flatten(1) - start
        assert (moved - (weight.detach() - start)).norm() < 0.05 * moved.norm()


def test_a_learned_path_and_the_ends_of_a_network_take_adam() -> None:
    path = LearnedVP("linear", -5.0, 5.0)
    path.add_module("wide", nn.Linear(16, 16))
    model = Model(UNet(1, width=16, multipliers=(1,), blocks=1, attention=()), path)
    optimizer = muon(model, adam(model))
    names = {id(weight): name for name, weight in model.named_parameters()}
    ours = {names[id(w)] for group in optimizer.param_groups if group["matrices"] for w in group["params"]}
    assert ours and all(name.endswith("weight") for name in ours)
    assert not [name for name in ours if name.startswith("sde") or "stem" in name or "head" in name or "norm." in name]
    every = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(every) == sorted(names)


def test_an_optimiser_that_is_loaded_goes_on_to_the_bit() -> None:
    first = layers()
    second = copy.deepcopy(first)
    one = muon(first, adam(first, RATE, BETAS, weight_decay=DECAY))
    for step in range(2):
        gradients(first, step)
        one.step()
    second.load_state_dict(first.state_dict())
    # As shards are gathered: the settings come with the state.
    groups = [{"params": list(group["params"])} for group in muon(second, adam(second)).param_groups]
    two = Muon(groups, lr=0.0)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for module, optimizer in ((first, one), (second, two)):
        gradients(module, 2)
        optimizer.step()
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_order_in_memory_changes_nothing_but_rounding() -> None:
    plain = nn.Conv2d(16, 20, (3, 2))
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for step in range(2):
        for module in (plain, last):
            gradients(module, step)
            muon(module, adam(module, RATE)).step()
    assert_close(last.weight, plain.weight, rtol=0, atol=1e-7)
