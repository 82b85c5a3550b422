"""The package's own face: what `import scorefield` gives, and what it waits for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import scorefield

ROOT = Path(__file__).parent.parent


def python(code: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_is_imported_without_torch(tmp_path: Path) -> None:
    python("import sys, scorefield\nassert 'torch' not in sys.modules and scorefield.__version__", tmp_path)


def test_every_public_name_is_there() -> None:
    assert sorted(scorefield.__all__) == sorted(name for names in scorefield.NAMES.values() for name in names)
    for folder, names in scorefield.NAMES.items():
        for name in names:
            assert getattr(scorefield, name) is getattr(getattr(scorefield, folder), name)
    assert set(scorefield.__all__) < set(dir(scorefield))
    with pytest.raises(AttributeError, match="no attribute 'VQSDE'"):
        scorefield.VQSDE  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert f'version = "{scorefield.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert re.search(r'scorefield = \["py.typed"\]', (ROOT / "pyproject.toml").read_text())


def test_the_folders_of_a_clone_have_the_same_classes() -> None:
    python(
        "import scorefield, sde_lib, models, solvers, scorefield.solvers\n"
        "assert sde_lib.VPSDE is scorefield.VPSDE and models.Denoiser is scorefield.Denoiser\n"
        "assert solvers.DDIM is scorefield.solvers.DDIM",
        ROOT,
    )


@pytest.mark.parametrize("missing", ["scorefield.commands", "ml_collections", "torch"])
def test_the_command_line_says_how_to_install_what_is_missing(missing: str, tmp_path: Path) -> None:
    code = (
        f"import runpy, sys\nsys.modules[{missing!r}] = None\n"
        "sys.argv = ['main.py', '--mode=train', '--config=digits:vp', '--workdir=r']\n"
        f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_names_of_the_old_readme_are_the_same_classes() -> None:
    assert scorefield.models.precondition.Told is scorefield.models.precondition.TimeConditioned
    assert scorefield.solvers.StochasticAdams is scorefield.solvers.SASolver
