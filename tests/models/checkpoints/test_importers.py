"""Other people's networks, weights and samples, against the numbers of the originals (tests/fixtures/README.md)."""

import dataclasses
import math
import pickle
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from seeded import FIXTURES, load, seeded_input, seeded_normal, state_dict
from torch import Tensor

from scorefield.models import ADM, Denoiser, UNet, precondition
from scorefield.models.checkpoints import SOURCES, CheckpointSpec, guided_diffusion, load_checkpoint
from scorefield.models.checkpoints.load import STATES
from scorefield.models.checkpoints.report import fitted, noise_found
from scorefield.models.checkpoints.score_sde.published import SCORE_SDE
from scorefield.models.precondition import TimeConditioned
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, DiscreteVPSDE, predict_noise
from scorefield.solvers import AnnealedLangevin, PredictorCorrector, ReverseDiffusion, grids

pytestmark = pytest.mark.agreement

NETWORKS = sorted(path.stem for path in FIXTURES.glob("*.json") if path.stem != "vdm_losses")
# The samplers, and what is compared beside its own network.
NETWORKS = [name for name in NETWORKS if name not in ("pc_ve", "vdm", "vdm_attention")]


def tensors(fixture: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The original's state dict: seeded parameters, and the buffers that have real values."""
    buffers = {k: torch.tensor(v, dtype=dtype) for k, v in fixture["buffers"].items() if isinstance(v, list)}
    return {name: tensor.to(dtype) for name, tensor in state_dict(fixture["shapes"]).items()} | buffers


def source(fixture: dict[str, Any]) -> str:
    return {"guided-diffusion": "guided_diffusion", "DiT": "dit"}.get(fixture["source"], fixture["source"])


def architecture(fixture: dict[str, Any]) -> dict[str, Any]:
    """The original's settings, and the schedule where its network does not have one."""
    schedule = {"noise_schedule": "linear"} if fixture["source"] == "guided-diffusion" else {}
    return {**fixture["architecture"], **schedule}


def built(name: str, dtype: torch.dtype) -> tuple[dict[str, Any], CheckpointSpec, Denoiser]:
    fixture = load(name)
    state = tensors(fixture, dtype)
    spec = STATES[source(fixture)](state, **architecture(fixture))
    # `fitted` fills a network of the default type: in float64 nothing is rounded on the way.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        denoiser, report = fitted(spec, state, "raw")
    finally:
        torch.set_default_dtype(before)
    assert report.fits, str(report)
    return fixture, spec, denoiser.eval()


def log_snr(fixture: dict[str, Any], spec: CheckpointSpec) -> Tensor:
    """The noise that the original was told, as a log-SNR of the path."""
    told, sde = torch.tensor(fixture["told"], dtype=torch.float64), spec.sde
    if fixture["kind"] == "continuous":
        return sde.log_snr(told / 999)
    if isinstance(sde, DiscreteVPSDE):
        return sde.log_snr((told + 1) / sde.steps)
    if fixture["kind"] == "sigma":
        return -2 * told.log()
    sigmas = torch.tensor(fixture["buffers"]["sigmas"]) if "sigmas" in fixture["buffers"] else levels(fixture)
    return -2 * sigmas.double()[told.long()].log()


def levels(fixture: dict[str, Any]) -> Tensor:
    """The noise levels of NCSN, which its weights do not hold."""
    values = fixture["architecture"]
    begin, end = (torch.tensor(float(values[key])).log() for key in ("sigma_begin", "sigma_end"))
    return torch.linspace(float(begin), float(end), values["num_classes"], dtype=torch.float64).exp()


def compared(fixture: dict[str, Any], output: Tensor, key: str) -> tuple[Tensor, Tensor]:
    """Every stride-th number of ours and of theirs, of the channels that both have."""
    stride = fixture[f"{key.split('_')[0]}_stride" if key.startswith("denoised") else "stride"]
    shape = fixture["input"] if key.startswith("denoised") else fixture["output_shape"]
    whole, both = torch.zeros(shape, dtype=output.dtype), torch.zeros(shape, dtype=torch.bool)
    whole[:, : output.shape[1]], both[:, : output.shape[1]] = output, True
    rows = both.flatten()[::stride]
    return whole.flatten()[::stride][rows].double(), torch.tensor(fixture[key], dtype=torch.float64)[rows]


# In float64 what is left is the rounding of their frequencies and ours to float32, 6e-8 of a timestep of 999 times a
# slope; in float32 that of a few dozen layers. The project promises 1e-5 and 1e-4 of the largest value.
TOLERANCE = {torch.float64: 2e-6, torch.float32: 2e-5}
# Float32 of one network of each kind; NCSN and NCSNv2 have their own test, with a smaller tolerance.
SINGLE = ("ddpm_vp", "ncsnpp_ve", "ddim", "guided", "dit", "edm_ddpmpp_cond", "edm_ncsnpp", "edm_adm")


def cases(edm: bool) -> list[Any]:
    names = [name for name in NETWORKS if name.startswith("edm") == edm and "ncsnv2" not in name]
    names = [name for name in names if name not in ("ncsn", "ncsn_28", "ncsn_deeper")] + (
        ["ncsn", "ncsnv2"] if not edm else []
    )
    single = [pytest.param(name, torch.float32, id=f"{name}-32") for name in names if name in SINGLE]
    return [*(pytest.param(name, torch.float64, id=f"{name}-64") for name in names), *single]


@pytest.mark.parametrize(("name", "dtype"), cases(edm=False))
@torch.no_grad()
def test_an_imported_network_gives_the_originals_output(name: str, dtype: torch.dtype) -> None:
    fixture, spec, denoiser = built(name, dtype)
    t = spec.sde.time(log_snr(fixture, spec))
    alpha, sigma = spec.sde.scales(t)
    label = {"label": torch.tensor(fixture["labels"])} if fixture.get("labels") else {}
    eps = predict_noise(denoiser, seeded_input(fixture["input"]).to(dtype), alpha, sigma, **label)

    ours, theirs = compared(fixture, eps, "output_wide")
    if isinstance(spec.sde, VESDE):  # the original gives the score
        of_rows = sigma.repeat_interleave(eps[0].numel()).view(eps.shape)
        theirs = -theirs * compared(fixture, of_rows, "output_wide")[0]
    assert (ours - theirs).abs().max() < TOLERANCE[dtype] * theirs.abs().max()


@pytest.mark.parametrize(("name", "dtype"), cases(edm=True))
@torch.no_grad()
def test_an_imported_edm_network_denoises_as_the_original(name: str, dtype: torch.dtype) -> None:
    fixture, _, denoiser = built(name, dtype)
    label = {"label": torch.tensor(fixture["labels"])} if fixture.get("labels") else {}
    sigma = torch.tensor(fixture["sigmas"], dtype=torch.float64)
    x = seeded_input(fixture["input"]).to(dtype)
    ours, theirs = compared(fixture, denoiser(x, torch.ones_like(sigma), sigma, **label), "denoised_wide")
    assert (ours - theirs).abs().max() < TOLERANCE[dtype] * theirs.abs().max()


@torch.no_grad()
def test_samples_of_predictor_corrector_are_those_of_the_original() -> None:
    # The original evaluates the score at times down to 1e-5, and steps between levels as if they went down to 0: its
    # noise levels and ours differ by 1e-4 at most, and so, by a little more, do the samples.
    reference = load("pc_ve")
    _, spec, denoiser = built("ncsnpp_ve", torch.float64)
    order = iter([name for name, _ in reference["noise"]])

    def noise(x: Tensor) -> Tensor:
        return seeded_normal(next(order), x.shape)

    sde, steps = spec.sde, reference["settings"]["N"]
    corrector = AnnealedLangevin(snr=reference["settings"]["snr"], norms="batch")
    x = sde.prior(tuple(reference["input"]), noise=noise, dtype=torch.float64)
    ts = grids.uniform(sde, steps - 1)
    x = PredictorCorrector(ReverseDiffusion(), corrector, "correct_first")(denoiser, sde, x, ts, noise=noise)
    x = corrector(denoiser, sde, x, ts[-1:], noise=noise)  # at the last level it corrects, and denoises
    theirs = torch.tensor(reference["denoised"], dtype=torch.float64)
    assert (x.flatten()[:: reference["stride"]] - theirs).abs().max() < 1e-3 * theirs.abs().max()


# Files


def small() -> tuple[dict[str, Any], dict[str, Tensor]]:
    fixture = load("ncsnpp_ve")
    return fixture["architecture"], tensors(fixture, torch.float32)


def written(path: Path, average: float | None = None) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """A checkpoint as score_sde_pytorch writes it, its average this multiple of the weights."""
    architecture, state = small()
    trained = [tensor for name, tensor in state.items() if name not in ("sigmas", "all_modules.0.W")]
    saved: dict[str, Any] = {
        "optimizer": {"state": {}},
        "model": {f"module.{k}": v for k, v in state.items()},
        "step": 1,
    }
    if average is not None:
        saved["ema"] = {"decay": 0.999, "num_updates": 1, "shadow_params": [average * t for t in trained]}
    torch.save(saved, path)
    return path, architecture, state


def test_averaged_weights_are_taken_and_raw_ones_on_request(tmp_path: Path) -> None:
    path, architecture, state = written(tmp_path / "checkpoint_1.pth", average=0.5)
    averaged, _, of_average = load_checkpoint(path, "score_sde_pytorch", **architecture)
    raw, sde, of_raw = load_checkpoint(path, "score_sde_pytorch", ema=False, **architecture)
    assert (of_average.weights, of_raw.weights, sde) == ("ema", "raw", VESDE(0.01, 50.0))
    stem = state["all_modules.3.weight"]
    assert torch.equal(raw.net.stem.weight, stem)
    assert torch.equal(averaged.net.stem.weight, 0.5 * stem)
    # What is not trained is not averaged.
    assert torch.equal(averaged.net.embed.frequencies, raw.net.embed.frequencies)


def test_lists_with_the_average_at_their_end_are_understood(tmp_path: Path) -> None:
    fixture = load("ncsnv2")
    state = tensors(fixture, torch.float32)
    average = {name: 0.5 * tensor for name, tensor in state.items() if name != "sigmas"}
    torch.save([{f"module.{k}": v for k, v in state.items()}, {"state": {}}, 3, 100, average], tmp_path / "ckpt.pth")
    averaged, _, report = load_checkpoint(tmp_path / "ckpt.pth", "ncsnv2", **fixture["architecture"])
    assert report.weights == "ema"
    assert torch.equal(averaged.net.stem.weight, 0.5 * state["begin_conv.weight"])


def test_the_report_counts_what_fits(tmp_path: Path) -> None:
    path, architecture, state = written(tmp_path / "checkpoint.pth")
    denoiser, _, report = load_checkpoint(path, "score_sde_pytorch", **architecture)
    assert report.fits and report.matched == len(denoiser.net.state_dict())
    assert report.parameters == sum(p.numel() for p in denoiser.net.parameters())

    spec = STATES["score_sde_pytorch"](state, **architecture)
    del state["all_modules.3.bias"]
    state["odd.weight"] = torch.zeros(1)
    state["all_modules.2.bias"] = torch.zeros(3)
    _, report = fitted(spec, state, "raw")
    assert (report.missing, report.unexpected) == (("all_modules.3.bias",), ("odd.weight",))
    assert len(report.mismatched) == 1 and "all_modules.2.bias (3,) there, (128,) here" in report.mismatched[0]
    assert not report.fits and "1 missing (first all_modules.3.bias)" in str(report)
    _, state = small()
    _, report = fitted(spec, {**state, "odd.weight": torch.zeros(1)}, "raw")
    assert not report.fits and report.unexpected == ("odd.weight",)


def test_the_report_says_how_much_noise_is_recognised() -> None:
    sde = VPSDE()
    echo = Denoiser(lambda x, k: x, TimeConditioned(sde, "eps", scale=999.0))
    assert noise_found(echo, sde, (3, 8, 8)) == pytest.approx(1, abs=1e-4)
    # One that gives x to the half finds 1 - 1/4 of it, and the score's sign the wrong way round nothing.
    half = Denoiser(lambda x, k: x / 2, TimeConditioned(sde, "eps", scale=999.0))
    assert noise_found(half, sde, (3, 8, 8)) == pytest.approx(0.75, abs=1e-4)
    turned = Denoiser(lambda x, k: -x, TimeConditioned(sde, "eps", scale=999.0))
    assert noise_found(turned, sde, (3, 8, 8)) == pytest.approx(-3, abs=1e-3)


def test_a_report_warns_of_what_recognises_little(tmp_path: Path) -> None:
    path, architecture, _ = written(tmp_path / "checkpoint.pth")  # random weights
    _, _, report = load_checkpoint(path, "score_sde_pytorch", **architecture)
    assert report.noise_found is not None and report.noise_found < 0.5
    assert "which is little" in str(report)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("somebody-ran-code"),))


def wrong_files(folder: Path) -> dict[str, tuple[Path, str]]:
    path, _, _ = written(folder / "whole.pth")
    whole = path.read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "code.pkl").write_bytes(pickle.dumps({"ema": Runs()}))
    torch.save({"model": Runs()}, folder / "code.pth")
    (folder / "text.pth").write_text("no checkpoint at all")
    (folder / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 3}, folder / "without.pth")
    from safetensors.torch import save_file

    save_file({"encoder.weight": torch.zeros(3, 3)}, folder / "other.safetensors")
    (folder / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00")
    return {
        "a file that is not there": (folder / "none.pth", "no such file"),
        "one cut short": (folder / "cut.pth", "cut short"),
        "a pickle with code": (folder / "code.pkl", "would run code"),
        "a checkpoint with code": (folder / "code.pth", "would run code"),
        "text": (folder / "text.pth", "does not read"),
        "nothing": (folder / "empty.pth", "does not read"),
        "no weights": (folder / "without.pth", "expected a state dict"),
        "safetensors of another model": (folder / "other.safetensors", "0 tensors match"),
        "safetensors cut short": (folder / "cut.safetensors", "cut short"),
    }


KINDS = (
    "a file that is not there", "one cut short", "a pickle with code", "a checkpoint with code", "text", "nothing",
    "no weights", "safetensors of another model", "safetensors cut short",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_wrong_is_refused_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, says = wrong_files(tmp_path)[kind]
    with pytest.raises(ValueError, match=says) as refusal:
        load_checkpoint(path, "score_sde_pytorch", nf=32)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)
    assert not Path("somebody-ran-code").exists()


def test_a_wrong_architecture_is_refused_with_the_counts(tmp_path: Path) -> None:
    path, architecture, _ = written(tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"\d+ tensors match, \d+ missing .*, \d+ of another shape") as refusal:
        load_checkpoint(path, "score_sde_pytorch", **{**architecture, "num_res_blocks": 2})
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="did you mean 'num_res_blocks'"):
        load_checkpoint(path, "score_sde_pytorch", num_res_block=1)
    with pytest.raises(ValueError, match="expected config to be one of"):
        load_checkpoint(path, "score_sde_pytorch", config="ve/cifar11")
    with pytest.raises(ValueError, match="expected a source among"):
        load_checkpoint(path, "score_sde")


@pytest.mark.parametrize("name", sorted(STATES))
def test_weights_of_one_source_are_not_taken_for_anothers(name: str, tmp_path: Path) -> None:
    others = {"score_sde_pytorch": "ddim", "ncsnv2": "ddim"}
    fixture = load(others.get(name, "ncsnpp_vp"))
    torch.save(tensors(fixture, torch.float32), tmp_path / "state.pth")
    with pytest.raises(ValueError, match=r"state\.pth") as refusal:
        load_checkpoint(tmp_path / "state.pth", name)
    assert "\n" not in str(refusal.value)


def test_published_configurations_have_the_originals_counts() -> None:
    # Measured in the original, trained parameters.
    counts = {"vp/cifar10_ncsnpp_continuous": 62_693_251, "vp/ddpm/cifar10": 35_218_947, "vp/ddpm/church": 111_569_923}
    counts |= {"ve/ffhq_ncsnpp_continuous": 105_785_880, "ve/church_ncsnpp_continuous": 65_574_421}
    counts |= {"subvp/cifar10_ddpmpp_deep_continuous": 106_632_579}
    for config, count in counts.items():
        spec = STATES["score_sde_pytorch"]({}, config=config)
        with torch.device("meta"):
            network = spec.network(**spec.settings)
        assert sum(p.numel() for p in network.parameters()) == count, config
    assert len(SCORE_SDE) == 28


def test_a_published_configuration_is_recognised_by_its_tensors() -> None:
    def meta(config: str) -> dict[str, Tensor]:
        spec = STATES["score_sde_pytorch"]({}, config=config)
        with torch.device("meta"):
            network = spec.network(**spec.settings)
            ours, state = network.state_dict(), {}
            for entry in spec.entries(network):
                tensor = ours[entry.ours]
                shape = tensor.shape if len(entry.theirs) == 1 else (tensor.numel() // len(entry.theirs),)
                state |= {name.split("|")[0]: torch.empty(shape, device="meta") for name in entry.theirs}
        return state

    def sigmas(largest: float, count: int) -> dict[str, Tensor]:
        return {"sigmas": torch.linspace(math.log(largest), math.log(0.01), count, dtype=torch.float64).exp()}

    spec = STATES["score_sde_pytorch"](meta("ve/cifar10_ncsnpp_deep_continuous") | sigmas(50, 1000))
    assert isinstance(spec.sde, VESDE) and spec.settings["blocks"] == 8
    # Bedrooms, churches and faces have one architecture, and noise levels of their own.
    spec = STATES["score_sde_pytorch"](meta("ve/bedroom_ncsnpp_continuous") | sigmas(380, 2000))
    assert spec.sde == VESDE(0.01, 380.0)
    state = meta("ve/bedroom_ncsnpp_continuous") | sigmas(380, 2000)
    with pytest.raises(ValueError, match="expected sigma_max"):
        STATES["score_sde_pytorch"](state, config="ve/bedroom_ncsnpp_continuous")
    with pytest.raises(ValueError, match="those of vp/cifar10_ddpmpp_continuous, subvp/cifar10_ddpmpp_continuous"):
        STATES["score_sde_pytorch"](meta("vp/cifar10_ddpmpp_continuous"))
    with pytest.raises(ValueError, match="of none of the published"):
        STATES["score_sde_pytorch"]({"all_modules.0.weight": torch.zeros(1)})


# Of the originals' own configurations, what names and shapes tell.
TOLD = (
    *("num_channels", "nf", "ch_mult", "num_res_blocks", "resblock_type"),
    *("sigma_min", "sigma_max", "num_scales"),
)
SCORE_SDE_NETWORKS = [name for name in NETWORKS if name.startswith(("ncsnpp", "ddpmpp", "ddpm_"))]


@pytest.mark.parametrize(
    ("name", "also"), zip(SCORE_SDE_NETWORKS, cycle(["attn_resolutions", "image_size"]), strict=False)
)
def test_sizes_of_score_sde_are_read_off_the_weights(name: str, also: str) -> None:
    fixture = load(name)
    whole = STATES["score_sde_pytorch"](tensors(fixture), **architecture(fixture))
    told = (*TOLD, also) if name.startswith("ddpm_") else (*TOLD, also, "embedding_type")
    rest = {key: value for key, value in architecture(fixture).items() if key not in told}
    found = STATES["score_sde_pytorch"](tensors(fixture), **rest)
    assert found.settings == whole.settings and found.sde == whole.sde and found.shape == whole.shape
    assert found.precondition == whole.precondition


def test_a_network_of_score_sde_of_another_width_is_imported_by_what_the_weights_do_not_tell(tmp_path: Path) -> None:
    fixture = load("ncsnpp_ve")
    torch.save(tensors(fixture, torch.float32), tmp_path / "checkpoint.pth")
    # Its attention is at 8x8, where that of all published networks is at 16x16.
    file, told = tmp_path / "checkpoint.pth", {"progressive_input": "residual"}
    _, sde, report = load_checkpoint(file, "score_sde_pytorch", **told)
    assert report.fits and sde == VESDE(0.01, 50.0)  # what is told log sigma by sinusoids is on VE
    for wrong in ({"nf": 64}, {"ch_mult": (1, 2)}, {"num_res_blocks": 2}, {"num_scales": 1000}, {"num_channels": 1}):
        with pytest.raises(ValueError, match=r"does not fit|expected sigma_max"):
            load_checkpoint(file, "score_sde_pytorch", **told, **wrong)
    for wrong in ({"image_size": 16, "attn_resolutions": (16,)}, {"image_size": 64, "attn_resolutions": (8, 16)}):
        with pytest.raises(ValueError, match="does not fit"):
            load_checkpoint(file, "score_sde_pytorch", **told, **wrong)


def test_values_that_the_weights_contradict_are_refused() -> None:
    for name, wrong in (
        ("ddim", {"ch": 32}),
        ("ddim", {"num_res_blocks": 7}),
        ("edm_adm", {"img_resolution": 64}),
        ("edm_adm", {"num_blocks": 9}),
        ("edm_ncsnpp", {"resample_filter": (1, 1)}),
        ("guided", {"channel_mult": (1, 5)}),
        ("guided", {"num_classes": 3}),
        ("dit", {"depth": 5}),
        ("ncsnv2", {"ngf": 64}),
        ("ncsnpp_vp", {"name": "foo"}),
    ):
        fixture = load(name)
        with pytest.raises(ValueError, match="expected"):
            STATES[source(fixture)](tensors(fixture), **{**architecture(fixture), **wrong})


def test_released_networks_of_guided_diffusion_need_no_architecture_and_others_do() -> None:
    def meta(width: int, multipliers: tuple[float, ...], blocks: int, classes: int | None) -> CheckpointSpec:
        with torch.device("meta"):
            network = ADM(
                3, width, multipliers, blocks, (len(multipliers) - 1,), frequencies="open_timesteps",
                smallest_group=1, num_classes=classes, variances=True,
            )  # fmt: skip
            ours = network.state_dict()
            shapes = {entry.theirs[0]: ours[entry.ours].shape for entry in guided_diffusion.entries(network, True)}
        shapes |= {} if classes is None else {"label_emb.weight": torch.Size((classes, 4 * width))}
        shapes = {n: s[:2] if "time_embed" in n or "emb_layers" in n else s for n, s in shapes.items()}
        return STATES["guided_diffusion"]({n: torch.empty(s, device="meta") for n, s in shapes.items()})

    small = meta(192, (1, 2, 3, 4), 3, 1000)
    assert small.shape == (3, 64, 64) and small.sde == DiscreteVPSDE("cosine") and not small.unlabelled
    assert small.settings["head_width"] == 64
    middle = meta(256, (1, 1, 2, 3, 4), 2, 1000)
    assert (middle.settings["heads"], middle.settings["head_width"], middle.shape) == (4, None, (3, 128, 128))
    large = meta(256, (1, 1, 2, 2, 4, 4), 2, None)
    assert large.shape == (3, 256, 256) and large.unlabelled and large.sde == DiscreteVPSDE("linear")
    with pytest.raises(ValueError, match="expected image_size"):
        meta(64, (1, 2), 1, None)


def test_linear_betas_of_guided_diffusion_cover_the_same_noise_in_any_number_of_steps() -> None:
    fixture = load("guided_plain")
    values = {**architecture(fixture), "diffusion_steps": 4000, "rescale_timesteps": True}
    spec = STATES["guided_diffusion"](tensors(fixture), **values)
    # Nichol and Dhariwal's code: from 1e-4 to 0.02 at 1000 steps, times 1000 / T, and timesteps told times 1000 / T.
    betas = torch.linspace(1e-4 / 4, 0.02 / 4, 4000, dtype=torch.float64)
    alpha, sigma = spec.sde.scales(torch.tensor(0.5, dtype=torch.float64))  # timestep 1999
    assert float(alpha) == pytest.approx(float((1 - betas[:2000]).log().sum().div(2).exp()), rel=1e-9)
    assert float(spec.precondition(alpha, sigma)[3]) == pytest.approx(1999 * 1000 / 4000, rel=1e-9)


@pytest.mark.parametrize(
    ("precond", "sde"),
    [
        ("EDMPrecond", EDMSDE(0.002, 80.0)),
        ("VPPrecond", VPSDE(0.1, 20.0)),
        ("VEPrecond", VESDE(0.02, 100.0)),
        ("iDDPMPrecond", DiscreteVPSDE("cosine")),
    ],
)
def test_edm_paths_are_those_of_the_paper_unless_said(precond: str, sde: SDE) -> None:
    assert STATES["edm"](tensors(load("edm_ddpmpp")), precond=precond).sde == sde


def test_edm_networks_are_told_no_class_as_the_original_is() -> None:
    # Its one-hot labels are then zeros: of the linear layer the bias is left, and of one without it nothing.
    for name, bias in (("edm_ddpmpp_cond", "model.map_label.bias"), ("edm_adm", None)):
        fixture, _, denoiser = built(name, torch.float64)
        expected = tensors(fixture)[bias] if bias else 0
        assert (denoiser.net.embed.labels.weight[-1] - expected).abs().max() == 0


def test_whole_timesteps_are_those_of_the_nearest_noise_level() -> None:
    sde = DiscreteVPSDE("cosine")
    told = TimeConditioned(sde, "eps", "time", 1000.0, -1.0, integer_timesteps=True)
    k = torch.arange(1000)
    alphas, sigmas = sde.scales((k + 1).double() / 1000)
    levels = sigmas / alphas
    # Between two levels, nearer to one in sigma: at the noisy end the nearer in time is often the other.
    for low in (0, 1, 500, 997, 998):
        for share in (0.1, 0.49, 0.51, 0.9):
            sigma = levels[low] + share * (levels[low + 1] - levels[low])
            expected = int((levels - sigma).abs().argmin())
            assert int(told(torch.ones(()).double(), sigma)[3]) == expected == low + (share > 0.5)


def test_scaled_score_is_sigma_times_the_score_at_any_alpha() -> None:
    x0, eps, alpha, sigma = (seeded_normal(name, (3, 4)) for name in ("x0", "eps", "a", "s"))
    alpha, sigma = alpha[:, 0].abs() + 0.1, sigma[:, 0].abs() + 0.1
    x = alpha[:, None] * x0 + sigma[:, None] * eps
    denoiser = Denoiser(lambda x, c: -eps, precondition.scaled_score)  # of the noise alone: sigma (-eps / sigma)
    assert (denoiser(x, alpha, sigma) - x0).abs().max() < 1e-12
    assert (denoiser.noise(x, alpha, sigma) - eps).abs().max() < 1e-12


def test_beyond_its_path_a_network_sees_nothing_larger_than_at_its_end() -> None:
    seen = []
    told = TimeConditioned(VPSDE(), "eps", scale=999.0)
    denoiser = Denoiser(lambda x, k: seen.append(x) or x, told)
    noise = seeded_normal("n", (1, 1000))
    sigma = torch.tensor(5000.0, dtype=torch.float64)  # VP's last has 152
    denoised = denoiser(sigma * noise, torch.ones(()).double(), sigma)
    assert float(seen[0].square().mean()) == pytest.approx(float(noise.square().mean()), rel=1e-6)
    assert denoised.abs().max() < 1e-2 * sigma  # all of it is noise, as this network says


# Your own


def test_any_callable_is_a_denoiser_in_a_line() -> None:
    # The noise of N(0, 1) data along VP is sigma x, whatever the convention in which a function says so.
    sde, t = VPSDE(), torch.tensor([0.2, 0.7], dtype=torch.float64)
    alpha, sigma = sde.scales(t)
    x = seeded_normal("x", (2, 3))

    def row(scale: Tensor) -> Tensor:
        return scale[:, None]

    def s(t: Tensor) -> Tensor:
        return row(sde.scales(t)[1])

    theirs = {
        "eps": (lambda x, k: s(k / 1000) * x, 1000.0),
        "score": (lambda x, t: -x, 1.0),
        "x0": (lambda x, t: row(sde.scales(t)[0]) * x, 1.0),
        "v": (lambda x, t: torch.zeros_like(x), 1.0),
    }
    for predicts, (function, scale) in theirs.items():
        denoiser = Denoiser(function, TimeConditioned(sde, predicts, scale=scale))
        assert (denoiser(x, alpha, sigma) - row(alpha) * x).abs().max() < 1e-9, predicts


def test_a_function_of_discrete_timesteps_is_told_them() -> None:
    sde, seen = DiscreteVPSDE(), []

    def net(x: Tensor, k: Tensor) -> Tensor:
        seen.append(k)
        return torch.zeros_like(x)

    denoiser = Denoiser(net, TimeConditioned(sde, "eps", scale=1000.0, shift=-1.0))
    for k in (0, 1, 499, 999):
        denoiser(torch.zeros(1, 2), *sde.scales(torch.tensor((k + 1) / 1000, dtype=torch.float64)))
    # float32, as x is: its spacing at 999 is 6e-5
    assert (torch.cat(seen) - torch.tensor([0.0, 1.0, 499.0, 999.0])).abs().max() < 1e-4


def test_told_means_the_same_along_any_path() -> None:
    """A network trained on one path, sampled on another: at equal log-SNR it sees the same, and says the same of x0."""
    network = UNet(3, width=8, multipliers=(1, 2), blocks=1, frequencies="timesteps").double().eval()
    for tensor in network.parameters():
        tensor.data = seeded_normal("w", tensor.shape) / max(1, tensor[0].numel()) ** 0.5
    trained = VPSDE()
    denoiser = Denoiser(network, TimeConditioned(trained, "eps", scale=999.0))
    x0, eps = seeded_normal("x0", (2, 3, 8, 8)), seeded_normal("eps", (2, 3, 8, 8))
    with torch.no_grad():
        for log_snr_ in (-4.0, 0.0, 5.0):
            t = trained.time(log_snr_)
            alpha, sigma = trained.scales(t)
            there = denoiser(alpha * x0 + sigma * eps, alpha, sigma)
            here = denoiser(x0 + sigma / alpha * eps, torch.ones_like(alpha), sigma / alpha)
            assert (there - here).abs().max() < 1e-9 * there.abs().max()


def test_told_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="expected predicts to be one of"):
        TimeConditioned(VPSDE(), "noise")
    with pytest.raises(ValueError, match="expected unit"):
        TimeConditioned(VPSDE(), "eps", "seconds")


def test_sources_are_those_of_the_documentation() -> None:
    assert (
        *("score_sde_pytorch", "ncsnv2", "ddim", "edm", "guided_diffusion", "dit", "diffusers", "scorefield"),
        "latent_diffusion",
    ) == SOURCES
    assert dataclasses.is_dataclass(CheckpointSpec)
