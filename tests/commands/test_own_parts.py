"""A package of a user's own: a path, network, data set, solver, grid, weighting and times, without a change of ours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from warm import run

from scorefield.sde_lib import RectifiedSDE

PACKAGE = '''
from dataclasses import dataclass
import numpy as np, torch

from torch import nn
from scorefield.sde_lib import SDE
from scorefield.solvers import Solver, grids
from scorefield.training.data import Dataset

class Straight(SDE):
    """The straight line."""

    t_min, t_max = 0.01, 0.99

    def log_alpha(self, t):
        return torch.log1p(-t)

    def log_sigma(self, t):
        return t.log()

class Net(nn.Module):
    def __init__(self, shape, width=4):
        super().__init__()
        dims = shape[0] * shape[1] * shape[2]

        self.layers = nn.Sequential(nn.Linear(dims + 1, width), nn.SiLU(), nn.Linear(width, dims))

    def forward(self, x, c_noise):
        return self.layers(torch.cat([x.flatten(1), c_noise.expand(len(x))[:, None]], 1)).view_as(x)

class Odd(nn.Module):
    def forward(self, x):
        return x

def squares(split="train", n=48):
    x = np.random.default_rng(split == "test").integers(0, 5, (n, 1, 2, 2)).astype(np.uint8)
    return Dataset("squares", split, x, levels=5)

@dataclass(frozen=True)
class Step(Solver):
    """DDIM, with its noise scaled."""

    scale: float = 1.0

    def step(self, denoiser, x, schedule, i, noise, memory):
        now, then = schedule[i], schedule[i + 1]
        x0 = denoiser(x, now.alpha, now.sigma)

        eps = (x - now.alpha.to(x.dtype) * x0) / now.sigma.to(x.dtype)
        return then.alpha.to(x.dtype) * x0 + self.scale * then.sigma.to(x.dtype) * eps, None

def late(sde, steps, power=2.0):
    return sde.t_max + (sde.t_min - sde.t_max) * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power

def flat(sde, t, *, factor=1.0):
    return factor * torch.ones_like(t)

def middle(sde, n, generator=None):
    return torch.full((n,), 0.5, dtype=torch.float64)

def broken():
    import nothing_of_this_name
'''
GROUPS = {
    "sdes": "straight = mypkg:Straight",
    "networks": "net = mypkg:Net",
    "datasets": "squares = mypkg:squares",
    "solvers": "step = mypkg:Step\nmissing = mypkg:Missing",
    "grids": "late = mypkg:late",
    "weightings": "flat = mypkg:flat",
    "times": "middle = mypkg:middle",
}
KEYS = {
    "data": "squares:n=40",
    "net": "Net:width=8",
    "sde": "Straight",
    "sampling.solver": "Step:scale=1.0",
    "sampling.grid": "late:power=1.5",
    "training.weight": "flat:factor=0.5",
    "training.times": "middle",
}
SHARED = (
    "--mode=train", "--config=own:array", "--config.training.batch=16", "--config.training.images=32",
    "--config.training.decay=false", "--config.training.sample_every=0", "--config.sampling.steps=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, a distribution that names its parts, and folders with names of ours."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("mypkg", "models", "configs", "training"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(PACKAGE if name == "mypkg" else "raise SystemExit('not these')")
    info = folder / "site" / "mypkg-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("".join(f"[scorefield.{k}]\n{v}\n" for k, v in GROUPS.items()))
    return folder


def command(folder: Path, *arguments: str) -> str:
    done = run(*arguments, cwd=folder, PYTHONPATH=str(folder / "site"))
    assert done.returncode == 0, done.stderr
    return done.stdout


def arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as results:
        return {name: results[name] for name in results.files}


@pytest.fixture(scope="module")
def dotted(folder: Path) -> Path:
    command(folder, *SHARED, "--workdir=a", *(f"--config.{key}=mypkg.{spec}" for key, spec in KEYS.items()))
    command(folder, "--mode=sample", "--workdir=a", "--num=6")
    return folder / "a"


def test_parts_of_a_users_own_train_sample_encode_and_are_scored_by_dotted_names(folder: Path, dotted: Path) -> None:
    ours = arrays(dotted / "samples.npz")["x"]
    assert ours.shape == (6, 1, 2, 2)
    # Their DDIM is ours, on their grid.
    command(folder, "--mode=sample", "--workdir=a", "--num=6", "--solver=ddim", "--output=ddim.npz")
    assert np.array_equal(arrays(folder / "ddim.npz")["x"], ours)
    command(folder, "--mode=sample", "--workdir=a", "--num=6", "--solver=mypkg.Step:scale=3.0", "--output=3.npz")
    assert not np.array_equal(arrays(folder / "3.npz")["x"], ours)
    command(folder, "--mode=encode", "--workdir=a", "--num=6", "--solver=mypkg.Step", "--steps=3", "--grid=mypkg.late")
    late = ("--steps=3", "--grid=mypkg.late")
    command(folder, "--mode=encode", "--workdir=a", "--num=6", "--solver=ddim", *late, "--output=l.npz")
    assert_close(arrays(dotted / "latents.npz")["latent"], arrays(folder / "l.npz")["latent"], rtol=1e-4, atol=1e-5)
    assert "bits_per_dim" in command(folder, "--mode=likelihood", "--workdir=a", "--num=6", "--steps=4")


def test_they_are_opened_again_and_their_path_is_what_its_two_functions_say(folder: Path, dotted: Path) -> None:
    out = command(folder, *SHARED, "--workdir=a", *(f"--config.{k}=mypkg.{v}" for k, v in KEYS.items()),
        "--config.training.images=48")  # fmt: skip
    assert "images_this_time: 16" in out and "of shape (1, 2, 2), 5 levels" in out
    namespace: dict[str, type] = {}
    exec(PACKAGE, namespace)
    path, line = namespace["Straight"](), RectifiedSDE(0.01, 0.99)
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    for name in ("log_snr", "drift", "diffusion"):
        assert_close(getattr(path, name)(t), getattr(line, name)(t), rtol=1e-9, atol=1e-12)
    assert_close(path.time(line.log_snr(t)), t, rtol=1e-9, atol=1e-12)


def test_entry_points_give_them_short_names(folder: Path, dotted: Path) -> None:
    short = {key: spec[0].lower() + spec[1:] for key, spec in KEYS.items()}
    net = "--config.net={'name': 'net', 'width': 8}"
    rest = [f"--config.{key}={spec}" for key, spec in short.items() if key != "net"]
    command(folder, *SHARED, "--workdir=b", net, *rest)
    command(folder, "--mode=sample", "--workdir=b", "--num=6")
    assert np.array_equal(arrays(folder / "b" / "samples.npz")["x"], arrays(dotted / "samples.npz")["x"])


def test_list_prints_every_name_with_its_settings_and_first_line(folder: Path) -> None:
    lines = command(folder, "--mode=list").splitlines()
    for row, first_line in (
        ("  step(scale=1.0)", "      DDIM, with its noise scaled."),
        ("  straight()", "      The straight line."),
        ("  vp(beta_min=0.1, beta_max=20.0, t_min=1e-05, t_max=1.0)", "      Variance preserving, beta linear in time"),
    ):
        assert lines[lines.index(row) + 1].startswith(first_line)
    assert "  flat(factor=1.0)" in lines and "  digits" in lines and "  exact(mode='reverse', chunk=32)" in lines
    assert lines[lines.index("  missing") + 1].strip().startswith("cannot import missing (AttributeError")


def test_a_network_that_takes_other_arguments_is_refused_before_any_work(folder: Path) -> None:
    done = run(*SHARED, "--config.data=mypkg.squares", "--config.net=mypkg.Odd", "--workdir=odd", cwd=folder)
    assert done.returncode == 2 and "expected a network that takes data of shape (1, 2, 2)" in done.stderr
    assert not (folder / "odd").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--solver=mypkg.Nope",), "cannot import mypkg.Nope (AttributeError"),
        (("--solver=nopkg.Step",), "cannot import nopkg.Step (ModuleNotFoundError: No module named 'nopkg')"),
        (("--solver=mypkg.Step:scael=1",), "did you mean 'scale'"),
        (("--solver=mypkg.nn",), "to be a class or a function"),
        (("--solver=missing",), "cannot import missing (AttributeError"),
    ],
)
def test_a_mistake_in_them_gets_one_line(folder: Path, dotted: Path, arguments: tuple[str, ...], says: str) -> None:
    done = run("--mode=sample", "--workdir=a", *arguments, cwd=folder, PYTHONPATH=str(folder / "site"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr
