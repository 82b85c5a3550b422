"""Other people's autoencoders, against the numbers of the originals and against diffusers.

In float64 nothing differs but the order of sums, and Upsample's products are 4 where 3x3 kernels have 9: 1e-10 of the
largest number. In float32 a few dozen layers leave 1e-5.
"""

import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from seeded import load, seeded_input, seeded_normal, state_dict
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may go out

import diffusers
from safetensors.torch import save_file

from scorefield.models import KLAutoencoder, TinyAutoencoder, VQAutoencoder
from scorefield.models.checkpoints.autoencoders import (
    OpenedAutoencoder,
    holds_autoencoder,
    load_autoencoder_checkpoint,
)
from scorefield.models.code_statistics import code_statistics
from scorefield.models.latent import ScaledAutoencoder

pytestmark = pytest.mark.agreement

Config = dict[str, Any]
diffusers.utils.logging.set_verbosity_error()


@pytest.fixture
def double() -> Iterator[None]:
    """Networks are made in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Callback:
    """What a checkpoint of Lightning has beside its weights; here it tells when it is filled."""

    filled = 0

    def __init__(self) -> None:
        self.best = 1.0

    def __setstate__(self, state: Any) -> None:
        Callback.filled += 1


class RunsCode:
    """Makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def of_fixture(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    fixture = load(f"autoencoders/{name}")
    return fixture, state_dict(fixture["shapes"])


def written(fixture: dict[str, Any], state: dict[str, Tensor], folder: Path) -> tuple[Path, str]:
    """The original's file, and its source."""
    if "latent-diffusion" in fixture["original"]:
        torch.save({"state_dict": state, "epoch": 3}, folder / "model.ckpt")
        return folder / "model.ckpt", "latent_diffusion"
    for side in ("encoder", "decoder"):
        own = {name.removeprefix(f"{side}."): t for name, t in state.items() if name.startswith(side)}
        torch.save(own, folder / f"{fixture['architecture']['name']}_{side}.pth")
    return folder, "taesd"


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0.0, atol=tolerance * float(theirs.abs().max()))


def assert_as_original(fixture: dict[str, Any], opened: OpenedAutoencoder) -> None:
    moments = opened.module.moments(seeded_input(fixture["input"]))
    assert moments.mean.shape == tuple(fixture["codes"])
    encoded = moments.mean if moments.log_var is None else torch.cat([moments.mean, moments.log_var], 1)
    decoded = opened.module.decode(seeded_normal("codes", fixture["codes"]))
    for key, ours in (("encoded", encoded), ("decoded", decoded)):
        theirs = torch.tensor(fixture[key])
        assert list(ours.shape) == fixture[f"{key}_shape"]
        assert_same(ours.flatten()[:: fixture[f"{key}_stride"]], theirs, 1e-10)


@pytest.mark.parametrize("name", ["kl", "vq_noattn", "taesd", "taef2", "taesana"])
@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_an_imported_autoencoder_gives_the_originals_numbers(name: str, tmp_path: Path) -> None:
    fixture, state = of_fixture(name)
    opened = load_autoencoder_checkpoint(*written(fixture, state, tmp_path))
    assert opened.report.fits and opened.report.matched == len(opened.module.state_dict())
    assert_as_original(fixture, opened)
    assert (opened.scale, opened.shift) == (None, None)  # these files do not tell


# Files of latent-diffusion


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_a_latent_diffusion_model_of_lightning_has_its_first_stage_and_its_scale(tmp_path: Path) -> None:
    fixture, state = of_fixture("kl")
    whole: dict[str, Any] = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
    whole |= {
        "scale_factor": torch.tensor(0.25),
        "model.diffusion_model.out.weight": torch.ones(2),
        "first_stage_model.loss.logvar": torch.ones(()),
    }
    file = tmp_path / "model.ckpt"
    callback, code = Callback(), RunsCode(tmp_path / "made")
    lightning = {"epoch": 1, "callbacks": {Callback: callback}, "code": code, "state_dict": whole, "loops": [callback]}
    torch.save(lightning, file)
    opened = load_autoencoder_checkpoint(file, "latent_diffusion")
    assert Callback.filled == 0 and not (tmp_path / "made").exists()
    assert opened.scale == 0.25 and opened.name_of_class == "KLAutoencoder"
    assert_as_original(fixture, opened)

    torch.save(lightning, file, _use_new_zipfile_serialization=False)  # as before PyTorch 1.6
    assert_as_original(fixture, load_autoencoder_checkpoint(file, "latent_diffusion"))


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_weights_with_an_average_beside_them(tmp_path: Path) -> None:
    fixture, state = of_fixture("vq_noattn")
    raw = {name: tensor + 1 for name, tensor in state.items()}
    averages = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in state.items()}
    others = {"model_ema.decay": torch.ones(()), "loss.discriminator.main.0.weight": torch.ones(3)}
    save_file({**raw, **averages, **others}, tmp_path / "vq.safetensors")
    opened = load_autoencoder_checkpoint(tmp_path / "vq.safetensors", "latent_diffusion")
    assert opened.report.weights == "ema"
    assert_as_original(fixture, opened)
    opened = load_autoencoder_checkpoint(tmp_path / "vq.safetensors", "latent_diffusion", ema=False)
    assert torch.equal(opened.module.decoder.head.bias, raw["decoder.conv_out.bias"])  # type: ignore[union-attr]


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    fixture, state = of_fixture("kl")
    file = tmp_path / "model.ckpt"
    for content, said in (
        ({"state_dict": {"conv.weight": torch.ones(2)}}, "encoder.conv_in.weight"),
        ({"state_dict": {name: t for name, t in state.items() if "mid.block_2" not in name}}, "does not fit"),
        ({"state_dict": {**state, "decoder.conv_out.bias": torch.full((3,), torch.nan)}}, "not finite"),
        ({"epoch": 3}, "expected a state dict"),
        (pickle.dumps([RunsCode(tmp_path / "made")]), "does not read|expected a state dict"),
        (b"PK no archive", "does not read"),
    ):
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        with pytest.raises(ValueError, match=said):
            load_autoencoder_checkpoint(file, "latent_diffusion")
    assert not (tmp_path / "made").exists()
    torch.jit.script(nn.Linear(2, 2)).save(str(file))
    with pytest.raises(ValueError, match=r"model\.ckpt"):
        load_autoencoder_checkpoint(file, "latent_diffusion")
    with pytest.raises(ValueError, match="resolution"):
        load_autoencoder_checkpoint(*written(fixture, state, tmp_path), resolutions=3)
    with pytest.raises(ValueError, match="among diffusers"):
        load_autoencoder_checkpoint(file, "edm")


# Files of TAESD


def test_pairs_of_files_that_are_not_one(tmp_path: Path) -> None:
    fixture, state = of_fixture("taesd")
    written(fixture, state, tmp_path)
    assert load_autoencoder_checkpoint(tmp_path / "taesd_decoder.pth", "taesd").report.fits
    (tmp_path / "taesd_decoder.pth").rename(tmp_path / "taesdxl_decoder.pth")
    with pytest.raises(ValueError, match=r"no taesd_decoder\.pth"):
        load_autoencoder_checkpoint(tmp_path, "taesd")
    with pytest.raises(ValueError, match="NAME_encoder"):
        load_autoencoder_checkpoint(tmp_path / "weights.pth", "taesd")
    (tmp_path / "taesdxl_encoder.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="taesdxl_encoder"):
        load_autoencoder_checkpoint(tmp_path, "taesd")


# Folders of diffusers

KL: Config = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "sample_size": 24,
}
ATTENDING: Config = {
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
}
THEIRS: dict[str, tuple[str, Config]] = {
    "kl": ("AutoencoderKL", KL),
    "kl of other sizes": ("AutoencoderKL", {
        **KL, **ATTENDING, "block_out_channels": [24, 40], "norm_num_groups": 8, "layers_per_block": 2,
        "in_channels": 1, "out_channels": 1, "latent_channels": 5, "scaling_factor": 0.3, "shift_factor": 0.1,
    }),
    "kl without convolutions": ("AutoencoderKL", {
        **KL, "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False,
        "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 4.0, 5.0], "scaling_factor": 0.5,
    }),
    "vq": ("VQModel", {**KL, "num_vq_embeddings": 11, "vq_embed_dim": 2}),
    "vq attending": ("VQModel", {**KL, **ATTENDING, "num_vq_embeddings": 11, "latent_channels": 4}),
    "tiny": ("AutoencoderTiny", {
        "encoder_block_out_channels": [8, 8, 8], "decoder_block_out_channels": [8, 8, 8], "latent_channels": 3,
        "num_encoder_blocks": [1, 2, 1], "num_decoder_blocks": [1, 2, 1],
    }),
}  # fmt: skip


def theirs(name: str) -> Any:
    """A module of diffusers with random weights, none of them zero."""
    kind, config = THEIRS[name]
    module = getattr(diffusers, kind)(**config).eval().requires_grad_(False)
    module.load_state_dict(state_dict({name: tensor.shape for name, tensor in module.state_dict().items()}))
    return module


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_an_autoencoder_of_diffusers_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = theirs(name)
    module.save_pretrained(tmp_path / "vae")
    monkeypatch.setitem(sys.modules, "diffusers", None)  # ours does not need it
    opened = load_autoencoder_checkpoint(tmp_path, "diffusers")
    ours = opened.module
    # Sides that are no powers of 2, and codes with odd ones.
    images = seeded_input((3, ours.channels, 7 * ours.factor, 5 * ours.factor)).float()
    encoded = module.encode(images)
    z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    moments = ours.moments(images)
    assert_same(moments.mean, z)
    if moments.log_var is not None:
        assert_same(moments.log_var, encoded.latent_dist.logvar)
    assert_same(ours.decode(z), module.decode(z).sample)
    config = THEIRS[name][1]
    if "latents_std" in config:
        assert opened.scale == pytest.approx((0.5, 0.25, 0.125, 0.1)) and opened.shift == (0.1, 0.2, 0.3, 0.4)
    else:
        assert opened.scale == config.get("scaling_factor", 1.0 if name == "tiny" else 0.18215)
        assert opened.shift == config.get("shift_factor", 0.0)
    assert opened.shape == (ours.channels, *(config.get("sample_size", 512),) * 2)
    assert isinstance(ours, {"k": KLAutoencoder, "v": VQAutoencoder, "t": TinyAutoencoder}[name[0]])


def test_old_names_of_attention_and_files_of_torch(tmp_path: Path) -> None:
    module = theirs("vq attending")
    module.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    state = module.state_dict()
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        state = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    opened = load_autoencoder_checkpoint(tmp_path / "diffusion_pytorch_model.bin", "diffusers")
    z = seeded_normal("codes", (1, 4, 3, 3)).float()
    assert_same(opened.module.decode(z), module.decode(z).sample)


def test_autoencoders_of_diffusers_that_are_others(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="AutoencoderTiny"):
        load_autoencoder_checkpoint(tmp_path, "diffusers")
    theirs("vq").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for change, said in (
        ({"norm_type": "spatial"}, "norm_type"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}, "mirrors"),
        ({"down_block_types": ["Other", "DownEncoderBlock2D"]}, "blocks of"),
        ({"layers_per_block": 2}, "does not fit"),
        ({"_class_name": "AutoencoderDC"}, "AutoencoderTiny"),
    ):
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=said):
            load_autoencoder_checkpoint(tmp_path, "diffusers")
    file.write_text(json.dumps({**config, "_class_name": "AutoencoderKL", "use_post_quant_conv": False}))
    with pytest.raises(ValueError, match="use_quant_conv"):
        load_autoencoder_checkpoint(tmp_path, "diffusers")


def test_a_folder_of_diffusers_holds_an_autoencoder_or_not(tmp_path: Path) -> None:
    assert not holds_autoencoder(tmp_path, "diffusers") and not holds_autoencoder(tmp_path, "edm")
    theirs("tiny").save_pretrained(tmp_path / "vae")
    assert holds_autoencoder(tmp_path, "diffusers") and holds_autoencoder(tmp_path / "vae", "diffusers")
    assert not holds_autoencoder(tmp_path / "vae" / "none.safetensors", "diffusers")
    (tmp_path / "unet").mkdir()
    assert not holds_autoencoder(tmp_path, "diffusers") and holds_autoencoder(tmp_path / "vae", "diffusers")


@pytest.mark.slow
@torch.no_grad()
def test_real_weights_of_taef2() -> None:
    """Theirs, of a photograph: 32.55 dB, with the original's own code."""
    folder = os.environ.get("SCOREFIELD_TAEF2")
    if not folder:
        pytest.skip("set SCOREFIELD_TAEF2 to the folder of taef2_encoder.pth and taef2_decoder.pth")
    from sklearn.datasets import load_sample_image

    opened = load_autoencoder_checkpoint(folder, "taesd")
    photograph = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[None, :, :416].float() / 127.5 - 1
    error = (opened.module(photograph).clamp(-1, 1) - photograph).square().mean()
    assert float(10 * (4 / error).log10()) == pytest.approx(32.55, abs=0.05)

    # Squares of 32 pixels, in two orders: what was measured over one brings the codes of the other to 0 and 1.
    squares = photograph.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    found = code_statistics(opened.module.moments(part) for part in squares.split(64))
    codes = ScaledAutoencoder(opened.module, found.scale, found.shift).encode(squares.flip(0))
    assert float(codes.mean((0, 2, 3)).abs().max()) < 0.02
    assert float((codes.std((0, 2, 3)) - 1).abs().max()) < 0.02
