"""Folders of diffusers as denoisers of ours, and ours as folders of diffusers, against diffusers itself.

Every network has random weights, none of them zero, and both sides get the same images and timesteps. What is left to
differ is rounding: diffusers takes sines and cosines of timesteps in float32, whatever its weights are, which in
float64 leaves 1e-6 of the output (phases up to 999 radians, rounded to 3e-5, on random weights).
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may go out

import diffusers
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from safetensors.torch import save_file
from seeded import seeded_input, state_dict

from scorefield.models import Denoiser, UNet, precondition
from scorefield.models.checkpoints import LoadReport, load_checkpoint
from scorefield.models.checkpoints.diffusers.export import to_diffusers
from scorefield.models.checkpoints.diffusers.folder import read_folder
from scorefield.models.checkpoints.diffusers.importer import UNET, spec_of_config
from scorefield.models.checkpoints.diffusers.latent import load_latent
from scorefield.models.checkpoints.diffusers.modules import DiffusersUNet
from scorefield.models.checkpoints.diffusers.native import RENAMED
from scorefield.models.checkpoints.report import fitted
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import SDE, CosineSDE, DiscreteVPSDE
from scorefield.solvers import DDIM, grids

pytestmark = pytest.mark.agreement

diffusers.utils.logging.set_verbosity_error()

Config = dict[str, Any]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5}  # of the largest output
TOY: Config = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
}
# For what does not depend on the network.
SMALL: Config = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "add_attention": False,
}
# As google/ddpm-cifar10-32 is published.
DDPM: Config = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
NATIVE: dict[str, Config] = {
    "cifar10": {**DDPM, "block_out_channels": [32, 64, 64, 64], "sample_size": 8},
    "defaults": TOY,
    "widths": {**TOY, "block_out_channels": (32, 96, 160), "attention_head_dim": 32, "layers_per_block": 2},
    "attention everywhere": {
        **TOY,
        "down_block_types": ("AttnDownBlock2D",) * 3,
        "up_block_types": ("AttnUpBlock2D",) * 3,
    },
    "no attention": {
        **TOY,
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
        "add_attention": False,
    },
    "scale and shift": {**TOY, "resnet_time_scale_shift": "scale_shift"},
    "scale, shift, norm": {**TOY, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
    "classes": {**TOY, "num_class_embeds": 5},
    "centred": {**TOY, "center_input_sample": True},
    "one channel, swish": {**TOY, "in_channels": 1, "out_channels": 1, "act_fn": "swish"},
    "cosines": {**TOY, "freq_shift": 1, "flip_sin_to_cos": True, "downsample_padding": 0},
    "sines": {**TOY, "freq_shift": 0, "flip_sin_to_cos": False, "sample_size": (8, 12)},
}
FOREIGN: dict[str, Config] = {
    "groups": {**TOY, "norm_num_groups": 8},
    "variances": {**TOY, "out_channels": 6},
    "resnet resampling": {
        **TOY,
        "down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"),
    },
    "not mirrored": {**TOY, "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")},
    "downsample_type": {**TOY, "downsample_type": "resnet", "upsample_type": "resnet"},
    "gelu": {**TOY, "act_fn": "gelu"},
    "middle rescaled": {**TOY, "mid_block_scale_factor": 1.4},
    "no middle": {**TOY, "mid_block_type": None},
    "learned timesteps": {**TOY, "time_embedding_type": "learned", "num_train_timesteps": 1000},
    "time_embedding_dim": {**TOY, "time_embedding_dim": 96},
    "classes and groups": {**TOY, "num_class_embeds": 5, "norm_num_groups": 8},
    "ncsnpp": {
        **TOY,
        "time_embedding_type": "fourier",
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    },
}


def theirs(config: Config, kind: str = "UNet2DModel") -> Any:
    """Their network of random weights."""
    network = getattr(diffusers, kind)(**config).eval().requires_grad_(False)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    state = state_dict(shapes)
    assert all(bool((tensor != 0).all()) for tensor in state.values())
    network.load_state_dict(state)
    return network


def loaded(folder: Path, **given: Any) -> tuple[Denoiser, SDE, LoadReport]:
    return load_checkpoint(folder, "diffusers", **given)


def saved(network: Any, folder: Path, scheduler: Any = None) -> Path:
    """A pipeline's folder."""
    diffusers.DDPMPipeline(network, scheduler or diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def assert_same(ours: Tensor, other: Tensor) -> None:
    assert ours.shape == other.shape and ours.dtype == other.dtype
    assert float(other.std()) > 0.1
    difference = float((ours - other).abs().max() / other.abs().max())
    assert difference <= TOLERANCE[ours.dtype], difference


def images(config: Config, dtype: torch.dtype) -> Tensor:
    size = config["sample_size"]
    shape = (size, size) if isinstance(size, int) else tuple(size)
    return seeded_input((3, config.get("in_channels", 3), *shape)).to(dtype)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, to copy."""
    return saved(theirs(SMALL), tmp_path_factory.mktemp("small"))


# Networks


@pytest.mark.parametrize("name", [*NATIVE, *FOREIGN])
def test_the_same_output(name: str, tmp_path: Path) -> None:
    config = {**NATIVE, **FOREIGN}[name]
    network = theirs(config)
    network.save_pretrained(tmp_path)
    given = {"scheduler": "ScoreSdeVeScheduler"} if name == "ncsnpp" else {}
    denoiser, _, report = loaded(tmp_path, **given)
    assert isinstance(denoiser.net, UNet if name in NATIVE else DiffusersUNet)
    assert report.matched == len(denoiser.net.state_dict())
    # That the dtype is that of the weights is seen in one of each class.
    for dtype in (torch.float32, torch.float64) if name in ("defaults", "ncsnpp") else (torch.float64,):
        ours, other, x = denoiser.net.to(dtype), network.to(dtype), images(config, dtype)
        timesteps = told = torch.tensor([0, 333, 999], dtype=dtype)
        if name == "ncsnpp":  # there sigma is told, here its logarithm
            told = torch.tensor([-3, 0.5, 4], dtype=dtype)
            timesteps = told.exp()
        label = {"label": torch.tensor([0, 3, 4])} if "num_class_embeds" in config else {}
        expected = other(x, timesteps.long() if name == "learned timesteps" else timesteps, *label.values()).sample
        assert_same(ours(x, told, **label), expected[:, : x.shape[1]])


def test_no_label_adds_nothing_of_a_class_natively_and_through_diffusers(tmp_path: Path) -> None:
    for name, config in (("classes", NATIVE["classes"]), ("groups", FOREIGN["classes and groups"])):
        network = theirs(config)
        network.save_pretrained(tmp_path / name)
        denoiser, _, _ = loaded(tmp_path / name)
        nn.init.zeros_(network.class_embedding.weight)
        x, t = images(config, torch.float32), torch.tensor([0.0, 333.0, 999.0])
        assert_same(denoiser.net(x, t), network(x, t, torch.zeros(3, dtype=torch.long)).sample)


def test_a_network_with_classes_is_never_used_without_one(tmp_path: Path) -> None:
    for name, config in (("classes", NATIVE["classes"]), ("groups", FOREIGN["classes and groups"])):
        theirs(config).save_pretrained(tmp_path / name)
        denoiser, sde, _ = loaded(tmp_path / name)
        x, scales = images(config, torch.float32), sde.scales(torch.tensor(0.5))
        assert denoiser.label_required and spec_of_config(**config).num_classes == config["num_class_embeds"]
        with pytest.raises(ValueError, match="expected a label"):
            denoiser(x, *scales)
        assert denoiser(x, *scales, label=torch.tensor([0, 3, 4])).shape == x.shape
    assert not spec_of_config(**DDPM).denoiser(ours()).label_required


def test_ddpm_cifar10_has_its_published_number_of_parameters() -> None:
    made = spec_of_config(**DDPM)
    with torch.device("meta"):
        network = made.network(**made.settings)
    assert isinstance(network, UNet)
    assert made.shape == (3, 32, 32)
    assert sum(p.numel() for p in network.parameters()) == 35_746_307


def test_forward_mode_derivatives_pass_through_diffusers_networks(tmp_path: Path) -> None:
    theirs(FOREIGN["groups"]).save_pretrained(tmp_path)
    denoiser, sde, _ = loaded(tmp_path)
    x, scales = images(TOY, torch.float64), sde.scales(torch.tensor(0.5, dtype=torch.float64))
    denoiser, v = denoiser.double(), seeded_input(x.flip(0).shape).flip(0)
    _, slope = torch.func.jvp(lambda x: denoiser(x, *scales), (x,), (v,))
    # v . (J^T J v) = |J v|^2, with J^T by reverse mode; diffusers has its softmax in float32.
    _, back = torch.func.vjp(lambda x: denoiser(x, *scales), x)
    assert float((back(slope)[0] * v).sum()) == pytest.approx(float(slope.square().sum()), rel=1e-5)


def test_a_wrapped_network_is_made_again_from_its_settings(tmp_path: Path) -> None:
    theirs(FOREIGN["groups"]).save_pretrained(tmp_path)
    network = loaded(tmp_path)[0].net
    again = DiffusersUNet(**json.loads(json.dumps(network.settings)))
    again.load_state_dict(network.state_dict())
    x, t = images(TOY, torch.float32), torch.tensor([0.0, 333.0, 999.0])
    with torch.no_grad():
        assert_same(again.eval()(x, t), network(x, t))


# Folders


def test_old_names_of_attention_and_files_of_pickles(tmp_path: Path) -> None:
    for name, config in (("native", NATIVE["cifar10"]), ("foreign", FOREIGN["groups"])):
        network, folder = theirs(config), tmp_path / name
        network.save_pretrained(folder)
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        old = {_old(key): tensor for key, tensor in network.state_dict().items()}
        assert sum(".query." in key for key in old) > 2
        torch.save(old, folder / "diffusion_pytorch_model.bin")
        x, t = images(config, torch.float32), torch.tensor([0.0, 333.0, 999.0])
        assert_same(loaded(folder)[0].net(x, t), network(x, t).sample)


def _old(name: str) -> str:
    for new, old in RENAMED.items():
        name = name.replace(f".{new}.", f".{old}.") if ".attentions." in name else name
    return name


def test_averaged_and_raw_weights(tmp_path: Path) -> None:
    network = theirs(TOY)
    saved(network, tmp_path)
    assert loaded(tmp_path)[2].weights == "as stored"
    network.conv_in.weight.mul_(2)
    ema = diffusers.training_utils.EMAModel(network.parameters(), model_cls=type(network), model_config=network.config)
    ema.save_pretrained(tmp_path / "unet_ema")
    averaged, raw = loaded(tmp_path), loaded(tmp_path, ema=False)
    assert (averaged[2].weights, raw[2].weights) == ("ema", "raw")
    assert torch.equal(averaged[0].net.state_dict()["stem.weight"], 2 * raw[0].net.state_dict()["stem.weight"])


def test_weights_in_several_files_in_half_precision_and_all_parts_in_one_folder(tmp_path: Path) -> None:
    network = theirs(TOY)
    sharded, half, flat = (saved(network, tmp_path / name) for name in ("sharded", "half", "flat"))
    x, t = images(TOY, torch.float32), torch.tensor([0.0, 333.0, 999.0])
    shutil.rmtree(sharded / "unet")
    network.save_pretrained(sharded / "unet", max_shard_size="1MB")
    assert len(list((sharded / "unet").glob("*.safetensors"))) > 2
    for part in ("unet", "scheduler"):
        for file in (flat / part).iterdir():
            file.rename(flat / file.name)
        (flat / part).rmdir()
    for folder in (sharded, flat):
        denoiser, _, report = loaded(folder)
        assert_same(denoiser.net(x, t), network(x, t).sample)
        assert report.weights == "as stored"
    (half / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    network.half().save_pretrained(half / "unet", variant="fp16")
    assert_same(loaded(half)[0].net(x, t), network.float()(x, t).sample)


def test_a_file_alone_with_the_keywords_of_its_configuration(tmp_path: Path) -> None:
    network = theirs(TOY)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    denoiser, _, report = load_checkpoint(file, "diffusers", **config, prediction_type="v_prediction")
    assert report.weights == "as stored" and denoiser.precondition.predicts == "v"
    x, t = images(TOY, torch.float32), torch.tensor([0.0, 333.0, 999.0])
    assert_same(denoiser.net(x, t), network(x, t).sample)
    with pytest.raises(ValueError, match="does not fit"):
        load_checkpoint(file, "diffusers", **TOY | {"layers_per_block": 2})


# Paths


@pytest.mark.parametrize(
    "betas",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 500},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.001, 0.01, 0.02, 0.3]},
    ],
    ids=lambda betas: str(next(iter(betas.values()), "linear")),
)
def test_the_path_of_a_scheduler(betas: Config, tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(**betas)
    _, sde, report = loaded(saved(theirs(SMALL), tmp_path, scheduler))
    steps = len(scheduler.betas)
    alpha = sde.scales((torch.arange(steps, dtype=torch.float64) + 1) / steps)[0]
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=0.0)  # theirs: float32
    assert "no scheduler" not in report.weights


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_ddim_gives_the_same_samples(predicts: str, tmp_path: Path) -> None:
    network = theirs(SMALL)
    scheduler = diffusers.DDIMScheduler(prediction_type=predicts, clip_sample=False)
    denoiser, sde, _ = loaded(saved(network, tmp_path, scheduler))
    start, ts = images(SMALL, torch.float32)[:1], grids.leading(sde, 10)
    ours = DDIM()(denoiser, sde, start, ts)
    ours = denoiser(ours, *sde.scales(ts[-1]))  # their last step, to alpha = 1
    scheduler.set_timesteps(10)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).sample, t, x).prev_sample
    assert_same(ours, x)


def test_the_paths_of_score_sdes(tmp_path: Path) -> None:
    network = theirs(FOREIGN["ncsnpp"])
    network.save_pretrained(tmp_path / "ve" / "unet")
    diffusers.ScoreSdeVeScheduler(sigma_max=90.0).save_pretrained(tmp_path / "ve" / "scheduler")
    denoiser, sde, _ = loaded(tmp_path / "ve")
    x, t = images(TOY, torch.float32), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    _, sigma = sde.scales(t)
    assert float(sde.scales(1.0)[1]) == pytest.approx(90.0)
    assert_same(sde.score(denoiser, x, t), network(x, sigma.float()).sample)  # as their pipeline takes it

    network = theirs(TOY)
    network.save_pretrained(tmp_path / "vp" / "unet")
    ScoreSdeVpScheduler().save_pretrained(tmp_path / "vp" / "scheduler")
    denoiser, sde, _ = loaded(tmp_path / "vp")
    sigma = sde.scales(t)[1]
    std = sigma.float()[:, None, None, None]
    assert_same(sde.score(denoiser, x, t), -network(x, 999 * t.float()).sample / std)


# Latents

CONDITIONAL: Config = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
}
VAE: Config = {"block_out_channels": (32,), "scaling_factor": 0.2}


@pytest.mark.parametrize(
    "own",
    [{}, {"shift_factor": 0.3}, {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}],
    ids=["scale", "shift", "channels"],
)
def test_a_conditional_latent_model(own: Config, tmp_path: Path) -> None:
    network, vae = theirs(CONDITIONAL, "UNet2DConditionModel"), theirs({**VAE, **own}, "AutoencoderKL")
    network.save_pretrained(tmp_path / "unet")
    vae.save_pretrained(tmp_path / "vae")
    diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_end=0.012).save_pretrained(tmp_path / "scheduler")
    latent, sde, report = load_latent(tmp_path)
    assert report.fits
    x, told = seeded_input((2, 3, 16, 16)).float(), seeded_input((2, 5, 16)).float()
    z = latent.encode(x)
    mean = torch.tensor(own.get("latents_mean", own.get("shift_factor", 0.0))).reshape(-1, 1, 1)
    std = torch.tensor(own.get("latents_std", 1.0)).reshape(-1, 1, 1)
    assert_same(z, (vae.encode(x).latent_dist.mean - mean) * 0.2 / std)
    assert_same(latent.decode(z), vae.decode(z * std / 0.2 + mean).sample)
    t = torch.tensor(0.4, dtype=torch.float64)
    noise = network(z, 399, encoder_hidden_states=told).sample
    assert_same(latent.noise(z, *sde.scales(t), context=told), noise)
    alpha, sigma = (scale.float() for scale in sde.scales(t))
    assert_same(latent(z, *sde.scales(t), context=told), (z - sigma * noise) / alpha)


def test_an_unconditional_latent_model(tmp_path: Path) -> None:
    config = {**TOY, "sample_size": 8, "down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    vq: Config = {"block_out_channels": (32,), "num_vq_embeddings": 16, "scaling_factor": 0.5}
    network, vqvae = theirs(config), theirs(vq, "VQModel")
    network.save_pretrained(tmp_path / "unet")
    vqvae.save_pretrained(tmp_path / "vqvae")
    latent, sde, report = load_latent(tmp_path)
    assert report.noise_found is not None
    x = seeded_input((2, 3, 16, 16)).float()
    z = latent.encode(x)
    assert_same(z, 0.5 * vqvae.encode(x).latents)
    assert_same(latent.decode(z), vqvae.decode(z / 0.5).sample)
    assert_same(latent.noise(z, *sde.scales(torch.tensor(1.0))), network(z, 999).sample)


# Exports


def ours(**settings: Any) -> UNet:
    """A U-Net of ours that diffusers has too, of random weights."""
    toy = {"channels": 3, "width": 32, "multipliers": (1, 2, 2), "blocks": 1, "frequencies": "timesteps"}
    network = UNet(**{**toy, "smallest_group": 1, **settings}).eval().requires_grad_(False)
    network.load_state_dict(state_dict({name: tensor.shape for name, tensor in network.state_dict().items()}))
    return network


EXPORTS: dict[str, Config] = {
    "ours": {},
    "open": {"frequencies": "open_timesteps", "symmetric_padding": True, "eps": 1e-5, "blocks": 2},
    "heads": {"head_width": 32, "attention": (0, 1, 2), "dropout": 0.1},
    "number of heads": {"heads": 4},
    "last, without": {"attention": (), "attention_up": "last", "middle_attention": False},
    "classes": {"num_classes": 4},
    "unit range": {"unit_range": True},
    "scale and shift": {"scale_shift": True},
    "scale and shift, no norm": {"scale_shift": True, "middle_norm": False},
    "groups of four channels": {"width": 128, "multipliers": (1, 2), "channels": 1, "smallest_group": 4},
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_exported_network_gives_the_same_there(name: str, tmp_path: Path) -> None:
    network = ours(**EXPORTS[name])
    assert to_diffusers(network, tmp_path) == tmp_path
    there = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    x, t = seeded_input((3, network.channels, 8, 8)).float(), torch.tensor([0.0, 333.0, 999.0])
    label = {"label": torch.tensor([0, 3, 4])} if name == "classes" else {}
    with torch.no_grad():
        assert_same(there(x, t, *label.values()).sample, network(x, t, **label))
        again = loaded(tmp_path)[0].net
        assert isinstance(again, UNet)
        assert_same(again(x, t, **label), network(x, t, **label))


@pytest.mark.parametrize("required", [True, False])
def test_a_class_that_was_never_trained_is_not_exported(required: bool, tmp_path: Path) -> None:
    sde = DiscreteVPSDE("linear")
    timesteps = TimeConditioned(sde, "eps", scale=float(sde.steps), shift=-1.0)
    to_diffusers(Denoiser(ours(num_classes=4), timesteps, label_required=required), tmp_path, size=16)
    there = diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    assert there.config.num_class_embeds == len(there.class_embedding.weight) == (4 if required else 5)


@pytest.mark.parametrize(
    ("betas", "predicts"),
    [("linear", "eps"), ("scaled_linear", "v"), ("cosine", "x0"), ((0.001, 0.01, 0.02, 0.3), "eps")],
    ids=str,
)
def test_an_exported_denoiser_is_a_pipeline(predicts: str, betas: Any, tmp_path: Path) -> None:
    sde = DiscreteVPSDE(betas)
    denoiser = Denoiser(ours(), TimeConditioned(sde, predicts, "time", float(sde.steps), -1.0))
    to_diffusers(denoiser, tmp_path)
    scheduler = diffusers.DDPMPipeline.from_pretrained(tmp_path).scheduler
    alpha = sde.scales((torch.arange(sde.steps, dtype=torch.float64) + 1) / sde.steps)[0]
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), alpha**2, rtol=1e-4, atol=0.0)  # theirs: float32
    assert (scheduler.config.trained_betas is None) == isinstance(betas, str)
    again, path, report = loaded(tmp_path)
    assert again.precondition.predicts == predicts and report.weights == "as stored"
    x, t = seeded_input((2, 3, 16, 16)).float(), torch.tensor(0.5)
    with torch.no_grad():
        assert_same(again(x, *path.scales(t)), denoiser(x, *sde.scales(t)))


def test_a_network_with_its_path_is_a_pipeline_that_samples(tmp_path: Path) -> None:
    to_diffusers(ours(), tmp_path, DiscreteVPSDE("linear"))
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.register_to_config(sample_size=16)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)


TOLD = TimeConditioned(DiscreteVPSDE("linear"), "eps", "time", 1000.0, -1.0)
REFUSED: dict[str, tuple[Config, Any, Any]] = {
    "frequencies": ({"frequencies": "smooth"}, TOLD, None),
    "fourier": ({"fourier": (6, 7)}, TOLD, None),
    "attention_up": ({"attention_up": "last"}, TOLD, None),
    "resample_conv": ({"resample_conv": False}, TOLD, None),
    "multipliers": ({"multipliers": (2, 2)}, TOLD, None),
    "normalisations": ({"smallest_group": 4}, TOLD, None),
    "heads": ({"heads": 2, "attention": (0, 1)}, TOLD, None),
    "middle_norm": ({"middle_norm": False}, TOLD, None),
    "got eps": ({}, precondition.eps, None),
    "shift=-1": ({}, TimeConditioned(DiscreteVPSDE("linear"), "eps", "time", 1000.0), None),
    "scaled_score": ({}, TimeConditioned(DiscreteVPSDE("linear"), "scaled_score", "time", 1000.0, -1.0), None),
    "another": ({}, TOLD, DiscreteVPSDE("cosine")),
    "CosineSDE": ({}, None, CosineSDE()),
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_diffusers_does_not_have_is_refused_and_nothing_written(match: str, tmp_path: Path) -> None:
    settings, told, sde = REFUSED[match]
    network = ours(**settings)
    with pytest.raises(ValueError, match=match) as caught:
        to_diffusers(network if told is None else Denoiser(network, told), tmp_path, sde)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="expected a UNet"):
        to_diffusers(nn.Linear(1, 1), tmp_path)


# What is wrong


def edited(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


class Code:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def _break(what: str, folder: Path, state: Mapping[str, Tensor]) -> None:
    part, schedule = folder / "unet", folder / "scheduler" / "scheduler_config.json"
    weights, config = part / "diffusion_pytorch_model.safetensors", part / "config.json"
    if what == "no folder":
        shutil.rmtree(folder)
    elif what == "an empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif what == "no weights":
        weights.unlink()
    elif what == "no configuration":
        config.unlink()
    elif what == "no JSON":
        config.write_text("{")
    elif what == "a list":
        config.write_text("[]")
    elif what == "bytes":
        config.write_bytes(b"\xff\xfe")
    elif what == "a VAE":
        edited(config, _class_name="AutoencoderKL")
    elif what == "a class of another type":
        edited(config, _class_name=["a"])
    elif what == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif what == "code":
        weights.unlink()
        torch.save({**state, "x": Code()}, part / "diffusion_pytorch_model.bin")
    elif what == "an index":
        weights.unlink()
        (part / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "../../b"}}')
    elif what == "no index":
        weights.unlink()
        (part / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    elif what == "scheduler":
        schedule.write_text("")
    else:
        edited(schedule, **json.loads(what))


WRONG = {
    "no folder": "expected a folder of diffusers",
    "an empty folder": "unet/ or config.json",
    "no weights": "expected weights in",
    "no configuration": "no such file",
    "no JSON": "does not read as JSON",
    "a list": "_class_name",
    "bytes": "does not read as JSON",
    "a VAE": "expected a UNet2DModel or a UNet2DConditionModel",
    "a class of another type": "_class_name",
    "weights cut short": "does not read",
    "code": "would run code",
    "an index": "no such file",
    "no index": "weight_map",
    "scheduler": "does not read as JSON",
    '{"beta_schedule": "laplace"}': "expected beta_schedule to be one of",
    '{"prediction_type": "flow_prediction"}': "expected prediction_type to be one of",
    '{"rescale_betas_zero_snr": true}': "rescale_betas_zero_snr=false",
    '{"trained_betas": [2, 3]}': "betas strictly between",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_with_something_wrong_is_refused_in_one_line(what: str, small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "model")
    _break(what, folder, theirs(SMALL).state_dict() if what == "code" else {})
    with pytest.raises(ValueError, match=WRONG[what]) as caught:
        read_folder(folder)
    assert "\n" not in str(caught.value)


def test_other_schedulers_and_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = saved(theirs(TOY), tmp_path / "model")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match="got FlowMatchEulerDiscreteScheduler"):
        read_folder(folder)
    with pytest.raises(ValueError, match="fourier, and only there"):
        read_folder(saved(theirs(FOREIGN["ncsnpp"]), tmp_path / "fourier"))
    shutil.rmtree(folder / "scheduler")
    assert "no scheduler there" in loaded(folder)[2].weights
    assert loaded(folder, beta_schedule="squaredcos_cap_v2")[2].weights == "as stored"
    with pytest.raises(ValueError, match="did you mean 'act_fn'"):
        read_folder(folder, act_fm="silu")
    edited(folder / "unet" / "config.json", act_fn="none of them")
    made, states = read_folder(folder)
    ((weights, state),) = states.items()
    with pytest.raises(ValueError, match="diffusers does not build UNet2DModel") as caught:
        fitted(made, state, weights)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_do_not_fit(tmp_path: Path) -> None:
    folder = saved(theirs(TOY), tmp_path / "model")
    other = theirs({**TOY, "layers_per_block": 2, "block_out_channels": (32, 32, 64)})
    other.save_pretrained(folder / "unet")
    for groups in (32, 8):  # natively and through diffusers
        config = {**json.loads((folder / "unet" / "config.json").read_text()), **TOY, "norm_num_groups": groups}
        (folder / "unet" / "config.json").write_text(json.dumps(config))
        made, states = read_folder(folder)
        ((weights, state),) = states.items()
        _, report = fitted(made, state, weights)
        assert not report.fits and report.unexpected and report.mismatched


def test_parts_of_a_latent_model_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder of diffusers"):
        load_latent(tmp_path)
    theirs(CONDITIONAL, "UNet2DConditionModel").save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="expected an autoencoder in"):
        load_latent(tmp_path)
    theirs(VAE, "AutoencoderKL").save_pretrained(tmp_path / "vae")
    edited(tmp_path / "vae" / "config.json", latent_channels=5)
    with pytest.raises(ValueError, match="does not fit"):
        load_latent(tmp_path)


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native, foreign = saved(theirs(TOY), tmp_path / "native"), saved(theirs(FOREIGN["gelu"]), tmp_path / "foreign")
    network = loaded(native)[0].net
    monkeypatch.setitem(sys.modules, "diffusers", None)
    again = loaded(native)[0].net
    x, t = images(TOY, torch.float32), torch.tensor([0.0, 333.0, 999.0])
    assert torch.equal(again(x, t), network(x, t))
    to_diffusers(again, tmp_path / "exported", DiscreteVPSDE("linear"))
    with pytest.raises(ValueError, match=r"act_fn='gelu' is built by diffusers.*pip install diffusers"):
        read_folder(foreign)


def test_the_defaults_are_diffusers_own() -> None:
    own = dict(diffusers.UNet2DModel(**TOY).config)
    left_out = {key: value for key, value in UNET.items() if key not in TOY}
    assert left_out == {key: own[key] for key in left_out}
    assert {key for key in own if not key.startswith("_")} == set(UNET)


def test_a_safetensors_file_of_something_else(tmp_path: Path) -> None:
    folder = saved(theirs(TOY), tmp_path / "model")
    save_file({"a": torch.ones(2)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    made, states = read_folder(folder)
    ((weights, state),) = states.items()
    _, report = fitted(made, state, weights)
    assert not report.fits and report.unexpected == ("a",) and report.matched == 0
    with pytest.raises(ValueError, match="expected the weights of a UNet2DModel"):
        loaded(folder / "unet" / "diffusion_pytorch_model.safetensors")
