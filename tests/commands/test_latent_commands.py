"""Runs in the codes of an autoencoder: every command, and the cache of codes."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_run import configuration, stored_autoencoder, write_random_autoencoder

from scorefield.commands.autoencoder_files import read_autoencoder
from scorefield.commands.code_cache import CodeCache, DrawCodes
from scorefield.commands.codes import codes
from scorefield.commands.compare import compare
from scorefield.commands.data_facts import DataFacts
from scorefield.commands.encode import decode, encode
from scorefield.commands.export_run import export_run
from scorefield.commands.interpolate import interpolate
from scorefield.commands.run import Run
from scorefield.commands.sample import sample
from scorefield.commands.train.batches import batches_of
from scorefield.commands.train.command import train
from scorefield.commands.train_dequantiser import train_dequantiser
from scorefield.commands.trained import open_trained
from scorefield.configs import build
from scorefield.sde_lib.quantise import cell_centres
from scorefield.training.data import digits


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder `ae` and a run `run` in its codes."""
    folder = tmp_path_factory.mktemp("latent")
    write_random_autoencoder(folder / "ae")
    train(folder / "run", configuration(folder / "ae"), device="cpu")
    return folder


def of(autoencoder: Path, workdir: Path, **settings: object) -> Run:
    config = configuration(autoencoder)
    config.training.codes = settings.pop("codes", "cached")
    config.transform.update(settings)
    return Run(workdir, config, DataFacts.of(digits("train")), torch.device("cpu"))


@pytest.mark.parametrize("flip", [False, True])
def test_cached_codes_are_those_of_images_encoded_each_time(flip: bool, tmp_path: Path) -> None:
    ae = write_random_autoencoder(tmp_path / "ae")
    streams = [
        batches_of(of(ae, tmp_path / codes, codes=codes, flip=flip), digits("train"), 32)
        for codes in ("cached", "online")
    ]
    for cached, online in itertools.islice(zip(*streams, strict=True), 4):
        assert torch.equal(cached["x0"], online["x0"])
    first, second = (next(iter(batches_of(of(ae, tmp_path), digits("train"), at)))["x0"] for at in (0, 1437))
    assert not torch.equal(first, second)  # the second epoch is drawn anew


def test_cached_codes_have_the_bits_of_moments_that_are_computed_in_the_same_batches(tmp_path: Path) -> None:
    stored, data = stored_autoencoder(), digits("train").subset(48)
    cache = CodeCache(tmp_path, stored, data)
    cache.make(show=False)
    kept = torch.as_tensor(cache.read().x[:])
    x = Run(tmp_path, configuration(tmp_path), DataFacts.of(data), torch.device("cpu"))
    x.autoencoder = stored
    images = cell_centres(torch.as_tensor(data.x[:].astype(np.int32)), 17)
    moments = stored.scaled.moments(images)
    noise = torch.randn(moments.mean.shape, generator=torch.Generator().manual_seed(3))
    drawn = DrawCodes(stored.scaled)(kept, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, moments.sample(noise))
    assert torch.equal(x.centred(torch.as_tensor(data.x[:].astype(np.int32))), moments.mean)


def test_an_interrupted_cache_continues_and_one_of_another_autoencoder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorefield.commands.code_cache.SHARD", 20)
    stored, data = stored_autoencoder(), digits("train").subset(50)
    cache = CodeCache(tmp_path / "codes", stored, data)
    cache.make(show=False)
    whole, files = cache.read().x[:], sorted(cache.folder.glob("*.npy"))
    assert len(files) == 3
    before = files[0].stat().st_mtime_ns
    files[1].unlink()
    cache.make(show=False)
    assert np.array_equal(cache.read().x[:], whole)
    assert files[0].stat().st_mtime_ns == before
    order = np.array([49, 0, 20, 19, 21])
    assert np.array_equal(cache.read().x[order], whole[order])
    other = CodeCache(tmp_path / "codes", stored_autoencoder(seed=1), data)
    with pytest.raises(ValueError, match="codes of this autoencoder"):
        other.make(show=False)
    with pytest.raises(ValueError, match="codes of this autoencoder"):
        other.read()


def test_codes_measures_the_scale_and_makes_codes_again(made: Path, tmp_path: Path) -> None:
    ae = write_random_autoencoder(tmp_path / "ae", seed=2)
    codes(ae, device="cpu")
    first = read_autoencoder(ae)
    assert first.measured is not None
    assert first.measured["images"] == 1437
    found = CodeCache(ae / "codes", first, digits("train")).read().x[:]
    z = DrawCodes(first.scaled)(torch.as_tensor(found), torch.Generator().manual_seed(0))
    # 1,437 images of 16 places: the draw's own noise is below 0.02 in a mean and in a deviation.
    assert float(z.mean((0, 2, 3)).abs().max()) < 0.02
    assert float((z.std((0, 2, 3)) - 1).abs().max()) < 0.02
    write_random_autoencoder(ae, seed=3)
    codes(ae, num=100, device="cpu")
    assert read_autoencoder(ae).sha256 != first.sha256


def test_every_command_takes_a_latent_run(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")  # without the autoencoder's directory beside it
    sample(run, num=3, device="cpu")
    assert np.load(run / "samples.npz")["x"].shape == (3, 1, 8, 8)
    assert np.load(run / "samples.npz")["x"].dtype == np.uint8
    sample(run, num=3, tile=2, trajectory=1, device="cpu", output=str(tmp_path / "tiled.npz"))
    assert encode(run, num=3, steps=40, device="cpu")["round_trip_rms"] < 0.1
    assert np.load(run / "latents.npz")["latent"].shape == (3, 3, 4, 4)
    decode(run, device="cpu")
    stored = open_trained(run, "cpu").run
    x = torch.as_tensor(np.load(run / "latents.npz")["x"].astype(np.int32))
    there = stored.to_stored(stored.centred(x))  # what the autoencoder alone makes of them
    off = (there.int() - torch.as_tensor(np.load(run / "decoded.npz")["x"]).int()).abs()
    assert float(off.float().mean()) < 0.5
    interpolate(run, num=3, steps=4, device="cpu")
    sample(run, num=2, solver="ddim", steps=2, tile=2, device="cpu", output=str(tmp_path / "ddim.npz"))
    compare(run, num=2, solver=("ddim",), steps=(2,), tile=2, device="cpu")
    np.testing.assert_array_equal(np.load(run / "compare.npz")["ddim 2"], np.load(tmp_path / "ddim.npz")["x"])
    export_run(run, device="cpu")
    assert read_autoencoder(run / "export").sha256 == read_autoencoder(made / "ae").sha256
    with pytest.raises(ValueError, match="show codes as images"):
        export_run(run, to="diffusers", output=str(tmp_path / "theirs"), device="cpu")
    with pytest.raises(ValueError, match="codes, which are continuous"):
        train_dequantiser(run, device="cpu")


def test_a_latent_run_keeps_its_autoencoder_and_trains_on_where_that_has_moved(made: Path, tmp_path: Path) -> None:
    ae = shutil.copytree(made / "ae", tmp_path / "ae")
    config = configuration(ae, images=64)
    train(tmp_path / "run", config, device="cpu")
    run = tmp_path / "run"
    assert json.loads((run / "config.json").read_text())["config"]["autoencoder"] == str(ae)
    shutil.rmtree(ae)
    assert train(run, config, device="cpu")["images"] == 64
    weights = (run / "autoencoder.safetensors").read_bytes()
    (run / "autoencoder.safetensors").write_bytes(weights[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="other weights"):
        sample(run, num=1, device="cpu")


def test_images_that_do_not_fit_the_autoencoder_are_refused(tmp_path: Path) -> None:
    ae = write_random_autoencoder(tmp_path / "ae")
    config = configuration(ae)
    config.data = build.spec(build.DATASETS, "toy:kind=moons")
    with pytest.raises(ValueError, match="sides divide by 2"):
        train(tmp_path / "points", config, device="cpu")
    np.save(tmp_path / "odd.npy", np.zeros((20, 1, 8, 7), np.uint8))
    config.data = build.spec(build.DATASETS, f"array:path={tmp_path / 'odd.npy'}")
    with pytest.raises(ValueError, match="sides divide by 2"):
        train(tmp_path / "odd", config, device="cpu")
    config = configuration(ae)
    config.precondition = build.spec(build.PRECONDITIONS, "levels")
    with pytest.raises(ValueError, match="another parameterisation than levels"):
        train(tmp_path / "levels", config, device="cpu")
    with pytest.raises(ValueError, match="expected an autoencoder in"):
        train(tmp_path / "none", configuration(tmp_path / "nothing"), device="cpu")
    with pytest.raises(ValueError, match="--tile of at least 2"):
        of(ae, tmp_path).in_tiles_of(1)
