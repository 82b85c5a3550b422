"""The three losses against those of the reference code on the same inputs."""

from typing import Any

import pytest
import torch
from seeded import load, seeded_normal
from torch import Tensor
from torch.testing import assert_close

from scorefield.likelihood import GaussianPrior, LevelDecoder, elbo
from scorefield.likelihood.quadrature import ChainSum
from scorefield.sde_lib import FrozenVP, LearnedVP
from scorefield.sde_lib.broadcast import expand
from scorefield.sde_lib.quantise import cell_centres
from scorefield.training.objectives.elbo import elbo_loss

pytestmark = pytest.mark.agreement

STANDARD = GaussianPrior(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))


class Known:
    """What took the network's place there (tests/fixtures/README.md)."""

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gamma = expand(2 * (sigma / alpha).log(), x)
        return x.tanh() * gamma.sigmoid() + (3 * x + gamma).sin() / 10

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - expand(sigma, x) * self.noise(x, alpha, sigma)) / expand(alpha, x)


FIXTURE = load("vdm_losses")
ENDS = -FIXTURE["architecture"]["gamma_max"], -FIXTURE["architecture"]["gamma_min"]
LINE = FrozenVP("linear", *ENDS, ())
TIMES = torch.tensor(FIXTURE["t"], dtype=torch.float64)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x0, the noise at t, and the noise next to the data."""
    drawn = {name: seeded_normal(name, FIXTURE["input"]) for name in ("images", "eps", "eps_0")}
    levels = (64 * drawn["images"] + 128).round().clamp(0, 255).long()
    return cell_centres(levels, 256).to(dtype), drawn["eps"].to(dtype), drawn["eps_0"].to(dtype)


def theirs(dtype: torch.dtype) -> dict[str, Any]:
    """Their losses in float64 by T, or in float32."""
    output = FIXTURE["output_wide" if dtype == torch.float64 else "output"]
    tensors = {name: torch.tensor(output[name], dtype=torch.float64) for name in ("prior", "reconstruction")}
    steps = {int(steps): torch.tensor(losses, dtype=torch.float64) for steps, losses in output["diffusion"].items()}
    return {**tensors, "diffusion": steps}


# 12 digits are stored. In float32, z is rounded by 6e-8, which is 5e-5 of its noise next to the data.
precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])


@precisions
def test_the_bounds_parts_are_theirs(dtype: torch.dtype, tolerance: float) -> None:
    x0, eps, start_eps = inputs(dtype)
    noises = iter((eps, start_eps))
    result = elbo(
        Known(), LINE, x0, decoder=LevelDecoder(256), draws=1, decodings=1, prior=STANDARD,
        noise=lambda x: next(noises), uniform=lambda x: TIMES,
    )  # fmt: skip
    expected = theirs(dtype)
    for name, value in {**expected, "diffusion": expected["diffusion"][0]}.items():
        assert_close(-result.parts[name].double(), value, rtol=tolerance, atol=0)


@precisions
@pytest.mark.parametrize("steps", [0, 10, 1000])
def test_the_losses_in_training_are_theirs(steps: int, dtype: torch.dtype, tolerance: float) -> None:
    """But for the prior: ours is N(0, sigma^2), from which the model samples; theirs is N(0, 1)."""
    (x0, eps, start_eps), dims, expected = inputs(dtype), 3 * 8 * 8, theirs(dtype)
    learned = LearnedVP("linear", *ENDS)  # its ends are float32: 13.3 is off by 4e-7
    for sde, close in ((LINE, tolerance), (learned, max(tolerance, 1e-5))):
        _, parts = elbo_loss(
            Known(), sde, x0, TIMES, eps, start_eps, decoder=LevelDecoder(256), steps=steps or None
        )  # fmt: skip
        for name, value in (
            ("reconstruction", expected["reconstruction"]),
            ("diffusion", expected["diffusion"][steps]),
        ):
            assert_close(parts[name].detach().double() * dims, value, rtol=close, atol=0)


@pytest.mark.parametrize("steps", [10, 1000])
def test_the_chains_weights_are_theirs(steps: int) -> None:
    x0, eps, _ = inputs(torch.float64)
    i = (TIMES * steps).ceil().long()
    t = i.double() / steps
    errors = Known().noise(LINE.perturb(x0, t, eps), *LINE.scales(t)) - eps
    weight = steps / 2 * ChainSum.of(LINE, steps, None, x0).weight[i - 1]
    diffusion = weight * errors.square().flatten(1).sum(1)
    assert_close(diffusion, theirs(torch.float64)["diffusion"][steps], rtol=1e-10, atol=0)
