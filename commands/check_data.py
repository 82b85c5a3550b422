"""A report on a data set before training, and the noise levels that suit it."""

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

from scorefield.commands.arguments import at_least
from scorefield.commands.autoencoder_files import read_autoencoder
from scorefield.commands.data_places import open_split
from scorefield.commands.outputs import check_output, output_path, write_json
from scorefield.commands.progress_bar import tell
from scorefield.commands.run import open_run
from scorefield.configs import build, own
from scorefield.evaluation import plot_samples
from scorefield.sde_lib import VESDE
from scorefield.solvers import Schedule, grids
from scorefield.solvers.sde.langevin import variance_preserving_step
from scorefield.training.data import Dataset, layout
from scorefield.training.data.batches import tensor
from scorefield.training.data.dataset import evenly_spaced
from scorefield.training.data.distance import in_blocks, largest_distance
from scorefield.training.data.files.lazy_rows import LazyRows
from scorefield.training.data.units import odd_units_of

SIGMA_MIN = 0.01  # NCSNv2's last noise level, for images in [0, 1]
OVERLAP = 0.567  # of neighbouring levels, in all five data sets of the paper; its text has "about 0.5"
STEPS = 5  # at each level; NCSNv2's number for CIFAR-10
EXAMPLES, LONGEST = 3, 80  # captions that are shown, and characters of each
PRINTED = 20  # class names that are printed; the report has all


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
        workdir: where the report goes. Without a configuration it is a run, and the data is that of the run.
        config: names the data, and the network that the data's shape is tried with.
        split: "train" or "test".
        num: items to inspect, evenly spaced; all if there are fewer.
        steps: of Langevin dynamics at each noise level, for the step size.
        output: a .json to write instead of WORKDIR/data.json; the picture goes beside it.

    Raises:
        ValueError: if there is no such data.
    """
    at_least(2, num=num)
    at_least(1, steps=steps)
    check_output(output, ".json")
    config = open_run(workdir, "cpu").config if config is None else config
    tell(f"reads the {split} split of {config.data.name}")
    dataset = open_split(config.data, split)
    chosen = own.fill(config, own.preset(len(dataset), dataset.shape))
    rows = evenly_spaced(len(dataset), num)
    x = dataset.x if len(rows) == len(dataset) else LazyRows.of(dataset.x, rows, dataset.x.dtype)
    unit = 1.0 if dataset.levels is None else 1.0 / (dataset.levels - 1)
    distance, exact = largest_distance(x)
    sigma_max = distance * unit
    report: dict[str, Any] = {
        **described(dataset, x, unit),
        "looked_at": "all" if len(rows) == len(dataset) else f"{len(rows)} of {len(dataset)}, evenly spaced",
        "largest_distance": sigma_max,
        "largest_distance_is": "exact" if exact else "a lower bound",
        "network": network(config, dataset),
        "chosen_by_the_data": chosen or None,
        "warning": odd_units_of(dataset, float(config.transform.low), float(config.transform.high)),
    }
    if sigma_max > SIGMA_MIN:
        report["ncsnv2"] = noise_levels(sigma_max, math.prod(dataset.shape), steps=steps)
    if dataset.levels is not None:  # 0 .. levels - 1 become the centres of cells from low to high
        low, high = float(config.transform.low), float(config.transform.high)
        report["ncsnv2_in_the_model"] = _stretched(report.get("ncsnv2"), (high - low) * (1 - 1 / dataset.levels))
    report = {key: value for key, value in report.items() if value is not None}
    path = output_path(output, workdir.absolute() / "data.json", report)
    write_json(path, report)
    return {**_shown(report), "files": [str(path), str(_picture(dataset, path.with_suffix(".png")))]}


def network(config: ml_collections.ConfigDict, dataset: Dataset) -> str:
    """Whether the configured network takes a data set's shape, or how it refuses it, on torch's meta device."""
    name, shape = config.net.name, dataset.shape
    if place := config.get("autoencoder"):
        shape = read_autoencoder(Path(place)).code_shape(shape)
    classes = dataset.num_classes if config.training.get("labels") else None
    try:
        with torch.device("meta"), torch.no_grad():
            if build.is_autoencoder(config):
                build.autoencoder(config.net, shape[0])(torch.empty(1, *shape))
            else:
                alone = ml_collections.ConfigDict({**config, "conditioner": None})  # which training fits to the data
                build.network(alone, shape, classes)(torch.empty(1, *shape), torch.empty(1))
    except ValueError as error:
        return f"{name} refuses it: {layout.advice(shape) or ' '.join(str(error).split())}"
    except Exception:  # a user's network may need values, or other arguments
        return f"{name}, which cannot be tried before training"
    return f"{name} takes it"


def described(dataset: Dataset, x: NDArray[Any], unit: float) -> dict[str, Any]:
    """The facts of a data set; moments in units of `unit`, for each channel if there are channels."""
    axes = dataset.shape[:1] if len(dataset.shape) > 1 else (1,)
    low, high, total, square, count, used = math.inf, -math.inf, 0.0, 0.0, 0, set[float]()
    for items in in_blocks(x, 1024):
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
        "notes": list(dataset.notes) or None,
        "stored_as": str(dataset.x.dtype),
        "channels": dataset.shape[0],
        "range": [low, high],
        "levels_used": len(used) if dataset.levels is not None else None,
        "unit": "of 0 to 1" if dataset.levels is not None else "as stored",
        "mean": [round(float(value), 6) for value in np.atleast_1d(mean)][:16],
        "std": [round(float(value), 6) for value in np.atleast_1d(deviation)][:16],
        "class_counts": classes,
        "class_names": list(dataset.class_names) or None,
        **conditions(dataset),
        "sha256": dataset.fingerprint,
    }


def conditions(dataset: Dataset) -> dict[str, Any]:
    """What a data set has beside its items: captions and their words, boxes and their classes, classes of maps."""
    found: dict[str, Any] = {}
    if "caption" in dataset.cond:
        texts = dataset.cond["caption"].tolist()
        found["captions"] = len(texts) - texts.count("")
        found["captions_missing"] = texts.count("") or None
        found["captions_different"] = len(set(texts))
        found["caption_words"] = max(len(text.split()) for text in texts)
        found["caption_examples"] = [text[:LONGEST] for text in texts[:EXAMPLES]]
    if "boxes" in dataset.cond:
        kinds = dataset.cond["boxes"][..., 0]
        found["boxes_at_most"] = int((kinds >= 0).sum(1).max(initial=0))
        found["box_classes"] = int(kinds.max(initial=-1)) + 1
    if "map" in dataset.cond:
        found["map_shape"] = list(dataset.cond["map"].shape[1:])
        found["map_classes"] = int(dataset.cond["map"].max(initial=0)) + 1
    return found


def noise_levels(sigma_max: float, dims: int, *, sigma_min: float = SIGMA_MIN, steps: int = STEPS) -> dict[str, Any]:
    """NCSNv2's noise levels and step size (Song and Ermon 2020, Techniques 1, 2 and 4).

    sigma_max is the largest distance of two data points (1). The levels are geometric, with a ratio gamma (2):
    Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = `OVERLAP`. The step size epsilon
    preserves the variance from level to level after `steps` steps (4, Proposition 3).
    """

    def excess(gamma: float) -> float:
        shift = math.sqrt(2 * dims) * (gamma - 1)
        return float(ndtr(shift + 3 * gamma) - ndtr(shift - 3 * gamma)) - OVERLAP

    # In few dimensions neighbours overlap more than that at any ratio: then it is 10.
    gamma = brentq(excess, 1.0, 10.0) if excess(10.0) < 0 else 10.0
    count = max(2, round(1 + math.log(sigma_max / sigma_min) / math.log(gamma)))
    sde = VESDE(sigma_min=sigma_min, sigma_max=sigma_max)
    schedule = Schedule(sde, grids.log_snr(sde, count - 1), torch.zeros(1))
    epsilon = variance_preserving_step(schedule, steps) / 2 * sigma_min**2
    return {
        "sigma_max": sigma_max,
        "sigma_min": sigma_min,
        "scales": count,
        "ratio": float((sigma_max / sigma_min) ** (1 / (count - 1))),
        "steps": steps,
        "step_size": epsilon,
    }


def _stretched(levels: dict[str, Any] | None, factor: float) -> dict[str, Any] | None:
    """The noise levels for data that is `factor` times as wide."""
    if levels is None:
        return None
    powers = {"sigma_max": 1, "sigma_min": 1, "step_size": 2}
    return {key: value * factor ** powers[key] if key in powers else value for key, value in levels.items()}


def _picture(dataset: Dataset, path: Path) -> Path:
    x = tensor(dataset.x[evenly_spaced(len(dataset), 1000 if len(dataset.shape) == 1 else 64)]).float()
    if dataset.levels is not None:
        plot_samples(x[:, :3] if x.ndim == 4 else x, path, high=dataset.levels - 1)
    else:
        plot_samples(x, path, low=float(x.min()), high=max(float(x.max()), float(x.min()) + 1e-12))
    return path


def _shown(report: dict[str, Any]) -> dict[str, Any]:
    """The report as it is printed: lists on a line, and classes by their names."""
    shown = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in report.items()}
    shown |= {key: "; ".join(report[key]) for key in ("notes", "caption_examples") if key in report}
    if shown.pop("class_names", None):
        shown["class_counts"] = _counted(report["class_names"], report["class_counts"])
    return {key: _printable(value) if isinstance(value, str) else value for key, value in shown.items()}


def _counted(names: list[str], counts: list[int]) -> str:
    each = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
    return ", ".join(each[:PRINTED]) + (f", and so on ({len(each)})" if len(each) > PRINTED else "")


def _printable(text: str) -> str:
    """Text that any terminal takes: names of files may have bytes that are no characters."""
    known = sys.stdout.encoding or "utf-8"
    return " ".join(text.encode(known, "backslashreplace").decode(known).split())
