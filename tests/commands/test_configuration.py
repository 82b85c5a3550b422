"""Configurations by name or file, values that the command line changes, and config.json files of older versions."""

import json
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from scorefield.commands.configuration import load, override, packaged
from scorefield.commands.run import open_run
from scorefield.commands.sample import sample
from scorefield.commands.train.command import train
from scorefield.configs import digits
from scorefield.configs.own import fill, preset

ROOT = Path(__file__).parents[2]


def test_a_configuration_has_a_name_a_path_in_a_clone_and_a_path_of_a_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = digits.get_config("ve").to_json()
    assert load("digits:ve").to_json() == load("configs/digits.py:ve", []).to_json() == expected
    assert load(f"{ROOT}/configs/digits.py:ve", []).to_json() == expected
    mine = (
        "from scorefield.configs import digits\n"
        "def get_config():\n    config = digits.get_config()\n    config.seed = {}\n    return config\n"
    )
    for number, name in enumerate(("digits.py", "configs/digits.py", "mine.py"), start=7):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(mine.format(number))
        assert load(name, []).seed == number
    assert load("digits", []).seed == 0  # a name without .py is ours
    assert packaged() == [
        "autoencoder", "celeba", "celebahq", "cifar10", "digits", "fashion_mnist", "ffhq", "imagenet", "imagenet32",
        "latent", "lsun", "mnist", "own",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(variant): raise KeyError('x')", "cannot make the configuration mine.py (KeyError"),
        ("def get_config(variant): return 3", "to return a ConfigDict, got int"),
        ("import nothing_of_this_name", "reading it gave ModuleNotFoundError"),
        ("x = 3", "to define get_config"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=re.escape(says)):
        load("mine.py:a", [])


def changed(*overrides: str) -> ConfigDict:
    return override(digits.get_config("vp"), [f"--config.{each}" for each in overrides])


def test_a_part_is_changed_as_a_spec_or_a_mapping_and_then_in_its_details() -> None:
    spec = changed("net=mlp:width=16", "net.blocks=1", "training.weight=min_snr", "training.betas=(0.5,0.9)")
    mapping = changed("net={'name': 'mlp', 'width': 16}", "net.blocks=1", "training.weight={'name': 'min_snr'}")
    assert spec.net.to_dict() == mapping.net.to_dict() == {"name": "mlp", "width": 16, "blocks": 1}
    assert spec.training.weight.to_dict() == mapping.training.weight.to_dict() == {"name": "min_snr", "gamma": 5.0}
    assert spec.training.betas == (0.5, 0.9)
    assert changed("transform.flip").transform.flip
    assert not override(changed(), ["--noconfig.transform.dequantise"]).transform.dequantise
    assert changed("sde=ve", "sde.sigma_max=9.5").sde.sigma_max == 9.5
    assert changed("sde=ve:sigma_max=20").sde.sigma_max == 20
    assert changed("training.images=1e6").training.images == 1_000_000


def test_a_part_with_another_name_keeps_only_what_it_needs_of_the_old_one() -> None:
    config = changed("data.size=32", "data=folder:path=/x/y,size=64", "data.name=archive")
    assert (config.data.name, config.data.path, config.data.size) == ("archive", "/x/y", 32)
    assert changed("net.blocks=1", "net=mlp").net.blocks == 1
    config = changed("data=folder:path=/x/y,size=32", "data.name=array")
    assert (config.data.path, "size" in config.data) == ("/x/y", False)
    assert changed("data.name=array", "data.path=2024.npz").data.path == "2024.npz"
    assert changed("sde.name=ve").sde == changed("sde=ve").sde


def test_old_spellings_are_understood_in_overrides() -> None:
    config = changed("sampling.solver=heun:clock=sigma", "precondition=told:scale=999.0", "sampling.grid=saturated")
    assert config.sampling.solver.to_dict() == {"name": "heun", "variable": "sigma"}
    assert (config.precondition.name, config.precondition.scale) == ("time_conditioned", 999.0)
    assert config.sampling.grid.name == "soft_clipped"
    assert changed("sampling.solver=heun", "sampling.solver.clock=sigma").sampling.solver.variable == "sigma"


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("sde.bta=3", "in place of 'bta' there is beta_max, beta_min"),
        ("seed.x=3", "in place of 'x' there is a value, not a group"),
        ("training={'batch': 3}", "expected a key within training, as --config.training."),
        ("net={'width': 3}", "expected a spec of networks with a name"),
        ("net={'width'", "expected --config.net as {'name'"),
        ("net=[3", "or PACKAGE.NAME to import, got '[3'"),
        ("net=unet:widht=3", "did you mean 'width'"),
        ("sde.beta_max=large", "expected --config.sde.beta_max to be a finite number, got 'large'"),
        ("sde.beta_max", "expected a value of --config.sde.beta_max, got none"),
        ("training.images=2.5", "expected --config.training.images to be a whole number, got '2.5'"),
        ("training.betas=(0.5", "expected --config.training.betas to be a value, got '(0.5'"),
        ("transform.flip=maybe", "expected --config.transform.flip to be true or false, got 'maybe'"),
        ("trainin.batch=3", "did you mean 'training'"),
        ("data.name=foldr", "did you mean 'folder'"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(argument: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        changed(argument)


def test_a_run_of_an_older_version_is_opened_resumed_and_sampled(tmp_path: Path) -> None:
    def config(images: int) -> ConfigDict:
        parts = ("net=mlp:width=8,blocks=1", "precondition=time_conditioned:scale=999.0", "sampling.grid=soft_clipped")
        config = changed(
            *parts, "sampling.solver=heun:variable=soft_clipped", "sampling.steps=2", "training.decay=false"
        )
        config.training.update(images=images, batch=32, sample_every=0)
        return config

    train(tmp_path, config(32), device="cpu")
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    saved["config"]["precondition"] = {"name": "told", "scale": 999.0}  # without keywords that were added later
    saved["config"]["sampling"] |= {
        "solver": {"name": "heun", "clock": "saturated"},
        "grid": {"name": "saturated", "low": 0.01, "high": 20.0, "pace": 0.0},
    }
    old = json.dumps(saved)
    for text in (old, file.read_text()):
        file.write_text(text)
        sample(tmp_path, num=2, device="cpu", output=str(tmp_path / f"{len(text)}.npz"))
    assert open_run(tmp_path, "cpu").config.to_dict() == json.loads(config(32).to_json())
    file.write_text(old)
    assert train(tmp_path, config(64), device="cpu")["images"] == 64


def test_a_spec_leaves_what_it_does_not_name_to_the_data() -> None:
    for net in ("unet:width=8", "{'name': 'unet', 'width': 8}"):
        config = load("own", [f"--config.net={net}", "--config.data=folder:path=photos"])
        assert config.net.width == 8 and config.data.path == "photos"
        chosen = fill(config, preset(21, (3, 16, 16)))
        assert chosen["net.multipliers"] == config.net.multipliers == (1, 2)
        assert chosen["net.attention"] == config.net.attention == (1,)
        assert chosen["net.blocks"] == config.net.blocks == 1
        assert chosen["data.size"] == config.data.size == 16
        assert "net.width" not in chosen
    named = load("own", ["--config.net=unet:width=8,blocks=3,attention=()"])
    assert (named.net.blocks, named.net.attention) == (3, ())
    assert load("own", ["--config.net=adm:width=8"]).net.multipliers == (1, 2, 3, 4)  # of another name: its own
