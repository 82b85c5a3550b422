"""Autoencoders: sizes as published, shapes, and what is refused."""

from typing import Any

import pytest
import torch
from seeded import seeded_input
from torch import Tensor, nn

from scorefield.configs import build
from scorefield.models import KLAutoencoder, TinyAutoencoder, VQAutoencoder
from scorefield.models.networks.autoencoder import ImageAutoencoder
from scorefield.models.networks.quantisers import FSQ, Codebook

Settings = dict[str, Any]
# Of the first stages of latent-diffusion: settings, entries of the codebook, parameters of the encoder, the decoder
# and all, which its own modules have.
PUBLISHED: dict[str, tuple[Settings, int, int, int, int]] = {
    "kl-f4": ({"code_channels": 3}, 0, 22_351_238, 32_960_771, 55_312_063),
    "kl-f8": ({"multipliers": (1, 2, 4, 4), "code_channels": 4}, 0, 34_163_592, 49_490_179, 83_653_863),
    "kl-f16": (
        {"multipliers": (1, 1, 2, 2, 4), "attention": (4,), "code_channels": 16},
        0, 28_265_760, 41_343_875, 69_610_963,
    ),
    "kl-f32": (
        {"multipliers": (1, 1, 2, 2, 4, 4), "attention": (4, 5), "code_channels": 64},
        0, 42_614_656, 61_244_803, 103_880_131,
    ),
    "vq-f4": ({"code_channels": 3}, 8192, 22_337_411, 32_960_771, 55_322_782),
    "vq-f4-noattn": (
        {"code_channels": 3, "middle_attention": False},
        8192, 21_285_763, 31_909_123, 53_219_486,
    ),
    "vq-f8": (
        {"multipliers": (1, 2, 2, 4), "attention": (3,), "code_channels": 4},
        16384, 27_397_764, 40_253_955, 67_717_295,
    ),
    "vq-f8-n256": (
        {"multipliers": (1, 2, 2, 4), "attention": (3,), "code_channels": 4},
        256, 27_397_764, 40_253_955, 67_652_783,
    ),
    "vq-f16": (
        {"multipliers": (1, 1, 2, 2, 4), "attention": (4,), "code_channels": 8},
        16384, 28_155_144, 41_307_011, 69_593_371,
    ),
}  # fmt: skip
# Of the tiny ones: settings, and parameters of the encoder and the decoder, which taesd's own modules have.
TINY: dict[str, tuple[Settings, int, int]] = {
    "taesd": ({}, 1_222_532, 1_222_531),
    "taef1": ({"code_channels": 16}, 1_229_456, 1_229_443),
    "taef2": ({"code_channels": 32, "pool": True}, 1_338_528, 1_338_499),
    "taesana": (
        {"code_channels": 32, "early": (32,), "decoder_widths": (256, 128, 64, 64, 64, 64)},
        1_256_288, 8_301_763,
    ),
}  # fmt: skip


def small(kind: str, **settings: Any) -> ImageAutoencoder:
    """A small autoencoder of two channels, f = 4, of random weights."""
    torch.manual_seed(0)
    tiny = {"code_channels": 3, "widths": (8, 8, 8), "blocks": (1, 1, 1)}
    toy = tiny if kind.startswith("tiny") else {"code_channels": 3, "width": 8, "multipliers": (1, 2, 2), "blocks": 1}
    made: ImageAutoencoder = build.build(build.AUTOENCODERS, {**build.parse(kind), **toy, **settings}, channels=2)
    return made.eval()


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


KINDS = ("kl", "vq:quantiser='codebook:size=7'", "tiny", "tiny:pool=true")


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_first_stages(name: str) -> None:
    settings, size, encoder, decoder, total = PUBLISHED[name]
    with torch.device("meta"):
        made: Any = (
            VQAutoencoder(3, Codebook(size, settings["code_channels"], decay=None), **settings)
            if size
            else KLAutoencoder(3, **settings)
        )
    assert (parameters(made.encoder), parameters(made.decoder), parameters(made)) == (encoder, decoder, total)


@pytest.mark.parametrize("name", TINY)
def test_parameters_are_those_of_the_published_tiny_ones(name: str) -> None:
    settings, encoder, decoder = TINY[name]
    with torch.device("meta"):
        made = TinyAutoencoder(3, **settings)
    assert (parameters(made.encoder), parameters(made.decoder, made.head)) == (encoder, decoder)
    assert made.factor == (32 if name == "taesana" else 8)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_codes_are_smaller_by_the_factor_and_no_image_depends_on_others(kind: str) -> None:
    autoencoder = small(kind)
    images = seeded_input((3, 2, 12, 20)).float().clamp(-1, 1)
    z = autoencoder.encode(images)
    assert z.shape == (3, autoencoder.code_channels, 3, 5) and autoencoder.factor == 4
    again = autoencoder.decode(z)
    assert again.shape == images.shape
    assert torch.equal(autoencoder(images), again)
    for i in range(3):
        torch.testing.assert_close(autoencoder.encode(images[i : i + 1]), z[i : i + 1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(autoencoder.decode(z[i : i + 1]), again[i : i + 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_reconstructions_are_decoded_samples_of_the_moments(kind: str) -> None:
    autoencoder = small(kind)
    images, noise = seeded_input((2, 2, 8, 12)).float(), seeded_input((2, 3, 2, 3)).float()
    made = autoencoder.reconstruct(images, noise)
    moments = autoencoder.moments(images)
    torch.testing.assert_close(made.images, autoencoder.decode(moments.sample(noise)))
    assert made.regulariser.shape == (2,) and all(of.shape == (2,) for of in made.numbers.values())
    assert (moments.log_var is None) == (kind != "kl") and (made.index is not None) == kind.startswith("vq")
    if kind == "kl":
        torch.testing.assert_close(made.regulariser, moments.kl())
    made.images.square().sum().backward()
    assert autoencoder.last_layer.grad is not None and autoencoder.last_layer.shape[0] == 2


def test_codes_of_vq_are_those_before_quantisation() -> None:
    autoencoder = small("vq:quantiser='codebook:size=7'")
    assert isinstance(autoencoder, VQAutoencoder)
    z = autoencoder.encode(seeded_input((2, 2, 8, 12)).float())
    points = autoencoder.quantiser(z).z
    assert not torch.allclose(z, points)
    torch.testing.assert_close(autoencoder.decode(z), autoencoder.decode(points))
    assert autoencoder.reconstruct(z.new_ones((1, 2, 8, 8)), z).index.max() < 7  # type: ignore[union-attr]


def test_the_logarithm_of_the_variance_is_bounded() -> None:
    autoencoder = small("kl")
    assert isinstance(autoencoder, KLAutoencoder) and isinstance(autoencoder.to_codes, nn.Conv2d)
    nn.init.constant_(autoencoder.to_codes.bias, 100.0)
    log_var = autoencoder.moments(torch.zeros(1, 2, 4, 4)).log_var
    assert isinstance(log_var, Tensor) and bool((log_var == 20).all())


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_codes_of_other_shapes_are_refused(kind: str) -> None:
    autoencoder = small(kind)
    for images, said in (((1, 2, 12, 13), "divisible by 4"), ((1, 3, 12, 12), r"\(B, 2, H, W\)")):
        with pytest.raises(ValueError, match=said):
            autoencoder.encode(torch.zeros(images))
    with pytest.raises(ValueError, match="another autoencoder"):
        autoencoder.decode(torch.zeros(1, 4, 3, 3))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="code_channels=3"):
        VQAutoencoder(1, Codebook(8, 3), code_channels=4, width=8)
    with pytest.raises(ValueError, match="a number for each level"):
        TinyAutoencoder(1, widths=(8, 8), blocks=(1, 1, 1))
    with pytest.raises(ValueError, match="code_convolutions"):
        KLAutoencoder(1, code_channels=4, width=8, features=8, code_convolutions=False)


@pytest.mark.parametrize(
    "spec",
    [
        "kl:code_channels=2,width=8,multipliers=(1,2),blocks=1",
        "vq:quantiser='codebook:size=7,legacy=true',width=8,multipliers=(1,2),blocks=1",
        "vq:quantiser='fsq:levels=(3,5)',code_channels=2,width=8,multipliers=(1,2),blocks=1",
        "vq:quantiser='lfq:bits=3',width=8,multipliers=(1,2),blocks=1",
        "tiny:widths=(8,8),blocks=(1,1)",
    ],
)
def test_a_spec_is_read_back_from_what_it_made(spec: str) -> None:
    made = build.autoencoder(spec, 1)
    again = build.autoencoder(build.unparse(build.autoencoder_spec(made)), 1)
    shapes = [{name: of.shape for name, of in each.state_dict().items()} for each in (made, again)]
    assert type(made) is type(again) and shapes[0] == shapes[1]
    assert build.autoencoder_spec(made) == build.autoencoder_spec(again)


@pytest.mark.parametrize(("quantiser", "convolutions"), [(FSQ((8, 5, 5)), False), (Codebook(8, 3), True)])
def test_fsq_has_no_convolutions_around_its_codes_by_default(quantiser: nn.Module, convolutions: bool) -> None:
    # With them 71 of 1,000 points were in use after 60 steps, and 641 without.
    made = VQAutoencoder(1, quantiser, 3, 8, (1, 2))  # type: ignore[arg-type]
    assert isinstance(made.to_codes, nn.Conv2d) is convolutions
