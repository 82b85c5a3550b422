"""The words of a command line, sorted: flags and their values, changes of the configuration, and other words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scorefield.configs.text import suggestion, typed

SWITCHES = ("version", "help", "h")


@dataclass
class Arguments:
    """What a command line gives."""

    values: dict[str, Any] = field(default_factory=dict)  # of flags, those of `several` as tuples
    changes: list[str] = field(default_factory=list)  # as --config.KEY=VALUE, --config.KEY or --noconfig.KEY
    words: list[str] = field(default_factory=list)  # that are no flags
    switches: set[str] = field(default_factory=set)  # of `SWITCHES`


def sort(arguments: list[str], kinds: Mapping[str, type], several: tuple[str, ...]) -> Arguments:
    """The arguments, by the kinds of the flags.

    A value stands after `=`, or as the next word. A switch is `--ema`, `--noema` or `--ema=false`.

    Raises:
        ValueError: for an unknown flag, a value of another kind, or a flag that is given twice with different values.
    """
    given, rest = Arguments(), list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.lstrip("-").partition("=")
        if word == "--":
            given.words, rest = [*given.words, *rest], []
        elif not word.startswith("-") or not name:
            given.words.append(word)
        elif name in SWITCHES:
            given.switches.add(name)
        elif name.startswith(("config.", "noconfig.")):
            text = text if equals or name.startswith("no") else _next(rest)
            given.changes.append(f"--{name}={text}" if equals or text else f"--{name}")
        else:
            name = name.replace("-", "_")
            if kinds.get(positive := name.removeprefix("no")) is bool and not equals:
                name, text, equals = positive, str(name == positive), "="
            if name not in kinds:
                _refuse(name, kinds)
            text = text if equals else _next(rest)
            if not text:
                raise ValueError(f"expected a value of --{name}, got none: write --{name}=VALUE")
            value = typed(text, kinds[name], f"--{name}")
            if name in several:
                given.values[name] = (*given.values.get(name, ()), value)
            elif given.values.setdefault(name, value) != value:
                raise ValueError(f"expected --{name} once, got {given.values[name]} and {value}: leave one out")
    return given


def at_least(least: int, **options: int | None) -> None:
    """Check values of flags, where they are given.

    Raises:
        ValueError: for the first one below `least`.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise ValueError(f"expected --{name} of at least {least}, got {value}")


def _next(rest: list[str]) -> str:
    """The next word, if it can be a value."""
    return rest.pop(0) if rest and not rest[0].startswith("--") else ""


def _refuse(name: str, kinds: Mapping[str, type]) -> None:
    positive = name.removeprefix("no")
    if kinds.get(positive) is bool:
        raise ValueError(f"expected --{name} without a value, got one: write --{positive}=true or --{positive}=false")
    if positive in kinds:
        raise ValueError(f"expected --{positive}=VALUE, got --{name}: only switches, as --noema, take `no`")
    known = [f"--{each}" for each in kinds]
    raise ValueError(f"expected an option of --help, got --{name}{suggestion(f'--{name}', known)}")
