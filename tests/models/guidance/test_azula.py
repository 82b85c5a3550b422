"""One evaluation, or one step, of guidance against azula's on the same numbers."""

import math

import pytest
import torch
from dense import Dense
from seeded import load, seeded_normal
from torch import Tensor
from torch.testing import assert_close

from scorefield.models.guidance import DPS, MMPS, TMPD, DiffPIR, InverseProblem, JacobianFree
from scorefield.sde_lib.broadcast import Scale

FIXTURE = load("guidance/azula")
MATRIX, NETWORK = seeded_normal("matrix", (4, 6)) / 2, seeded_normal("network", (6, 6)) / 3
X, Y, EPS = seeded_normal("x", (3, 6)), seeded_normal("y", (3, 4)), seeded_normal("eps", (3, 6))
A, STD = Dense(MATRIX, (6,)), FIXTURE["std"]


def network(x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """A denoiser whose Jacobian is not symmetric."""
    return (alpha * x + 0.5 * torch.tanh(x @ NETWORK)) / (alpha**2 + sigma**2)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("mmps_gmres_1", MMPS(network, A, STD, iterations=1)),
        ("mmps_gmres_3", MMPS(network, A, STD, iterations=3, tolerance=0.0)),
        ("mmps_gmres_4", MMPS(network, A, STD)),
        ("tmpd", TMPD(network, Dense(MATRIX.abs(), (6,)), STD)),  # with sums above zero, as theirs are not held there
        ("diffpir", DiffPIR(network, A, STD, lam=FIXTURE["lambda"])),
        ("jacobian_free", JacobianFree(network, A, STD, data_std=FIXTURE["data_std"])),
    ],
)
def test_an_evaluation_is_azulas(name: str, method: InverseProblem) -> None:
    answer = method(X, FIXTURE["alpha"], FIXTURE["sigma"], y=Y)
    # Theirs solves its systems by iterations, to 1e-12 or so.
    assert_close(answer, torch.tensor(FIXTURE[name], dtype=torch.float64), rtol=1e-9, atol=1e-10)


def test_an_ancestral_step_with_the_published_dps_is_azulas() -> None:
    """Alpha is 1, so the step of the paper and of a denoiser are the same."""
    _, sigma, _, later = FIXTURE["dps_scales"]
    x, log_snr_step = 3 * X, 2 * math.log(sigma / later)
    guided = DPS(network, A, STD, scale=FIXTURE["zeta"], log_snr_step=log_snr_step)
    shrunk = math.exp(-log_snr_step)
    step = shrunk * x + (1 - shrunk) * guided(x, 1.0, sigma, y=Y) + later * math.sqrt(1 - shrunk) * EPS
    assert_close(step, torch.tensor(FIXTURE["dps"], dtype=torch.float64), rtol=1e-10, atol=1e-11)
