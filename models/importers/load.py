"""The one door: a file, where it is from, and what it is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from models.denoiser import Denoiser
from models.importers import ddim, diffusers, dit, edm, guided, ncsnv2, score_sde
from models.importers.files import State, read, weights_of
from models.importers.recipe import Entry, Recipe, itself
from models.importers.verdict import Verdict, fitted, noise_found
from models.pretrained import with_data
from models.recorded import settings_of
from sde_lib import SDE

# Whose weights come with all that there is to know, in a folder.
OURS = "scorefield"
STATES: dict[str, Callable[..., Recipe]] = {
    "score_sde_pytorch": score_sde.recipe,
    "ncsnv2": ncsnv2.recipe,
    "ddim": ddim.recipe,
    "edm": edm.recipe,
    "guided_diffusion": guided.recipe,
    "dit": dit.recipe,
}
SOURCES = (*STATES, "diffusers", OURS)


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
    try:
        recipe, state, weights = _read(path, source, ema, architecture)
        denoiser, verdict = fitted(recipe, state, weights)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is not of {source}, or not of this architecture: {error!r}") from None
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    if not verdict.fits:
        raise ValueError(f"{path} does not fit: {verdict}; give its architecture, or another source")
    if not recipe.sde.t_min < recipe.sde.t_max or not recipe.low < recipe.high:
        raise ValueError(f"{path}: expected a path and a range from small to large, got {recipe.sde} and {recipe.low}")
    denoiser.eval().requires_grad_(False)
    try:
        found = noise_found(denoiser, recipe.sde, recipe.shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return recipe, denoiser, dataclasses.replace(verdict, noise_found=found)


def _read(path: Path, source: str, ema: bool, architecture: dict[str, Any]) -> tuple[Recipe, State, str]:
    if source == "diffusers":
        return diffusers.recipe_of(path, ema, **architecture)
    if source == OURS:
        if architecture:
            raise ValueError(
                f"expected no architecture of our own folders, which say all, got {', '.join(architecture)}"
            )
        return _ours(path)
    state, weights = weights_of(read(path), ema)
    return STATES[source](state, **architecture), state, weights


def _ours(folder: Path) -> tuple[Recipe, State, str]:
    denoiser, sde, data = with_data(folder)
    assert isinstance(denoiser.net, nn.Module)
    state = dict(denoiser.net.state_dict())
    if data["shape"] is None:
        raise ValueError(f"{folder / 'config.json'} does not say the shape of a sample: save it with shape=")
    low, high = (float(data[end]) for end in ("low", "high"))
    entries = [Entry(name, (name,), itself) for name in state]
    settings, precondition = settings_of(denoiser.net), denoiser.precondition
    recipe = Recipe(
        type(denoiser.net),
        settings,
        lambda _: iter(entries),
        precondition,
        sde,
        data["shape"],
        low,
        high,
        data["levels"],
    )
    return recipe, state, "as stored"
