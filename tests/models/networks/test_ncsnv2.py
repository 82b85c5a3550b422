"""NCSN and NCSNv2 against the original code's numbers, and NCSNv2 as a network."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import seeded
import torch
from torch import Tensor
from torch.func import jvp

from scorefield.models import NCSN
from scorefield.models.checkpoints import ncsnv2
from scorefield.models.checkpoints.spec import CheckpointSpec
from scorefield.models.denoiser import Denoiser
from scorefield.models.networks.ncsnv2 import NCSNv2
from scorefield.sde_lib import VESDE

pytestmark = pytest.mark.agreement

FIXTURES = (
    *("ncsn", "ncsn_28", "ncsn_deeper"),
    *("ncsnv2", "ncsnv2_28", "ncsnv2_rescaled", "ncsnv2_deeper", "ncsnv2_deepest"),
    *("score_sde_ncsnv2_64", "score_sde_ncsnv2_128", "score_sde_ncsnv2_256"),
)
# Of NCSNv2, NCSNv2Deeper, NCSNv2Deepest and NCSNdeeper with 10 levels, github.com/ermongroup/ncsnv2 at 1bcea03, for
# 3 channels and ngf 128, counted once outside this repository.
PARAMETERS = {4: 29_694_083, 5: 83_445_379, 6: 94_132_611}
PARAMETERS_OF_NCSN_DEEPER = 84_183_811


def original(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A fixture, and the weights that it was run with."""
    fixture = seeded.load(name)
    buffers = {buffer: torch.tensor(values, dtype=torch.float64) for buffer, values in fixture["buffers"].items()}
    return fixture, {**seeded.state_dict(fixture["shapes"]), **buffers}


def built(spec: CheckpointSpec, state: Mapping[str, Tensor]) -> torch.nn.Module:
    """The network in float64 with the weights of the original, none left over or without one."""
    net = spec.network(**spec.settings).double()
    entries = list(spec.entries(net))
    assert sorted(name for entry in entries for name in entry.theirs) == sorted(state.keys() - {"sigmas"})
    net.load_state_dict({entry.ours: entry.make(*(state[name] for name in entry.theirs)) for entry in entries})
    return net


def levels_of(fixture: Mapping[str, Any]) -> Tensor:
    """The noise levels as the original holds them; NCSN has none, and any will do."""
    geometric = torch.linspace(math.log(50), math.log(0.01), 10, dtype=torch.float64).exp()
    return torch.tensor(fixture["buffers"].get("sigmas", geometric.tolist()), dtype=torch.float64)


def random(net: NCSNv2) -> NCSNv2:
    """The network in float64 with every tensor moved, so that nothing is still zero."""
    torch.manual_seed(0)
    for weights in net.double().parameters():
        weights.data += 0.2 * torch.randn_like(weights)
    return net


# The published networks


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, torch.float64, 1e-10) for name in FIXTURES),
        ("ncsn", torch.float32, 1e-5),
        ("ncsnv2", torch.float32, 1e-5),
    ],
)
def test_outputs_are_those_of_the_original(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """To the fixtures' 12 digits, and in float32 to 100 rounding errors, after 60 to 100 convolutions."""
    fixture, state = original(name)
    spec = ncsnv2.spec_of(state, **fixture["architecture"])
    net = built(spec, state).to(dtype)
    sigma = levels_of(fixture)[fixture["told"]]
    x = seeded.seeded_input(fixture["input"]).to(dtype)

    output = net(x, sigma.log().to(dtype) / 4).double()
    output = output if isinstance(net, NCSN) else output / sigma.view(-1, 1, 1, 1)
    expected = torch.tensor(fixture["output"], dtype=torch.float64)
    assert list(output.shape) == fixture["output_shape"]
    assert (output.flatten()[:: fixture["stride"]] - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_the_spec_gives_the_score_of_the_original(name: str) -> None:
    fixture, state = original(name)
    spec = ncsnv2.spec_of(state, **fixture["architecture"])
    denoiser = Denoiser(built(spec, state), spec.precondition)
    x, sigma = seeded.seeded_input(fixture["input"]), levels_of(fixture)[fixture["told"]]
    expected = torch.tensor(fixture["output"], dtype=torch.float64)
    for alpha in (torch.ones_like(sigma), torch.tensor([0.5, 0.25], dtype=torch.float64)):
        denoised = denoiser(alpha.view(-1, 1, 1, 1) * x, alpha, alpha * sigma)
        score = (denoised - x) / sigma.view(-1, 1, 1, 1) ** 2
        torch.testing.assert_close(score.flatten()[:: fixture["stride"]], expected, rtol=1e-8, atol=1e-8)


def test_parameters_are_as_many_as_published() -> None:
    with torch.device("meta"):
        for depth, count in PARAMETERS.items():
            assert sum(weights.numel() for weights in NCSNv2(3, depth=depth).parameters()) == count
        assert sum(weights.numel() for weights in NCSN(3, depth=5).parameters()) == PARAMETERS_OF_NCSN_DEEPER


# The importer


def test_what_the_spec_tells() -> None:
    _, state = original("ncsnv2")
    spec = ncsnv2.spec_of(state)
    assert spec.network is NCSNv2
    assert spec.settings == {"channels": 3, "width": 8, "depth": 4, "unit_range": True}
    assert isinstance(spec.sde, VESDE)
    assert (spec.sde.sigma_max, spec.sde.sigma_min) == pytest.approx((50, 0.01))
    assert (spec.shape, spec.low, spec.high) == ((3, 32, 32), 0.0, 1.0)


def test_what_the_keywords_tell() -> None:
    _, state = original("ncsnv2")
    spec = ncsnv2.spec_of(state, rescaled=True, image_size=64)
    assert (spec.settings["unit_range"], spec.shape, spec.low) == (False, (3, 64, 64), -1.0)
    spec = ncsnv2.spec_of(state, logit_transform=True)
    assert (spec.settings["unit_range"], spec.low, spec.high) == (False, -math.inf, math.inf)


def test_levels_of_ncsn_are_the_published_ones_or_those_told() -> None:
    _, state = original("ncsn")
    assert ncsnv2.spec_of(state).settings["sigmas"] == pytest.approx([0.01 ** (i / 9) for i in range(10)])
    assert ncsnv2.spec_of(state, sigma_begin=50, sigma_end=0.01).settings["sigmas"] == pytest.approx(
        [50 * 5000 ** (-i / 9) for i in range(10)]
    )
    evenly = ncsnv2.spec_of(state, sigma_begin=10, sigma_end=1, sigma_dist="uniform").settings["sigmas"]
    assert evenly == pytest.approx(list(range(10, 0, -1)))
    assert ncsnv2.spec_of(state, sigmas=[2.0**-i for i in range(10)]).settings["sigmas"] == tuple(
        2.0**-i for i in range(10)
    )


def without(name: str, *prefixes: str) -> dict[str, Tensor]:
    _, state = original(name)
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: ncsnv2.spec_of({"conv.weight": torch.zeros(1)}), r"weights of NCSN or NCSNv2.*got \['conv.weight'\]"),
        (lambda: ncsnv2.spec_of(without("ncsnv2", "res4")), r"expected the stages.*got \['1', '2', '3'\]"),
        (
            lambda: ncsnv2.spec_of(without("ncsnv2", "sigmas")),
            "do not tell the noise levels: give sigmas, or sigma_begin",
        ),
        (lambda: ncsnv2.spec_of(original("ncsn")[1], sigmas=[1.0, 0.1]), "expected 10 noise levels, got 2"),
        (lambda: ncsnv2.spec_of(original("ncsnv2")[1], num_scales=232), "expected 232 noise levels, got 10"),
        (
            lambda: ncsnv2.spec_of(original("ncsnv2")[1], ngf=128),
            "expected ngf to be 8, as the weights have it, got 128",
        ),
        (lambda: ncsnv2.spec_of(original("ncsnv2")[1], nonlinearity="swish"), "nonlinearity to be 'elu'.*got 'swish'"),
        (lambda: ncsnv2.spec_of(original("ncsn")[1], spec_norm=True), "spec_norm to be False.*got True"),
        (lambda: ncsnv2.spec_of(original("ncsn")[1], sigma_bgin=50), "did you mean 'sigma_begin'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(call: Callable[[], object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        call()


# As a network


@pytest.mark.parametrize(
    ("depth", "channels", "size"), [(4, 1, (28, 20)), (4, 5, (4, 6)), (5, 3, (8, 12)), (6, 2, (16, 24))]
)
def test_shape_and_gradients(depth: int, channels: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net, x = NCSNv2(channels, width=16, depth=depth), torch.rand(1, channels, *size)
    output = net(x, torch.zeros(1))
    output.square().mean().backward()
    assert output.shape == x.shape and output.isfinite().all()
    assert all(weights.grad is not None and weights.grad.isfinite().all() for weights in net.parameters())


def test_the_noise_level_is_not_looked_at() -> None:
    net, x = random(NCSNv2(2, width=8)), torch.rand(2, 2, 8, 6).double()
    assert torch.equal(net(x, torch.tensor([0.5, math.nan])), net(x, torch.zeros(2)))


def test_images_of_a_batch_are_independent() -> None:
    net, x, c = random(NCSNv2(2, width=8, depth=5)), torch.rand(3, 2, 8, 12).double(), torch.zeros(3)
    alone = torch.cat([net(image[None], c[:1]) for image in x])
    torch.testing.assert_close(net(x, c), alone, rtol=1e-10, atol=1e-10)


def test_channels_last_gives_the_same_in_its_own_format() -> None:
    net, x = random(NCSNv2(3, width=8)), torch.rand(2, 3, 8, 6).double()
    expected = net(x, torch.zeros(2))
    output = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), torch.zeros(2))
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_centred_images_are_fed_as_they_are() -> None:
    net, x = random(NCSNv2(1, width=8)), torch.rand(1, 1, 8, 8).double()
    centred = NCSNv2(1, width=8, unit_range=False).double()
    centred.load_state_dict(net.state_dict())
    assert torch.equal(centred(2 * x - 1, torch.zeros(1)), net(x, torch.zeros(1)))


def test_forward_mode_derivative_is_the_finite_difference() -> None:
    net, x = random(NCSNv2(2, width=8)), torch.rand(2, 2, 8, 6).double()
    along = torch.randn_like(x)

    def call(moved: Tensor) -> Tensor:
        output: Tensor = net(moved, torch.zeros(2))
        return output

    difference = (call(x + 1e-6 * along) - call(x - 1e-6 * along)) / 2e-6
    torch.testing.assert_close(jvp(call, (x,), (along,))[1], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: NCSNv2(1, width=4)(torch.rand(1, 1, 8, 7), torch.zeros(1)), r"divisible by 2 .*got \(8, 7\)"),
        (lambda: NCSNv2(1, 4, depth=5)(torch.rand(1, 1, 8, 10), torch.zeros(1)), r"divisible by 4 .*got \(8, 10\)"),
        (lambda: NCSNv2(1, 4, depth=6)(torch.rand(1, 1, 8, 16), torch.zeros(1)), r"at least 16, got \(8, 16\)"),
        (lambda: NCSNv2(1, width=4)(torch.rand(1, 3, 8, 8), torch.zeros(1)), r"\(B, 1, H, W\), got \(1, 3, 8, 8\)"),
        (lambda: NCSNv2(1, width=4)(torch.rand(1, 8, 8), torch.zeros(1)), r"\(B, 1, H, W\), got \(1, 8, 8\)"),
        (lambda: NCSNv2(1, 4)(torch.rand(1, 1, 8, 8), torch.zeros(1), torch.tensor([0])), "expected no label"),
        (lambda: NCSNv2(1, 4, depth=3), "expected a depth of 4, 5, 6 stages, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        call()
