"""The one door: a file, where it is from, and what it is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.denoiser import Denoiser
from models.importers import ddim, dit, edm, guided, ncsnv2, score_sde
from models.importers.files import read, weights_of
from models.importers.recipe import Recipe
from models.importers.verdict import Verdict, fitted, noise_found
from sde_lib import SDE

SOURCES: dict[str, Callable[..., Recipe]] = {
    "score_sde_pytorch": score_sde.recipe,
    "ncsnv2": ncsnv2.recipe,
    "ddim": ddim.recipe,
    "edm": edm.recipe,
    "guided_diffusion": guided.recipe,
    "dit": dit.recipe,
}


def load_checkpoint(
    path: str | Path, source: str, *, ema: bool = True, **architecture: Any
) -> tuple[Denoiser, SDE, Verdict]:
    """A checkpoint of somebody else's as a denoiser, with the path it was trained on and how well it fitted.

    Args:
        path: the file, or for diffusers a folder.
        source: whose: one of `SOURCES`.
        ema: the averaged weights where the file has them, rather than the raw ones.
        architecture: what the weights do not tell, by the source's own names.

    Raises:
        ValueError: for an unknown source, a file that does not read or would run code, or weights that are not of this
            architecture.
    """
    recipe, denoiser, verdict = opened(Path(path), source, ema, architecture)
    return denoiser, recipe.sde, verdict


def opened(path: Path, source: str, ema: bool, architecture: dict[str, Any]) -> tuple[Recipe, Denoiser, Verdict]:
    """What `load_checkpoint` gives, and the recipe it was made by."""
    if source not in SOURCES:
        raise ValueError(f"expected a source among {', '.join(SOURCES)}, got {source!r}")
    state, weights = weights_of(read(path), ema)
    try:
        recipe = SOURCES[source](state, **architecture)
        denoiser, verdict = fitted(recipe, state, weights)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is not of {source}, or not of this architecture: {error!r}") from None
    if not verdict.fits:
        raise ValueError(f"{path} does not fit: {verdict}; give its architecture, or another source")
    denoiser.eval().requires_grad_(False)
    found = noise_found(denoiser, recipe.sde, recipe.shape)
    return recipe, denoiser, dataclasses.replace(verdict, noise_found=found)
