"""`--mode=likelihood`."""

from scorefield.commands.likelihood.command import likelihood

__all__ = ["likelihood"]
