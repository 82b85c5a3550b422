"""The published latent diffusion models: what they take from the paper, against its own arithmetic."""

import pytest
import torch
from torch.testing import assert_close

from scorefield.commands.train.settings import validate
from scorefield.configs import build
from scorefield.configs.defaults import defaults
from scorefield.configs.latent_papers import LATENT_PAPERS, latent_diffusion, latent_net

# Of CompVis/latent-diffusion: linear_start, linear_end, loss_type, and base_learning_rate times the batch.
PUBLISHED = {
    "celeba_hq": (0.0015, 0.0195, "l2", 48 * 2e-6),
    "ffhq": (0.0015, 0.0195, "l2", 42 * 2e-6),
    "bedrooms": (0.0015, 0.0195, "l2", 48 * 2e-6),
    "churches": (0.0015, 0.0155, "l1", 5e-5),
    "cin256": (0.0015, 0.0195, "l2", 64 * 1e-6),
    "cin256_v2": (0.0015, 0.0195, "l2", 1e-4),
    "text2img256": (0.0015, 0.0195, "l2", 28 * 2e-6),
    "txt2img_large": (0.00085, 0.012, "l2", 1e-4),
    "layout": (0.0015, 0.0205, "l1", 24 * 2e-6),
    "semantic": (0.0015, 0.0205, "l1", 48 * 1e-6),
    "bsr_sr": (0.0015, 0.0155, "l2", 64 * 1e-6),
    "inpainting_big": (0.0015, 0.0205, "l1", 1e-6),
}


def test_each_has_its_betas_norm_and_learning_rate() -> None:
    assert set(LATENT_PAPERS) == set(PUBLISHED)
    for name, (start, end, norm, rate) in PUBLISHED.items():
        config = defaults()
        latent_diffusion(config, name)
        validate(config)
        sde = build.build(build.SDES, config.sde)
        roots = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64)
        assert_close(torch.tensor(sde.betas, dtype=torch.float64), roots**2)
        assert config.training.norm == norm and config.training.ema == 0.9999
        assert config.training.learning_rate == pytest.approx(rate)
        assert config.training.images == config.training.batch * LATENT_PAPERS[name].steps


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of celeba_hq, .*, got 'celeba'"):
        latent_net("celeba")
