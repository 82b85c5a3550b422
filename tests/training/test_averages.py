"""Moving averages of the weights: their recursions, EDM2's profiles, and averages made of stored ones."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from scorefield.training import EMA, PowerEMA, reconstruct, snapshots
from scorefield.training.averages import profiles
from scorefield.training.averages.profiles import coefficients, exponent, inner_product, sigma_rel


def profile(tau: np.ndarray | float, t: float, gamma: float) -> np.ndarray | float:
    return np.where(np.asarray(tau) <= t, (gamma + 1) * np.asarray(tau) ** gamma / t ** (gamma + 1), 0.0)


class Scalar(nn.Module):
    """One weight in float64, so that rounding does not hide a mistake; and a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def at(model: nn.Module, value: float | torch.Tensor) -> nn.Module:
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(value).expand(3))
        model.count.add_(1)
    return model


def test_several_decays_are_averaged_as_each_alone() -> None:
    model = Scalar()
    several, single = EMA(model, (0.99, 0.5)), [EMA(model, 0.99), EMA(model, 0.5)]
    for n in range(40):
        at(model, math.sin(n))
        for ema in (several, *single):
            ema.update(model)
    assert several.model is several.models[0]
    assert several.decay == 0.99
    for average, own in zip(several.models, single, strict=True):
        assert torch.equal(average.weight, own.model.weight)
        assert int(average.count) == 40
    for decays in ((), (0.9, 1.0), -0.1):
        with pytest.raises(ValueError, match="decay"):
            EMA(model, decays)


def test_half_of_an_average_is_of_the_ramps_fraction_of_the_run() -> None:
    # prod 2^(-1 / (r j)) over k < j <= N is (k / N)^(log 2 / r), a half at k = N e^(-r), within a step's 1 / (r N).
    model, steps, ramp = Scalar(), 2000, 0.1
    ema, short = EMA(at(model, 7.0), 0.99999, ramp), EMA(model, 0.5, ramp)
    ema.update(at(model, 5.0))
    assert torch.equal(ema.model.weight, model.weight)  # nothing of the start is left
    for k in range(1, steps):
        for each in (ema, short):
            each.update(at(model, float(k > steps * math.exp(-ramp))))
    assert float(ema.model.weight[0]) == pytest.approx(0.5, abs=1 / (ramp * steps))
    assert float(short.model.weight[0]) == pytest.approx(1, abs=1e-9)  # the decay is a limit
    with pytest.raises(ValueError, match="ramp of an EMA"):
        EMA(model, 0.9, -1.0)


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_lengths_and_exponents_are_the_papers(length: float, gamma: float) -> None:
    # Karras et al. 2024, Section 3.1: "gamma = 6.94 and 16.97" for 10% and 5%, to two decimals.
    assert exponent(length) == pytest.approx(gamma, abs=0.005)
    assert sigma_rel(exponent(length)) == pytest.approx(length, rel=1e-12)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, profiles.LONGEST])
def test_a_profile_has_its_length(length: float) -> None:
    t, gamma = 3.0, exponent(length)

    def moment(k: int) -> float:
        return quad(lambda tau: tau**k * profile(tau, t, gamma), 0, t, epsabs=1e-12, points=[t * (1 - length)])[0]

    mean = moment(1)
    assert moment(0) == pytest.approx(1, abs=1e-9)
    assert mean == pytest.approx(t * (gamma + 1) / (gamma + 2), rel=1e-8)
    assert math.sqrt(moment(2) - mean**2) / t == pytest.approx(length, rel=1e-6)


def test_a_length_that_is_none_is_refused() -> None:
    for length in (0.0, -0.1, 0.3, float("nan")):
        with pytest.raises(ValueError, match="relative EMA length within"):
            exponent(length)


@pytest.mark.parametrize(
    ("a", "b"), [((2.0, 6.94), (3.0, 16.97)), ((3.0, 6.94), (2.0, 16.97)), ((2.0, 1.0), (2.0, 0.0))]
)
def test_inner_products_are_the_integrals(a: tuple[float, float], b: tuple[float, float]) -> None:
    by_quadrature = quad(lambda tau: profile(tau, *a) * profile(tau, *b), 0, min(a[0], b[0]), epsabs=1e-13)[0]
    assert inner_product(*a, *b) == pytest.approx(by_quadrature, rel=1e-8)
    assert inner_product(*a, *b) == inner_product(*b, *a)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_average_of_a_power_of_time_is_in_closed_form(power: int) -> None:
    # The recursion weighs the weights of step k by (k / n)^(g + 1) - ((k - 1) / n)^(g + 1): the profile's integral over
    # that step. Of theta = tau^p, the profile's own average is (g + 1) / (g + 1 + p) t^p, which 1 / n errors away.
    model, batch, steps = Scalar(), 16, 2000
    averages = PowerEMA(model, (0.05, 0.1))
    at(model, 1e6)  # what there was before the first step is forgotten
    for k in range(1, steps + 1):
        averages.update(at(model, (k / steps) ** power), k * batch, batch)
    edges = np.arange(steps + 1) / steps
    for average, length in zip(averages.models, averages.lengths, strict=True):
        g = exponent(length)
        exactly = float((np.diff(edges ** (g + 1)) * edges[1:] ** power).sum())
        # torch's lerp rounds its share to float32, 6e-8 of it.
        assert float(average.weight[0]) == pytest.approx(exactly, rel=6e-8)
        assert float(average.weight[0]) == pytest.approx((g + 1) / (g + 1 + power), rel=2 * power / steps)
        assert int(average.count) == int(model.count)


def test_the_combination_of_two_lengths_comes_near_a_third() -> None:
    # Snapshots every 1/64 of the training, as in EDM2: the error of the profile of another length is below
    # 1/500, that of a tracked length is rounding, and more snapshots have smaller errors.
    def left(count: int, length: float) -> float:
        stored = [(k / count, exponent(each)) for k in range(1, count + 1) for each in (0.05, 0.10)]
        return coefficients(stored, 1.0, exponent(length))[1]

    assert left(64, 0.05) < 1e-6
    assert all(left(64, length) < 0.002 for length in (0.04, 0.06, 0.08, 0.12, 0.15, 0.20))
    assert left(64, 0.02) < left(16, 0.02) < left(4, 0.02)
    x, _ = coefficients([(0.5, exponent(0.1)), (1.0, exponent(0.05)), (1.0, exponent(0.1))], 1.0, exponent(0.1))
    assert x == pytest.approx([0, 0, 1], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_average_made_afterwards_is_the_one_tracked(dtype: torch.dtype, tmp_path: Path) -> None:
    # A random walk towards a goal, as weights go, tracked at lengths that are not stored.
    generator = torch.Generator().manual_seed(0)
    model, batch, steps = Scalar(torch.float32), 8, 4096
    lengths = (0.04, 0.07, 0.15)
    stored, tracked = PowerEMA(model), PowerEMA(model, lengths)
    theta = torch.zeros(3)
    for k in range(1, steps + 1):
        theta = theta + (torch.tensor([1.0, -2.0, 3.0]) - theta) / 400 + 0.02 * torch.randn(3, generator=generator)
        at(model, theta)
        for average in (stored, tracked):
            average.update(model, k * batch, batch)
        if k % (steps // 64) == 0:
            stored.store(tmp_path, k * batch, dtype)
    result, notes = snapshots(tmp_path)
    assert len(result) == 128 and not notes
    spread = float((theta - tracked.models[1].weight.detach()).abs().max())
    for length, average in zip(lengths, tracked.models, strict=True):
        ours = Scalar(torch.float32)
        report = reconstruct(result, length, ours)
        error = float((ours.weight - average.weight).detach().abs().max())
        assert report["images"] == steps * batch
        assert report["profile_error"] < 0.01
        assert report["sum_of_coefficients"] == pytest.approx(1, abs=1e-3)
        # The profile's error, of the weights' spread over the training; and the rounding of the stored, 2^-11 of 3.
        rounding = 3 * 2**-11 * report["norm_of_coefficients"] if dtype == torch.float16 else 1e-5
        assert error < 0.01 * spread + rounding, (error, spread, report)
        assert int(ours.count) == int(model.count)


def test_damaged_snapshots_are_left_out_and_none_at_all_is_said(tmp_path: Path) -> None:
    model = at(Scalar(), 1.0)
    averages = PowerEMA(model)
    for images in (8, 16):
        averages.update(model, images, 8)
        averages.store(tmp_path, images)
    file = tmp_path / "0000000008" / "power_0.05.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)
    result, notes = snapshots(tmp_path)
    assert [each.images for each in result] == [16, 16]
    assert len(notes) == 1 and "power_0.05.safetensors does not match its checksum" in notes[0]
    with pytest.raises(ValueError, match="snapshot_every"):
        reconstruct([], 0.07, model)
    with pytest.raises(ValueError, match="another architecture"):
        reconstruct(result, 0.07, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="snapshot_dtype"):
        PowerEMA(at(model, 1e6)).store(tmp_path, 24)
