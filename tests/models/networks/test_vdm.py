"""VDM's network against the original code's numbers, and what it promises as a network."""

from typing import Any

import pytest
import seeded
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.testing import assert_close

from scorefield.models import precondition
from scorefield.models.denoiser import Denoiser
from scorefield.models.layers.embeddings import fourier_features
from scorefield.models.networks.vdm import VDM

pytestmark = pytest.mark.agreement

# Of ScoreUNet in google-research/vdm at dc27b98 with configs/cifar10.py, counted once outside this repository. Its
# first dense layer has a column of 4 * 128 for a conditioning number, 0 but for augmented data, which we leave out.
PARAMETERS, CONDITIONING = 30578179, 512
SMALL: dict[str, Any] = {"width": 32, "blocks": 2}
RENAMED = {
    "conv1": "conv_in",
    "conv2": "conv_out",
    "GroupNorm_0": "norm_in",
    "GroupNorm_1": "norm_out",
    "cond_proj": "project",
    "nin_shortcut": "shortcut",
}
TOP = {"dense0": "embed.perceptron.0", "dense1": "embed.perceptron.2", "conv_in": "stem", "conv_out": "head"}


def ours(theirs: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Our names and layouts for the original's weights (tests/fixtures/README.md)."""
    found: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for name, tensor in theirs.items():
        top, *inner, kind = name.split(".")
        if not inner:
            found[f"{TOP.get(top, 'norm')}.{kind}"] = tensor
            continue
        block, number = inner[0].split("_")
        place = {"block1": "middle_in", "attn1": "middle_in", "block2": "middle_out"}.get(block + number)
        place = place if top == "mid" else f"{top}.{number}"
        if tensor.ndim == 2 and inner[1] != "cond_proj":
            tensor = tensor[:, :, None, None]
        if block == "block":
            found[f"{place}.residual.{RENAMED[inner[1]]}.{kind}"] = tensor
        elif inner[1] in "qkv":
            attention.setdefault(f"{place}.attention.qkv.{kind}", {})[inner[1]] = tensor
        else:
            found[f"{place}.attention.{'norm' if inner[1] == 'GroupNorm_0' else 'project'}.{kind}"] = tensor
    found |= {name: torch.cat([parts[key] for key in "qkv"]) for name, parts in attention.items()}
    # Without the conditioning number, which was 0.
    found["embed.perceptron.0.weight"] = found["embed.perceptron.0.weight"][:, :-1]
    # Among the sines, and among the cosines, theirs has each channel's powers side by side, ours each power's channels.
    waves = found["stem.weight"][:, channels:].unflatten(1, (2, channels, -1)).transpose(2, 3).flatten(1, 3)
    found["stem.weight"] = torch.cat([found["stem.weight"][:, :channels], waves], 1)
    return found


def moved(net: VDM) -> VDM:
    """The network in float64 for evaluation with every tensor moved, so that nothing is still zero."""
    torch.manual_seed(0)
    for weights in net.double().parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    return net.eval()


def images(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.linspace(-1.5, 0.5, len(x), dtype=torch.float64)


# The published network


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance", "told"),
    [
        ("vdm", torch.float64, 1e-11, "c_noise"),
        ("vdm", torch.float64, 1e-11, "t"),
        ("vdm_attention", torch.float64, 1e-11, "c_noise"),
        ("vdm_attention", torch.float32, 1e-4, "c_noise"),
    ],
)
def test_outputs_are_those_of_the_original(name: str, dtype: torch.dtype, tolerance: float, told: str) -> None:
    """It was told gamma = log(sigma^2 / alpha^2): eight of our units, or t of the way between its ends."""
    fixture = seeded.load(name)
    config = fixture["architecture"]
    gamma, low, high = torch.tensor(fixture["told"], dtype=torch.float64), config["gamma_min"], config["gamma_max"]
    span = (low / 8, high / 8) if told == "c_noise" else (0, 1)
    c_noise = gamma / 8 if told == "c_noise" else (gamma - low) / (high - low)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        net = VDM(3, config["sm_n_embd"], config["sm_n_layer"], attention=config["with_attention"], span=span)
    finally:
        torch.set_default_dtype(before)
    net.load_state_dict({n: w.to(dtype) for n, w in ours(seeded.state_dict(fixture["shapes"]), 3).items()})
    with torch.no_grad():
        output = net.eval()(seeded.seeded_input(fixture["input"]).to(dtype), c_noise.to(dtype))
    assert list(output.shape) == fixture["output_shape"]
    theirs = torch.tensor(fixture["output_wide"], dtype=torch.float64)
    found = output.contiguous().flatten()[:: fixture["stride"]].double()
    # 12 digits are stored; float32 loses three more in phases of 2^8 pi x.
    assert_close(found, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def test_the_default_is_the_network_for_cifar10() -> None:
    with torch.device("meta"):
        net = VDM(3)
    assert sum(weights.numel() for weights in net.parameters()) == PARAMETERS - CONDITIONING
    assert net.settings == VDM(3, 128, 32, 0.1, (7, 8), False, (-13.3 / 8, 5 / 8), None).settings


def test_the_default_parameterisation_tells_it_gamma() -> None:
    """alpha^2 = sigmoid(-gamma) (Kingma et al. 2021, Eq. 4): from gamma_min to gamma_max it is told 0 to 1000."""
    gamma = torch.tensor([-13.3, -4.15, 5.0], dtype=torch.float64)
    *_, c_noise = precondition.eps(torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt())
    assert_close(VDM(1, **SMALL).timestep(c_noise), torch.tensor([0, 500, 1000]).double(), rtol=0, atol=1e-6)


# What it promises


@pytest.mark.parametrize(("channels", "size", "batch"), [(1, (8, 8), 1), (5, (3, 7), 3), (3, (1, 4), 2)])
def test_any_channels_and_any_size(channels: int, size: tuple[int, int], batch: int) -> None:
    net = moved(VDM(channels, **SMALL))
    x, c_noise = images(batch, channels, *size)
    output = net(x, c_noise)
    assert output.shape == x.shape
    assert output.dtype == torch.float64
    # Samples do not see each other.
    assert_close(net(x[:1], c_noise[:1]), output[:1], rtol=1e-9, atol=1e-9)


def test_it_starts_by_saying_that_all_is_noise() -> None:
    x, c_noise = images(2, 3, 4, 4)
    net = VDM(3, **SMALL, num_classes=2).double()
    assert torch.equal(net(x, c_noise), x)
    alpha, sigma = torch.tensor([[0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)
    assert_close(Denoiser(net, precondition.eps).noise(x, alpha, sigma), x, rtol=1e-14, atol=1e-14)


def test_what_passes_the_skips_keeps_its_size() -> None:
    """Whatever the depth, the head sees about what the stem gave: a join of two means their variances."""
    torch.manual_seed(0)
    net = VDM(3, width=64, blocks=16, fourier=())
    seen: dict[nn.Module, float] = {}
    for layer in (net.stem, net.up[-1]):
        layer.register_forward_hook(lambda layer, _, output: seen.update({layer: float(output.std())}))
    x, c_noise = images(4, 3, 16, 16)
    with torch.no_grad():
        net.eval()(x.float(), c_noise.float())
    assert 0.5 < seen[net.up[-1]] / seen[net.stem] < 2


def test_fourier_features_repeat_with_the_levels_of_the_data() -> None:
    """On 256 levels in [-1, 1], two levels are a period of 2^7 pi x, and one is a period of 2^8 pi x."""
    levels = (2 * torch.arange(256, dtype=torch.float64) + 1) / 256 - 1
    coarse, fine, coarse_cos, fine_cos = fourier_features(levels, (7, 8))
    assert_close(coarse, -(coarse[0] * (-1.0) ** torch.arange(1, 257).double()), rtol=0, atol=1e-9)
    assert coarse[0].abs() > 0.999
    assert_close(fine.abs() + (fine_cos + 1).abs() + coarse_cos.abs(), torch.zeros(256).double(), rtol=0, atol=1e-9)
    # A quarter of a level away they tell in which direction it lies.
    _, above, _, _ = fourier_features(levels + 0.25 * 2 / 256, (7, 8))
    _, below, _, _ = fourier_features(levels - 0.25 * 2 / 256, (7, 8))
    assert (above * below).max() < -0.99


def test_detail_the_eye_does_not_see_reaches_the_output() -> None:
    """A quarter of one of 256 levels moves the output a hundred times further with Fourier features than without."""
    x, c_noise = images(2, 1, 4, 4)
    moves = []
    for fourier in ((), (7, 8)):
        net = moved(VDM(1, **SMALL, fourier=fourier))
        moves.append(float((net(x + 0.5 / 256, c_noise) - net(x, c_noise)).detach().norm()))
    assert moves[1] > 100 * moves[0]


def test_labels_matter_and_none_is_unknown() -> None:
    net = moved(VDM(1, **SMALL, num_classes=3))
    x, c_noise = images(4, 1, 4, 4)
    outputs = [net(x, c_noise, torch.full((4,), k)) for k in range(4)]
    assert_close(net(x, c_noise), outputs[3])
    for k in range(3):
        assert (outputs[k] - outputs[k + 1]).abs().max() > 1e-3
    mixed = net(x, c_noise, torch.tensor([0, 1, 2, 3]))
    assert_close(mixed, torch.stack([outputs[k][k] for k in range(4)]))


def test_without_a_span_it_is_smooth_in_the_noise_level() -> None:
    """Frequencies of up to 32 radians a unit, against 1000 radians in the 2.3 units of the span."""
    x, c_noise = images(2, 1, 4, 4)
    h = 1e-4
    moves = []
    for settings in ({"span": None}, {}):
        net = moved(VDM(1, **SMALL, **settings))
        moves.append(float((net(x, c_noise + h) - net(x, c_noise)).detach().norm()) / h)
    assert 0 < 5 * moves[0] < moves[1]


def test_dropout_is_for_training() -> None:
    net = moved(VDM(1, **SMALL, dropout=0.5))
    x, c_noise = images(2, 1, 4, 4)
    assert torch.equal(net(x, c_noise), net(x, c_noise))
    net.train()
    assert not torch.equal(net(x, c_noise), net(x, c_noise))


@pytest.mark.parametrize("attention", [False, True])
def test_forward_mode_agrees_with_reverse_mode_and_differentiates_twice(attention: bool) -> None:
    net = moved(VDM(2, **SMALL, fourier=(1, 2), attention=attention, num_classes=2))
    x, c_noise = images(2, 2, 4, 6)
    v, w = torch.randn_like(x), torch.randn_like(x)
    _, forward = jvp(lambda x: net(x, c_noise), (x,), (v,))
    leaf = x.clone().requires_grad_()
    (reverse,) = torch.autograd.grad((net(leaf, c_noise) * w).sum(), leaf, create_graph=True)
    assert_close((forward * w).sum(), (reverse * v).sum(), rtol=1e-10, atol=1e-9)
    (twice,) = torch.autograd.grad((reverse * v).sum(), leaf)
    h = 1e-5
    ahead, behind = (jvp(lambda x: net(x, c_noise), (x + s * v,), (v,))[1] for s in (h, -h))
    # A central difference of step h: h^2 of the third derivative, and 1e-16 / h of rounding.
    assert_close((twice * v).sum(), ((ahead - behind) * w).sum() / (2 * h), rtol=1e-5, atol=1e-5)


def test_settings_make_it_again() -> None:
    net = VDM(3, **SMALL, fourier=(5,), attention=True, num_classes=2)
    again = VDM(**net.settings)
    assert {n: p.shape for n, p in again.state_dict().items()} == {n: p.shape for n, p in net.state_dict().items()}
    assert again.settings == net.settings


def test_errors() -> None:
    net, level = VDM(3, **SMALL), torch.zeros(2)
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\)"):
        net(torch.zeros(2, 1, 4, 4), level)
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\)"):
        net(torch.zeros(2, 3), level)
    with pytest.raises(ValueError, match="num_classes"):
        net(torch.zeros(2, 3, 4, 4), level, torch.zeros(2, dtype=torch.long))
    for span in ((1.0, 1.0), (1.0,)):
        with pytest.raises(ValueError, match="expected a span"):
            VDM(3, **SMALL, span=span)
