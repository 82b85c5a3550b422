"""Score a data set of images by a diffusion in the codes of an autoencoder."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from scorefield.likelihood.columns import Columns
from scorefield.likelihood.dataset import DatasetScorer
from scorefield.likelihood.density import Density
from scorefield.likelihood.dequantisation import Dequantisation
from scorefield.likelihood.pixels import PixelDistribution
from scorefield.likelihood.progress import ShareDone, part_of
from scorefield.likelihood.through_autoencoder import CodesAndImages, draw_codes, stack, terms_of_draw

CODES = 8  # the stream of the noise of q(z | x)
PARTS = ("pixels", "codes", "encoder")


@dataclass
class ImageScorer(DatasetScorer):
    """Images, an autoencoder, and a denoiser of its codes. Each estimator gives a bound of the image's log-likelihood.

        log p(x) >= E_q[log p(x | z)] + E_q[log p(z)] - E_q[log q(z | x)],   z ~ q(z | x)

    The estimator gives log p(z). The columns are the bound under its name, the parts "pixels", "codes" and "encoder",
    and the error. With several draws of codes, "ode" has the column "ode_importance" too: see
    `ImageTerms.importance_bound`. The draws of "ode" share their probes, as that needs. Those of the bounds have random
    numbers of their own.

    Args:
        stored: the images, (N, C, H, W).
        levels: of the images.
        autoencoder: with codes in the coordinates of the denoiser.
        pixels: p(x | z).
        code_draws: K, codes of each image.
        at_once: images that go through the autoencoder at once.
    """

    autoencoder: CodesAndImages = field(kw_only=True)
    pixels: PixelDistribution = field(kw_only=True)
    code_draws: int = field(default=1, kw_only=True)
    at_once: int | None = field(default=None, kw_only=True)

    @cached_property
    def unit_of_points(self) -> float:
        """The unit of a value in bits/dim of the codes."""
        return self.unit / (self.values(slice(0, 1)).numel() * math.log(2))

    def images(self, rows: slice) -> Tensor:
        """Images in the autoencoder's values; integers on the centres of their cells."""
        return super().values(rows)

    def values(self, rows: slice) -> Tensor:
        """Codes of the images, one draw of each."""
        return draw_codes(self.autoencoder, self.images(rows), self.noise_of(rows, CODES), self.at_once).z.float()

    def dequantised(self, rows: slice, how: Dequantisation, draw: int = 0) -> tuple[Tensor, Tensor]:
        """Codes of the images, and zeros: codes need no dequantisation."""
        z = self.values(rows)
        return z, torch.zeros(len(z), dtype=torch.float64)

    def ode(self, rows: slice, progress: ShareDone = None) -> Columns:
        return self._through("ode", rows, progress)

    def dsm(self, rows: slice, progress: ShareDone = None) -> Columns:
        return self._through("dsm", rows, progress)

    def elbo(self, rows: slice, progress: ShareDone = None) -> Columns:
        return self._through("elbo", rows, progress)

    def vlb(self, rows: slice, progress: ShareDone = None) -> Columns:
        return self._through("vlb", rows, progress)

    def _through(self, name: str, rows: slice, progress: ShareDone) -> Columns:
        x0, noise, count = self.images(rows), self.noise_of(rows, CODES), self.code_draws
        of_codes, draws = list[Columns](), []
        for draw in range(count):
            prior = self._prior_of(name, rows, draw, of_codes, part_of(progress, draw / count, (draw + 1) / count))
            draws.append(terms_of_draw(self.autoencoder, self.pixels, x0, prior, noise, self.at_once))
        terms = stack(draws)
        columns = {name: terms.bound(), **{f"{name}_{part}": getattr(terms, part).mean(0) for part in PARTS}}
        if "latent" in of_codes[0]:
            columns["latent"] = of_codes[0]["latent"]
        if f"{name}_error" in of_codes[0]:
            own = torch.stack([each[f"{name}_error"].square() for each in of_codes]).mean(0)
            columns[f"{name}_error"] = (own if count == 1 or name == "ode" else torch.zeros_like(own)).sqrt()
        if count > 1:
            drawn = terms.log_weights.std(0) / count**0.5
            columns[f"{name}_error"] = torch.hypot(columns.get(f"{name}_error", torch.zeros_like(drawn)), drawn)
            if name == "ode":
                columns["ode_importance"] = terms.importance_bound()
        if "ode_solver_error" in of_codes[0]:
            columns["ode_solver_error"] = torch.stack([each["ode_solver_error"] for each in of_codes]).amax(0)
        columns[f"{name}_nfe"] = torch.stack([each[f"{name}_nfe"] for each in of_codes]).sum(0)
        columns[f"{name}_nfe_max"] = torch.stack([each[f"{name}_nfe_max"] for each in of_codes]).amax(0)
        return columns

    def _prior_of(
        self, name: str, rows: slice, draw: int, found: list[Columns], progress: ShareDone
    ) -> Callable[[Tensor], Density]:
        """Log p(z) by an estimator, which adds its columns to `found`."""

        def log_prior(z: Tensor) -> Density:
            scorer = DatasetScorer(
                self.denoiser, self.sde, z, None, self.prior, cond=self.cond_of(rows),
                seed=self.seed, draws=self.draws, density=self.density, chain=self.chain, variance=self.variance,
                solver=self.solver, ts=self.ts, plan=self.plan, divergence=self.divergence, device=self.device,
                first=self.first + rows.indices(len(self.stored))[0],
                stream=self.stream if name == "ode" else (*self.stream, CODES, draw),
            )  # fmt: skip
            columns = getattr(scorer, name)(slice(0, len(z)), progress)
            found.append({key: value for key, value in columns.items() if draw == 0 or key != "latent"})
            return Density(found[-1][name], None, 0.0, None)

        return log_prior
