"""A latent run and its autoencoder in several directories: which one counts, and what is refused."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latent_run import configuration, stored_autoencoder, write_random_autoencoder

from scorefield.commands import code_cache
from scorefield.commands.autoencoder_files import read_autoencoder, same_codes, write_autoencoder
from scorefield.commands.code_cache import CodeCache, encoded
from scorefield.commands.codes import codes
from scorefield.commands.posthoc_ema import posthoc_ema
from scorefield.commands.run import open_run
from scorefield.commands.train.batches import cached
from scorefield.commands.train.command import train
from scorefield.commands.trained import open_trained
from scorefield.models.code_statistics import CodeStatistics
from scorefield.training.data import digits


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder `ae` and a run `run` in its codes."""
    folder = tmp_path_factory.mktemp("places")
    write_random_autoencoder(folder / "ae")
    train(folder / "run", of(folder / "ae"), device="cpu")
    return folder


def of(autoencoder: Path) -> Any:
    config = configuration(autoencoder, images=64)
    config.training.snapshot_every = 32
    config.training.codes = "online"
    return config


def test_the_scale_of_a_runs_own_copy_is_not_measured_again(made: Path) -> None:
    before = (made / "run" / "autoencoder.json").read_bytes()
    with pytest.raises(ValueError, match="expected the directory of an autoencoder, got a run"):
        codes(made / "run", device="cpu")
    assert (made / "run" / "autoencoder.json").read_bytes() == before


def test_a_new_run_is_refused_where_another_autoencoder_is(made: Path, tmp_path: Path) -> None:
    write_random_autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="expected a --workdir without an autoencoder"):
        train(tmp_path / "other", of(made / "ae"), device="cpu")
    assert not (tmp_path / "other" / "config.json").exists()


def test_an_average_made_afterwards_has_its_own_copy_of_the_autoencoder(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    posthoc_ema(run, sigma_rel=0.1, output=str(tmp_path / "average"), device="cpu")
    assert same_codes(tmp_path / "average", made / "ae")
    assert open_trained(tmp_path / "average", "cpu").run.home_of_autoencoder == tmp_path / "average"


def test_weights_of_a_run_with_another_scale_or_autoencoder_are_refused(made: Path, tmp_path: Path) -> None:
    other = shutil.copytree(made / "run", tmp_path / "other")
    checkpoint = str(other / "checkpoints" / "0000000064")
    assert open_trained(made / "run", "cpu", checkpoint=checkpoint).checkpoint == Path(checkpoint)
    stored = read_autoencoder(other)
    write_autoencoder(other, stored.with_statistics(shifted(stored.measured), "digits"))
    with pytest.raises(ValueError, match="of a run with another autoencoder than"):
        open_trained(made / "run", "cpu", checkpoint=checkpoint)


def shifted(measured: dict[str, Any] | None) -> Any:
    assert measured is not None
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in measured.items()}
    del found["data"]
    return CodeStatistics(**{**found, "shift": tuple(each + 1 for each in found["shift"])})


def test_codes_are_kept_with_the_run_where_the_autoencoders_directory_cannot_be_written(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ae = shutil.copytree(made / "ae", tmp_path / "ae")
    run = open_run(shutil.copytree(made / "run", tmp_path / "run"), "cpu")
    run.config.autoencoder = str(ae)
    some = digits("train").subset(20)
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != ae)
    first = np.asarray(cached(run, some).x[:])
    assert not (ae / "codes").exists() and (run.workdir / "codes").is_dir()
    monkeypatch.undo()
    assert np.array_equal(cached(run, some).x[:], first)
    assert (ae / "codes").is_dir()


def test_of_two_commands_at_once_one_encodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def counted(*arguments: Any) -> Any:
        counts.append(len(arguments[2]))
        return encoded(*arguments)

    monkeypatch.setattr(code_cache, "encoded", counted)
    monkeypatch.setattr(code_cache, "SHARD", 100)
    cache = CodeCache(tmp_path, stored_autoencoder(), digits("train").subset(200))
    with ThreadPoolExecutor(2) as both:
        for each in [both.submit(cache.make, False) for _ in range(2)]:
            each.result()
    assert sum(counts) == 200
    assert len(cache.read().x) == 200
