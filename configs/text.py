"""Values and specs as a person writes them, and the names that are nearest to a wrong one.

Nothing here imports torch, so that a mistake is named at once.
"""

import ast
import difflib
import math
import os
import re
import warnings
from collections.abc import Iterable
from typing import Any

SHOWN = 8  # names in a message
NEAREST = 4  # of more names
KINDS = {int: "a whole number", float: "a finite number", bool: "true or false"}
SWITCHES = {"true": True, "t": True, "1": True, "yes": True, "false": False, "f": False, "0": False, "no": False}
WORDS: dict[str, Any] = {"nan": math.nan, "inf": math.inf, "true": True, "false": False}


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a message about a wrong name: the nearest known one, if one is near."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f": did you mean {names[close[0]]!r}?" if close else ""


def few(word: str, known: Iterable[str]) -> str:
    """The known names for a message. Of many, the nearest to the word."""
    names = list(known)
    if len(names) <= SHOWN:
        return ", ".join(names)
    near = difflib.get_close_matches(word.lower(), names, n=NEAREST, cutoff=0.0)
    return f"{', '.join(near)} and {len(names) - len(near)} more"


def typed(text: str, kind: type, flag: str) -> Any:
    """The value of a flag. Integers may be written as 1e6, and `~` is the home folder.

    Raises:
        ValueError: if the text is not of that kind.
    """
    value: Any = None
    try:
        if kind is bool:
            value = SWITCHES[text.lower()]
        elif kind is int:
            value = int(text) if text.strip("+-").isdecimal() else float(text)
            if value != int(value):
                raise ValueError(text)
            value = int(value)
        elif kind is float:
            value = float(text)
            if not math.isfinite(value):
                raise ValueError(text)
        elif kind is list:
            value = [part.strip() for part in text.split(",")]
        elif kind is tuple:
            value = literal(text)
            value = tuple(value) if isinstance(value, list | tuple) else (value,)
        else:
            value = os.path.expanduser(text) if kind is str else literal(text)
    except (ValueError, KeyError, OverflowError):
        raise ValueError(f"expected {flag} to be {KINDS.get(kind, 'a value')}, got {text!r}") from None
    return value


def literal(text: str) -> Any:
    """A Python literal, or else the text itself, as a word or a path.

    Raises:
        ValueError: if it begins with a quote or a bracket and is no literal.
    """
    text = text.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash
            node = ast.parse(text, mode="eval").body
        return WORDS.get(node.id, node.id) if isinstance(node, ast.Name) else ast.literal_eval(node)
    except (SyntaxError, ValueError):
        if not text or text[0] in "'\"([{":
            raise ValueError(f"expected a value, got {text!r}: close its quotes and brackets") from None
        return os.path.expanduser(text)


def parse(text: str) -> dict[str, Any]:
    """The spec of the text `name:key=value,key=value`. Values are Python literals, or else words as they stand.

    A value ends before a comma that is followed by `key=`. A value with such a comma within is put in quotes.

    Raises:
        ValueError: if the text is no spec.
    """
    name, _, rest = text.partition(":")
    pieces = re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", rest) if rest.strip() else []
    settings: dict[str, Any] = {"name": name}
    while pieces:
        key, equals, value = pieces.pop(0).partition("=")
        if not key.strip().isidentifier() or not equals:
            raise ValueError(f"expected name:key=value,key=value, got {text!r}: {key.strip()!r} is no key=value")
        while True:
            try:
                settings[key.strip()] = literal(value)
                break
            except ValueError as error:
                if not pieces or not value:  # a quote or a bracket that is still open
                    raise ValueError(f"expected name:key=value,key=value, got {text!r}: {error}") from None
                value += f",{pieces.pop(0)}"
    return settings
