"""Flags to a call: a mode is a function of a working directory and keywords."""

import errno
import importlib
import inspect
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scorefield.commands.arguments import sort
from scorefield.commands.modes import ALWAYS, KEYWORDS, MODES, OPTIONS, PLACES, SEVERAL, TRAINING, WITHOUT_RUN
from scorefield.configs.text import few, suggestion

Command = Callable[..., dict[str, Any]]
LONGEST = 600  # characters of an error


def run(arguments: list[str]) -> int:
    """Run one command and print its summary.

    Returns:
        The exit status: 0, 2 for an error that one line on stderr explains, or 130 or 143 after a signal.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own packages; installed packages come before them
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            _print(_call(arguments[1:]))
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # the first process of torchrun
            print(getattr(error, "line", "interrupted"), file=sys.stderr)
        return 128 + int(getattr(error, "signal", signal.SIGINT))
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        print(f"error: {_short(_text(error))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        print("error: expected to fit into memory, and it does not: give a smaller --batch or --num", file=sys.stderr)
        return 2
    return 0


def _text(error: ValueError | OSError) -> str:
    """The message of an error. One of the system names the file, and what to do."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"expected room for {error.filename or 'the files'}, got {error.strerror!r}: make room, or write elsewhere"
        )
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return str(error)
    return f"expected {error.filename} to be read or written, got {error.strerror!r}: choose another place"


def _short(text: str) -> str:
    """One line, whose middle is left out if it is too long to be read."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} ... {line[-LONGEST // 3 :]}"


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """One line, without the place in the code."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {_short(str(message))}", file=sys.stderr)


def _print(summary: dict[str, Any]) -> None:
    for key, value in summary.items():
        for line in (
            value if isinstance(value, list) else [f"{key}: {json.dumps(value) if isinstance(value, dict) else value}"]
        ):
            print(f"wrote {line}" if isinstance(value, list) else line)


def _call(arguments: list[str]) -> dict[str, Any]:
    given = sort(arguments, {**ALWAYS, **{name: kind for name, (kind, _) in OPTIONS.items()}}, SEVERAL)
    values, words = given.values, given.words
    mode = values.pop("mode", None) or (words.pop(0) if words else None)
    workdir, config = values.pop("workdir", None), values.pop("config", "")
    if mode is not None and mode not in MODES:
        raise ValueError(f"expected a mode ({few(mode, MODES)}), got {mode!r}{suggestion(mode, MODES)} (see --help)")
    if "version" in given.switches:
        print(f"scorefield {importlib.import_module('scorefield').__version__}")
        return {}
    if given.switches or not arguments:
        print(_help(mode))
        return {}
    if mode is None:
        raise ValueError("expected a mode, as --mode=sample (see --help)")
    if workdir is None and mode not in WITHOUT_RUN and not (mode == "check_data" and config):
        raise ValueError(f"expected the directory of the run beside --mode={mode}, as --workdir=runs/vp")
    if mode != "list" and os.environ.get("RANK", "0") == "0":  # before torch is imported, which takes seconds
        print(f"{mode}{'' if workdir is None else f' {workdir}'}: {MODES[mode][2]}", flush=True)
    command = _command(mode)
    takes = inspect.signature(command).parameters
    options = _options(mode, takes, values)
    if mode == "import":
        if len(words) != 1:
            raise ValueError(f"expected one FILE to import, got {words}: --mode=import --from=edm FILE --workdir=RUN")
        options["file"] = words[0]
    elif words:
        raise ValueError(f"expected flags such as --num=64, got {words[0]!r}")
    if "config" not in takes and (config or given.changes):
        raise ValueError(
            f"expected no {given.changes[0] if given.changes else '--config'} in --mode={mode}, which reads the "
            "config.json of the run: only train, train_autoencoder and check_data take it"
        )
    if "config" in takes and (config or given.changes or mode in TRAINING):
        # Imported here, because it imports torch.
        from scorefield.commands.configuration import load, of_run, override

        own = load(config) if config else of_run(Path(workdir or "."))
        options["config"] = override(own, given.changes)
    return command(Path(workdir or "."), **options)


def _help(mode: str | None) -> str:
    """The text of --help: of one mode, or of all."""
    if mode is None:
        lines = ["scorefield --mode=MODE --workdir=DIRECTORY [--config=NAME:VARIANT --config.KEY=VALUE] [options]", ""]
        lines += [f"  --mode={name:18} {text}" for name, (_, _, text) in MODES.items()]
        lines += ["", "Options. --mode=MODE --help prints those of one mode, with their defaults.", ""]
        return "\n".join([*lines, *(f"  --{name:18} {text}" for name, (_, text) in OPTIONS.items())])
    command = _command(mode)
    lines = [(inspect.getdoc(command) or "").partition("\n\nArgs:")[0].partition("\n\nRaises:")[0], "", "Options:", ""]
    parameters = inspect.signature(command).parameters
    lines += [f"  --{name:18} {text}" for name, text in PLACES.items() if name.partition(".")[0] in parameters]
    for key, parameter in parameters.items():
        name = {of: flag for flag, of in KEYWORDS.items()}.get(key, key)
        if name in OPTIONS:
            lines.append(f"  --{name:18} {OPTIONS[name][1]}{_default(parameter.default)}")
    return "\n".join(lines)


def _default(value: object) -> str:
    """A default value as it is written on a command line."""
    if value is None or value is inspect.Parameter.empty:
        return ""
    if isinstance(value, tuple | list):
        return f" [{' '.join(map(str, value))}]"
    return f" [{str(value).lower() if isinstance(value, bool) else value}]"


def _command(mode: str) -> Command:
    # Imported here, so that --help and mistakes do not wait for torch.
    file, function, _ = MODES[mode]
    command: Command = getattr(importlib.import_module(f"scorefield.commands.{file}"), function)
    return command


def _options(mode: str, takes: Mapping[str, inspect.Parameter], values: dict[str, Any]) -> dict[str, Any]:
    """The values of the flags, by the keywords of the command.

    Raises:
        ValueError: if the mode does not take one of them.
    """
    options: dict[str, Any] = {KEYWORDS.get(name, name): value for name, value in values.items()}
    for name in values:
        if KEYWORDS.get(name, name) not in takes:
            raise ValueError(
                f"--{name} is not an option of --mode={mode}: leave it out, or see `scorefield {mode} --help`"
            )
    for name in SEVERAL:
        if name in options and not isinstance(takes[name].default, tuple):
            if len(options[name]) > 1:
                several = " and ".join(map(str, options[name]))
                raise ValueError(f"expected --{name} once, got {several}: --mode={mode} takes one")
            options[name] = options[name][0]
    if "pair" in options:
        options["pair"] = _two(options["pair"])
    return options


def _two(words: list[str]) -> tuple[int, int]:
    try:
        first, second = map(int, words)
    except ValueError:
        raise ValueError(f"expected --pair of two numbers, as 0,1, got {','.join(words)!r}") from None
    return first, second
