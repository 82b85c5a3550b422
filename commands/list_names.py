"""Every name that a configuration or a flag can have."""

import inspect
import textwrap
from pathlib import Path
from typing import Any

from scorefield.commands.configuration import FOLDER, packaged
from scorefield.configs.build import TABLES
from scorefield.configs.specs import Constructor, Table, find, settings_of


def list_names(_: Path) -> dict[str, Any]:
    """Print every name: configurations, and each table's names with settings and the first line of their docstrings.

    Names that installed packages add are among them. Nothing is written.
    """
    print("configurations, for --config=NAME:VARIANT")
    for name in packaged():
        text = (FOLDER / f"{name}.py").read_text().lstrip('"').partition('"""')[0]
        print(f"  {name}\n{textwrap.indent(text.strip(), ' ' * 6)}")
    for table in TABLES:
        print(f"\n{table.kind}, or scorefield.{table.kind} in the entry points of a package")
        for name in table:
            print("\n".join(_rows(table, name)))
    return {}


def _rows(table: Table, name: str) -> list[str]:
    try:
        constructor = find(table, name)
    except ValueError as error:  # of an installed package
        return [f"  {name}", f"      {error}"]
    return [f"  {name}({_settings(constructor)})", f"      {_first_line(inspect.getdoc(constructor) or '')}"]


def _settings(constructor: Constructor) -> str:
    return ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in settings_of(constructor).values())


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
