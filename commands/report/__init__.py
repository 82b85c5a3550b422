"""One HTML page of a run, from what is in its directory."""

from scorefield.commands.report.command import report

__all__ = ["report"]
