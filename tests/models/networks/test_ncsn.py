"""NCSN against InstanceNorm++ by hand, numbers of the published code, and what a solver asks of a network."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from scorefield.models.networks.ncsn import NCSN, SIGMAS, Condition
from scorefield.models.networks.refinenet import InstanceNormPlus

pytestmark = pytest.mark.agreement

LEVELS = (1.0, 0.3, 0.1)

# Of CondRefineNetDilated, github.com/ermongroup/ncsn at 7f27f4a, run once outside this repository. The count is of its
# CIFAR-10 configuration (ngf 128, 10 levels, 3 channels). The outputs are those of `rippled` weights (ngf 8, 3 levels,
# 2 channels, 8x12) in float64, every 48th of the 192 numbers, a line for each level.
PUBLISHED_PARAMETERS = 30_117_635
PUBLISHED_OUTPUTS = [
    [-0.003528526, -0.781773695, 0.473185736, 1.018119477],
    [-0.062797696, -0.708233589, 0.339059416, 0.314327355],
    [0.317897331, 2.001679573, -0.258829667, -2.708106484],
]


def c_noise(*sigmas: float) -> Tensor:
    return torch.tensor([math.log(sigma) / 4 for sigma in sigmas], dtype=torch.float64)


def rippled(net: NCSN) -> NCSN:
    """The network in float64 with every tensor a cosine, kernels scaled by their fan-in and tables about 1."""
    for weights in net.double().parameters():
        wave = torch.cos(1 + torch.arange(weights.numel(), dtype=torch.float64)).view(weights.shape)
        scaled = {1: wave, 2: 1 + wave / 2, 4: wave / math.sqrt(weights[0].numel())}
        weights.data = scaled[weights.ndim]
    return net


def random(net: NCSN) -> NCSN:
    """The network in float64 with every tensor moved, so that nothing is still zero."""
    torch.manual_seed(0)
    for weights in net.double().parameters():
        weights.data += 0.2 * torch.randn_like(weights)
    return net


# The normalisation


def by_hand(x: Tensor, gamma: Tensor, a: Tensor, beta: Tensor) -> Tensor:
    """InstanceNorm++ one channel of one sample at a time; gamma, a, beta (B, C)."""
    output = torch.empty_like(x)
    for i, sample in enumerate(x):
        mus = [channel.sum() / channel.numel() for channel in sample]
        m = sum(mus) / len(mus)
        v = sum((mu - m) ** 2 for mu in mus) / (len(mus) - 1)
        for k, channel in enumerate(sample):
            variance = ((channel - mus[k]) ** 2).sum() / channel.numel()
            z = (channel - mus[k]) / (variance + 1e-5) ** 0.5 + a[i, k] * (mus[k] - m) / (v + 1e-5) ** 0.5
            output[i, k] = gamma[i, k] * z + beta[i, k]
    return output


def test_instance_norm_is_that_done_by_hand() -> None:
    torch.manual_seed(0)
    norm = InstanceNormPlus(levels=3, labels=0, features=5).double()
    norm.table.data = torch.randn(3, 15).double()
    x = torch.randn(3, 5, 4, 6).double() * 0.1 + torch.randn(3, 5, 1, 1).double() * 0.02
    index = torch.tensor([2, 0, 2])
    expected = by_hand(x, *norm.table[index].chunk(3, 1))
    torch.testing.assert_close(norm(x, torch.eye(3).double()[index]), expected, rtol=1e-11, atol=1e-12)


def test_instance_norm_between_levels_takes_the_mean_of_their_rows() -> None:
    torch.manual_seed(0)
    norm = InstanceNormPlus(3, 0, 5).double()
    norm.table.data = torch.randn(3, 15).double()
    x, rows = torch.randn(1, 5, 4, 4).double(), Condition(LEVELS, None)(c_noise(math.sqrt(0.3 * 0.1)))
    expected = by_hand(x, *(norm.table[1:2] / 2 + norm.table[2:3] / 2).chunk(3, 1))
    torch.testing.assert_close(norm(x, rows), expected, rtol=1e-5, atol=1e-5)


def test_instance_norm_starts_as_published() -> None:
    torch.manual_seed(0)
    table = InstanceNormPlus(levels=10, labels=4, features=64).table
    scales, rest = table[:10, :128], torch.cat([table[:10, 128:].flatten(), table[10:].flatten()])
    assert abs(scales.mean() - 1) < 0.002 and abs(scales.std() - 0.02) < 0.001 and not rest.any()


# The published network


def test_parameters_are_as_many_as_published() -> None:
    with torch.device("meta"):
        assert sum(weights.numel() for weights in NCSN(channels=3).parameters()) == PUBLISHED_PARAMETERS


def test_outputs_are_those_of_the_published_code() -> None:
    net = rippled(NCSN(channels=2, sigmas=LEVELS, width=8))
    x = torch.cos(torch.arange(192, dtype=torch.float64)).view(1, 2, 8, 12).expand(3, -1, -1, -1)
    output = net(x, c_noise(*LEVELS)).flatten(1)[:, ::48]
    torch.testing.assert_close(output, torch.tensor(PUBLISHED_OUTPUTS, dtype=torch.float64), rtol=0, atol=2e-9)


# Between the levels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_listed_level_is_exactly_its_row(dtype: torch.dtype) -> None:
    for sigmas in (SIGMAS, LEVELS, (0.5,), tuple(50 * 0.98**i for i in range(200))):
        rows = Condition(sigmas, None)(c_noise(*sigmas).to(dtype))
        assert torch.equal(rows, torch.eye(len(sigmas), dtype=dtype))


def test_rows_are_interpolated_in_log_sigma_and_clamped() -> None:
    rows = Condition(LEVELS, None)(c_noise(0.3**0.25, math.sqrt(0.03), 7.0, 0.001))
    expected = torch.tensor([[0.75, 0.25, 0], [0, 0.5, 0.5], [1, 0, 0], [0, 0, 1]]).double()
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)
    assert torch.equal(rows[2:], expected[2:])
    assert torch.equal(Condition(LEVELS, None)(torch.tensor([math.inf, -math.inf])), torch.eye(3)[[0, 2]])


def test_rows_are_continuous_and_sum_to_one() -> None:
    rows = Condition(SIGMAS, None)(torch.linspace(0.1, -1.3, 14001, dtype=torch.float64))
    torch.testing.assert_close(rows.sum(1), torch.ones(14001).double())
    assert rows.min() >= 0 and rows.diff(dim=0).abs().max() < 1.01 * 1e-4 / (math.log(100) / 36)


def test_each_level_uses_its_own_row_only() -> None:
    net, x = random(NCSN(1, LEVELS, width=8)), torch.rand(1, 1, 8, 8).double()
    before = net(x.expand(3, -1, -1, -1), c_noise(*LEVELS))
    for module in net.modules():
        if isinstance(module, InstanceNormPlus):
            module.table.data[1] += 0.1
    change = (net(x.expand(3, -1, -1, -1), c_noise(*LEVELS)) - before).abs().amax((1, 2, 3))
    assert change[0] < 1e-10 and change[1] > 1e-3 and change[2] < 1e-10


# Labels


def test_no_label_is_the_unknown_one() -> None:
    net, x, c = random(NCSN(1, LEVELS, width=8, num_classes=3)), torch.rand(2, 1, 8, 8).double(), c_noise(0.5, 0.2)
    unknown = net(x, c, torch.tensor([3, 3]))
    assert torch.equal(net(x, c), unknown) and torch.equal(net(x, c, label=None), unknown)
    assert not torch.allclose(net(x, c, torch.tensor([0, 2])), unknown, atol=1e-3)


def test_labels_change_nothing_at_the_start() -> None:
    net, x, c = NCSN(1, LEVELS, width=8, num_classes=3), torch.rand(2, 1, 8, 8), c_noise(0.5, 0.2).float()
    assert torch.equal(net(x, c, torch.tensor([0, 2])), net(x, c))


# As a network


@pytest.mark.parametrize(("channels", "size"), [(1, (28, 20)), (3, (8, 8)), (5, (4, 6))])
def test_shape_and_gradients(channels: int, size: tuple[int, int]) -> None:
    net, x = NCSN(channels, width=16), torch.rand(2, channels, *size)
    output = net(x, c_noise(0.5, 0.02).float())
    output.square().mean().backward()
    assert output.shape == x.shape and output.isfinite().all()
    assert all(weights.grad is not None and weights.grad.isfinite().all() for weights in net.parameters())


def test_images_of_a_batch_are_independent() -> None:
    net, x, c = random(NCSN(2, LEVELS, 8, num_classes=2)), torch.rand(4, 2, 6, 8).double(), c_noise(2.0, 0.5, 0.2, 0.1)
    label = torch.tensor([0, 2, 1, 1])
    alone = torch.cat([net(x[i : i + 1], c[i : i + 1], label[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(net(x, c, label), alone, rtol=1e-10, atol=1e-10)


def test_channels_last_gives_the_same() -> None:
    net, x, c = random(NCSN(3, LEVELS, width=8)), torch.rand(2, 3, 8, 6).double(), c_noise(0.5, 0.2)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(last, c), net(x, c), rtol=1e-10, atol=1e-10)


def test_centred_images_are_fed_as_they_are() -> None:
    net, x, c = random(NCSN(1, LEVELS, width=8)), torch.rand(1, 1, 8, 8).double(), c_noise(0.5)
    centred = NCSN(1, LEVELS, width=8, unit_range=False).double()
    centred.load_state_dict(net.state_dict())
    assert torch.equal(centred(2 * x - 1, c), net(x, c))


def test_forward_mode_derivative_is_the_finite_difference() -> None:
    net = random(NCSN(2, LEVELS, width=8, num_classes=2))
    x, c, label = torch.rand(2, 2, 8, 6).double(), c_noise(0.5, 0.2), torch.tensor([0, 1])
    calls: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda moved: net(moved, c, label), x),
        (lambda moved: net(x, moved, label), c),
    ]
    for call, at in calls:
        along = torch.randn_like(at)
        difference = (call(at + 1e-6 * along) - call(at - 1e-6 * along)) / 2e-6
        torch.testing.assert_close(jvp(call, (at,), (along,))[1], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: NCSN(1, width=4)(torch.rand(1, 1, 8, 7), torch.zeros(1)), r"divisible by 2 .*got \(8, 7\)"),
        (lambda: NCSN(1, width=4)(torch.rand(1, 1, 2, 8), torch.zeros(1)), r"at least 4, got \(2, 8\)"),
        (lambda: NCSN(1, width=4)(torch.rand(1, 3, 8, 8), torch.zeros(1)), r"\(B, 1, H, W\), got \(1, 3, 8, 8\)"),
        (lambda: NCSN(1, width=4)(torch.rand(1, 8, 8), torch.zeros(1)), r"\(B, 1, H, W\), got \(1, 8, 8\)"),
        (lambda: NCSN(1, width=4)(torch.rand(1, 1, 8, 8), torch.zeros(1), torch.tensor([0])), "expected no label"),
        (lambda: NCSN(1, sigmas=(0.1, 1.0)), r"decreasing noise levels, got \[0.1, 1.0\]"),
        (lambda: NCSN(1, sigmas=(1.0, 0.0)), "positive"),
        (lambda: NCSN(1, sigmas=()), "positive"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        call()
