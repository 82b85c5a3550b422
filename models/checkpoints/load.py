"""The one door: a file, where it is from, and what it is."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from scorefield.models.checkpoints import ddim, dit, guided_diffusion, ncsnv2
from scorefield.models.checkpoints.diffusers import importer as diffusers
from scorefield.models.checkpoints.edm import importer as edm
from scorefield.models.checkpoints.files import State, read, weights_of
from scorefield.models.checkpoints.own import with_data
from scorefield.models.checkpoints.report import LoadReport, filled, noise_found
from scorefield.models.checkpoints.score_sde import importer as score_sde
from scorefield.models.checkpoints.spec import CheckpointSpec, Entry, itself
from scorefield.models.denoiser import Denoiser
from scorefield.models.hyperparameters import settings_of
from scorefield.sde_lib import SDE

# Whose weights come with all that there is to know, in a folder.
OURS = "scorefield"
STATES: dict[str, Callable[..., CheckpointSpec]] = {
    "score_sde_pytorch": score_sde.recipe,
    "ncsnv2": ncsnv2.recipe,
    "ddim": ddim.recipe,
    "edm": edm.recipe,
    "guided_diffusion": guided_diffusion.recipe,
    "dit": dit.recipe,
    "diffusers": diffusers.of_file,
}
SOURCES = (*STATES, OURS)


def load_checkpoint(
    path: str | Path, source: str, *, ema: bool = True, **architecture: Any
) -> tuple[Denoiser, SDE, LoadReport]:
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
    found = opened(Path(path), source, architecture, ema=ema)
    return found.denoiser, found.recipe.sde, found.verdict


@dataclass(frozen=True)
class Opened:
    """A checkpoint that was read and fitted.

    Args:
        recipe: how its network was built.
        denoiser: with the weights that were asked for.
        verdict: how these fitted.
        raw: the raw weights by the names of the denoiser's, where it has averaged ones and both were asked for.
    """

    recipe: CheckpointSpec
    denoiser: Denoiser
    verdict: LoadReport
    raw: State | None = None


def opened(path: Path, source: str, architecture: Mapping[str, Any], *, ema: bool = True, both: bool = False) -> Opened:
    """What `load_checkpoint` gives, and what else is known; with `both`, averaged weights and the raw ones."""
    if source not in SOURCES:
        raise ValueError(f"expected a source among {', '.join(SOURCES)}, got {source!r}")
    try:
        recipe, states = _read(path, source, ema, both, architecture)
        if not recipe.sde.t_min < recipe.sde.t_max or not recipe.low < recipe.high:
            raise ValueError(f"expected a path and a range from small to large, got {recipe.sde} and {recipe.low}")
        network, raw = recipe.network(**recipe.settings), None
        denoiser = Denoiser(network, recipe.precondition).eval().requires_grad_(False)
        *others, (weights, state) = states.items()
        for kind, other in others:
            _tried(denoiser, recipe, filled(network, recipe, other, kind))
            raw = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
        verdict = _tried(denoiser, recipe, filled(network, recipe, state, weights))
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is not of {source}, or not of this architecture: {error!r}") from None
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return Opened(recipe, denoiser, verdict, raw)


def _tried(denoiser: Denoiser, recipe: CheckpointSpec, verdict: LoadReport) -> LoadReport:
    if not verdict.fits:
        raise ValueError(f"does not fit: {verdict}; give its architecture, or another source")
    return dataclasses.replace(verdict, noise_found=noise_found(denoiser, recipe.sde, recipe.shape))


def _read(
    path: Path, source: str, ema: bool, both: bool, architecture: Mapping[str, Any]
) -> tuple[CheckpointSpec, dict[str, State]]:
    """The recipe, and the weights asked for by their kind, the others before them."""
    if source == OURS:
        if architecture:
            raise ValueError(
                f"expected no architecture of our own folders, which say all, got {', '.join(architecture)}"
            )
        return _ours(path)
    if source == "diffusers" and not path.is_file():
        recipe, state, weights = diffusers.recipe_of(path, ema, **architecture)
        raw = diffusers.raw_of(path) if both else None
        return recipe, {**({} if raw is None else {"raw": raw}), weights: state}
    saved = read(path)
    state, weights = weights_of(saved, ema)
    others, kind = weights_of(saved, False) if both else (state, weights)
    return STATES[source](state, **architecture), {kind: others, weights: state}


def _ours(folder: Path) -> tuple[CheckpointSpec, dict[str, State]]:
    denoiser, sde, data = with_data(folder)
    assert isinstance(denoiser.net, nn.Module)
    state = dict(denoiser.net.state_dict())
    if data["shape"] is None:
        raise ValueError(f"{folder / 'config.json'} does not say the shape of a sample: save it with shape=")
    low, high = (float(data[end]) for end in ("low", "high"))
    entries = [Entry(name, (name,), itself) for name in state]
    settings, precondition = settings_of(denoiser.net), denoiser.precondition
    recipe = CheckpointSpec(
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
    return recipe, {"as stored": state}
