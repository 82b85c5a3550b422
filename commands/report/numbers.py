"""Numbers as a reader wants them: few digits, and errors that say how many of them count."""

import math
from typing import Any

from scorefield.commands.report.blocks import Number

DIGITS = 4  # of a number without an error


def number(value: Any, error: Any = None, digits: int = DIGITS, unit: str = "") -> Number | None:
    """A number with its standard error, which decides the decimals; None for other values."""
    if not is_number(value):
        return None
    text = plain(value, digits)
    if is_number(error) and math.isfinite(error) and error > 0 and math.isfinite(value):
        decimals = max(0, 1 - math.floor(math.log10(error)))
        text = f"{value:,.{decimals}f} ± {error:.{decimals}f}"
        if decimals > 6 or abs(value) >= 1e9:
            text = f"{value:.{digits}g} ± {error:.2g}"
    return Number(value, f"{text}{unit}")


def plain(value: float, digits: int = DIGITS) -> str:
    """A number rounded to `digits`. Thousands are separated, and integers keep all their digits."""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e9):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return str(value)
    if 1e-3 <= abs(value) < 10**digits:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:,.0f}" if 1 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def is_number(value: Any) -> bool:
    """Whether a value of a JSON report is a number, and no switch."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell(value: Any) -> Number | str | None:
    """Any value of a JSON report as the cell of a table."""
    if is_number(value):
        return number(value)
    if value is None:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(getattr(shown := cell(each), "text", shown)) for each in value)
    return str(value)
