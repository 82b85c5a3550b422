"""A configuration by its name or its file, with the values that the command line changes."""

import ast
import importlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from scorefield import configs
from scorefield.configs import build
from scorefield.configs.specs import OLD_KEYWORDS

FOLDER = Path(configs.__file__).parent


def load(text: str, overrides: list[str]) -> ml_collections.ConfigDict:
    """The configuration FILE:VARIANT, or NAME:VARIANT for one of ours, with --config.KEY=VALUE applied.

    The VALUE of a part is a spec, as in --config.net=mypkg.Net:width=64. It may be written as a mapping, as in
    --config.net="{'name':'mypkg.Net','width':64}".

    Raises:
        ValueError: if there is no such configuration, key or value.
    """
    name, _, variant = text.partition(":")
    config = _made(name, variant)
    return override(config, overrides)


def packaged() -> list[str]:
    """The names of our configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef get_config(" in path.read_text())


def override(config: ml_collections.ConfigDict, overrides: list[str]) -> ml_collections.ConfigDict:
    """The configuration, changed in place by --config.KEY=VALUE."""
    values = []
    for argument in overrides:
        written, equals, value = argument.removeprefix("--").partition("=")
        prefix, _, written = written.partition(".")
        key = _key(config, written)
        if key in build.PARTS and equals:
            group, _, name = key.rpartition(".")
            place = config[group] if group else config
            place[name] = _spec(key, value)
        elif hasattr(node := _at(config, key), "keys"):
            raise ValueError(f"expected a key within {key}, as --config.{key}.{next(iter(node))}=VALUE")
        else:
            values.append(f"--{prefix}.{key}{equals}{value}")
    arguments = ["scorefield", *values]
    parsed = flags.FlagValues()  # type: ignore[no-untyped-call]
    config_flags.DEFINE_config_dict("config", config, flag_values=parsed, sys_argv=arguments)
    try:
        parsed(arguments)
    except (flags.Error, TypeError, ValueError) as error:
        raise ValueError(str(error)) from error
    return config


def _made(name: str, variant: str) -> ml_collections.ConfigDict:
    path = Path(name)
    ours = packaged()
    if path.stem in ours and (name == path.stem or (name == f"configs/{path.name}" and not path.is_file())):
        make = importlib.import_module(f"scorefield.configs.{path.stem}").get_config
    elif path.is_file():
        make = _function(path)
    else:
        raise ValueError(f"expected --config to be one of {', '.join(ours)}, or a file (configs/mine.py), got {name!r}")
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
    node, parts = config, list[str]()
    for part in key.split("."):
        keys = list(node) if hasattr(node, "keys") else []
        part = OLD_KEYWORDS.get(part, part) if part not in keys else part
        if part not in keys:
            there = ", ".join(keys) if keys else "a value, not a group"
            raise ValueError(f"expected a key of the configuration, got {key!r}: in place of {part!r} there is {there}")
        node = node[part]
        parts.append(part)
    return ".".join(parts)


def _at(config: ml_collections.ConfigDict, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node[part]
    return node


def _spec(key: str, value: str) -> ml_collections.ConfigDict:
    if not value.lstrip().startswith("{"):
        return build.spec(build.PARTS[key], value)
    try:
        mapping = dict(ast.literal_eval(value))
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(f"expected --config.{key} as {{'name': 'NAME', 'KEY': VALUE}}, got {value!r}") from None
    return build.spec(build.PARTS[key], mapping)
