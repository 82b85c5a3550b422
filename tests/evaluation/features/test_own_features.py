"""Features of a run's network: the layer is a hidden one of each network, and a sample's depend on it alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from image_files import refused
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield import models
from scorefield.evaluation.features import Own, RunNetwork, StoredAs
from scorefield.evaluation.features.own import averaged
from scorefield.models import Denoiser
from scorefield.models.checkpoints.diffusers.modules import DiffusersUNet
from scorefield.models.precondition import eps

IMAGES = StoredAs((2, 8, 8), 256)
UNET: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1}
DIFFUSERS = {
    "sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": [8, 16], "layers_per_block": 1,
    "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"], "attention_head_dim": 8,
}  # fmt: skip


class Users(nn.Module):
    """A network whose layers are inside another module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 2, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        output: Tensor = self.inner(x) + c_noise[:, None, None, None]
        return output


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "unet": (lambda: models.UNet(2, **UNET), "net.middle_attention", 16),
    "adm": (lambda: models.ADM(2, **UNET, head_width=8), "net.middle_attention", 16),
    "ncsnpp": (lambda: models.NCSNpp(2, **UNET), "net.middle_in", 16),
    "vdm": (lambda: models.VDM(2, width=8, blocks=2), "net.middle_out", 8),
    "ncsn": (lambda: models.NCSN(2, width=8), "net.refine.0", 16),
    "ncsnv2": (lambda: models.NCSNv2(2, width=8), "net.refine.0", 16),
    "dit": (lambda: models.DiT(2, width=16, depth=3, heads=2), "net.blocks.1", 16),
    "mlp": (lambda: models.MLP((2, 8, 8), width=16, blocks=3), "net.blocks.1", 16),
    "diffusers": (lambda: DiffusersUNet(**DIFFUSERS), "net.unet.down_blocks.1", 16),
    "users": (Users, "net.inner.1", 6),
}


OURS = [name for name in NETWORKS if name != "diffusers"]  # whose import takes seconds


def network(net: nn.Module) -> tuple[Denoiser, RunNetwork]:
    """A network of random weights as that of a run, on samples of -1 .. 1."""
    torch.manual_seed(0)
    denoiser = Denoiser(net, eps).eval().requires_grad_(False)
    for weight in denoiser.parameters():
        nn.init.normal_(weight, std=0.2)

    def call(stored: Tensor, log_snr: float) -> Tensor:
        output: Tensor = denoiser(2 * stored / 255 - 1, 1.0, torch.tensor(-log_snr / 2).exp())
        return output

    return denoiser, RunNetwork(denoiser, call, (10.0, -10.0), "a test", "0")


def samples(count: int = 4) -> Tensor:
    return torch.randint(256, (count, *IMAGES.shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*OURS, pytest.param("diffusers", marks=pytest.mark.slow)])
def test_a_hidden_layer_is_found_in_every_network(name: str) -> None:
    make, layer, width = NETWORKS[name]
    denoiser, run = network(make())
    features, x = Own(IMAGES, run), samples()
    assert features.layer == layer
    found = features(x)["features"]
    assert found.shape == (4, width) and found.isfinite().all() and (found.std(0) > 0).all()
    assert_close(features(x[1:2])["features"], found[1:2], atol=1e-5 * float(found.abs().max()), rtol=1e-5)

    output = run.call(x, 4.0)
    with dict(denoiser.named_modules())[layer].register_forward_hook(lambda _, __, h: zeros(h)):
        assert not features(x)["features"].any()
        assert not torch.allclose(run.call(x, 4.0), output)  # so the output is made of it
    assert torch.equal(features(x)["features"], found)


def zeros(h: Any) -> Any:
    return tuple(map(zeros, h)) if isinstance(h, tuple) else torch.zeros_like(h)


def test_a_layer_can_be_named() -> None:
    denoiser, run = network(models.MLP((2, 8, 8), width=16, blocks=3))
    x, hidden = samples(), {}
    features = Own(IMAGES, run, layer="net.blocks.0.first", log_snr=-30.0)
    with denoiser.net.blocks[0].first.register_forward_hook(lambda _, __, h: hidden.update(h=h)):
        run.call(x, -10.0)  # the end of its path
    assert torch.equal(features(x)["features"], hidden["h"])
    assert features.recipe == "own network (a test), net.blocks.0.first at log-SNR -10, not whitened"
    assert len({features.fingerprint, Own(IMAGES, run).fingerprint, Own(IMAGES, run, log_snr=2.0).fingerprint}) == 3
    refused("got 'blocks': take one of net.stem, net.blocks.0", Own, IMAGES, run, layer="blocks")
    refused("got (4, 8, 8)", features, x[:, 0])


def test_fitted_features_are_white_on_the_reference() -> None:
    """Their covariance over the reference has the eigenvalues w / (w + mean of w / 100)."""
    _, run = network(models.MLP((2, 8, 8), width=6, blocks=2))
    features, reference, x = Own(IMAGES, run), samples(40), samples(3)
    fitted = features.fitted(reference)
    w = torch.linalg.eigvalsh(torch.cov(features.of(reference)["features"].double().T))
    white = fitted.of(reference)["features"].double()
    assert_close(torch.cov(white.T), torch.diag(w / (w + w.mean() / 100)), atol=1e-4, rtol=1e-4)  # float32 features
    assert_close(white.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-5, rtol=0)
    assert_close(fitted(x[1:2])["features"], fitted(x)["features"][1:2], atol=1e-4, rtol=1e-4)
    assert torch.equal(fitted.fitted(reference)(x)["features"], fitted(x)["features"])  # as from the beginning
    others = (features, features.fitted(reference[:30]))
    assert len({each.fingerprint for each in (fitted, *others)}) == 3
    assert "whitened by the reference" in fitted.recipe and features.fitted(x[:1]) is features


def test_places_are_averaged() -> None:
    """Maps (N, d, H, W), tokens (N, M, d) of images, and maps (N, d, L) of series."""
    h = torch.arange(24.0).reshape(2, 3, 4)
    assert_close(averaged(h.reshape(2, 3, 2, 2), 3), h.mean(2))
    assert_close(averaged(h, 3), h.mean(1))
    assert_close(averaged(h, 2), h.mean(2))
    assert_close(averaged(h[..., 0], 3), h[..., 0])


def test_a_network_without_layers_is_refused() -> None:
    class Formula(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return x / (1 + c_noise.exp())[:, None, None, None]

    refused("hidden layers", Own, IMAGES, network(Formula())[1])
