"""How a run differs from the configuration of ours that is nearest to it, as most are a paper's recipe."""

import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_collections

from scorefield.commands.configuration import packaged
from scorefield.commands.report.specs import short_spec
from scorefield.commands.training.differences import different, flat
from scorefield.commands.training.resume import FREE
from scorefield.configs import build
from scorefield.configs.defaults import defaults

# Settings that change no result of a run: where its data is, and how it logs.
IGNORED = (
    *(key.removeprefix("config.") for key in FREE if key.startswith("config.") and key not in (
        "config.sampling.", "config.training.learning_rate", "config.training.clip",
    )),
    "seed",
    "autoencoder",
    "tokenizer",
    "precondition.probabilities",  # of the data
)  # fmt: skip
OF_A_PART = 10  # how much more another name of a part counts than another value


@dataclass(frozen=True)
class Recipe:
    """The configuration that a run is compared with.

    Args:
        name: as --config takes it; "" for the defaults of all configurations.
        about: what its file says of it.
        rows: of each setting that differs: its key, its value here, its value there.
    """

    name: str
    about: str
    rows: list[tuple[str, str, str]]


def nearest_recipe(config: ml_collections.ConfigDict, ignored: tuple[str, ...] = ()) -> Recipe:
    """The configuration for the same data with the fewest other settings; else the defaults.

    Args:
        config: of a run.
        ignored: beginnings of keys that are not compared, beside `IGNORED`.
    """
    here, best = config.to_dict(), None
    for name, about, other in _candidates(config):
        rows, cost = _differences(here, other.to_dict(), ignored)
        if best is None or cost < best[0]:
            best = cost, Recipe(name, about, rows)
    if best is not None:
        return best[1]
    rows, _ = _differences(here, defaults().to_dict(), (*ignored, "data."))
    return Recipe("", "", rows)


def _candidates(config: ml_collections.ConfigDict) -> Iterator[tuple[str, str, ml_collections.ConfigDict]]:
    """The configurations for the data of this one, by name, with the first line of their files."""
    latent = bool(config.get("autoencoder"))
    for name, about, other in _configurations():
        if other.data.name == config.data.name and name.startswith("latent:") == latent:
            yield name, about, other


@functools.cache
def _configurations() -> tuple[tuple[str, str, ml_collections.ConfigDict], ...]:
    """Every configuration of a denoiser."""
    found = []
    for name in packaged():
        module = importlib.import_module(f"scorefield.configs.{name}")
        about = (module.__doc__ or "").partition("\n")[0]
        variants = ((variant, module.get_config(variant)) for variant in module.VARIANTS)
        found += [(f"{name}:{variant}", about, made) for variant, made in variants if not build.is_autoencoder(made)]
    return tuple(found)


def _differences(
    here: dict[str, Any], there: dict[str, Any], ignored: tuple[str, ...]
) -> tuple[list[tuple[str, str, str]], int]:
    """The rows of a table, and how far the two are from one another."""
    rows, cost, replaced = list[tuple[str, str, str]](), 0, list[str]()
    for key, table in build.PARTS.items():
        first, second = (_at(each, key) for each in (here, there))
        if key != "data" and _name(first) != _name(second) and not key.startswith(ignored):
            rows.append((key, _spec(table, first), _spec(table, second)))
            replaced.append(f"{key}.")
            cost += OF_A_PART
    ours, theirs = flat(here), flat(there)
    for key in different(theirs, ours):
        if key.startswith((*IGNORED, *ignored, *replaced)) or key in build.PARTS:
            continue
        if key not in theirs or theirs[key] is None or key not in ours:  # which the data chooses, or that is newer
            continue
        rows.append((key, _value(ours[key]), _value(theirs[key])))
        cost += 1
    return sorted(rows), cost


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _name(part: Any) -> Any:
    return part.get("name") if isinstance(part, dict) else part


def _spec(table: build.Table, part: Any) -> str:
    return "none" if part is None else short_spec(table, part)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return "none" if value is None else str(value)
