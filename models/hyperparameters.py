"""Networks that remember how they were made, so that they can be written down and made again."""

import functools
import inspect
from typing import Any, TypeVar

from torch import nn

Network = TypeVar("Network", bound=type[nn.Module])


def save_hyperparameters(network: Network) -> Network:
    """A class decorator: a network keeps every keyword of its constructor with its value, defaults included."""
    init: Any = network.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recording(self: nn.Module, *args: Any, **keywords: Any) -> None:
        init(self, *args, **keywords)
        bound = signature.bind(self, *args, **keywords)
        bound.apply_defaults()
        _, *settings = bound.arguments.items()
        object.__setattr__(self, "settings", dict(settings))

    setattr(network, "__init__", recording)  # noqa: B010 - mypy refuses the assignment
    return network


def settings_of(network: Any) -> dict[str, Any]:
    """The keywords with which a network was made.

    Raises:
        ValueError: if its class does not record them.
    """
    settings = getattr(network, "settings", None)
    if settings is None:
        name = type(network).__name__
        raise ValueError(f"{name} does not record how it was made: put @save_hyperparameters above its class")
    return dict(settings)
