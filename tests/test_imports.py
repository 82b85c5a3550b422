"""A folder is a type signature: imports run downwards only (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("sde_lib", "models", "solvers", "likelihood", "training", "evaluation", "configs", "commands", "main")
MAY_IMPORT = {
    "sde_lib": {"sde_lib"},
    "models": {"models", "sde_lib"},
    "solvers": {"solvers", "sde_lib"},
    "likelihood": {"likelihood", "solvers", "sde_lib"},
    "training": {"training", "sde_lib"},
    "evaluation": {"evaluation"},
    "configs": {"configs"},
    "commands": set(OURS) - {"main"},
    "main": {"commands"},
    "__init__": set(),
}
COMMAND_LINE_ONLY = {"absl": {"configs", "commands", "main"}, "ml_collections": {"configs", "commands", "main"}}


def files() -> list[Path]:
    return [
        ROOT / "__init__.py",
        ROOT / "main.py",
        *(path for folder in OURS[:-1] for path in sorted((ROOT / folder).rglob("*.py"))),
    ]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("scorefield.") for name in names}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_folder_may(path: Path) -> None:
    assert forbidden(path.relative_to(ROOT), imported(path)) == set()


def forbidden(relative: Path, names: set[str]) -> set[str]:
    folder = relative.parts[0].removesuffix(".py")
    inner = MAY_IMPORT.get(str(relative), MAY_IMPORT.get(str(relative.parent), MAY_IMPORT[folder]))
    allowed = set(OURS) - {"main", "commands"} if str(relative) == "configs/build.py" else inner
    ours = {name for name in names if name.split(".")[0] in OURS}
    upwards = {name for name in ours if not any(name == p or name.startswith(p + ".") for p in allowed)}
    return upwards | {name for name in names if folder not in COMMAND_LINE_ONLY.get(name.split(".")[0], {folder})}


def test_the_walk_sees_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("from models.unet import UNet\nimport absl.flags\nfrom sde_lib import SDE\n")
    assert forbidden(Path("solvers/bad.py"), imported(file)) == {"scorefield.models.networks.unet", "absl.flags"}
