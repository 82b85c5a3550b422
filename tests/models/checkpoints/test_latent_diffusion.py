"""Models of latent-diffusion by their tensors' names, against the numbers of the original (tests/fixtures/README.md).

In float64 nothing differs but the order of sums, and Upsample's products are 4 where 3x3 kernels have 9: 1e-10 of the
largest number.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from seeded import load, seeded_input, seeded_normal, state_dict
from torch import Tensor
from torch.testing import assert_close

from scorefield.commands.conditioning import sampled_conditioning
from scorefield.commands.import_checkpoint import import_checkpoint
from scorefield.commands.run import open_run
from scorefield.commands.trained import open_trained
from scorefield.models import ADM, Denoiser
from scorefield.models.checkpoints import load_checkpoint
from scorefield.models.checkpoints.autoencoders import holds_autoencoder
from scorefield.models.checkpoints.guided_diffusion import entries
from scorefield.models.checkpoints.latent_diffusion.importer import RELEASED, read_checkpoint, spec_of
from scorefield.models.conditioned import ConditionedNetwork
from scorefield.sde_lib import DiscreteVPSDE

pytestmark = pytest.mark.agreement

NAMES = ("unconditional", "updown", "classes", "text", "map", "inpainting")
BETAS = DiscreteVPSDE("scaled_linear", 1000, 0.0015, 0.0195).betas


@pytest.fixture
def double() -> Iterator[None]:
    """Networks are made in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def of_fixture(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """A fixture, its weights by their names, and what they do not tell."""
    fixture = load(f"latent_diffusion/{name}")
    told = {"num_heads", "num_head_channels"} & fixture["architecture"].keys()
    given = {key: fixture["architecture"][key] for key in told}
    return fixture, state_dict(fixture["shapes"]), given | ({"n_stages": 1} if name == "map" else {})


def cond_of(fixture: dict[str, Any]) -> dict[str, Tensor]:
    """What the original was given, as ours takes it."""
    cond: dict[str, Tensor] = {}
    for key, value in fixture["cond"].items():
        if key == "map":
            cond[key] = (seeded_normal("map", value).abs() * 2).long().clamp(max=4)
        elif key == "concat":
            cond[key] = seeded_normal("concat", value)
        else:
            cond[key] = torch.tensor(value)
    return cond


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("double")
def test_the_original_gives_the_same(name: str, tmp_path: Path) -> None:
    fixture, state, given = of_fixture(name)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.ckpt")
    denoiser, _, report = load_checkpoint(tmp_path / "model.ckpt", "latent_diffusion", **given)
    conditioned = isinstance(denoiser.net, ConditionedNetwork)
    assert report.weights == "as stored" and conditioned == bool(fixture["cond"])
    answer = denoiser.net(seeded_input(fixture["input"]), torch.tensor(fixture["time"]), **cond_of(fixture))
    theirs = torch.tensor(fixture["output"])
    assert list(answer.shape) == fixture["output_shape"]
    ours = answer.flatten()[:: fixture["output_stride"]]
    assert_close(ours, theirs, rtol=0.0, atol=1e-10 * float(theirs.abs().max()))


def test_the_image_beside_the_codes_is_the_masked_one_and_its_mask(tmp_path: Path) -> None:
    """Their script has the mask in -1 .. 1 behind the masked image's codes."""
    fixture, state, given = of_fixture("inpainting")
    torch.save(state, tmp_path / "model.ckpt")
    net = load_checkpoint(tmp_path / "model.ckpt", "latent_diffusion", **given)[0].net
    z, t, masked = seeded_input(fixture["input"]).float(), torch.tensor(fixture["time"]), torch.ones(2, 3, 8, 12)
    mask = (torch.arange(96).reshape(8, 12) % 3 == 0).float().expand(2, 1, 8, 12)
    beside = torch.cat([masked, 2 * mask - 1], 1)
    assert_close(net(z, t, masked=masked, mask=mask), net(z, t, concat=beside), rtol=0, atol=0)


def whole(folder: Path, name: str = "classes") -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """A checkpoint with a first stage, betas, an average and a scale, as theirs trained by `scale_by_std`."""
    _, state, given = of_fixture(name)
    first = load("autoencoders/vq_noattn")
    state = {key: tensor.float() for key, tensor in state.items()}
    inner = "model.diffusion_model."
    averaged = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): 0.5 * tensor
        for key, tensor in state.items()
        if key.startswith(inner)
    }
    stage = {f"first_stage_model.{key}": t.float() for key, t in state_dict(first["shapes"]).items()}
    state |= {**averaged, **stage, "betas": torch.tensor(BETAS), "scale_factor": torch.tensor(0.7)}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
    torch.save({"state_dict": state, "epoch": 3}, folder / "model.ckpt")
    return folder / "model.ckpt", state, given


def test_a_whole_checkpoint_has_averages_and_its_own_betas(tmp_path: Path) -> None:
    file, state, given = whole(tmp_path)
    assert not holds_autoencoder(file, "latent_diffusion")
    for ema, scale in ((True, 0.5), (False, 1.0)):
        denoiser, sde, report = load_checkpoint(file, "latent_diffusion", ema=ema, **given)
        assert report.weights == ("ema" if ema else "raw") and report.fits
        assert isinstance(denoiser.net, ConditionedNetwork) and isinstance(denoiser.net.net, ADM)
        stem = state["model.diffusion_model.input_blocks.0.0.weight"]
        assert_close(denoiser.net.net.stem.weight, scale * stem, rtol=0, atol=0)
        table = denoiser.net.conditioner.embed.weight  # trained with the network, and not averaged there
        assert_close(table, torch.cat([state["cond_stage_model.embedding.weight"], torch.zeros(1, 24)]))
        assert sde == DiscreteVPSDE("scaled_linear", 1000, 0.0015, 0.0195)


def test_an_import_is_a_latent_run_with_its_autoencoder(tmp_path: Path) -> None:
    file, _, given = whole(tmp_path)
    text = ",".join(f"{key}={value}" for key, value in {**given, "image_size": 8}.items())
    import_checkpoint(tmp_path / "run", file=str(file), source="latent_diffusion", architecture=text)
    trained = open_trained(tmp_path / "run", "cpu")
    run = trained.run
    assert run.autoencoder is not None and run.autoencoder.scale == (pytest.approx(0.7),)
    factor = run.autoencoder.factor
    assert run.shape == (3, 8, 8) and run.data.shape == (3, 8 * factor, 8 * factor) and run.num_classes == 6
    assert run.label_required  # it was trained with classes alone
    z, label, t = torch.ones(2, 3, 8, 8), torch.tensor([0, 5]), torch.tensor(0.5)
    expected = load_checkpoint(file, "latent_diffusion", **given)[0]
    assert isinstance(expected, Denoiser)
    scales = run.sde.scales(t)
    assert_close(trained.denoiser(z, *scales, label=label), expected(z, *scales, label=label))
    assert run.to_stored(z).shape == (2, 3, 8 * factor, 8 * factor)
    images = torch.zeros(1, 3, 16, 16)
    codes = run.autoencoder.scaled.encode(images)
    assert_close(codes, 0.7 * run.autoencoder.module.encode(images))
    said = read_checkpoint(file, **given, scale_factor=0.25)[0].first_stage
    assert said is not None and said.scale == 0.25  # what is said counts more than the file


def test_a_text_model_is_imported_with_the_tokeniser_beside_it_or_not_at_all(tmp_path: Path) -> None:
    file, state, given = whole(tmp_path, "text")
    text = ",".join(f"{key}={value}" for key, value in {**given, "image_size": 8}.items())
    wanted = {"file": str(file), "source": "latent_diffusion", "architecture": text}
    with pytest.raises(ValueError, match="expected the tokeniser of a text model in"):
        import_checkpoint(tmp_path / "run", **wanted)
    size = len(next(tensor for key, tensor in state.items() if key.endswith("token_emb.weight")))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{i}" for i in range(size - 4))]
    (tmp_path / "vocab.txt").write_text("\n".join([*pieces, "more"]))
    with pytest.raises(ValueError, match=f"expected a tokeniser of at most {size} tokens"):
        import_checkpoint(tmp_path / "run", **wanted)
    assert not (tmp_path / "run").exists()
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    import_checkpoint(tmp_path / "run", **wanted)
    (tmp_path / "vocab.txt").unlink()
    tokens = sampled_conditioning(open_run(tmp_path / "run", "cpu"), 2, caption="word1 word0").cond["tokens"]
    assert tokens[1, :4].tolist() == [2, 5, 4, 3]


def test_released_models_are_recognised_by_their_sizes() -> None:
    """ImageNet's: one head of whatever width, 1000 classes and a row for none, the codes 64 x 64."""
    assert {key[0] for key in RELEASED} == {128, 160, 192, 224, 256, 320}
    with torch.device("meta"):
        net = ADM(
            3, 192, (1, 2, 3, 5), 2, (1, 2, 3), head_width=None, heads=1, context=512, scale_shift=False,
            resample_blocks=False, smallest_group=1,
        )  # fmt: skip
        ours = net.state_dict()
        state = {f"model.diffusion_model.{e.theirs[0]}": ours[e.ours] for e in entries(net, new_order=False)}
        state["cond_stage_model.embedding.weight"] = torch.zeros(1001, 512)
    spec = spec_of(state)
    assert spec.shape == (3, 64, 64) and spec.num_classes == 1000 and spec.unlabelled
    assert (spec.settings["heads"], spec.settings["head_width"]) == (1, None)
    assert spec.settings["attention"] == (1, 2, 3) and spec.settings["context"] == 512


def test_a_mistake_is_refused_in_one_line(tmp_path: Path) -> None:
    _, state, given = of_fixture("classes")
    torch.save(state, tmp_path / "model.ckpt")
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "expected num_heads or num_head_channels"),
        ({**given, "context_dim": 32}, "expected context_dim=24, as the weights have it, got 32"),
        ({**given, "parameterization": "mu"}, "expected parameterization to be one of eps, v, x0"),
        ({**given, "beta_schedule": "sigmoid"}, "expected beta_schedule to be linear"),
        ({**given, "n_head": 2}, "got 'n_head'"),
        ({**given, "num_heads": 3}, "heads that divide 64 channels"),
    )
    for architecture, match in wrong:
        with pytest.raises(ValueError, match=match) as caught:
            load_checkpoint(tmp_path / "model.ckpt", "latent_diffusion", **architecture)
        assert "\n" not in str(caught.value)
    torch.save({"state_dict": {"first_stage_model.x": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="expected a model of latent-diffusion"):
        load_checkpoint(tmp_path / "other.ckpt", "latent_diffusion")
