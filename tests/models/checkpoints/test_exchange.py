"""Runs from other people's checkpoints, and folders for others: by the command line, and by Python."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeded import load, seeded_normal, state_dict
from torch import Tensor, nn
from warm import run

from scorefield.commands.encode import encode
from scorefield.commands.export_run import export_run
from scorefield.commands.import_checkpoint import import_checkpoint
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.sample import sample
from scorefield.commands.trained import open_trained
from scorefield.configs import build
from scorefield.models import ADM, MLP, NCSN, VDM, Denoiser, DiT, NCSNpp, NCSNv2, UNet, precondition
from scorefield.models.checkpoints import files, load_checkpoint
from scorefield.models.checkpoints.diffusers.export import to_diffusers
from scorefield.models.checkpoints.own import from_pretrained, save_pretrained
from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.precondition import Precondition, TimeConditioned
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, DiscreteVPSDE, RectifiedSDE, SubVPSDE


def checkpoint(name: str, path: Path) -> str:
    """A state dict of a fixture as a file, and its architecture as it is written on a command line."""
    fixture = load(name)
    state = {key: tensor.float() for key, tensor in state_dict(fixture["shapes"]).items()}
    state |= {k: torch.tensor(v) for k, v in fixture["buffers"].items() if isinstance(v, list)}
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, path)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fixture["architecture"].items()}
    return ",".join(f"{key}={value!r}" for key, value in values.items())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16)).astype(np.uint8))
    return path


@pytest.mark.parametrize(
    ("name", "source", "low"),
    [("ncsnpp_ve", "score_sde_pytorch", 0.0), ("ddim", "ddim", -1.0), ("edm_ddpmpp_cond", "edm", -1.0)],
)
def test_an_imported_run_samples_encodes_and_is_scored(
    name: str, source: str, low: float, images: Path, tmp_path: Path
) -> None:
    architecture = checkpoint(name, tmp_path / "checkpoint.pth")
    workdir = tmp_path / "run"
    import_checkpoint(
        workdir,
        file=str(tmp_path / "checkpoint.pth"),
        source=source,
        architecture=architecture,
        data=f"array:path={str(images)!r}",
    )
    trained = open_trained(workdir)
    denoiser, sde, report = load_checkpoint(
        tmp_path / "checkpoint.pth",
        source,
        **{k: v for k, v in build.parse(f"x:{architecture}").items() if k != "name"},
    )
    assert (trained.run.sde, trained.run.low) == (sde, low)
    assert json.loads((workdir / "import.json").read_text())["matched"] == report.matched
    # What a configuration rebuilds denoises as what was imported.
    x, t = seeded_normal("x", (2, 3, 16, 16)).float(), torch.tensor(0.3)
    with torch.no_grad():
        cond = {"label": torch.tensor([0, 1])} if denoiser.label_required else {}
        assert torch.equal(trained.denoiser(x, *sde.scales(t), **cond), denoiser(x, *sde.scales(t), **cond))

    label = "1" if denoiser.label_required else None  # the images have none
    sample(workdir, num=2, steps=2)
    encode(workdir, num=2, steps=2, label=label)
    likelihood(workdir, num=2, solver="heun", steps=2, label=label)
    assert json.loads((workdir / "likelihood_test.json").read_text())["n"] == 2
    with np.load(workdir / "samples.npz") as samples:
        assert samples["x"].shape == (2, 3, 16, 16) and samples["x"].dtype == np.uint8


def test_export_and_import_of_our_own_come_back_to_the_same_weights(images: Path, tmp_path: Path) -> None:
    architecture = checkpoint("ncsnpp_subvp", tmp_path / "checkpoint.pth")
    settings: dict[str, Any] = {"architecture": architecture, "data": f"array:path={str(images)!r}"}
    import_checkpoint(tmp_path / "a", file=str(tmp_path / "checkpoint.pth"), source="score_sde_pytorch", **settings)
    export_run(tmp_path / "a", output=str(tmp_path / "folder"))
    import_checkpoint(tmp_path / "b", file=str(tmp_path / "folder"), source="scorefield")
    first, second = (open_trained(tmp_path / name) for name in "ab")
    assert first.run.sde == second.run.sde and first.run.data.shape == second.run.data.shape
    assert first.denoiser.precondition == second.denoiser.precondition
    assert (first.run.low, first.run.high, first.run.data.levels) == (second.run.low, second.run.high, 256)
    for name, tensor in first.denoiser.state_dict().items():
        assert torch.equal(tensor, second.denoiser.state_dict()[name]), name


def both_weights(path: Path) -> dict[str, Tensor]:
    """A file with raw weights, which are given back, and half of them as their average."""
    fixture = load("ncsnv2")
    raw = {key: tensor.float() for key, tensor in state_dict(fixture["shapes"]).items()}
    average = {key: 0.5 * tensor for key, tensor in raw.items()}
    sigmas = {"sigmas": torch.tensor(fixture["buffers"]["sigmas"])}
    torch.save([{**raw, **sigmas}, {}, 0, 0, average], path)
    return raw


def test_averaged_and_raw_weights_are_both_kept(images: Path, tmp_path: Path) -> None:
    raw = both_weights(tmp_path / "checkpoint.pth")
    import_checkpoint(
        tmp_path / "run", file=str(tmp_path / "checkpoint.pth"), source="ncsnv2", architecture="image_size=16",
        data=f"array:path={str(images)!r}",
    )  # fmt: skip
    for ema, scale in ((True, 0.5), (False, 1.0)):
        stem = open_trained(tmp_path / "run", ema=ema).denoiser.net.stem.weight
        assert torch.equal(stem, scale * raw["begin_conv.weight"])


def test_a_file_with_both_is_read_once_and_its_network_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_weights(tmp_path / "checkpoint.pth")
    read, built, make = [], [], NCSNv2.__init__

    def opening(path: Path) -> Any:
        read.append(path)
        return files.read(path)

    @functools.wraps(make)
    def building(self: NCSNv2, *args: Any, **keywords: Any) -> None:
        make(self, *args, **keywords)
        built.append(self.stem.weight.device.type)

    monkeypatch.setattr("scorefield.models.checkpoints.load.read", opening)
    monkeypatch.setattr(NCSNv2, "__init__", building)
    source = {"file": str(tmp_path / "checkpoint.pth"), "source": "ncsnv2", "architecture": "image_size=16"}
    import_checkpoint(tmp_path / "run", **source)
    assert len(read) == 1 and built.count("cpu") == 1


@pytest.mark.parametrize("wrong", ["shape", "value"])
def test_raw_weights_that_are_damaged_are_refused_before_anything_is_written(wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    both_weights(file)
    saved = torch.load(file)
    tensor = saved[0]["begin_conv.bias"]
    saved[0]["begin_conv.bias"] = tensor[1:].clone() if wrong == "shape" else torch.full_like(tensor, float("nan"))
    torch.save(saved, file)
    says = "of another shape" if wrong == "shape" else "not finite"
    with pytest.raises(ValueError, match=says) as refusal:
        import_checkpoint(tmp_path / "run", file=str(file), source="ncsnv2", architecture="image_size=16")
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_our_own_data_of_few_levels_keeps_them(tmp_path: Path) -> None:
    denoiser = Denoiser(NETWORKS["unet"], precondition.eps)
    save_pretrained(denoiser, VPSDE(), tmp_path / "folder", shape=(3, 8, 8), levels=17, low=0.0, high=2.0)
    import_checkpoint(tmp_path / "run", file=str(tmp_path / "folder"), source="scorefield")
    run = open_trained(tmp_path / "run").run
    assert (run.data.levels, run.low, run.high, run.num_classes) == (17, 0.0, 2.0, 4)


@pytest.mark.parametrize("required", [True, False])
def test_an_exported_network_still_requires_its_class(required: bool, tmp_path: Path) -> None:
    denoiser = Denoiser(NETWORKS["unet"], precondition.eps, label_required=required)
    classes: dict[str, Any] = {"class_names": ("a", "b", "c", "d"), "class_counts": (0, 5, 0, 7)}
    save_pretrained(denoiser, VPSDE(), tmp_path / "folder", shape=(3, 8, 8), low=0.0, **classes)
    assert from_pretrained(tmp_path / "folder")[0].label_required is required
    import_checkpoint(tmp_path / "first", file=str(tmp_path / "folder"), source="scorefield")
    export_run(tmp_path / "first", output=str(tmp_path / "again"))
    import_checkpoint(tmp_path / "run", file=str(tmp_path / "again"), source="scorefield")
    run = open_trained(tmp_path / "run").run
    assert run.label_required is required and run.classes == [1, 3] and run.data.class_names == classes["class_names"]
    config = tmp_path / "folder" / "config.json"  # as it was written before
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "label_required"}))
    assert from_pretrained(tmp_path / "folder")[0].label_required is False


def test_guidance_is_refused_where_no_label_means_nothing(images: Path, tmp_path: Path) -> None:
    architecture = checkpoint("edm_ddpmpp_cond", tmp_path / "checkpoint.pth")
    data = f"array:path={str(images)!r}"
    file = str(tmp_path / "checkpoint.pth")
    import_checkpoint(tmp_path / "run", file=file, source="edm", architecture=architecture, data=data)
    sample(tmp_path / "run", num=2, steps=1, label=3)
    with pytest.raises(ValueError, match="expected no --guidance"):
        sample(tmp_path / "run", num=2, steps=1, label=3, guidance=2.0)


def test_an_import_that_was_interrupted_is_begun_anew(images: Path, tmp_path: Path) -> None:
    architecture = checkpoint("ncsnpp_vp", tmp_path / "checkpoint.pth")
    (tmp_path / "run" / "checkpoints" / "0000000000").mkdir(parents=True)
    import_checkpoint(
        tmp_path / "run", file=str(tmp_path / "checkpoint.pth"), source="score_sde_pytorch", architecture=architecture
    )
    assert open_trained(tmp_path / "run").checkpoint.name == "0000000000"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--from=ddim", "none.pth"),
        ("--from=diffusion", "checkpoint.pth"),
        ("checkpoint.pth",),
        ("--from=edm", "checkpoint.pth"),
        ("--from=score_sde_pytorch", "checkpoint.pth", "--architecture=nf=16"),
        ("--from=score_sde_pytorch", "checkpoint.pth", "--architecture=nf"),
        ("--from=score_sde_pytorch", "checkpoint.pth", "--architecture=width=16"),
        ("--from=score_sde_pytorch", "checkpoint.pth", "--num=3"),
        ("--from=score_sde_pytorch",),
        ("--from=score_sde_pytorch", "checkpoint.pth", "another.pth"),
        ("--from=diffusers", "checkpoint.pth"),
        ("--from=scorefield", "."),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_line_and_nothing_is_written(arguments: tuple[str, ...], tmp_path: Path) -> None:
    checkpoint("ncsnpp_vp", tmp_path / "checkpoint.pth")
    done = run("--mode=import", "--workdir=run", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth"]


def test_a_run_is_not_imported_over(images: Path, tmp_path: Path) -> None:
    architecture = checkpoint("ncsnpp_vp", tmp_path / "checkpoint.pth")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run already"):
        import_checkpoint(
            tmp_path, file=str(tmp_path / "checkpoint.pth"), source="score_sde_pytorch", architecture=architecture
        )
    assert (tmp_path / "config.json").read_text() == "{}"


# Folders of our own

NETWORKS: dict[str, nn.Module] = {
    "unet": UNet(3, width=8, multipliers=(1, 2), blocks=1, num_classes=4),
    "ncsn": NCSN(3, sigmas=(1.0, 0.1), width=4),
    "ncsnv2": NCSNv2(3, width=4),
    "ncsnpp": NCSNpp(3, width=8, multipliers=(1, 2), blocks=1),
    "adm": ADM(3, width=8, multipliers=(1, 2), blocks=1, attention=(1,), head_width=8),
    "vdm": VDM(3, width=8, blocks=2),
    "dit": DiT(3, width=16, depth=1, heads=2, num_classes=4),
    "mlp": MLP((3, 8, 8), width=8),
}
PRECONDITIONS: dict[str, Precondition] = {
    "eps": precondition.eps,
    "v": precondition.v,
    "edm": precondition.edm(0.7),
    "told": TimeConditioned(DiscreteVPSDE("cosine"), "eps", scale=1000.0, shift=-1.0),
    "told log sigma": TimeConditioned(VESDE(0.02, 60.0), "scaled_score", "log_sigma", 1.0, -0.7),
}
PATHS = (VPSDE(), SubVPSDE(0.2), VESDE(), EDMSDE(), CosineSDE(1.0), RectifiedSDE(), DiscreteVPSDE("scaled_linear"))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_every_network_comes_back_from_its_folder(network: nn.Module, tmp_path: Path) -> None:
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.1)
    denoiser = Denoiser(network, precondition.eps).eval()
    again, _ = from_pretrained(save_pretrained(denoiser, VPSDE(), tmp_path / "folder"))
    x, scales = torch.randn(2, 3, 8, 8), VPSDE().scales(torch.tensor([0.2, 0.8]))
    with torch.no_grad():
        assert torch.equal(again(x, *scales), denoiser(x, *scales))


class Compiled(nn.Module):
    """What torch.compile returns, without the seconds that it takes to import."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network


@pytest.mark.parametrize("wrap", [Compiled, nn.DataParallel])
def test_a_wrapped_network_comes_back_plain_in_files_that_others_may_read(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    network = NETWORKS["mlp"]
    folder = save_pretrained(Denoiser(wrap(network), precondition.eps), VPSDE(), tmp_path / "ours")
    to_diffusers(
        wrap(UNet(3, width=32, multipliers=(1,), blocks=1, frequencies="timesteps", smallest_group=1)),
        tmp_path / "theirs",
    )
    again = from_pretrained(folder)[0].net
    assert isinstance(again, nn.Module)
    assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values()))
    (tmp_path / "plain").write_text("")
    rights = (tmp_path / "plain").stat().st_mode
    files = [path for path in tmp_path.rglob("*.*") if path.is_file()]
    assert len(files) == 4 and {path.stat().st_mode for path in files} == {rights}


def test_names_of_wrappers_are_taken_off_imported_weights(tmp_path: Path) -> None:
    w = torch.ones(2)
    for name in ("module.a.b", "_orig_mod.module.a.b", "a._orig_mod.b", "a.module._orig_mod.b", "a.b"):
        assert files.weights_of({"model": {name: w}})[0] == {"a.b": w}
    assert files.weights_of({"submodule.module_b": w})[0] == {"submodule.module_b": w}


COMBINATIONS = [*((precondition.eps, sde) for sde in PATHS), *((given, EDMSDE()) for given in PRECONDITIONS.values())]


@pytest.mark.parametrize(("given", "sde"), COMBINATIONS)
def test_every_parameterisation_and_path_comes_back(given: Precondition, sde: SDE, tmp_path: Path) -> None:
    again, path = from_pretrained(save_pretrained(Denoiser(NETWORKS["mlp"], given), sde, tmp_path))
    assert path == sde and again.precondition == given
    # And as a run's configuration, which an import writes.
    spec = json.loads(build.precondition_spec(given, sde).to_json())
    assert build.build(build.PRECONDITIONS, spec, sde=sde) == given
    assert build.build(build.SDES, json.loads(build.sde_spec(sde).to_json())) == sde


@save_hyperparameters
class Own(nn.Module):
    """A network of a user's own."""

    def __init__(self, width: int, powers: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return x * self.layer.weight.sum() + c_noise[:, None]


@dataclass(frozen=True)
class Steep(VPSDE):
    """A path of a user's own."""

    slope: float = 1.0


def test_classes_of_your_own_are_opened_if_you_name_them(tmp_path: Path) -> None:
    path, network = Steep(beta_max=9.0, slope=2.0), Own(3, powers=(1, 2))
    denoiser = Denoiser(network, TimeConditioned(path, "eps"))
    folder = save_pretrained(denoiser, path, tmp_path / "folder", shape=(2,))
    again, sde = from_pretrained(folder, classes=[Own, Steep])
    assert sde == path and again.precondition == denoiser.precondition
    assert again.net.settings == {"width": 3, "powers": (1, 2)}
    assert torch.equal(again.net.layer.weight, network.layer.weight)
    for classes, missing in (((), "Own"), ((Own,), "Steep")):
        with pytest.raises(ValueError, match=rf"if you trust it, give classes=\[{missing}\]"):
            from_pretrained(folder, classes=classes)


def test_a_folder_with_the_old_name_of_a_class_still_opens(tmp_path: Path) -> None:
    given = PRECONDITIONS["told log sigma"]
    folder = save_pretrained(Denoiser(NETWORKS["mlp"], given), VESDE(), tmp_path)
    config = (folder / "config.json").read_text()
    assert '"class": "TimeConditioned"' in config
    (folder / "config.json").write_text(config.replace("TimeConditioned", "Told").replace("integer_timesteps", "whole"))
    assert from_pretrained(folder)[0].precondition == given


def test_what_cannot_be_written_down_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def own(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        return precondition.eps(alpha, sigma)

    folder = tmp_path / "folder"
    for denoiser, says in (
        (Denoiser(lambda x, t: x, precondition.eps), "expected one of our networks"),
        (Denoiser(nn.Linear(2, 2), precondition.eps), "expected one of our networks"),
        (Denoiser(NETWORKS["mlp"], own), "expected a parameterisation"),
        (Denoiser(Own(3, powers=torch.float32), precondition.eps), "expected settings that JSON can hold"),
    ):
        with pytest.raises(ValueError, match=says):
            save_pretrained(denoiser, VPSDE(), folder)
        assert not folder.exists()


def test_a_folder_that_is_wrong_is_refused_in_one_line(tmp_path: Path) -> None:
    save_pretrained(Denoiser(NETWORKS["mlp"], precondition.eps), VPSDE(), tmp_path / "whole")
    with pytest.raises(ValueError, match="does not read"):
        from_pretrained(tmp_path / "none")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    for change, says in (
        ({"format": "other"}, "its format is another"),
        ({"network": {**config["network"], "class": "Popen"}}, "expected one of"),
        ({"network": {**config["network"], "width": 16}}, "does not hold the weights"),
        ({"sde": {"class": "VPSDE", "beta": 3}}, "does not read"),
    ):
        (tmp_path / "whole" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=says) as refusal:
            from_pretrained(tmp_path / "whole")
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 300 + 2 * len(str(tmp_path))


def test_a_network_that_only_diffusers_has_becomes_a_run(images: Path, tmp_path: Path) -> None:
    import diffusers

    torch.manual_seed(0)
    blocks = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=None, **blocks
    )
    unet.save_pretrained(tmp_path / "unet")
    import_checkpoint(
        tmp_path / "run", file=str(tmp_path / "unet"), source="diffusers", data=f"array:path={str(images)!r}"
    )
    trained = open_trained(tmp_path / "run")
    x, t = seeded_normal("x", (2, 3, 16, 16)).float(), torch.tensor([0.3, 0.8])
    alpha, sigma = trained.run.sde.scales(t)
    with torch.no_grad():
        theirs = unet(x, 1000 * t - 1).sample
        ours = trained.denoiser.noise(x, alpha, sigma)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    encode(tmp_path / "run", num=2, steps=2)
    likelihood(tmp_path / "run", num=2, solver="heun", steps=2)
