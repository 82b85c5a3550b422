"""From integers to densities, the latents' prior, and the command that scores a data set."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import PATHS
from torch import Tensor

from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.likelihood.partial_results import PartialResults, Ranks
from scorefield.commands.train.command import train
from scorefield.commands.train_dequantiser import train_dequantiser
from scorefield.configs import build, digits, own
from scorefield.likelihood import (
    Dequantisation,
    GaussianPrior,
    Moments,
    TruncatedNormal,
    Uniform,
    Variational,
    prior_kl,
)
from scorefield.likelihood.dequantisation import combined
from scorefield.models.analytic import Gaussian, GaussianMixture
from scorefield.sde_lib import SDE, VESDE, VPSDE, RectifiedSDE
from scorefield.sde_lib.quantise import cell_centres

ROOT = Path(__file__).parent.parent
COARSE = VPSDE(t_min=0.01)  # its noise at t_min, 0.03, is a sixth of a cell of 8 levels in [-1, 1]


def seeded(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.rand(x.shape, generator=generator, dtype=x.dtype)


def squeezed(centre: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """U = uniform^2, whose density is 1 / (2 sqrt(u))."""
    return uniform**2, -(2 * uniform).log().flatten(1).sum(1)


EVERY: dict[str, Dequantisation] = {
    "uniform": Uniform(),
    "truncated normal": TruncatedNormal(),
    "variational": Variational(squeezed),
}
every = pytest.mark.parametrize("how", EVERY.values(), ids=EVERY)


# Dequantisation


@every
@pytest.mark.parametrize("sde", [COARSE, VESDE(sigma_min=0.08), RectifiedSDE(t_min=0.1)], ids=("vp", "ve", "rectified"))
def test_q_is_a_density_of_the_cell(how: Dequantisation, sde: SDE) -> None:
    # E_q[1 / q] is the length of what q covers, and a histogram of the draws is q: 5 and 6 standard errors, one false
    # alarm in two million.
    k = torch.full((200_000, 1), 3)
    x, log_q = how(k, 8, sde, seeded())
    alpha = float(sde.scales(sde.t_min)[0]) if isinstance(how, TruncatedNormal) else 1.0
    inside = alpha * torch.tensor([-1 + 3 / 4, -1 + 4 / 4])
    assert float(x.min()) >= float(inside[0]) - 1e-6
    assert float(x.max()) <= float(inside[1]) + 1e-6
    lengths = (-log_q).exp()
    # the tails of a narrow q are drawn too seldom to weigh its whole cell: there, compare the histogram instead
    if float(lengths.std()) < 10:
        error = float(lengths.std()) / len(lengths) ** 0.5
        assert abs(float(lengths.mean()) - alpha / 4) < 5 * error + 1e-6
    counts, edges = np.histogram(x.double().numpy(), 50, range=(float(inside[0]), float(inside[1])))
    nearest = np.clip(np.digitize(x[:, 0].numpy(), edges) - 1, 0, 49)
    for bin_ in np.flatnonzero(counts > 500):
        here = log_q.numpy()[nearest == bin_]
        # within a bin q may fall by half: its mean of 1 / q is that of an area, to the share that the bin's width sets
        mass = counts[bin_] / len(x)
        expected = (edges[1] - edges[0]) / np.mean(np.exp(-here))
        assert abs(mass - expected) < 6 * math.sqrt(mass / len(x)) + 2e-3 * mass


@every
def test_importance_weights_close_the_gap_to_the_probability(how: Dequantisation) -> None:
    # The oracle is the mass of each cell of a Gaussian at t_min, by erf. 4 dimensions, so that weights are mild; the
    # mean of the weights is P(k) itself, within 5 standard errors over 4,000 draws.
    mean, std = 0.1, 0.35
    sde, k = VPSDE(t_min=0.05), torch.tensor([[1, 3, 4, 6]])
    alpha, sigma = (float(scale) for scale in sde.scales(sde.t_min))
    wide = alpha if isinstance(how, TruncatedNormal) else 1.0
    marginal = torch.distributions.Normal(alpha * mean, math.hypot(alpha * std, sigma))
    ends = torch.stack([-1 + k / 4, -1 + (k + 1) / 4]).double() * wide
    exact = float(marginal.cdf(ends).diff(dim=0).log().sum())
    x, log_q = how(k.expand(4000, 4), 8, sde, seeded())
    log_weights = marginal.log_prob(x.double()).sum(1) - log_q
    weights = (log_weights - exact).exp()
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / 4000**0.5 + 1e-4
    single, eight = (float(combined(log_weights.reshape(m, -1)).mean()) for m in (1, 8))
    assert single < eight <= exact + 0.02
    assert exact - eight < (exact - single) / 3


def test_the_centres_are_the_middles() -> None:
    np.testing.assert_allclose(cell_centres(torch.tensor([[0, 1, 2, 3]]), 4), [[-0.75, -0.25, 0.25, 0.75]])
    assert cell_centres(torch.zeros(0, 3, dtype=torch.long), 4).shape == (0, 3)


@every
def test_zero_images_are_dequantised(how: Dequantisation) -> None:
    x, log_q = how(torch.zeros(0, 1, 4, 4, dtype=torch.long), 8, COARSE, seeded())
    assert x.shape == (0, 1, 4, 4)
    assert log_q.shape == (0,)


def test_samples_below_one_are_refused() -> None:
    for make in (Uniform, TruncatedNormal):
        with pytest.raises(ValueError, match="samples of 1 or more"):
            make(samples=0)


# The prior


def test_a_matched_prior_is_a_gaussians_marginal() -> None:
    mean, std = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.3, 2.0]).double()
    model = Gaussian(mean, std)
    for sde in PATHS.values():
        z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = GaussianPrior.matched(sde, Moments(mean, std))(z)
        torch.testing.assert_close(found, model.log_prob(z, *sde.scales(sde.t_max)))
        torch.testing.assert_close(GaussianPrior.standard(sde)(z), sde.prior_log_prob(z))


def test_the_mismatch_of_gaussian_data_is_its_kl() -> None:
    # Correlated data of known moments: the KL of two normals in closed form, by torch.
    generator = torch.Generator().manual_seed(0)
    root = torch.tensor([[1.0, 0.0], [0.8, 0.5]], dtype=torch.float64)
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T, correction=0))).T @ root.T + 0.7
    sde = VPSDE(beta_max=3.0)
    alpha, sigma = (float(scale) for scale in sde.scales(sde.t_max))
    there = torch.distributions.MultivariateNormal(
        torch.full((2,), alpha * 0.7).double(), alpha**2 * root @ root.T + sigma**2 * torch.eye(2).double()
    )
    prior = GaussianPrior.standard(sde)
    wanted = torch.distributions.MultivariateNormal(torch.zeros(2).double(), sigma**2 * torch.eye(2).double())
    exact = float(torch.distributions.kl_divergence(there, wanted))
    assert prior_kl(sde, x, prior) == pytest.approx(exact, rel=1e-6)
    matched = prior_kl(sde, x, GaussianPrior.matched(sde, Moments.of(x)))
    assert 0 < matched < exact / 2  # what is left is the correlation
    assert float(sde.prior_kl(x).mean()) >= exact


# Parts and ranks


def test_parts_are_found_again_by_the_same_facts_alone(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    parts = PartialResults(output, {"seed": 0})
    parts.put("a", {"x": np.arange(3)})
    parts.note("plan", {"steps": 4})
    again, other = PartialResults(output, {"seed": 0}), PartialResults(output, {"seed": 1})
    assert "a" in again
    assert again.get("a")["x"].tolist() == [0, 1, 2]
    assert again.noted("plan") == {"steps": 4}
    assert "a" not in other
    assert other.noted("plan") is None
    again.remove()
    assert not list(tmp_path.iterdir())


def test_ranks_share_everything_once() -> None:
    shares = [Ranks(rank, 3).share(range(10)) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(10))


# The command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits, of a few steps."""
    folder = tmp_path_factory.mktemp("runs") / "vp"
    config = digits.get_config("vp")
    config.net.width = 8
    config.training.update(images=640, batch=64, sample_every=0)
    train(folder, config)
    return folder


def report_of(workdir: Path, path: Path, **options: Any) -> dict[str, Any]:
    likelihood(workdir, output=str(path), **options)
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def test_four_estimators_side_by_side(workdir: Path, tmp_path: Path) -> None:
    names = ["ode", "dsm", "vlb", "elbo"]
    report = report_of(workdir, tmp_path / "all.json", num=6, estimators=names, draws=6, chain=5, steps=4, batch=4)
    assert list(report["estimates"]) == names
    with np.load(tmp_path / "all.npz") as file:
        for name in names:
            found = report["estimates"][name]
            assert found["n"] == 6
            assert found["bits_per_dim"] == pytest.approx(file[name].mean())
            low, high = found["interval_95"]
            assert high - low == pytest.approx(2 * 1.96 * file[name].std(ddof=1) / 6**0.5)
            assert found["seconds_an_image"] > 0
            assert file[name].shape == (6,)
            if name != "ode":
                assert sum(found["parts"].values()) + (0 if name != "dsm" else math.log2(2 / 17)) * -1 == pytest.approx(
                    found["bits_per_dim"]
                )
        assert file["latent"].shape == (6, 1, 8, 8)
    assert 0 < report["prior_kl"]["estimate"] <= report["prior_kl"]["bound"]
    for key in ("checkpoint_sha256", "data_sha256", "weights", "versions", "t_min", "t_max", "dequantisation"):
        assert report[key]


def test_a_batch_is_a_matter_of_memory(workdir: Path, tmp_path: Path) -> None:
    values = []
    for batch in (1, 5):
        report_of(workdir, tmp_path / "b.json", num=5, estimators=["ode", "elbo"], draws=4, steps=4, batch=batch)
        with np.load(tmp_path / "b.npz") as file:
            values.append(np.stack([file["ode"], file["elbo"]]))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)  # float32 networks round by their batch


@pytest.mark.parametrize("how", ["importance:samples=3", "truncated_normal", "uniform:samples=2"])
def test_other_dequantisations_are_reported(how: str, workdir: Path, tmp_path: Path) -> None:
    report = report_of(workdir, tmp_path / "d.json", num=4, steps=4, dequantisation=how)
    assert report["dequantisation"] == how
    assert report["estimates"]["ode"]["nfe"] == 7 * build.build(build.DEQUANTISATIONS, build.parse(how)).samples
    assert math.isfinite(report["bits_per_dim"])


def test_a_prior_of_the_data_is_nearer_to_it(workdir: Path, tmp_path: Path) -> None:
    reports = [report_of(workdir, tmp_path / "p.json", num=4, steps=4, prior=prior) for prior in ("standard", "data")]
    assert reports[1]["prior_kl"]["estimate"] < reports[0]["prior_kl"]["estimate"]


@pytest.mark.slow
def test_a_tolerance_chooses_and_says_what(workdir: Path, tmp_path: Path) -> None:
    report = report_of(workdir, tmp_path / "t.json", num=36, tolerance=0.05)
    ode = report["estimates"]["ode"]
    assert ode["tolerance"] == 0.05
    assert ode["solver_error"] <= 0.05
    assert ode["tolerance_met"]
    assert ode["others"] == 4
    assert ode["solver_error_of_others"] < 1.0
    assert ode["error_of_a_value"] > 0
    assert "AdamsMoulton" in ode["solver"]
    assert ode["nfe"] == ode["steps"] + 3


def command(workdir: Path, output: Path, *more: str) -> list[str]:
    return [
        "main.py", "--mode=likelihood", f"--workdir={workdir}", f"--output={output}", "--num=24", "--steps=12",
        "--batch=4", "--estimators=ode,elbo", "--draws=4", *more,
    ]  # fmt: skip


def alike(first: Path, second: Path) -> bool:
    with np.load(first) as a, np.load(second) as b:
        return a.files == b.files and all(np.array_equal(a[key], b[key]) for key in a.files)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_killed_and_run_again_it_goes_on_to_the_same_number(number: int, workdir: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command(workdir, whole)], cwd=ROOT, check=True, capture_output=True, env=environment
    )
    process = subprocess.Popen(
        [sys.executable, *command(workdir, resumed)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    while len(list(tmp_path.glob(".resumed*/ode_*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() != 0
    assert not resumed.exists()
    kept = sorted(tmp_path.glob(".resumed*/ode_*.npz"))
    assert kept
    subprocess.run(
        [sys.executable, *command(workdir, resumed)], cwd=ROOT, check=True, capture_output=True, env=environment
    )
    assert alike(whole.with_suffix(".npz"), resumed.with_suffix(".npz"))
    assert not list(tmp_path.glob(".resumed*"))


def test_what_is_kept_is_taken_and_what_another_dequantiser_left_is_not(workdir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    options: dict[str, Any] = {"num": 4, "batch": 2, "steps": 4, "dequantisation": "variational"}
    kept = []
    for seed in (0, 1):
        train_dequantiser(folder, num=64, batch=32, seed=seed)
        with pytest.MonkeyPatch.context() as patch:  # interrupted when all is done but the report
            patch.setattr("scorefield.commands.likelihood.command.write_json", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                likelihood(folder, **options)
        kept.append(set(folder.glob(".likelihood*/ode_*.npz")))
    assert len(kept[1]) == 2 * len(kept[0]) == 4  # the second left parts of its own
    mine = next(iter(kept[1] - kept[0])).parent / "ode_000000002.npz"
    with np.load(mine) as file:
        arrays = dict(file)
    arrays["ode"] = np.array([1.0, 2.0])
    np.savez(mine, **arrays)
    likelihood(folder, **options)
    with np.load(folder / "likelihood_test.npz") as file:
        np.testing.assert_allclose(file["ode"][2:], -np.array([1.0, 2.0]) / (64 * math.log(2)))
    assert len(json.loads((folder / "likelihood_test.json").read_text())["dequantiser_sha256"]) == 64


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_change_from_half_the_steps_is_that_of_two_runs(workdir: Path, tmp_path: Path) -> None:
    how = {"num": 3, "divergence": "exact", "solver": "heun", "grid": "log_snr"}
    whole, half = (report_of(workdir, tmp_path / "h.json", steps=steps, **how) for steps in (8, 4))
    change = whole["estimates"]["ode"]["change_from_half_the_steps"]
    assert change == pytest.approx(half["bits_per_dim"] - whole["bits_per_dim"], rel=1e-4)


def test_two_ranks_give_the_number_of_one(workdir: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command(workdir, one)], cwd=ROOT, check=True, capture_output=True, env=environment)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    subprocess.run(torchrun + command(workdir, two), cwd=ROOT, check=True, capture_output=True, env=environment)
    assert alike(one.with_suffix(".npz"), two.with_suffix(".npz"))


def test_continuous_data_gets_nats_and_no_bits(tmp_path: Path) -> None:
    config = own.get_config("toy")
    config.training.update(images=256, batch=64, sample_every=0)
    train(tmp_path / "run", config)
    names = ["ode", "dsm", "elbo", "vlb"]
    report = report_of(tmp_path / "run", tmp_path / "toy.json", num=4, estimators=names, draws=4, steps=4)
    assert "bits_per_dim" not in report
    assert math.isfinite(report["nats_per_dim"])
    assert "Exact" in report["estimates"]["ode"]["divergence"]
    with pytest.raises(ValueError, match="bits/dim, which count levels, are refused"):
        likelihood(tmp_path / "run", num=2, dequantisation="uniform")


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    config = own.get_config("array")
    config.data.path = str(tmp_path / "x.npy")
    config.training.update(images=64, batch=32, sample_every=0)
    train(tmp_path / "run", config)
    x[-1, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"NaN|finite"):
        likelihood(tmp_path / "run", steps=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"estimators": ["ode", "nll"]}, "ode, dsm, vlb, elbo"),
        ({"estimators": ["ode", "ode"]}, "each once"),
        ({"tolerance": 1e-3, "steps": 5}, "got both"),
        ({"tolerance": -1.0}, "positive tolerance"),
        ({"prior": "wide"}, "standard or data"),
        ({"variance": "huge"}, "small or large"),
        ({"tolerance": 0.0}, "positive tolerance"),
        ({"steps": 0}, "--steps of at least 1"),
        ({"tolerance": 0.1, "estimators": ["elbo"]}, "which is not among"),
        ({"draws": 1}, "--draws of 2"),
        ({"chain": 0}, "--chain of at least 1"),
        ({"dequantisation": "variational"}, "train_dequantiser"),
        ({"dequantisation": "uniform:samples=0"}, "samples of 1"),
        ({"dequantisation": "truncated"}, "did you mean 'truncated_normal'"),
        ({"divergence": "hutch"}, "expected one of exact, hutchinson, hutchpp"),
        ({"num": 0}, "--num"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_any_work(options: dict[str, Any], says: str, workdir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        likelihood(workdir, output=str(tmp_path / "m.json"), **options)
    assert not list(tmp_path.iterdir())


def test_an_adaptive_solve_that_fails_names_the_image_and_keeps_the_rest(workdir: Path, tmp_path: Path) -> None:
    # The sixth image's flow is made one that no step is small enough for.
    from scorefield.commands.likelihood import estimates

    class Torn(GaussianMixture):
        def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
            return torch.full_like(x, math.nan)

    class Task(estimates.Task):
        def model(self, rows: slice) -> Any:
            whole = Gaussian(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
            return Torn(whole.means, whole.stds, whole.weights) if rows.start == 4 else whole

    from scorefield.commands.likelihood import command as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Task", Task)
        with pytest.raises(ValueError, match=r"image 4: dopri5 on sample 0 at t = \S+: found no step small enough"):
            likelihood(workdir, num=6, batch=2, solver="adaptive:rtol=0.01,atol=0.01", output=str(tmp_path / "f.json"))
    assert len(list(tmp_path.glob(".f*/ode_*.npz"))) == 2
