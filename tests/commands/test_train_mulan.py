"""A path with a noise level for each pixel and a latent code, trained, resumed, sampled and scored by the commands."""

import json
from pathlib import Path

import ml_collections
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scorefield.commands.compare import compare
from scorefield.commands.encode import encode
from scorefield.commands.export_run import export_run
from scorefield.commands.grid import grid
from scorefield.commands.interpolate import interpolate
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.sample import sample
from scorefield.commands.train.command import train
from scorefield.commands.train_dequantiser import train_dequantiser
from scorefield.commands.trained import open_trained
from scorefield.configs import build, digits
from scorefield.likelihood import Exact, LevelDecoder, elbo, log_likelihood
from scorefield.likelihood.dataset import DatasetScorer
from scorefield.likelihood.prior import GaussianPrior
from scorefield.solvers import RK4, PerSampleNoise, grids


def configuration(images: int = 128) -> ml_collections.ConfigDict:
    config = digits.get_config("mulan").copy_and_resolve_references()
    config.sde.update(size=6, active=2, width=8, encoder_width=8, encoder_blocks=1)
    config.net = build.spec(build.NETWORKS, "mlp", width=8, blocks=1)
    config.sampling.steps = 3
    config.training.update(
        images=images,
        batch=32,
        log_every=2,
        sample_every=0,
        decay=False,
        warmup=0,
        ema=0.5,
        learning_rate=1e-2,
    )
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mulan")
    train(folder, configuration(), device="cpu")
    return folder


def weights(workdir: Path) -> dict[str, torch.Tensor]:
    return load_file(max((workdir / "checkpoints").iterdir()) / "model.safetensors")


def test_a_resumed_run_ends_at_the_same_bits_and_logs_the_four_parts(workdir: Path, tmp_path: Path) -> None:
    for images in (64, 128):
        train(tmp_path, configuration(images), device="cpu")
    unbroken, parts = weights(workdir), weights(tmp_path)
    assert all(torch.equal(unbroken[name], parts[name]) for name in unbroken)
    assert {name.split(".")[1] for name in unbroken if name.startswith("sde.")} == {"encoder", "polynomials"}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert (workdir / "metrics.jsonl").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()
    means = {name: part["mean"] for name, part in rows[-1]["bits_per_dim"].items()}
    assert means["total"] == pytest.approx(sum(value for name, value in means.items() if name != "total"))
    assert means.keys() == {"total", "prior", "diffusion", "reconstruction", "code"}


def test_a_run_is_sampled_and_scored_as_by_hand(workdir: Path) -> None:
    trained = open_trained(workdir, "cpu")
    run, sde = trained.run, trained.run.sde
    sample(workdir, num=4, seed=1, batch=2, device="cpu")
    noise = PerSampleNoise(1, range(4))
    code = sde.draw(4, noise.uniform)
    path, cond, ts = sde.given(code), {"code": code}, grids.uniform(sde, 3)
    solver = build.build(build.SOLVERS, "heun")
    x = solver(trained.denoiser, path, path.prior((4, 1, 8, 8), noise=noise), ts, cond=cond)
    x = trained.denoiser(x, *path.scales(0.0), code=code)
    with np.load(workdir / "samples.npz") as result:
        assert np.array_equal(result["x"], run.to_stored(x).numpy())

    likelihood(
        workdir, num=4, estimators=("elbo", "ode"), solver="rk4", grid="uniform", steps=4, divergence="exact",
        draws=4, device="cpu",
    )  # fmt: skip
    report = json.loads((workdir / "likelihood_test.json").read_text())["estimates"]
    assert report["elbo"]["bits_per_dim"] == pytest.approx(sum(report["elbo"]["parts"].values()), abs=1e-6)
    assert "less the code's divergence" in report["ode"]["kind"]
    assert report["elbo"]["parts"]["code"] > 0

    stored = run.dataset("test").x[:3]
    scorer = DatasetScorer(
        trained.denoiser, sde, torch.as_tensor(stored), 17, GaussianPrior.standard(sde), draws=4, solver=RK4(),
        ts=grids.uniform(sde, 4).flip(0), divergence=Exact(),
    )  # fmt: skip
    rows, x0 = slice(0, 3), scorer.values(slice(0, 3))
    noise = PerSampleNoise(0, range(3), (3,))
    bound = elbo(
        trained.denoiser, sde, x0, decoder=LevelDecoder(17), draws=4, noise=noise, uniform=noise.uniform
    )  # fmt: skip
    assert torch.equal(scorer.elbo(rows)["elbo"], bound.log_prob.double())
    code, kl = sde.infer(x0, PerSampleNoise(0, range(3), (7,)).uniform)
    dequantised, log_q = scorer.dequantised(rows, scorer.dequantisation)
    density = log_likelihood(
        trained.denoiser, sde.given(code), dequantised, cond={"code": code}, divergence=Exact(), solver=RK4(),
        ts=grids.uniform(sde, 4).flip(0),
    )  # fmt: skip
    expected = density.log_prob.double() - log_q - kl
    assert torch.allclose(scorer.ode(rows)["ode"], expected, rtol=1e-6, atol=1e-3)


def test_what_cannot_take_such_a_run_says_so_in_one_line(workdir: Path) -> None:
    for call, expected in (
        (lambda: likelihood(workdir, num=2, device="cpu"), "for a tolerance, .*--solver=rk4 --grid=uniform"),
        (lambda: likelihood(workdir, num=2, estimators=("vlb",), device="cpu"), "a chain of steps.*use elbo"),
        (lambda: sample(workdir, num=2, solver="dpm", device="cpu"), "for DPMSolver.*use Euler"),
        (lambda: sample(workdir, num=2, trajectory=1, device="cpu"), "--mode=sample --trajectory"),
        *(
            (lambda command=command: command(workdir, device="cpu"), f"--mode={name}, .*use --mode=sample")
            for name, command in {
                "encode": encode, "interpolate": interpolate, "compare": compare, "grid": grid, "export": export_run,
                "train_dequantiser": train_dequantiser,
            }.items()
        ),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=f"expected a path with one noise level for all dimensions.*{expected}"
        ) as e:
            call()
        assert "\n" not in str(e.value)
        assert len(str(e.value)) < 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.loss": "dsm"}, "expected training.loss of elbo for a learned path"),
        ({"training.elbo_steps": 10}, "elbo_steps and training.second_order of 0 for the path mulan, got 10 and 0"),
        ({"net": build.spec(build.NETWORKS, "ncsn", sigmas=(1.0, 0.1))}, "takes a code, .* got ncsn: use unet"),
        ({"sampling.solver": build.spec(build.SOLVERS, "dpm")}, "for DPMSolver.*got PerDimensionVP: use Euler"),
        ({"sde.active": 7}, "expected 1 <= active <= size"),
        ({"training.times": build.spec(build.TIMES, "log_normal")}, "expected times of the ELBO's integral"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_unsuitable_configuration_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    config = configuration()
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        place = config[group] if group else config
        if isinstance(value, ml_collections.ConfigDict):
            place[name] = value
        else:
            place.update({name: value})
    with pytest.raises(ValueError, match=message):
        train(tmp_path, config, device="cpu")
