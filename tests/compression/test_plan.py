"""The chain that is chosen: its bound against those of other chains of as many steps."""

import math

import pytest
import torch
from torch import Tensor

from scorefield.compression import ChainPlan, choose_plan
from scorefield.likelihood import vlb
from scorefield.models.analytic import GaussianMixture
from scorefield.sde_lib import SDE, VESDE, VPSDE, RectifiedSDE
from scorefield.sde_lib.quantise import cell_centres, quantise

LEVELS, STEPS = 32, 25
PATHS = (VPSDE(), VESDE(sigma_min=0.002, sigma_max=20.0), RectifiedSDE())


def bits(plan: ChainPlan, model: GaussianMixture, sde: SDE, x0: Tensor) -> float:
    torch.manual_seed(1)
    decoder = plan.decoder(sde, LEVELS, -1.0, 1.0).decoder
    bound = vlb(model, sde, x0, decoder=decoder, ts=plan.ts(sde))
    return -float(bound.log_prob.mean()) / (8 * math.log(2))


@pytest.mark.parametrize(
    "sde", [VPSDE(), VESDE(sigma_min=0.002, sigma_max=20.0), RectifiedSDE()], ids=["vp", "ve", "flow"]
)
def test_the_chosen_chain_is_shorter_than_plain_ones(sde: SDE) -> None:
    """Measured: by 2.4 to 5.4%, and by 62% and more. The path's own beginning pays for the place in the cell."""
    generator = torch.Generator().manual_seed(0)
    means = 1.2 * torch.rand((3, 8), generator=generator, dtype=torch.float64) - 0.6
    model = GaussianMixture(means, torch.tensor([0.06, 0.1, 0.2]).double(), torch.ones(3).double())
    x0 = cell_centres(quantise(model.sample(1000, generator), LEVELS), LEVELS).double()
    torch.manual_seed(0)
    plan = choose_plan(model, sde, x0[:200], STEPS, LEVELS, -1.0, 1.0)
    chosen = bits(plan, model, sde, x0)
    assert chosen < 0.98 * bits(ChainPlan(STEPS, plan.start, (1,), plan.std), model, sde, x0)
    assert chosen < 0.5 * bits(ChainPlan(STEPS, sde.t_min), model, sde, x0)
    ts = plan.ts(sde)
    assert (len(ts), float(ts[0]), float(ts[-1])) == (STEPS + 1, plan.start, sde.t_max)
    assert bool((ts.diff() > 0).all())
