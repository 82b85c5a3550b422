"""What a section of the page is made of; the template draws each kind."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scorefield.commands.report.chart import Chart

PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Number:
    """A number of a report as the page shows it. The page also holds `value` itself, exactly.

    Args:
        value: the number.
        text: of a few digits, with its error where it has one.
    """

    value: float
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph, of words and numbers."""

    parts: tuple[str | Number, ...]
    quiet: bool = False
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Heading:
    """The heading of a part of a section."""

    text: str
    kind: str = field(default="heading", init=False)


@dataclass(frozen=True)
class Missing:
    """A sentence on what is not there, with the command that makes it."""

    sentence: str
    command: str = ""
    kind: str = field(default="missing", init=False)


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words. Columns of numbers are aligned at the right.

    Args:
        head: names of the columns.
        rows: of `Number`, strings, or None for an empty cell.
        caption: of the table.
        marked: rows that are set off.
        code: columns whose words are shown as code.
        keyed: whether the first column names what stands in the second.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Number | str | None]]
    caption: str = ""
    marked: frozenset[int] = frozenset()
    code: frozenset[int] = frozenset()
    keyed: bool = False
    kind: str = field(default="table", init=False)

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether its cells are numbers."""
        columns = [[row[i] for row in self.rows if row[i] is not None] for i in range(len(self.head))]
        return [bool(cells) and all(isinstance(cell, Number) for cell in cells) for cells in columns]


@dataclass(frozen=True)
class Picture:
    """A picture within the page.

    Args:
        source: a data URI.
        alt: what it shows.
        caption: beneath it.
    """

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Pictures:
    """Pictures beside one another, where there is room."""

    pictures: tuple[Picture, ...]
    kind: str = field(default="pictures", init=False)


@dataclass(frozen=True)
class Charts:
    """Charts beside one another, where there is room."""

    charts: tuple[Chart, ...]
    kind: str = field(default="charts", init=False)


Block = Heading | Text | Missing | Table | Pictures | Charts


@dataclass(frozen=True)
class Section:
    """A part of the page. Without blocks it is left out."""

    name: str
    title: str
    blocks: list[Block]


def picture(path: Path, alt: str, caption: str) -> Picture | None:
    """The picture of a .png file; None if there is none that reads."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if not content.startswith(PNG):
        return None
    return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", alt, caption)


def side_by_side(*pictures: Picture | None) -> list[Block]:
    """The pictures that are there, as a block; none without one."""
    there = tuple(each for each in pictures if each is not None)
    return [Pictures(there)] if there else []


def said(*parts: Any, quiet: bool = False) -> Text:
    """A paragraph of these parts."""
    return Text(tuple(part if isinstance(part, Number) else str(part) for part in parts), quiet)
