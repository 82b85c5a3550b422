"""How a configuration calls constructors: specs are read, written and turned into calls.

A spec is a mapping: the `name` of a constructor in a table, and its keywords, as in {"name": "vp", "beta_max": 15.0}.
On a command line the same spec is  vp:beta_max=15.0 .  A name with a dot, as in  mypkg.Net:width=64 , is imported.
"""

import functools
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import ml_collections
from ml_collections import config_dict

from scorefield.configs.text import few, literal, parse, suggestion

Constructor = Callable[..., Any]

# Parameters that the data set or the caller decides. A spec does not set them.
FROM_DATA = (
    "channels", "inputs", "cells", "shape", "num_classes", "code_size", "split", "sde", "workdir", "flow",
    "stored_as", "device", "network", "classifier",
)  # fmt: skip

# Old spellings in config.json files and on command lines. A keyword is renamed where its constructor takes the new one
# and not the old one.
OLD_NAMES = {"told": "time_conditioned", "saturated": "soft_clipped", "stochastic_adams": "sa_solver"}
OLD_KEYWORDS = {"clock": "variable", "pace": "time_weight", "whole": "integer_timesteps"}
# Packages whose functions are no parts.
LIBRARIES = (
    "PIL", "absl", "datasets", "diffusers", "huggingface_hub", "matplotlib", "ml_collections", "numpy", "pip",
    "safetensors", "scipy", "setuptools", "sklearn", "tensorboard", "tokenizers", "torch", "torchdiffeq",
    "tqdm",
)  # fmt: skip
# Keywords whose value is a spec of the same table.
NESTED = ("solver", "predictor")


class Table(Mapping[str, Constructor]):
    """The constructors of one kind of part, by name: ours, those of entry points, and dotted names.

    A constructor is called with the keywords of a spec. Where `functions` is true, a function with two required
    arguments is the part itself and not its constructor. The keywords of a spec are then its keyword-only arguments.

    Args:
        kind: the name of the part in the plural. Installed packages add names in the entry-point group
            `scorefield.KIND`.
        parts: our constructors. An entry point cannot replace them.
        functions: whether parts are plain functions.
        base: the class that every part must have.
    """

    def __init__(
        self, kind: str, parts: Mapping[str, Constructor], *, functions: bool = False, base: type = object
    ) -> None:
        self.kind, self.parts, self._functions, self.base = kind, parts, functions, base

    def __getitem__(self, name: str) -> Constructor:
        if name in self.parts:
            part = self.parts[name]
        elif name in self._installed:
            part = _loaded(name, self._installed[name].load)
        elif "." in name:
            part = _loaded(name, functools.partial(pkgutil.resolve_name, name))
            _refuse_foreign(self, name, part)
        else:
            raise KeyError(name)
        return _returning(part) if self._functions and _is_part(part) else part

    def __iter__(self) -> Iterator[str]:
        return iter({**self.parts, **self._installed})

    def __len__(self) -> int:
        return len({**self.parts, **self._installed})

    @functools.cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=f"scorefield.{self.kind}")}


def find(table: Table, name: str) -> Constructor:
    """The constructor of a name.

    Raises:
        ValueError: if there is none. The message has the nearest names.
    """
    if name not in table:
        path = f": write folder:path={name} for a path" if table.kind == "datasets" and "/" in name else ""
        raise ValueError(
            f"expected one of {few(name, table)}, or PACKAGE.NAME to import, got {name!r}"
            f"{path or suggestion(name, table)} (--mode=list prints all)"
        )
    return table[name]


def spec(table: Table, partial: str | Mapping[str, Any], **keywords: Any) -> ml_collections.ConfigDict:
    """A spec with every keyword of its constructor, so that each can be overridden.

    Args:
        table: of the constructor.
        partial: its name, or a spec that may lack keywords.
        **keywords: values other than the defaults.

    Raises:
        ValueError: for an unknown name or keyword.
    """
    settings = modern(table, partial)
    settings |= modern(table, {"name": settings["name"], **keywords})
    name = settings.pop("name")
    parameters = settings_of(find(table, name))
    settings = _fitting(name, settings, parameters)
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    typed = {key: _typed(value, parameters.get(key)) for key, value in {**defaults, **settings}.items()}
    return ml_collections.ConfigDict({"name": name, **typed})


def build(table: Table, spec: str | Mapping[str, Any], **context: Any) -> Any:
    """Call the constructor of a spec. It also gets those values of the `context` that it takes.

    Raises:
        ValueError: for an unknown name or keyword. The message lists the known ones.
    """
    keywords = {key: _plain(value) for key, value in modern(table, spec).items()}
    name = keywords.pop("name")
    constructor = find(table, name)
    keywords = _fitting(name, keywords, settings_of(constructor))
    if missing := [
        key for key, p in settings_of(constructor).items() if _is_required(p) and key not in {*keywords, *context}
    ]:
        raise ValueError(f"{name} needs {' and '.join(missing)}, as in {name}:{missing[0]}=VALUE")
    needed = {key: value for key, value in context.items() if key in inspect.signature(constructor).parameters}
    try:
        part = constructor(**keywords, **needed)
    except (TypeError, RuntimeError, ArithmeticError) as error:  # a word for a number, or a size that torch refuses
        raise ValueError(f"{name} cannot be made of {str(keywords)[:100]}: {str(error)[:150]}") from error
    if not isinstance(part, table.base):
        raise _not_derived(table, name, part)
    return part


def modern(table: Table, partial: str | Mapping[str, Any]) -> dict[str, Any]:
    """The spec with the present names and keywords in place of old ones, in nested specs too."""
    settings = parse(partial) if isinstance(partial, str) else {str(key): value for key, value in partial.items()}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"expected a spec of {table.kind} with a name, as {{'name': 'NAME'}}, got {partial}")
    if name not in table:
        name = OLD_NAMES.get(name, name)
    parameters = inspect.signature(table[name]).parameters if name in table else {}
    result = {"name": name}
    for key, value in settings.items():
        new = OLD_KEYWORDS.get(key, key)
        key = new if new in parameters and key not in parameters else key
        if key == "variable" and isinstance(value, str):
            value = OLD_NAMES.get(value, value)
        if key in NESTED and isinstance(value, str):
            inner = modern(table, value)
            value = value if inner == parse(value) else unparse(inner)
        result[key] = value
    return result


def unparse(spec: str | Mapping[str, Any]) -> str:
    """The text of a spec, as on a command line."""
    if isinstance(spec, str):
        return spec
    keywords = ",".join(f"{key}={_word(_plain(value))}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}:{keywords}" if keywords else str(spec["name"])


def name_of(table: Table, constructor: Any) -> str:
    """The name of a constructor: the one in our table, or else the name to import it by.

    Raises:
        ValueError: if it has neither, as a class inside a function.
    """
    for name, candidate in table.parts.items():
        if candidate is constructor:
            return name
    name = f"{constructor.__module__}.{constructor.__qualname__}"
    if "<locals>" in name or constructor.__module__ == "__main__":
        raise ValueError(f"expected one of {', '.join(table.parts)}, or a class that can be imported, got {name}")
    return name


def settings_of(constructor: Constructor) -> dict[str, inspect.Parameter]:
    """The parameters that a spec may set."""
    parameters = inspect.signature(constructor).parameters
    return {key: parameter for key, parameter in parameters.items() if key not in FROM_DATA}


def _loaded(name: str, load: Callable[[], Any]) -> Constructor:
    try:
        part = load()
    except Exception as error:  # it is code of a user's, which may raise anything
        raise ValueError(
            f"cannot import {name} ({type(error).__name__}: {error}): expected PACKAGE.NAME, of an installed package "
            "or of the current folder"
        ) from error
    if not callable(part):
        raise ValueError(f"expected {name} to be a class or a function, got {part!r}")
    return part  # type: ignore[no-any-return]


def _not_derived(table: Table, name: str, part: Any) -> ValueError:
    base = f"{table.base.__module__}.{table.base.__qualname__}"
    return ValueError(f"expected {name} to be a class derived from {base}, got {part!r}: derive it")


def _refuse_foreign(table: Table, name: str, part: Constructor) -> None:
    """Refuse what a config.json of somebody else's could misuse: anything but a class of the table's kind.

    Tables without a kind take functions and classes of the user's own packages.
    """
    if table.base is not object and not (isinstance(part, type) and issubclass(part, table.base)):
        raise _not_derived(table, name, part)
    package = name.partition(".")[0]
    if table.base is object and (package in sys.stdlib_module_names or package in LIBRARIES):
        raise ValueError(f"expected a name of your own package in {table.kind}, got {name}: wrap it in a function")


def _is_part(candidate: Constructor) -> bool:
    if not inspect.isfunction(candidate):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(candidate).parameters.values()
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters) == 2


def _returning(function: Constructor) -> Constructor:
    """A constructor that returns the function, with its keyword-only arguments bound."""
    parameters = inspect.signature(function).parameters.values()

    def constructor(**keywords: Any) -> Constructor:
        return functools.partial(function, **keywords) if keywords else function

    constructor.__doc__ = function.__doc__
    signature = inspect.Signature([p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY])
    constructor.__signature__ = signature  # type: ignore[attr-defined]
    return constructor


def _fitting(name: str, keywords: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The keywords, once they are known and of the kinds that their annotations say. A folder 2024 is a word again."""
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(keywords)  # it passes them on
    fitting = {}
    for key, value in keywords.items():
        if key not in parameters:
            takes = f"takes {few(key, parameters)}" if parameters else "takes no keywords"
            raise ValueError(f"{name} {takes}; got {key!r}{suggestion(key, parameters)}")
        annotation = parameters[key].annotation
        kinds = {*get_args(annotation)} if get_origin(annotation) in (UnionType, Union) else {annotation}
        if isinstance(value, str) and kinds <= {bool, int, float, NoneType}:
            raise ValueError(
                f"expected {key} of {name} to be {'true or false' if bool in kinds else 'a number'}, got {value!r}"
            )
        word = str in kinds and not kinds & {int, float} and type(value) in (int, float)
        fitting[key] = str(value) if word else value
    return fitting


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variable


def _typed(value: Any, parameter: inspect.Parameter | None) -> Any:
    """The value. For None, a placeholder that knows the type with which it may be overridden."""
    if value is not None or parameter is None:
        return value
    kind = next((each for each in get_args(parameter.annotation) if each in (bool, int, float, str)), None)
    return None if kind is None else config_dict.placeholder(kind)


def _word(value: Any) -> Any:
    """A value as `parse` reads it back."""
    if not isinstance(value, str):
        return value
    bare = all(part.isidentifier() for part in value.split(".")) and literal(value) == value
    return value if bare else repr(value)


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value
