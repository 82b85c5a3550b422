"""How a configuration calls constructors: specs, written and read, and the calls that they describe.

A spec is a mapping with a `name` of a table and the constructor's keywords:  {"name": "vp", "beta_max": 15.0}.
On a command line it is written  vp:beta_max=15.0,t_min=0.001.
"""

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args

import ml_collections
from ml_collections import config_dict

Table = Mapping[str, Callable[..., Any]]

# What the data set or the caller decides, and a configuration therefore does not.
FROM_DATA = ("channels", "shape", "num_classes", "split", "sde", "workdir", "flow")


def spec(table: Table, name: str, **keywords: Any) -> ml_collections.ConfigDict:
    """A spec with every keyword of its constructor at its default or as given, so that each can be overridden."""
    parameters = _parameters(_find(table, name))
    defaults = {
        key: p.default
        for key, p in parameters.items()
        if key not in FROM_DATA and p.default is not inspect.Parameter.empty
    }
    _refuse_unknown(name, keywords, parameters)
    settings = {key: _typed(value, parameters.get(key)) for key, value in {**defaults, **keywords}.items()}
    return ml_collections.ConfigDict({"name": name, **settings})


def parse(text: str) -> dict[str, Any]:
    """The spec written `name:key=value,key=value`; values are Python literals, or words.

    Raises:
        ValueError: if it is not written so.
    """
    name, _, rest = text.partition(":")
    call = f"f({rest})"
    try:
        parsed = ast.parse(call, mode="eval").body
        if not isinstance(parsed, ast.Call) or parsed.args:
            raise ValueError(rest)
        return {"name": name, **{str(keyword.arg): _literal(keyword.value) for keyword in parsed.keywords}}
    except (SyntaxError, ValueError):
        raise ValueError(
            f"expected name:key=value,key=value, values with : or , in quotes or brackets, got {text!r}"
        ) from None


def written(spec: str | Mapping[str, Any]) -> str:
    """A spec as it is written on a command line."""
    if isinstance(spec, str):
        return spec
    keywords = ",".join(f"{key}={_plain(value)}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}:{keywords}" if keywords else str(spec["name"])


def build(table: Table, spec: Mapping[str, Any], **given: Any) -> Any:
    """The constructor's call that a spec describes; of what is `given`, it gets what it takes.

    Raises:
        ValueError: for an unknown name or keyword, with those that there are.
    """
    keywords = {str(key): _plain(value) for key, value in spec.items()}
    name = keywords.pop("name")
    constructor = _find(table, name)
    parameters = _parameters(constructor)
    _refuse_unknown(name, keywords, parameters)
    try:
        return constructor(**keywords, **{key: value for key, value in given.items() if key in parameters})
    except (TypeError, RuntimeError, ArithmeticError) as error:  # a word for a number, or a size that torch refuses
        raise ValueError(f"{name} cannot be made of {keywords}: {error}") from error


def name_of(table: Table, constructor: Any) -> str:
    """The name under which a table has a constructor.

    Raises:
        ValueError: if it does not.
    """
    for name, candidate in table.items():
        if candidate is constructor:
            return name
    raise ValueError(f"expected one of {', '.join(table)}, got {getattr(constructor, '__name__', constructor)}")


def _find(table: Table, name: str) -> Callable[..., Any]:
    if name not in table:
        raise ValueError(f"expected one of {', '.join(table)}, got {name!r}{_perhaps(name, table)}")
    return table[name]


def _parameters(constructor: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(constructor).parameters


def _refuse_unknown(name: str, keywords: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # it passes them on
    allowed = [key for key in parameters if key not in FROM_DATA]
    for key in keywords:
        if key not in allowed:
            takes = f"takes {', '.join(allowed)}" if allowed else "takes no keywords"
            raise ValueError(f"{name} {takes}; got {key!r}{_perhaps(key, allowed)}")


def _perhaps(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _typed(value: Any, parameter: inspect.Parameter | None) -> Any:
    """The value; for None one that knows which type it may be overridden with."""
    if value is not None or parameter is None:
        return value
    kind = next((each for each in get_args(parameter.annotation) if each in (bool, int, float, str)), None)
    return None if kind is None else config_dict.placeholder(kind)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return float(node.id) if node.id in ("nan", "inf") else node.id
    return ast.literal_eval(node)


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value
