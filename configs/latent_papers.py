"""The published models of latent diffusion (Rombach et al. 2022): U-Net, path, loss, optimiser and sampler of each.

From the paper's Tables 12 to 15, and the configurations in CompVis/latent-diffusion (a506df5). Learning rates are
for the batch, where the code has them for one image and multiplies. All have an average of decay 0.9999 and
1000 timesteps, whose betas are linear in their root. AdamW has its weight decay of 0.01 there by default, and here.

Where a length of training was not published, it is 500,000 steps here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_collections

from scorefield.configs.build import GRIDS, NETWORKS, PRECONDITIONS, SDES, SOLVERS, TIMES, spec
from scorefield.configs.papers import optimise

# What their U-Nets have in common, but for what a model says itself.
COMMON: dict[str, Any] = {
    "blocks": 2,
    "dropout": 0.0,
    "frequencies": "open_timesteps",
    "smallest_group": 1,
    "scale_shift": False,
    "resample_blocks": False,
    "head_width": 32,
}
UNCONDITIONAL = {"width": 224, "multipliers": (1, 2, 3, 4), "attention": (1, 2, 3)}
UNPUBLISHED = 500_000


@dataclass(frozen=True)
class LatentPaper:
    """A published latent diffusion model.

    Args:
        net: keywords of `ADM` beside `COMMON`.
        codes: channels and side of its codes, for images of 256 x 256.
        betas: the first and the last.
        batch: in training.
        learning_rate: of that batch.
        steps: of training.
        norm: of the error in the noise.
        warmup: steps in which the learning rate rises.
        sampling: steps of DDIM in the paper's results.
        eta: of DDIM there.
    """

    net: Mapping[str, Any]
    codes: tuple[int, int]
    betas: tuple[float, float]
    batch: int
    learning_rate: float
    steps: int = UNPUBLISHED
    norm: str = "l2"
    warmup: int = 0
    sampling: int = 200
    eta: float = 0.0


VQ4: dict[str, Any] = {"codes": (3, 64), "betas": (0.0015, 0.0195)}
LATENT_PAPERS: dict[str, LatentPaper] = {
    "celeba_hq": LatentPaper(
        UNCONDITIONAL, **VQ4, batch=48, learning_rate=9.6e-5, steps=410_000, sampling=500
    ),
    "ffhq": LatentPaper(UNCONDITIONAL, **VQ4, batch=42, learning_rate=8.4e-5, steps=635_000, eta=1.0),
    "bedrooms": LatentPaper(UNCONDITIONAL, **VQ4, batch=48, learning_rate=9.6e-5, steps=1_900_000, eta=1.0),
    "churches": LatentPaper(
        {
            "width": 192, "multipliers": (1, 2, 2, 4, 4), "attention": (0, 1, 2, 3), "head_width": None, "heads": 8,
            "scale_shift": True, "resample_blocks": True,
        },
        (4, 32), (0.0015, 0.0155), 96, 5e-5, norm="l1", warmup=10_000,
    ),
    "cin256": LatentPaper(
        {"width": 256, "multipliers": (1, 2, 4), "attention": (0, 1, 2), "context": 512},
        (4, 32), (0.0015, 0.0195), 64, 6.4e-5, 2_000_000, eta=1.0,
    ),
    "cin256_v2": LatentPaper(
        {
            "width": 192, "multipliers": (1, 2, 3, 5), "attention": (1, 2, 3), "context": 512, "head_width": None,
            "heads": 1,
        },
        **VQ4, batch=1200, learning_rate=1e-4, steps=178_000, sampling=250, eta=1.0,
    ),
    "text2img256": LatentPaper(
        {"width": 192, "multipliers": (1, 2, 3, 5), "attention": (1, 2, 3), "context": 640},
        **VQ4, batch=28, learning_rate=5.6e-5, sampling=100,
    ),
    "txt2img_large": LatentPaper(
        {
            "width": 320, "multipliers": (1, 2, 4, 4), "attention": (0, 1, 2), "context": 1280, "head_width": None,
            "heads": 8,
        },
        (4, 32), (0.00085, 0.012), 680, 1e-4, 390_000, sampling=250,
    ),
    "layout": LatentPaper(
        {
            "width": 128, "multipliers": (1, 2, 3, 4), "attention": (1, 2, 3), "context": 512, "transformer_depth": 3,
        },
        (3, 64), (0.0015, 0.0205), 24, 4.8e-5, 4_400_000, norm="l1",
    ),
    "semantic": LatentPaper(
        {"width": 128, "multipliers": (1, 4, 8), "attention": (), "head_width": None, "heads": 8, "concat": 3},
        (3, 64), (0.0015, 0.0205), 48, 4.8e-5, 360_000, norm="l1",
    ),
    "bsr_sr": LatentPaper(
        {"width": 160, "multipliers": (1, 2, 2, 4), "attention": (3,), "concat": 3},
        (3, 64), (0.0015, 0.0155), 64, 6.4e-5, 860_000, sampling=100, eta=1.0,
    ),
    "inpainting_big": LatentPaper(
        {
            "width": 256, "multipliers": (1, 2, 3, 4), "attention": (1, 2, 3), "head_width": None, "heads": 8,
            "resample_blocks": True, "concat": 4,
        },
        (3, 64), (0.0015, 0.0205), 128, 1e-6, 360_000, norm="l1", warmup=1_000,
    ),
}  # fmt: skip


def latent_net(name: str) -> ml_collections.ConfigDict:
    """The spec of the U-Net of a published model (`LATENT_PAPERS`).

    Raises:
        ValueError: for another name.
    """
    return spec(NETWORKS, "adm", **{**COMMON, **published(name).net})


def latent_diffusion(config: ml_collections.ConfigDict, name: str) -> None:
    """Give a configuration the U-Net, path, loss, optimiser and sampler of a published model (`LATENT_PAPERS`).

    Rombach et al. 2022, Eq. 2 and Appendix E.2: the error in the noise, at timesteps drawn uniformly.

    Raises:
        ValueError: for another name.
    """
    paper = published(name)
    config.net = latent_net(name)
    start, end = paper.betas
    config.sde = spec(SDES, "ddpm", betas="scaled_linear", beta_start=start, beta_end=end)
    config.precondition = spec(PRECONDITIONS, "time_conditioned", predicts="eps", scale=1000.0, shift=-1.0)
    config.training.times = spec(TIMES, "uniform")
    config.training.norm = paper.norm
    optimise(
        config, paper.steps, paper.batch, paper.learning_rate, warmup=paper.warmup, weight_decay=0.01,
    )  # fmt: skip
    config.sampling.solver = spec(SOLVERS, "ddim", eta=paper.eta)
    config.sampling.grid = spec(GRIDS, "leading")
    config.sampling.steps = paper.sampling


def published(name: str) -> LatentPaper:
    """A published model by its name.

    Raises:
        ValueError: for another name.
    """
    if name not in LATENT_PAPERS:
        raise ValueError(f"expected one of {', '.join(LATENT_PAPERS)}, got {name!r}")
    return LATENT_PAPERS[name]
