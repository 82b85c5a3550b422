"""What the likelihood of a latent run adds to its autoencoder: p(x | z), and how wide q(z | x) is."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.commands.autoencoder_files import encoded_at_once
from scorefield.commands.conditioning import data_conditioning
from scorefield.commands.generate import of_rows
from scorefield.commands.outputs import write_json
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.run import Run, stored_tensor
from scorefield.commands.trained import Trained
from scorefield.likelihood import GaussianPrior, ImageScorer, PixelDistribution, fit_pixels
from scorefield.likelihood.pixels import FAMILIES
from scorefield.likelihood.through_autoencoder import check_density, draw_codes
from scorefield.models.latent import ScaledAutoencoder
from scorefield.models.moments import Moments
from scorefield.solvers import PerSampleNoise
from scorefield.training.data import Dataset
from scorefield.training.distributed.ranks import Ranks

FILE = "image_model.json"  # in a run's directory
IMAGES = 256  # training images on which the scales of p(x | z) are fitted
VALUES = 2**18  # most values of them, at random places
TRIED = 64  # of these images, on which the noises are compared
NOISES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)  # deviations, where codes have deviation 1
DRAWS = 16  # evaluations of the bound for each image
BATCH = 16


class NoisyCodes:
    """A scaled autoencoder whose q(z | x) has further noise.

    The bound of an image holds for every q(z | x). Trained with a weight of 1e-6, an encoder has one that is much
    narrower than p(z | x), which costs bits.

    Args:
        scaled: the autoencoder.
        noise: the deviation, where codes have deviation 1.
    """

    def __init__(self, scaled: ScaledAutoencoder, noise: float) -> None:
        self.scaled, self.noise = scaled, noise

    def moments(self, images: Tensor) -> Moments:
        """q(z | images) in the scaled coordinates."""
        return self.scaled.moments(images).widened(self.noise)

    def decode(self, z: Tensor) -> Tensor:
        """The images of codes."""
        return self.scaled.decode(z)


def image_model(trained: Trained, prior: GaussianPrior, batch: int = BATCH) -> dict[str, Any]:
    """The noise of q(z | x), and the scales of p(x | z), fitted on training images once for autoencoder and weights.

    The noise is the one of the best bound, by "dsm". Of several ranks the first one fits, and the others read its file.
    The networks see at most `batch` images at once.

    Raises:
        ValueError: if q(z | x) has no density.
    """
    run, ranks = trained.run, Ranks.current()
    assert run.autoencoder is not None
    with torch.no_grad():
        check_density(run.autoencoder.scaled.moments(torch.zeros(1, *run.data.shape, device=run.device)))
    kept = _kept_or_fitted(trained, prior, batch) if ranks.first else {}
    ranks.barrier()
    return kept if ranks.first else _kept_or_fitted(trained, prior, batch)


def _kept_or_fitted(trained: Trained, prior: GaussianPrior, batch: int) -> dict[str, Any]:
    run = trained.run
    assert run.autoencoder is not None
    dataset = run.dataset("train")
    some = dataset.subset(IMAGES)
    of_these = {
        "autoencoder_sha256": run.autoencoder.sha256, "checkpoint_sha256": trained.described["checkpoint_sha256"],
        "data_sha256": dataset.fingerprint,
    }  # fmt: skip
    kept = _read(run.workdir / FILE)
    if any(kept.get(key) != value for key, value in of_these.items()):
        print(f"fitting p(x | z) on {len(some)} training images, for later commands too", flush=True)
        noise, tried = _best_noise(trained, prior, some.at(np.arange(min(TRIED, len(some)))), batch)
        pixels = _fitted(run, NoisyCodes(run.autoencoder.scaled, noise), stored_tensor(some), batch)
        kept = {**of_these, "images": len(some), "noise": noise, "tried": tried, "distribution": pixels.described()}
        if os.access(run.workdir, os.W_OK):
            write_json(run.workdir / FILE, kept)
    return kept


def _best_noise(trained: Trained, prior: GaussianPrior, some: Dataset, batch: int) -> tuple[float, dict[str, float]]:
    """The first noise after which the bound becomes worse, and the bounds of those tried, in the unit of the data."""
    run, stored = trained.run, stored_tensor(some)
    assert run.autoencoder is not None
    cond, tried = of_rows(data_conditioning(run, some).cond, run.device), dict[float, float]()
    with progress_bar("noise of the codes", len(NOISES) * len(stored), unit="image") as bar:
        for noise in NOISES:
            noisy = NoisyCodes(run.autoencoder.scaled, noise)
            scorer = ImageScorer(
            trained.denoiser, run.sde, stored, run.data.levels, prior, cond=cond, low=run.low, high=run.high,
            draws=DRAWS, device=run.device, autoencoder=noisy, pixels=_fitted(run, noisy, stored, batch, ("laplace",)),
            at_once=encoded_at_once(run.data.shape),
        )  # fmt: skip
            size = min(BATCH, batch)
            slices = [slice(i, min(i + size, len(stored))) for i in range(0, len(stored), size)]
            parts = [scorer.dsm(rows, bar.part(rows.stop - rows.start))["dsm"] for rows in slices]
            tried[noise] = -float(torch.cat(parts).mean()) / scorer.unit
            if tried[noise] > min(tried.values()):
                break
    return min(tried, key=lambda noise: tried[noise]), {f"{noise:g}": bound for noise, bound in tried.items()}


def _fitted(
    run: Run, autoencoder: NoisyCodes, stored: Tensor, batch: int, families: tuple[str, ...] = tuple(FAMILIES)
) -> PixelDistribution:
    places = torch.randperm(stored[0, 0].numel(), generator=torch.Generator().manual_seed(0))
    places = places[: max(1, VALUES // (len(stored) * stored.shape[1]))].to(run.device)
    size, images, means = min(encoded_at_once(run.data.shape), batch), list[Tensor](), list[Tensor]()
    with progress_bar("scales of the pixels", len(stored), len(families) > 1, unit="image") as bar:
        for start in range(0, len(stored), size):
            x0 = run.in_range(stored[start : start + size]).to(run.device)
            z = draw_codes(autoencoder, x0, PerSampleNoise(0, range(start, start + len(x0)))).z
            with torch.no_grad():
                means.append(autoencoder.decode(z).flatten(2)[..., places])
            images.append(x0.flatten(2)[..., places])
            bar.skip(len(x0))
    ends: dict[str, Any] = {"low": run.low, "high": run.high}
    return fit_pixels(torch.cat(images), torch.cat(means), run.data.levels, families=families, **ends)


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError):  # it can be made again
        return {}
