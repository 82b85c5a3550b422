"""Moments of codes against torch's own distributions."""

import pytest
import torch
from seeded import seeded_normal
from torch.distributions import Independent, Normal, kl_divergence

from scorefield.models.moments import Moments

SHAPE = (3, 2, 4, 5)
MEAN, LOG_VAR = seeded_normal("mean", SHAPE), 2 * seeded_normal("log_var", SHAPE) - 1
MOMENTS = Moments(MEAN, LOG_VAR)
SAME = Independent(Normal(MEAN, (LOG_VAR / 2).exp()), 3)


def test_divergence_and_density_are_those_of_normals() -> None:
    standard = Independent(Normal(torch.zeros(SHAPE).double(), 1.0), 3)
    torch.testing.assert_close(MOMENTS.kl(), kl_divergence(SAME, standard))
    z = MOMENTS.sample(seeded_normal("noise", SHAPE))
    torch.testing.assert_close(MOMENTS.log_prob(z), SAME.log_prob(z))


def test_samples_are_mean_and_deviation_times_noise() -> None:
    noise = seeded_normal("noise", SHAPE)
    torch.testing.assert_close(MOMENTS.sample(noise), MEAN + SAME.base_dist.stddev * noise)
    assert torch.equal(Moments(MEAN).sample(noise), MEAN)


@pytest.mark.parametrize(("shift", "scale"), [(0.3, 2.0), (torch.tensor([0.3, -1.0]), torch.tensor([2.0, 0.5]))])
def test_scaled_codes_are_those_of_the_scaled_moments(shift: float, scale: float) -> None:
    noise = seeded_normal("noise", SHAPE)
    by_channel = [torch.as_tensor(value).double().reshape(-1, 1, 1) for value in (shift, scale)]
    scaled = MOMENTS.scaled(shift, scale)
    torch.testing.assert_close(scaled.sample(noise), by_channel[1] * (MOMENTS.sample(noise) - by_channel[0]))
    assert Moments(MEAN).scaled(shift, scale).log_var is None


def test_a_deterministic_encoder_has_no_density() -> None:
    for of in (Moments(MEAN).kl, lambda: Moments(MEAN).log_prob(MEAN)):
        with pytest.raises(ValueError, match="deterministic"):
            of()


def test_sums_over_a_code_are_not_in_16_bits() -> None:
    half = Moments(MEAN.half(), LOG_VAR.half())
    wide = Moments(MEAN.half().float(), LOG_VAR.half().float())
    assert torch.equal(half.kl(), wide.kl()) and torch.equal(half.log_prob(MEAN.half()), wide.log_prob(MEAN.half()))


def test_widened_moments_are_those_of_codes_with_noise() -> None:
    """The variances of independent normals add; no noise keeps the bits."""
    own = Moments(torch.tensor([[[[1.0, -2.0]]]]), torch.tensor([[[[-3.0, 0.5]]]]))
    wide = own.widened(0.7)
    assert wide.log_var is not None and own.log_var is not None
    assert torch.equal(wide.mean, own.mean)
    assert torch.allclose(wide.log_var.exp(), own.log_var.exp() + 0.49)
    unchanged = own.widened(0.0).log_var
    assert unchanged is not None and torch.equal(unchanged, own.log_var)
    with pytest.raises(ValueError, match="whose codes can be widened, got a deterministic one"):
        Moments(own.mean).widened(0.1)
