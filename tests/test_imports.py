"""A folder is a type signature: imports run downwards, without circles, and what is private stays in its file."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ("sde_lib", "models", "solvers", "likelihood", "compression", "training", "evaluation")
OURS = (*LIBRARY, "configs", "commands", "main")
MAY_IMPORT = {
    "sde_lib": {"sde_lib"},
    "models": {"models", "sde_lib"},
    "solvers": {"solvers", "sde_lib"},
    "likelihood": {"likelihood", "solvers", "sde_lib"},
    "compression": {"compression", "likelihood", "sde_lib"},
    "training": {"training", "models", "likelihood", "sde_lib"},
    "evaluation": {"evaluation"},
    "configs": {"configs"},
    **{f"configs/{file}.py": {*LIBRARY, "configs"} for file in ("build", "constructors", "methods", "tables")},
    "commands": {*LIBRARY, "configs", "commands"},
    "main": {"commands"},
    "__init__": set(LIBRARY),
}
COMMAND_LINE_ONLY = {"absl": {"configs", "commands", "main"}, "ml_collections": {"configs", "commands", "main"}}


def files() -> list[Path]:
    folders = [path for folder in OURS[:-1] for path in sorted((ROOT / folder).rglob("*.py"))]
    return [ROOT / "__init__.py", ROOT / "main.py", *folders]


def statements(node: ast.AST, inside_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from statements(child, inside_functions)


def imported(path: Path, inside_functions: bool = True) -> set[str]:
    names = set()
    for node in statements(ast.parse(path.read_text()), inside_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def forbidden(relative: str, names: set[str]) -> set[str]:
    folder = relative.split("/")[0].removesuffix(".py")
    allowed = MAY_IMPORT.get(relative, MAY_IMPORT[folder])
    ours = {name for name in names if name.split(".")[0] == "scorefield"}
    upwards = {name for name in ours if name.split(".")[1] not in allowed}
    bare = {name for name in names if name.split(".")[0] in OURS}  # which only the root of a clone has
    return upwards | bare | {n for n in names if folder not in COMMAND_LINE_ONLY.get(n.split(".")[0], {folder})}


def private(names: set[str]) -> set[str]:
    ours = {name for name in names if name.startswith("scorefield.")}
    return {name for name in ours if any(p.startswith("_") and not p.startswith("__") for p in name.split("."))}


def graph(root: Path, paths: list[Path]) -> dict[str, set[str]]:
    modules = {".".join(("scorefield", *path.relative_to(root).with_suffix("").parts)): path for path in paths}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}

    def module(name: str) -> str | None:
        return next((each for each in (name, name.rpartition(".")[0]) if each in modules), None)

    edges = {name: {module(each) for each in imported(path, False)} for name, path in modules.items()}
    return {name: {each for each in targets if each and each != name} for name, targets in edges.items()}


def test_a_file_imports_only_what_its_folder_may() -> None:
    results = {relative: forbidden(relative, imported(ROOT / relative)) for relative in map(relative_to_root, files())}
    assert {relative: names for relative, names in results.items() if names} == {}


def relative_to_root(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_private_name_is_imported_by_another_file() -> None:
    results = {relative_to_root(path): private(imported(path)) for path in files()}
    assert {relative: names for relative, names in results.items() if names} == {}


def test_imports_have_no_circles() -> None:
    list(graphlib.TopologicalSorter(graph(ROOT, files())).static_order())


def test_the_walk_sees_what_is_forbidden(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "from scorefield.models.networks.unet import UNet\nimport absl.flags\nfrom sde_lib import SDE\n"
        "def f():\n    from scorefield.solvers.solver import _hidden\n"
    )
    names = imported(tmp_path / "a.py")
    assert forbidden("solvers/a.py", names) == {"scorefield.models.networks.unet.UNet", "absl.flags", "sde_lib.SDE"}
    assert private(names) == {"scorefield.solvers.solver._hidden"}
    (tmp_path / "a.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from scorefield.b import B\n"
    )
    (tmp_path / "b.py").write_text("from scorefield import a\n")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph(tmp_path, [tmp_path / "a.py", tmp_path / "b.py"])).prepare()


def test_every_folder_is_in_the_wheel() -> None:
    listed = re.findall(r'^    "(scorefield[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.M)
    folders = {".".join(("scorefield", *path.relative_to(ROOT).parts[:-1])) for path in files()}
    assert sorted(listed) == sorted(folders)
