"""Two configurations as flat mappings, and where they differ."""

from typing import Any

SHOWN = 3


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


def different(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The keys whose values differ, or that only one has."""
    return [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]


def in_words(there: dict[str, Any], here: dict[str, Any], odd: list[str]) -> str:
    """The first keys that differ. Of a part with another name the name alone, and how many more differ."""
    names = tuple(key.removesuffix("name") for key in odd if key.endswith(".name"))
    odd = [key for key in odd if key.endswith(".name") or not key.startswith(names)]
    more = [f"and {len(odd) - SHOWN} more differ"] if len(odd) > SHOWN else []
    return ", ".join([*(f"{k} is {there.get(k)!r} there and {here.get(k)!r} here" for k in odd[:SHOWN]), *more])
