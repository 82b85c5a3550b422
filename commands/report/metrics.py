"""What --mode=evaluate measured, with floors and recipes."""

from scorefield.commands.report.blocks import Block, Section
from scorefield.commands.report.found import Found


def metrics_section(found: Found) -> Section:
    """Tables of metrics, each with its error or its floor, and the recipe."""
    blocks: list[Block] = []
    return Section("metrics", "Metrics", blocks)
