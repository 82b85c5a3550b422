"""A path with weights, trained and sampled by the commands."""

from pathlib import Path

import ml_collections
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scorefield.commands.data_facts import DataFacts
from scorefield.commands.posthoc_ema import posthoc_ema
from scorefield.commands.run import Run, open_run
from scorefield.commands.sample import sample
from scorefield.commands.train.command import train
from scorefield.commands.train.log import Log
from scorefield.commands.trained import open_trained
from scorefield.configs import build, digits
from scorefield.solvers import PerSampleNoise
from scorefield.training import TrainingState, load_weights
from scorefield.training.data import digits as digits_data

pytestmark = pytest.mark.figures


def configuration(images: int, **settings: object) -> ml_collections.ConfigDict:
    config = digits.get_config("vp").copy_and_resolve_references()
    config.sde = build.spec(build.SDES, "learned_path.LearnedPath", gain=0.5)
    config.net = build.spec(build.NETWORKS, "mlp", width=8, blocks=1)
    config.sampling.steps = 3
    config.sampling.grid = build.spec(build.GRIDS, "uniform")  # of times: on one of log-SNRs all such paths are alike
    config.training.update(
        images=images, batch=32, log_every=3, sample_every=160, decay=False, ema=0.5, learning_rate=1e-2, **settings
    )
    return config


def files(workdir: Path) -> dict[str, torch.Tensor]:
    newest = max((workdir / "checkpoints").iterdir())
    return {f"{file.stem}.{name}": w for file in newest.glob("*.safetensors") for name, w in load_file(file).items()}


def test_a_learned_path_is_trained_resumed_and_sampled(tmp_path: Path) -> None:
    train(tmp_path / "unbroken", configuration(320, snapshot_every=160), device="cpu")
    for images in (160, 320):
        train(tmp_path / "parts", configuration(images, snapshot_every=160), device="cpu")
    unbroken, parts = files(tmp_path / "unbroken"), files(tmp_path / "parts")
    assert unbroken.keys() == parts.keys()
    assert all(torch.equal(unbroken[name], parts[name]) for name in unbroken)
    gains = {name: float(unbroken[f"{name}.sde.gain"]) for name in ("model", "ema", "power_0.05", "power_0.1")}
    assert len({0.5, *gains.values()}) == 5  # it has moved, and its averages follow at their own paces

    # Samples are those of the averaged path, as by hand.
    sample(tmp_path / "unbroken", num=4, seed=1, denoise=False, device="cpu")
    trained = open_trained(tmp_path / "unbroken", "cpu")
    assert float(trained.run.sde.gain) == gains["ema"]
    noise = PerSampleNoise(1, range(4))
    start = trained.run.sde.prior((4, 1, 8, 8), noise=noise)
    solver = build.build(build.SOLVERS, trained.run.config.sampling.solver)
    ts = build.build(build.GRIDS, trained.run.config.sampling.grid, sde=trained.run.sde, steps=3)
    x = trained.run.to_stored(solver(trained.denoiser, trained.run.sde, start, ts, noise=noise))
    with np.load(tmp_path / "unbroken" / "samples.npz") as result:
        assert np.array_equal(result["x"], x.numpy())
    raw = open_trained(tmp_path / "unbroken", "cpu", ema=False)
    assert float(raw.run.sde.gain) == gains["model"]
    assert len(list((tmp_path / "unbroken" / "samples").iterdir())) == 2

    # An average made afterwards and a fork have the path too.
    posthoc_ema(tmp_path / "unbroken", sigma_rel=0.1, device="cpu")
    made = open_trained(tmp_path / "unbroken" / "posthoc_0.1", "cpu")
    assert float(made.run.sde.gain) == pytest.approx(gains["power_0.1"], rel=2e-3)  # stored in float16
    train(tmp_path / "fork", configuration(32), device="cpu", fork_from=str(tmp_path / "unbroken"))
    model = open_run(tmp_path / "fork", "cpu").new_model()
    load_weights(tmp_path / "fork" / "checkpoints" / "0000000000", model, ema=False)
    assert float(model.sde.gain.detach()) == gains["ema"]
    other = configuration(32)
    other.sde = build.spec(build.SDES, "vp")
    train(tmp_path / "other", other, device="cpu", fork_from=str(tmp_path / "unbroken"))
    begun = load_file(tmp_path / "other" / "checkpoints" / "0000000000" / "model.safetensors")
    assert all(torch.equal(begun[name], unbroken[f"ema.{name}"]) for name in begun) and "sde.gain" not in begun


def test_pictures_of_an_average_follow_its_path(tmp_path: Path) -> None:
    run = Run(tmp_path, configuration(32), DataFacts.of(digits_data("train")), torch.device("cpu"))
    model = run.new_model()
    torch.nn.init.normal_(model.denoiser.net.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    state = TrainingState(model)
    with Log(run, 0, state) as log:
        for state.images, gain in ((1, 0.5), (2, 4.0)):
            state.ema.model.sde.gain.fill_(gain)
            log.pictures(state)
    first, second = (file.read_bytes() for file in sorted((tmp_path / "samples").iterdir()))
    assert first != second
