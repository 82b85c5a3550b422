"""Samples in one call."""

import re
from typing import Any

import pytest
import torch
from oracles import gaussian
from torch import Tensor

from scorefield.sde_lib import VPSDE
from scorefield.solvers import (
    Adams,
    AnnealedLangevin,
    DPMSolver,
    EulerMaruyama,
    PerSampleNoise,
    Progress,
    grids,
    sample,
)

SDE, MODEL = VPSDE(), gaussian((2,))


def shifted(x: Tensor, alpha: Tensor, sigma: Tensor, *, y: Tensor) -> Tensor:
    return MODEL(x, alpha, sigma) + y


@pytest.mark.parametrize("denoise", [True, False])
def test_a_sample_is_prior_solver_and_denoising(denoise: bool) -> None:
    noise, ts = PerSampleNoise(3, range(5)), grids.uniform(SDE, 7)
    x = EulerMaruyama()(MODEL, SDE, SDE.prior((5, 2), noise=noise), ts, noise=noise)
    x = MODEL(x, *SDE.scales(SDE.t_min)) if denoise else x
    found = sample(MODEL, SDE, (5, 2), solver=EulerMaruyama(), steps=7, grid=grids.uniform, denoise=denoise, seed=3)
    assert torch.equal(found, x)
    assert found.dtype == torch.float32
    given = sample(MODEL, SDE, (5, 2), solver=EulerMaruyama(), grid=ts, denoise=denoise, seed=3)
    assert torch.equal(found, given)


def test_the_default_is_adams_in_twenty_steps_that_are_equal_in_its_own_variable() -> None:
    x = SDE.prior((3, 2), noise=PerSampleNoise(0, range(3)), dtype=torch.float64)
    x = Adams(3, variable="soft_clipped")(MODEL, SDE, x, grids.soft_clipped(SDE, 20))
    assert torch.equal(sample(MODEL, SDE, (3, 2), dtype=torch.float64), MODEL(x, *SDE.scales(SDE.t_min)))


def test_batches_change_nothing_and_take_their_rows_of_cond() -> None:
    y, seen = torch.arange(7.0)[:, None].expand(7, 2), list[Progress]()
    whole = sample(shifted, SDE, (7, 2), steps=4, cond={"y": y})
    parts = sample(shifted, SDE, (7, 2), steps=4, cond={"y": y}, batch=3, on_step=seen.append)
    assert torch.equal(whole, parts)
    assert [len(progress.x) for progress in seen] == [3] * 8 + [1] * 4
    assert torch.equal(whole[4:], sample(shifted, SDE, (3, 2), steps=4, cond={"y": y[4:]}, first=4))
    assert sample(MODEL, SDE, (0, 2), steps=4).shape == (0, 2)
    with pytest.raises(ValueError, match="batch of at least 1, got 0"):
        sample(MODEL, SDE, (3, 2), batch=0)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"grid": 20}, "expected grid to be one of grids, as grids.log_snr with steps=20, got 20"),
        ({"grid": [1, 0.5]}, "with steps=20, got [1, 0.5]"),
        ({"grid": "log_snr"}, "with steps=20, got 'log_snr'"),
        ({"steps": 2.5}, "expected steps to be at least 1, got 2.5: give a whole number"),
        ({"solver": "dpm"}, "expected solver to be one of solvers, as DPMSolver(2), got 'dpm'"),
        ({"solver": DPMSolver}, "as DPMSolver(2), got the class DPMSolver"),
        ({"shape": 4}, "expected shape to be (B, *D), as (64, 3, 32, 32), got 4"),
        ({"dtype": torch.int32}, "expected dtype to be of floating-point numbers, as torch.float32, got torch.int32"),
        ({"denoiser": SDE, "sde": MODEL}, "expected a path such as VPSDE(), got GaussianMixture: pass it second"),
    ],
)
def test_an_argument_of_another_kind_is_named(changed: dict[str, Any], line: str) -> None:
    given: dict[str, Any] = {"denoiser": MODEL, "sde": SDE, "shape": (3, 2), **changed}
    with pytest.raises(ValueError, match=re.escape(line)):
        sample(**given)


@pytest.mark.parametrize("denoise", [True, False])
def test_a_solver_with_a_denoising_of_its_own_denoises_once_or_never(denoise: bool) -> None:
    own, plain = (
        sample(MODEL, SDE, (3, 2), solver=AnnealedLangevin(steps=2, denoise=asked), steps=3, denoise=denoise)
        for asked in (True, False)
    )
    assert torch.equal(own, plain)
