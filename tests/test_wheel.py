"""The wheel of a clean clone, installed into an empty environment and used in a user's folder: `make test-wheel`."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.wheel
ROOT = Path(__file__).parent.parent
SMALL = ("--config.training.images=2000", "--config.training.sample_every=0", "--config.net.width=8")


def call(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    call("git", "archive", "--format=tar", f"--output={folder / 'clone.tar'}", "HEAD", cwd=ROOT)
    (folder / "clone").mkdir()
    call("tar", "xf", folder / "clone.tar", "-C", folder / "clone", cwd=folder)
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", folder / "clone", "-w", folder, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


def test_its_only_name_is_scorefield(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"scorefield"}
    inside = {name.split("/")[1] for name in names if name.startswith("scorefield/")}
    assert {"py.typed", "main.py", "sde_lib", "configs"} <= inside
    assert not {"tests", "benchmarks", "docs"} & inside


def test_it_works_in_an_empty_environment_beside_a_users_own_folders(wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python, scorefield = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "scorefield"
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    call(*install, "--constraint", ROOT / "requirements.lock", wheel, cwd=tmp_path)
    user = tmp_path / "user"
    for name in ("models", "configs", "training"):
        (user / name).mkdir(parents=True)
        (user / name / "__init__.py").write_text("raise SystemExit('not these')")
    (user / "mine.py").write_text(
        "from scorefield.configs import digits\n\ndef get_config(variant):\n    return digits.get_config(variant)\n"
    )
    trained = call(scorefield, "--mode=train", "--config=digits:vp", *SMALL, "--workdir=r", cwd=user)
    assert "images: 2048" in trained
    call(scorefield, "--mode=sample", "--workdir=r", "--num=4", "--steps=3", cwd=user)
    call(scorefield, "--mode=encode", "--workdir=r", "--num=4", "--steps=3", cwd=user)
    assert "bits_per_dim" in call(scorefield, "--mode=likelihood", "--workdir=r", "--num=4", "--steps=4", cwd=user)
    call(scorefield, "--mode=report", "--workdir=r", "--nomake", cwd=user)
    assert "<h2>Samples</h2>" in (user / "r" / "report.html").read_text("utf-8")
    with np.load(user / "r" / "samples.npz") as samples:
        assert samples["x"].shape == (4, 1, 8, 8)
    # A configuration by the path it has in a clone is the same one; a user's own file is another.
    for config in ("configs/digits.py:vp", "mine.py:vp"):
        resumed = call(scorefield, "--mode=train", f"--config={config}", *SMALL, "--workdir=r", cwd=user)
        assert "trained to its end" in resumed
