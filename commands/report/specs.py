"""Parts of a configuration as a reader wants them: without settings that have their default."""

import inspect
from collections.abc import Mapping
from typing import Any

from scorefield.configs import build
from scorefield.configs.specs import find, settings_of

LONGEST = 16  # entries of a list that is shown


def short_spec(table: build.Table, spec: str | Mapping[str, Any]) -> str:
    """A spec as on a command line, without defaults and without long lists; as it is for an unknown part."""
    try:
        settings = dict(build.modern(table, spec))
        parameters = settings_of(find(table, settings["name"]))
    except (ValueError, KeyError, TypeError):
        return str(spec)
    kept = {
        key: value
        for key, value in settings.items()
        if key == "name" or not (_is_default(value, parameters.get(key)) or _is_long(value))
    }
    return build.unparse(kept)


def _is_default(value: Any, parameter: inspect.Parameter | None) -> bool:
    if value is None:
        return True
    default = None if parameter is None else parameter.default
    return bool((tuple(value) if isinstance(value, list) else value) == default)


def _is_long(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > LONGEST
