"""A configuration by its name or its file, with the values that the command line changes."""

import ast
import importlib
import inspect
import runpy
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from scorefield import configs
from scorefield.commands.run import read_run
from scorefield.configs import build
from scorefield.configs.autoencoder_defaults import autoencoder_defaults
from scorefield.configs.defaults import defaults
from scorefield.configs.specs import OLD_KEYWORDS, Table, find, settings_of
from scorefield.configs.text import few, suggestion, typed

FOLDER = Path(configs.__file__).parent


def load(text: str, changes: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The configuration FILE:VARIANT, or NAME:VARIANT for one of ours, with changes as in `override`.

    Raises:
        ValueError: if there is no such configuration, key or value.
    """
    name, _, variant = text.partition(":")
    return override(_made(name, variant), changes)


def of_run(workdir: Path) -> ml_collections.ConfigDict:
    """The configuration of a run, with the defaults of settings that are newer than it.

    Raises:
        ValueError: if there is no run.
    """
    if not (workdir / "config.json").is_file():
        raise ValueError(
            f"expected --config beside --workdir={workdir}, which holds no run yet, as --config=digits:vp (--mode=list "
            "prints all)"
        )
    config = read_run(workdir, "cpu").config
    if build.is_autoencoder(config):
        complete, groups = autoencoder_defaults(), ("transform", "loss", "training")
    else:
        complete, groups = defaults(), ("transform", "training", "sampling")
    for group in groups:
        config[group] = ml_collections.ConfigDict({**complete[group], **config[group]})
    return config


def packaged() -> list[str]:
    """The names of our configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef get_config(" in path.read_text())


def override(config: ml_collections.ConfigDict, changes: Sequence[str]) -> ml_collections.ConfigDict:
    """The configuration, changed in place by --config.KEY=VALUE.

    The VALUE of a part is a spec, as in --config.net=mypkg.Net:width=64. It may be written as a mapping, as in
    --config.net="{'name':'mypkg.Net','width':64}". Settings that the data chooses stay so, if the spec has the part's
    present name and does not set them. A switch may be written as --config.KEY or --noconfig.KEY.
    In any order, complete parts are changed first, then names of parts, then single keywords.

    Raises:
        ValueError: if there is no such key, or the value is of another kind.
    """
    parts = build.parts_of(config)
    for change in sorted(changes, key=lambda change: _rank(change, parts)):
        written, equals, text = change.removeprefix("--").partition("=")
        flag, _, written = written.partition(".")
        group, _, name = (key := _key(config, written)).rpartition(".")
        place = _at(config, group)
        if key in parts and equals:
            with config.ignore_type():  # a run may have a part or None
                place[name] = (
                    None if text == "None" and key in build.OPTIONAL else _spec(key, parts[key], text, place[name])
                )
        elif name == "name" and group in parts:
            _at(config, group.rpartition(".")[0])[group.rpartition(".")[2]] = _renamed(parts[group], place, text)
        elif hasattr(place.get(name), "keys"):
            raise ValueError(f"expected a key within {key}, as --config.{key}.{next(iter(place[name]))}=VALUE")
        else:
            kind = place.get_type(name) if name in place else object
            if not equals and kind is not bool:
                raise ValueError(f"expected a value of --config.{key}, got none: write --config.{key}=VALUE")
            value = typed(text if equals else str(flag == "config"), kind, f"--config.{key}")
            try:
                place[name] = value
            except TypeError:
                raise ValueError(f"expected --config.{key} as {place[name]!r}, got {text!r}") from None
    return config


def _made(name: str, variant: str) -> ml_collections.ConfigDict:
    path = Path(name)
    ours = packaged()
    if path.stem in ours and (name == path.stem or (name == f"configs/{path.name}" and not path.is_file())):
        make = importlib.import_module(f"scorefield.configs.{path.stem}").get_config
    elif path.is_file():
        make = _function(path)
    else:
        raise ValueError(
            f"expected --config to be one of {few(path.stem, ours)}, or a file as configs/mine.py, got {name!r}"
            f"{suggestion(path.stem, ours)} (--mode=list prints all)"
        )
    try:
        config = make(variant) if variant else make()
    except ValueError:
        raise
    except Exception as error:  # a configuration is a user's own code
        raise ValueError(f"cannot make the configuration {name} ({type(error).__name__}: {error})") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"expected get_config in {name} to return a ConfigDict, got {type(config).__name__}")
    return config


def _function(path: Path) -> Callable[..., object]:
    try:
        make: Callable[..., object] = runpy.run_path(str(path))["get_config"]
    except Exception as error:
        raise ValueError(f"expected {path} to define get_config(variant), and reading it gave {error!r}") from error
    return make


def _key(config: ml_collections.ConfigDict, key: str) -> str:
    """The key, with the present name of an old keyword.

    Raises:
        ValueError: if the configuration has no such key.
    """
    node, parts, tables = config, list[str](), build.parts_of(config)
    for part in key.split("."):
        keys = list(node) if hasattr(node, "keys") else []
        if (place := ".".join(parts)) in tables and node is not None:  # keywords without a default too
            keys += [key for key in settings_of(find(tables[place], node.name)) if key not in keys]
        part = OLD_KEYWORDS.get(part, part) if part not in keys else part
        if part not in keys:
            there = few(part, keys) if keys else "a value, not a group"
            raise ValueError(
                f"expected a key of the configuration, got {key!r}: in place of {part!r} there is {there}"
                f"{suggestion(part, keys)}"
            )
        node = node.get(part)
        parts.append(part)
    return ".".join(parts)


def _rank(change: str, parts: Collection[str]) -> int:
    key = change.partition("=")[0].partition(".")[2]
    return 0 if key in parts else 1 if key.removesuffix(".name") in parts else 2


def _at(config: ml_collections.ConfigDict, key: str) -> Any:
    node: Any = config
    for part in key.split(".") if key else []:
        node = node[part]
    return node


def _spec(key: str, table: Table, value: str, old: ml_collections.ConfigDict | None) -> ml_collections.ConfigDict:
    """The part that the value describes. What it leaves out and the data chooses in a part of that name stays open."""
    given: str | dict[str, Any] = value
    if value.lstrip().startswith("{"):
        try:
            given = dict(ast.literal_eval(value))
        except (SyntaxError, TypeError, ValueError):
            raise ValueError(f"expected --config.{key} as {{'name': 'NAME', 'KEY': VALUE}}, got {value!r}") from None
    new = build.spec(table, given)
    if old is not None and new.name == old.get("name"):
        named = build.modern(table, given)
        later = [each for each in old if old[each] is None and each not in named and new.get(each) is not None]
        with new.ignore_type():
            new.update({each: placeholder(old.get_type(each)) for each in later})
    return new


def _renamed(table: Table, old: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The part of another name. Of the old one it has those keywords that it needs, as the path of a data set."""
    takes = settings_of(find(table, name))
    needed = {k: v for k, v in old.items() if k in takes and takes[k].default is inspect.Parameter.empty}
    return build.spec(table, {"name": name, **needed})
