"""`--mode=train`."""

from scorefield.commands.train.command import train

__all__ = ["train"]
