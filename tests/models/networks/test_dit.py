"""DiT against the original code's numbers, its importer, and what it promises as a network."""

import math
from itertools import product
from typing import Any

import pytest
import seeded
import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.functional import pad, unfold
from torch.testing import assert_close

from scorefield.models.checkpoints import dit
from scorefield.models.checkpoints.report import fitted
from scorefield.models.checkpoints.spec import CheckpointSpec
from scorefield.models.denoiser import Denoiser
from scorefield.models.layers.embeddings import positions_of
from scorefield.models.networks.dit import SIZES, DiT
from scorefield.sde_lib import DiscreteVPSDE

pytestmark = pytest.mark.agreement

# Trainable parameters of DiT-S/2 .. XL/2 for 4 channels and 1000 classes, github.com/facebookresearch/DiT at ed81ce2,
# counted once outside this repository: 32.96M, 130.51M, 458.10M and 675.13M there with the table of positions.
PARAMETERS = {"S": 32865056, "B": 130315808, "L": 457840672, "XL": 674834720}
SMALL: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4}


def moved(net: DiT) -> DiT:
    """The network in float64 with every tensor moved, so that nothing is still zero."""
    torch.manual_seed(0)
    for weights in net.double().parameters():
        weights.data += 0.2 * torch.randn_like(weights)
    return net


def images(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.linspace(-1.5, 1.5, len(x), dtype=torch.float64)


def original() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fixture, and the weights it was run with."""
    fixture = seeded.load("dit")
    buffers = {name: torch.tensor(values, dtype=torch.float64) for name, values in fixture["buffers"].items()}
    return fixture, {**seeded.state_dict(fixture["shapes"]), **buffers}


def built(spec: CheckpointSpec, state: dict[str, Tensor], dtype: torch.dtype) -> DiT:
    """The spec's network with its weights, in the dtype from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        net = spec.network(**spec.settings)
    finally:
        torch.set_default_dtype(before)
    assert isinstance(net, DiT)
    weights = {ours: make(*(state[name] for name in theirs)) for ours, theirs, make in spec.entries(net)}
    net.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()})
    return net.eval()


# The published network


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_outputs_are_those_of_the_original(dtype: torch.dtype, tolerance: float) -> None:
    """In float64 up to the positions, which the original stores in float32: 6e-8 of about 1."""
    fixture, state = original()
    net = built(dit.spec_of(state, **fixture["architecture"]), state, dtype)
    x, told = seeded.seeded_input(fixture["input"]).to(dtype), torch.tensor(fixture["told"], dtype=dtype)
    output = net(x, told, torch.tensor(fixture["labels"]))
    # Theirs has the variances behind, in the same flattened order.
    both = torch.cat([output, torch.full_like(output, math.nan)], 1)
    assert list(both.shape) == fixture["output_shape"]
    ours, theirs = both.flatten()[:: fixture["stride"]].double(), torch.tensor(fixture["output_wide"]).double()
    known = ~ours.isnan()
    assert known.sum() > 20
    assert_close(ours[known], theirs[known], rtol=0, atol=tolerance * float(theirs.abs().max()))


def test_positions_are_those_of_the_original() -> None:
    fixture, state = original()
    assert_close(
        positions_of(4, 4, fixture["architecture"]["hidden_size"], like=state["pos_embed"]),
        state["pos_embed"][0],
        rtol=0,
        atol=1e-7,
    )


@pytest.mark.parametrize("size", PARAMETERS)
def test_sizes_are_the_papers(size: str) -> None:
    with torch.device("meta"):
        net = DiT(4, patch=2, num_classes=1000, variances=True, **SIZES[size])
    assert sum(weights.numel() for weights in net.parameters()) == PARAMETERS[size]


# The importer


def test_a_state_dict_tells_everything_but_the_heads() -> None:
    fixture, state = original()
    spec = dit.spec_of(state, num_heads=2)
    assert spec.settings == dit.spec_of(state, **fixture["architecture"]).settings
    assert spec.settings == {
        "channels": 4,
        "patch": 2,
        "width": 64,
        "depth": 2,
        "heads": 2,
        "mlp_ratio": 4.0,
        "num_classes": 10,
        "frequencies": "open_timesteps",
        "variances": True,
    }
    assert spec.shape == (4, 8, 8)


def test_every_tensor_has_its_place() -> None:
    _, state = original()
    denoiser, report = fitted(dit.spec_of(state, num_heads=2), state, "ema")
    assert report.fits
    assert report.matched == len(denoiser.net.state_dict()) == len(state) - 1
    del state["blocks.1.mlp.fc2.bias"]
    _, report = fitted(dit.spec_of(state, num_heads=2), state | {"surplus": torch.zeros(1)}, "ema")
    assert (report.missing, report.unexpected) == (("blocks.1.mlp.fc2.bias",), ("surplus",))


def test_the_denoiser_is_told_the_timesteps_of_the_linear_betas() -> None:
    """At timestep k, x = sqrt(a) x0 + sqrt(1 - a) eps with a the product of 1 - beta up to and with k (Ho et al.)."""
    fixture, state = original()
    spec = dit.spec_of(state, num_heads=2)
    net = built(spec, state, torch.float64)
    k, label = torch.tensor(fixture["told"]), torch.tensor(fixture["labels"])
    a = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[k]
    x = seeded.seeded_input(fixture["input"])
    denoiser = Denoiser(net, spec.precondition)
    assert spec.sde == DiscreteVPSDE()
    # Times are found from the log-SNR to about 1e-9 of their range, times up to 1000 timesteps.
    assert_close(denoiser.noise(x, a.sqrt(), (1 - a).sqrt(), label=label), net(x, k.double(), label), rtol=0, atol=1e-5)


def test_published_widths_tell_the_heads() -> None:
    for size in SIZES.values():
        with torch.device("meta"):
            net = DiT(4, num_classes=3, **{**size, "depth": 1})
            state = {name: torch.empty(weights.shape) for name, weights in theirs(net).items()}
        assert dit.spec_of(state).settings["heads"] == size["heads"]


def test_a_table_without_the_empty_class_gets_a_row_for_it() -> None:
    _, state = original()
    spec = dit.spec_of(state, num_heads=2, class_dropout_prob=0.0)
    assert spec.settings["num_classes"] == 11
    net = built(spec, state, torch.float64)
    assert net.embed.labels is not None
    assert_close(net.embed.labels.weight[:-1], state["y_embedder.embedding_table.weight"])
    assert not net.embed.labels.weight[-1].any()


def test_errors_of_the_importer() -> None:
    _, state = original()
    with pytest.raises(ValueError, match="num_heads"):
        dit.spec_of(state)
    with pytest.raises(ValueError, match="patch_size=2"):
        dit.spec_of(state, num_heads=2, patch_size=4)
    with pytest.raises(ValueError, match="num_heads"):
        dit.spec_of(state, num_head=2)
    with pytest.raises(ValueError, match="weights of DiT"):
        dit.spec_of({"conv.weight": torch.zeros(1)})


def theirs(net: DiT) -> dict[str, Tensor]:
    """A state dict of their names with the shapes of ours, the first tensor of each entry."""
    state = {"pos_embed": torch.empty(1, 64, 4)}
    ours = net.state_dict()
    for name, those, _ in dit._entries(net):
        state[those[0]] = ours[name]
    return state


# What it promises


@pytest.mark.parametrize(
    ("channels", "size", "patch"), [(1, (8, 8), 2), (3, (4, 12), 4), (5, (7, 3), 1), (4, (6, 10), 2)]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_any_channels_and_any_size_that_divides(channels: int, size: tuple[int, int], patch: int, batch: int) -> None:
    net = moved(DiT(channels, patch=patch, **SMALL))
    x, c_noise = images(batch, channels, *size)
    output = net(x, c_noise)
    assert output.shape == x.shape
    assert output.dtype == torch.float64
    # Samples do not see each other.
    assert_close(net(x[:1], c_noise[:1]), output[:1], rtol=1e-9, atol=1e-9)


def test_patches_come_back_where_they_were() -> None:
    """A stem that keeps the pixels, blocks that start as nothing, and a head that gives them back, but for the norm."""
    net = DiT(2, patch=2, **SMALL).double()
    x, c_noise = images(2, 2, 4, 6)
    with torch.no_grad():
        net.patchify.weight.zero_().view(32, 8)[:8] = torch.eye(8)
        for c, p, q in product(range(2), repeat=3):
            net.head.weight[4 * p + 2 * q + c, 4 * c + 2 * p + q] = 1
    patches = pad(unfold(x, 2, stride=2).mT, (0, 24)) + positions_of(2, 3, 32, like=x)
    expected = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
    assert_close(unfold(net(x, c_noise), 2, stride=2).mT, expected[..., :8], rtol=0, atol=1e-12)


def test_it_starts_as_zero_and_its_blocks_as_nothing() -> None:
    net = DiT(3, num_classes=4, **SMALL)
    x, c_noise = images(2, 3, 8, 8)
    assert not net(x.float(), c_noise.float()).any()
    tokens, told = torch.randn(2, 5, 32), torch.randn(2, 32)
    assert torch.equal(net.blocks[0](tokens, told), tokens)


def test_variances_are_dropped() -> None:
    net = moved(DiT(3, variances=True, **SMALL))
    x, c_noise = images(2, 3, 4, 4)
    before = net(x, c_noise)
    with torch.no_grad():
        net.head.bias.view(2, 2, 6)[..., 3:] += 1
        assert_close(net(x, c_noise), before)
        net.head.bias.view(2, 2, 6)[..., :3] += 1
    assert_close(net(x, c_noise), before + 1)


def test_labels_matter_and_none_is_unknown() -> None:
    net = moved(DiT(1, num_classes=3, **SMALL))
    x, c_noise = images(4, 1, 4, 4)
    outputs = [net(x, c_noise, torch.full((4,), k)) for k in range(4)]
    assert_close(net(x, c_noise), outputs[3])
    for k in range(3):
        assert (outputs[k] - outputs[k + 1]).abs().max() > 1e-3
    mixed = net(x, c_noise, torch.tensor([0, 1, 2, 3]))
    assert_close(mixed, torch.stack([outputs[k][k] for k in range(4)]))


def test_the_noise_level_and_the_place_matter() -> None:
    net = moved(DiT(1, **SMALL))
    x, c_noise = images(2, 1, 4, 8)
    assert (net(x, c_noise) - net(x, c_noise + 0.1)).abs().max() > 1e-3
    # Were tokens not told their places, moving all by a patch would move the output.
    assert (net(x.roll(2, 3), c_noise) - net(x, c_noise).roll(2, 3)).abs().max() > 1e-3


def test_forward_mode_agrees_with_reverse_mode_and_differentiates_twice() -> None:
    net = moved(DiT(2, num_classes=2, **SMALL))
    x, c_noise = images(2, 2, 4, 6)
    v, w = torch.randn_like(x), torch.randn_like(x)
    _, forward = jvp(lambda x: net(x, c_noise), (x,), (v,))
    leaf = x.clone().requires_grad_()
    (reverse,) = torch.autograd.grad((net(leaf, c_noise) * w).sum(), leaf, create_graph=True)
    assert_close((forward * w).sum(), (reverse * v).sum(), rtol=1e-10, atol=1e-10)
    (twice,) = torch.autograd.grad((reverse * v).sum(), leaf)
    h = 1e-5
    ahead, behind = (jvp(lambda x: net(x, c_noise), (x + s * v,), (v,))[1] for s in (h, -h))
    # A central difference of step h: h^2 of the third derivative, and 1e-16 / h of rounding.
    assert_close((twice * v).sum(), ((ahead - behind) * w).sum() / (2 * h), rtol=1e-6, atol=1e-6)


def test_settings_make_it_again() -> None:
    net = DiT(3, patch=4, num_classes=2, **SMALL)
    again = DiT(**net.settings)
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in net.state_dict().items()}
    assert again.settings == net.settings


def test_errors() -> None:
    net = DiT(3, **SMALL)
    level = torch.zeros(2)
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\)"):
        net(torch.zeros(2, 1, 4, 4), level)
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\)"):
        net(torch.zeros(2, 3), level)
    with pytest.raises(ValueError, match="divisible by 2, got \\(4, 5\\)"):
        net(torch.zeros(2, 3, 4, 5), level)
    with pytest.raises(ValueError, match="num_classes"):
        net(torch.zeros(2, 3, 4, 4), level, torch.zeros(2, dtype=torch.long))
    for wrong in ({"width": 30}, {"heads": 3}, {"patch": 0}, {"heads": 0}):
        with pytest.raises(ValueError, match="divisible by 4 and by the heads"):
            DiT(3, **{**SMALL, **wrong})
