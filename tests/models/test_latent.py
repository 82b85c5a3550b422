"""Codes in the coordinates of diffusion: scale, statistics, tiles."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pixel_shuffle, pixel_unshuffle

from scorefield.models.code_statistics import code_statistics
from scorefield.models.latent import Latent, ScaledAutoencoder, in_tiles
from scorefield.models.moments import Moments


class Unshuffled(nn.Module):
    """An exact autoencoder: 2x2 pixels become channels; the codes have a variance that depends on the image."""

    channels, code_channels, factor = 1, 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def moments(self, images: Tensor) -> Moments:
        mean = pixel_unshuffle(images, 2)
        return Moments(mean, mean.square().clamp(0.01, 2).log())

    def decode(self, codes: Tensor) -> Tensor:
        return pixel_shuffle(codes, 2)


def images(count: int = 300, side: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 2 * torch.randn(count, 1, side, side, generator=generator, dtype=torch.float64)


def test_scaled_codes_come_back_and_their_moments_are_those_of_scaled_draws() -> None:
    own, x = Unshuffled(), images(3)
    scaled = ScaledAutoencoder(own, scale=(0.5, 1.0, 2.0, 3.0), shift=(1.0, -1.0, 0.0, 0.25))
    assert torch.allclose(scaled.decode(scaled.encode(x)), x, atol=1e-12)
    noise = torch.randn(3, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = own.moments(x).sample(noise)
    of_channel = [s * (drawn[:, i] - m) for i, (s, m) in enumerate(zip((0.5, 1, 2, 3), (1, -1, 0, 0.25), strict=True))]
    assert torch.allclose(scaled.moments(x).sample(noise), torch.stack(of_channel, 1), atol=1e-12)


def test_measured_statistics_are_those_of_all_draws_whatever_the_batch() -> None:
    own, x = Unshuffled(), images()
    found = code_statistics(own.moments(part) for part in x.split(7))
    whole = code_statistics([own.moments(x)])
    assert found.images == 300
    assert torch.allclose(torch.tensor(found.scale), torch.tensor(whole.scale), rtol=1e-12)
    moments = own.moments(x)
    mean = moments.mean.mean((0, 2, 3))
    assert moments.log_var is not None
    variance = (moments.log_var.exp() + moments.mean.square()).mean((0, 2, 3)) - mean.square()
    assert torch.allclose(torch.tensor(found.shift, dtype=torch.float64), mean, rtol=1e-12)
    assert torch.allclose(torch.tensor(found.scale, dtype=torch.float64), variance.rsqrt(), rtol=1e-12)


def test_the_errors_of_the_statistics_are_their_spread_over_data_sets() -> None:
    # 60 sets of 300 images: the spread of an estimate has a relative error of 1 / sqrt(2 * 59) = 9%; four channels are
    # averaged, so 35% is beyond seven of its deviations.
    own = Unshuffled()
    every = [code_statistics([own.moments(images(seed=seed))]) for seed in range(60)]
    shifts = torch.tensor([each.shift for each in every])
    relative = torch.tensor([each.scale for each in every]).reciprocal().log()
    assert float(shifts.std(0).mean()) == pytest.approx(sum(every[0].shift_error) / 4, rel=0.35)
    assert float(relative.std(0).mean()) == pytest.approx(sum(every[0].std_error) / 4, rel=0.35)


def test_codes_that_are_constant_or_not_finite_have_no_scale() -> None:
    for value in (1.0, float("nan")):
        with pytest.raises(ValueError, match="finite and vary"):
            code_statistics([Moments(torch.full((4, 2, 3, 3), value))])
    with pytest.raises(ValueError, match="two images"):
        code_statistics([Moments(torch.randn(1, 2, 3, 3))])


class Local(nn.Module):
    """A decoder whose pixels see codes at most one place away."""

    def decode(self, codes: Tensor) -> Tensor:
        kernel = torch.tensor([[[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]], dtype=codes.dtype)
        return conv2d(interpolate(codes, scale_factor=2, mode="nearest"), kernel, padding=1)


@pytest.mark.parametrize("shape", [(13, 9), (5, 16), (4, 4)])
def test_tiles_of_a_local_decoder_make_the_whole_image_but_for_their_borders(shape: tuple[int, int]) -> None:
    codes = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    own = Local()
    whole, tiled = own.decode(codes), in_tiles(own, codes, 5)  # type: ignore[arg-type]
    assert tiled.shape == whole.shape
    # The last pixel of a tile misses a quarter of the kernel, and has a third of the weight there: 1/12 on a side.
    # Codes within 1 .. 2 make that at most twice as much, and a corner misses two sides.
    assert float(((tiled - whole) / whole).abs().max()) <= 2 * (1 - (11 / 12) ** 2)
    one = torch.ones_like(codes)
    ratio = in_tiles(own, one, 5) / own.decode(one)  # type: ignore[arg-type]
    expected = 1.0 if max(shape) <= 5 else 11 / 12 if min(shape) <= 5 else (11 / 12) ** 2
    assert float(ratio.min()) == pytest.approx(expected, rel=1e-12)


class Identity(Local):
    def decode(self, codes: Tensor) -> Tensor:
        return interpolate(codes, scale_factor=2, mode="nearest")


def test_tiles_that_agree_are_mixed_without_a_trace() -> None:
    codes = torch.randn(1, 3, 11, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = Identity()
    for tile in (3, 4, 5, 100):
        tiled = in_tiles(own, codes, tile)  # type: ignore[arg-type]
        assert torch.allclose(tiled, own.decode(codes), atol=1e-12)
    with pytest.raises(ValueError, match="tiles of at least 2"):
        in_tiles(own, codes, 1)  # type: ignore[arg-type]


def test_a_latent_denoiser_is_that_of_its_codes() -> None:
    def halved(z: Tensor, alpha: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        return z / 2

    class Halved(nn.Module):
        def forward(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            return halved(z, alpha, sigma)

    model, z = Latent(Halved(), Unshuffled(), 2.0), torch.ones(1, 4, 2, 2)
    alpha, sigma = torch.tensor(0.8), torch.tensor(0.6)
    assert torch.equal(model(z, alpha, sigma), z / 2)
    assert torch.allclose(model.noise(z, alpha, sigma), (z - 0.8 * z / 2) / 0.6)
