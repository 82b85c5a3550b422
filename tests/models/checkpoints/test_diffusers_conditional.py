"""`UNet2DConditionModel` of diffusers as our `ADM`, against diffusers itself, with random weights at odd sizes."""

import os
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may go out

import diffusers
from seeded import seeded_input, state_dict

from scorefield.commands.import_checkpoint import import_checkpoint
from scorefield.commands.sample import sample
from scorefield.commands.trained import open_trained
from scorefield.models import ADM
from scorefield.models.checkpoints import load_checkpoint
from scorefield.models.checkpoints.diffusers.conditional import CONDITIONAL, spec_of_config
from scorefield.models.checkpoints.diffusers.modules import DiffusersUNet

pytestmark = pytest.mark.agreement

diffusers.utils.logging.set_verbosity_error()

Config = dict[str, Any]
TOY: Config = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
}
NATIVE: dict[str, Config] = {
    "heads, as Stable Diffusion 1": {**TOY, "attention_head_dim": 4},
    "widths of heads, linear, as 2": {**TOY, "attention_head_dim": [4, 8], "use_linear_projection": True},
    "classes": {**TOY, "num_class_embeds": 5},
    "inpainting": {**TOY, "in_channels": 9},
    "variances": {**TOY, "out_channels": 8},
    "deep": {
        **TOY, "transformer_layers_per_block": 2, "layers_per_block": 2, "upcast_attention": True,
        "resnet_time_scale_shift": "scale_shift", "flip_sin_to_cos": False, "freq_shift": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
}  # fmt: skip
FOREIGN: dict[str, Config] = {
    "addition_embed_type": {**TOY, "addition_embed_type": "text"},
    "transformer_layers_per_block": {**TOY, "transformer_layers_per_block": [1, 2]},
    "attention_head_dim": {**TOY, "attention_head_dim": [4, 2]},
    "SimpleCrossAttnDownBlock2D": {
        **TOY, "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
    },
    "only_cross_attention": {**TOY, "only_cross_attention": True},
}  # fmt: skip


def theirs(config: Config) -> Any:
    """Their network of random weights, none of them zero."""
    network = diffusers.UNet2DConditionModel(**config).eval().requires_grad_(False)
    network.load_state_dict(state_dict({name: tensor.shape for name, tensor in network.state_dict().items()}))
    return network


def assert_same(ours: Tensor, other: Tensor) -> None:
    assert ours.shape == other.shape and float(other.std()) > 0.1
    assert float((ours - other).abs().max() / other.abs().max()) <= 1e-5


@pytest.mark.parametrize("name", NATIVE)
def test_the_same_output(name: str, tmp_path: Any) -> None:
    """To 1e-5 of the largest output in float64; their sines of timesteps are in float32."""
    config = NATIVE[name]
    network = theirs(config)
    network.save_pretrained(tmp_path)
    denoiser, _, report = load_checkpoint(tmp_path, "diffusers")
    assert isinstance(denoiser.net, ADM) and report.matched == len(denoiser.net.state_dict())
    assert report.parameters == sum(p.numel() for p in network.parameters()) + 128 * ("num_class_embeds" in config)
    ours, other = denoiser.net.double(), network.double()
    channels = config.get("in_channels", 4)
    x, context = seeded_input((3, channels, 6, 10)), seeded_input((3, 7, 16)).flip(0)
    t = torch.tensor([0, 333, 999], dtype=torch.float64)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[:, 5:] = False
    label = {"label": torch.tensor([0, 3, 4])} if "num_class_embeds" in config else {}
    concat = {"concat": x[:, 4:]} if channels > 4 else {}
    for seen in (None, mask):
        expected = other(x, t, context, *label.values(), encoder_attention_mask=seen).sample
        assert_same(ours(x[:, :4], t, context=context, context_mask=seen, **label, **concat), expected[:, :4])


def test_stable_diffusions_have_their_numbers_of_parameters() -> None:
    """859,520,964 and 865,910,724, as diffusers makes them."""
    wide: Config = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
    for config, count in (({"cross_attention_dim": 768}, 859_520_964), (wide, 865_910_724)):
        spec = spec_of_config(config)
        with torch.device("meta"):
            network = spec.build()
        assert isinstance(network, ADM) and sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("name", FOREIGN)
def test_another_network_is_built_by_diffusers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**FOREIGN[name], "sample_size": 8}
    assert spec_of_config(config).network is DiffusersUNet
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=f"{name}.* is built by diffusers, which is not installed"):
        spec_of_config(config)


def test_a_wrapped_network_takes_the_same_keywords() -> None:
    network = theirs(NATIVE["inpainting"])
    wrapped = DiffusersUNet("UNet2DConditionModel", **NATIVE["inpainting"]).eval().requires_grad_(False)
    wrapped.unet.load_state_dict(network.state_dict())
    x, context, t = seeded_input((2, 9, 8, 8)).float(), seeded_input((2, 7, 16)).float(), torch.tensor([1.0, 500.0])
    answer = wrapped(x[:, :4], t, context=context, concat=x[:, 4:])
    assert_same(answer, network(x, t, context).sample)
    with pytest.raises(ValueError, match="does not take this conditioning"):
        wrapped(x[:, :4], t)


def test_the_defaults_are_diffusers_own() -> None:
    own = dict(diffusers.UNet2DConditionModel(**TOY).config)
    left_out = {key: value for key, value in CONDITIONAL.items() if key not in TOY}
    assert left_out == {key: own[key] for key in left_out}
    assert {key for key in own if not key.startswith("_")} == set(CONDITIONAL)


def test_a_pipeline_of_codes_becomes_a_latent_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The U-Net sees what diffusers' own would see, and its samples are the autoencoder's images, without diffusers."""
    network, folder = theirs({**TOY, "in_channels": 3, "out_channels": 3}), tmp_path / "pipeline"
    vae: Config = {"block_out_channels": (32, 32), "num_vq_embeddings": 16, "scaling_factor": 0.5}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vqvae = diffusers.VQModel(**vae).eval().requires_grad_(False)
    for module, part in ((network, "unet"), (vqvae, "vqvae")):
        module.save_pretrained(folder / part)
    diffusers.DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    summary = import_checkpoint(tmp_path / "run", file=str(folder), source="diffusers")
    assert "its context is made outside" in summary["verdict"]
    trained = open_trained(tmp_path / "run", "cpu")
    run, t = trained.run, torch.tensor(0.4, dtype=torch.float64)
    assert (run.shape, run.data.shape, run.levels) == ((3, 8, 8), (3, 16, 16), None)
    z, context = seeded_input((2, 3, 8, 8)).float(), seeded_input((2, 7, 16)).float()
    noise = trained.denoiser.noise(z, *run.sde.scales(t), context=context)
    assert_same(noise, network(z, 399, encoder_hidden_states=context).sample)
    assert run.autoencoder is not None
    assert_same(run.autoencoder.scaled.decode(z), vqvae.decode(z / 0.5).sample)
    sample(tmp_path / "run", num=2, steps=2, output=str(tmp_path / "samples.npz"))
    assert np.load(tmp_path / "samples.npz")["x"].shape == (2, 3, 16, 16)
