"""What a data set is, before anything is trained on it, and the noise levels that suit it."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from scorefield.commands.run import open_run, output_path, write_json
from scorefield.configs import build
from scorefield.evaluation import save_pictures
from scorefield.sde_lib import VESDE
from scorefield.solvers import Schedule, grids
from scorefield.solvers.sde.langevin import _steadiest
from scorefield.training.data import Dataset
from scorefield.training.data.batches import tensor
from scorefield.training.data.distance import in_parts, largest_distance
from scorefield.training.data.files.rows import Rows

SMALLEST = 0.01  # NCSNv2's last noise level, for images in [0, 1]
OVERLAP = 0.567  # of neighbouring levels: what the paper, which says "about 0.5", has in all of its five data sets
STEPS = 5  # at each level, as NCSNv2 has for CIFAR-10
NAMED = 20  # classes whose names are printed; the report has all


def check_data(
    workdir: Path,
    config: ml_collections.ConfigDict | None = None,
    *,
    split: str = "train",
    num: int = 50_000,
    steps: int = STEPS,
    output: str | None = None,
) -> dict[str, Any]:
    """Shape, range, channels, levels, mean, deviation, classes and noise levels of a data set, and some of its images.

    Args:
        workdir: where the report goes; of the run whose data it is, unless there is a configuration.
        config: whose data it is, and whose network is asked whether it takes the data's shape.
        split: "train" or "test".
        num: items that are looked at: all, or as many, evenly spaced.
        steps: of Langevin dynamics at each noise level, for the step size.
        output: a .json to write instead of WORKDIR/data.json; the picture goes beside it.

    Raises:
        ValueError: if there is no such data, or a file of another kind where the report would go.
    """
    if num < 2 or steps < 1:
        raise ValueError(f"expected --num of at least 2 and --steps of at least 1, got {num} and {steps}")
    path = output_path(output, workdir / "data.json").absolute()
    if output is None:
        _refuse_to_replace(path)
    config = open_run(workdir, "cpu").config if config is None else config
    dataset: Dataset = build.build(build.DATASETS, config.data, split=split)
    rows = _spread(dataset, num)
    x = dataset.x if len(rows) == len(dataset) else Rows.of(dataset.x, rows, dataset.x.dtype)
    unit = 1.0 if dataset.levels is None else 1.0 / (dataset.levels - 1)
    distance, exact = largest_distance(x)
    sigma_max = distance * unit
    report: dict[str, Any] = {
        **described(dataset, x, unit),
        "looked_at": "all" if len(rows) == len(dataset) else f"{len(rows)} of {len(dataset)}, evenly spaced",
        "largest_distance": sigma_max,
        "largest_distance_is": "exact" if exact else "a lower bound",
        "network": network(config, dataset),
    }
    if sigma_max > SMALLEST:
        report["ncsnv2"] = noise_levels(sigma_max, math.prod(dataset.shape), steps=steps)
    if dataset.levels is not None:  # a level is a cell of [low, high], its value k of 0 .. levels - 1 stretched to it
        low, high = float(config.transform.low), float(config.transform.high)
        report["ncsnv2_in_the_model"] = _stretched(report.get("ncsnv2"), (high - low) * (1 - 1 / dataset.levels))
    report = {key: value for key, value in report.items() if value is not None}
    write_json(path, report)
    shown = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in report.items()}
    if shown.pop("class_names", None):
        shown["class_counts"] = _counted(report["class_names"], report["class_counts"])
    shown = {key: _printable(value) if isinstance(value, str) else value for key, value in shown.items()}
    return {**shown, "files": [str(path), str(_picture(dataset, path.with_suffix(".png")))]}


def network(config: ml_collections.ConfigDict, dataset: Dataset) -> str:
    """Whether the configured network takes a data set's shape, or how it refuses it; nothing is computed for that."""
    name, shape = config.net.name, dataset.shape
    classes = dataset.num_classes if config.training.labels else None
    try:
        with torch.device("meta"), torch.no_grad():
            build.network(config, shape, classes)(torch.empty(1, *shape), torch.empty(1))
    except ValueError as error:
        return f"{name} refuses it: {' '.join(str(error).split())}"
    except Exception:  # one of a user's own may need numbers, or more to go on
        return f"{name}, which does not tell before it is trained"
    return f"{name} takes it"


def described(dataset: Dataset, x: NDArray[Any], unit: float) -> dict[str, Any]:
    """What is in a data set; ranges and moments in units of `unit`, by channel where there are channels."""
    axes = dataset.shape[:1] if len(dataset.shape) > 1 else (1,)
    low, high, total, square, count, used = math.inf, -math.inf, 0.0, 0.0, 0, set[float]()
    for items in in_parts(x, 1024):
        part = np.asarray(x[items])
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        if dataset.levels is not None and len(used) < dataset.levels:
            used.update(np.unique(part).tolist())
        flat = part.reshape(len(part), *axes, -1).astype(np.float64)
        total, square = total + flat.sum((0, 2)), square + np.square(flat).sum((0, 2))
        count += len(part) * flat.shape[2]
    mean = total / count * unit
    deviation = np.sqrt(np.maximum(square / count * unit**2 - mean**2, 0))
    classes = None if dataset.label is None else np.bincount(dataset.label, minlength=dataset.num_classes or 0).tolist()
    return {
        "name": dataset.name,
        "split": dataset.split,
        "count": len(dataset),
        "shape": list(dataset.shape),
        "levels": dataset.levels,
        "num_classes": dataset.num_classes,
        "skipped": len(dataset.skipped),
        "skipped_first": list(dataset.skipped[:10]) or None,
        "stored_as": str(dataset.x.dtype),
        "channels": dataset.shape[0],
        "range": [low, high],
        "levels_used": len(used) if dataset.levels is not None else None,
        "unit": "of 0 to 1" if dataset.levels is not None else "as stored",
        "mean": [round(float(value), 6) for value in np.atleast_1d(mean)][:16],
        "std": [round(float(value), 6) for value in np.atleast_1d(deviation)][:16],
        "class_counts": classes,
        "class_names": list(dataset.class_names) or None,
        "sha256": dataset.fingerprint,
    }


def noise_levels(sigma_max: float, dims: int, *, sigma_min: float = SMALLEST, steps: int = STEPS) -> dict[str, Any]:
    """NCSNv2's noise levels and step size (Song and Ermon 2020, Techniques 1, 2 and 4).

    sigma_max is the largest distance of two data points (1); the levels are geometric, of a ratio gamma with
    Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = `OVERLAP` (2); and epsilon
    is what keeps the variance from level to level after `steps` steps (4, Proposition 3).
    """

    def excess(gamma: float) -> float:
        shift = math.sqrt(2 * dims) * (gamma - 1)
        return float(ndtr(shift + 3 * gamma) - ndtr(shift - 3 * gamma)) - OVERLAP

    # In few dimensions neighbours overlap more than that however far apart: then a ratio of 10 is the limit.
    gamma = brentq(excess, 1.0, 10.0) if excess(10.0) < 0 else 10.0
    count = max(2, round(1 + math.log(sigma_max / sigma_min) / math.log(gamma)))
    sde = VESDE(sigma_min=sigma_min, sigma_max=sigma_max)
    schedule = Schedule(sde, grids.log_snr(sde, count - 1), torch.zeros(1))
    epsilon = _steadiest(schedule, steps) / 2 * sigma_min**2
    return {
        "sigma_max": sigma_max,
        "sigma_min": sigma_min,
        "scales": count,
        "ratio": float((sigma_max / sigma_min) ** (1 / (count - 1))),
        "steps": steps,
        "step_size": epsilon,
    }


def _stretched(levels: dict[str, Any] | None, factor: float) -> dict[str, Any] | None:
    """The same noise levels for data that is so much wider."""
    if levels is None:
        return None
    powers = {"sigma_max": 1, "sigma_min": 1, "step_size": 2}
    return {key: value * factor ** powers[key] if key in powers else value for key, value in levels.items()}


def _picture(dataset: Dataset, path: Path) -> Path:
    x = tensor(dataset.x[_spread(dataset, 1000 if dataset.shape == (2,) else 64)]).float()
    if dataset.levels is not None:
        return save_pictures(x[:, :3] if x.ndim == 4 else x, path, high=dataset.levels - 1)
    return save_pictures(x, path, low=float(x.min()), high=max(float(x.max()), float(x.min()) + 1e-12))


def _refuse_to_replace(path: Path) -> None:
    """Without --workdir it is in the current folder, where a data.json may be anyone's."""
    try:
        report = "largest_distance" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        report = False
    for file in (path, path.with_suffix(".png")):
        if file.exists() and not report:
            raise ValueError(
                f"{file} is there, and no report of --mode=check_data: give --workdir or --output=FILE.json"
            )


def _spread(dataset: Dataset, count: int) -> NDArray[np.int64]:
    """The rows of so many items, evenly spaced, or of all."""
    return np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64))


def _counted(names: list[str], counts: list[int]) -> str:
    each = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
    return ", ".join(each[:NAMED]) + (f", and so on ({len(each)})" if len(each) > NAMED else "")


def _printable(text: str) -> str:
    """Text that any terminal takes: names of files may hold what is no character."""
    known = sys.stdout.encoding or "utf-8"
    return " ".join(text.encode(known, "backslashreplace").decode(known).split())
