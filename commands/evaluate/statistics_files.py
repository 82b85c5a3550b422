"""Files of moments: ours, and those of pytorch-fid, EDM and guided-diffusion (ADM)."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorefield.commands.evaluate.numbers import Side
from scorefield.commands.outputs import write_arrays
from scorefield.evaluation.features.base import StoredAs
from scorefield.evaluation.metrics.moments import Moments
from scorefield.training.data.files.npz import heads, load
from scorefield.training.data.files.pickles import load_arrays

SUFFIXES = (".npz", ".pkl")
NAMES = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


def write_statistics(path: Path, moments: dict[str, Moments], recipe: dict[str, Any]) -> Path:
    """Write means and covariances as `mu`, `sigma` (and `mu_s`, `sigma_s`), which pytorch-fid, EDM and ADM read.

    Beside them are `count`, and the `recipe` as JSON.
    """
    arrays: dict[str, Any] = {"recipe": np.array(json.dumps(recipe)), "count": moments["features"].count}
    for name, (mean, covariance) in NAMES.items():
        if name in moments:
            arrays |= {mean: moments[name].mean, covariance: moments[name].covariance}
    return write_arrays(path, **arrays)


def read_statistics(path: Path) -> tuple[Side, dict[str, Any]]:
    """The moments in a file, and its recipe, which is empty where the file does not say.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no mean `mu` and covariance `sigma` of one size.
    """
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"expected statistics in {path}, which is not there: make them with --mode=statistics, or give --data"
        )
    arrays = _arrays(path)
    moments = {}
    count = int(arrays["count"]) if "count" in arrays else None
    for name, keys in NAMES.items():
        if all(key in arrays for key in keys):
            mean, covariance = (np.asarray(arrays[key], np.float64) for key in keys)
            _check(path, mean, covariance)
            moments[name] = Moments.given(mean, covariance, count)
    if "features" not in moments:
        raise ValueError(
            f"expected a mean `mu` (d,) and a covariance `sigma` (d, d) in {path}, got {', '.join(arrays) or 'no such'}"
            ": make the file with --mode=statistics, or give images by --data"
        )
    recipe = json.loads(str(arrays["recipe"])) if "recipe" in arrays else {}
    return Side(count, None, moments), recipe


def stored_as_of(path: Path) -> StoredAs | None:
    """How the samples of our statistics were stored; None for those of others."""
    recipe = read_statistics(path)[1]
    return StoredAs(tuple(recipe["shape"]), recipe["levels"]) if "shape" in recipe else None


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    if path.suffix.lower() == ".npz":
        wanted = {"count", "recipe", *NAMES["features"], *NAMES["spatial"]}
        return load(path, [name for name in heads(path) if name in wanted])  # ADM's have the images too
    try:
        found = load_arrays(path, ("f4", "f8"))
    except (OSError, pickle.UnpicklingError, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"cannot read {path} ({error}): expected statistics as .npz, or the .pkl of EDM") from None
    inner = found.get("fid", found)  # EDM2 has a dict for each metric
    return dict(inner)


def _check(path: Path, mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> None:
    size = len(mean) if mean.ndim == 1 else 0
    finite = bool(np.isfinite(mean).all() and np.isfinite(covariance).all())
    if not size or covariance.shape != (size, size) or not finite or not np.allclose(covariance, covariance.T):
        raise ValueError(
            f"expected a finite mean (d,) and a symmetric covariance (d, d) in {path}, got {mean.shape} and "
            f"{covariance.shape}: the file is damaged, or of another kind"
        )
