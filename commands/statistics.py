"""Means and covariances of features, as a file that FID needs in place of the images."""

from pathlib import Path
from typing import Any

import numpy as np

from scorefield.commands.arguments import at_least
from scorefield.commands.data_places import open_split
from scorefield.commands.evaluate.extract import extract
from scorefield.commands.evaluate.sample_files import samples_of_file
from scorefield.commands.evaluate.statistics_files import write_statistics
from scorefield.commands.evaluate.store import shared_folder
from scorefield.commands.evaluate.subjects import Stored
from scorefield.commands.features import open_features
from scorefield.commands.outputs import check_output, output_path
from scorefield.commands.progress_bar import tell
from scorefield.commands.run import device_of, stored_tensor
from scorefield.commands.trained import open_trained
from scorefield.configs import build
from scorefield.evaluation.features.base import StoredAs
from scorefield.evaluation.metrics.moments import Moments
from scorefield.training.data import Dataset
from scorefield.training.distributed.ranks import Ranks

MOMENTS = ("features", "spatial")
SEED = 0  # of the images, where some are chosen


def statistics(
    workdir: Path,
    *,
    data: str | None = None,
    split: str = "train",
    input: str | None = None,  # noqa: A002 - the flag's name
    features: str | None = None,
    num: int | None = None,
    batch: int = 256,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Write the mean and the covariance of features of a data set, or of the images of --input, to an .npz.

    The names are `mu` and `sigma` (and `mu_s` and `sigma_s` of spatial features), which pytorch-fid, EDM and ADM read.
    All images count, to the last one, or `num` of them at random. `count` and `recipe` say what was done. Pass the file
    to --mode=evaluate as --reference.

    Without --data or --input they are of the data of the run in --workdir, whose own network may be the --features.

    Raises:
        ValueError: if there are no images, or the features do not take them.
    """
    at_least(1, batch=batch)
    at_least(2, num=num)
    ranks = Ranks.of_environment()
    check_output(output, ".npz")
    is_run = (workdir / "config.json").is_file()
    trained = open_trained(workdir, device) if is_run or (data is None and input is None) else None
    if data is not None and input is not None:
        raise ValueError("expected --data or --input, got both: leave one out")
    if input is not None:
        dataset = samples_of_file(Path(input), None)
    elif trained is not None:
        dataset = trained.run.on(data).dataset(split)
    else:
        spec = build.spec(build.DATASETS, data or "")
        tell(f"reads the {split} split of {spec.name}")
        dataset = open_split(spec, split)
    part = dataset.subset(num, SEED)
    extractor = open_features(features, StoredAs(part.shape, part.levels), device_of(device), trained)
    fitted = extractor.fitted(stored_tensor(part))
    if fitted.fingerprint != extractor.fingerprint:
        raise ValueError(
            f"expected features that are not fitted to data, got {fitted.recipe}: --mode=evaluate fits them to --data; "
            "here take --features=pixels or own"
        )
    found = extract(Stored(part, batch), extractor, shared_folder(), ranks, f"features, {dataset.name}")
    if found is None:
        return {}
    moments = {name: Moments.of(found.features[name]) for name in MOMENTS if name in found.features}
    recipe = {
        "features": extractor.recipe, "features_sha256": extractor.fingerprint, "data": dataset.name,
        "split": None if input is not None else split, "data_sha256": part.fingerprint, "of": len(dataset),
        "shape": list(part.shape), "levels": part.levels,
    }  # fmt: skip
    path = output_path(output, workdir / _name(dataset, split, input))
    write_statistics(path, moments, recipe)
    spread = float(np.trace(moments["features"].covariance))
    return {
        "images": len(part), "dimensions": len(moments["features"].mean), "trace of the covariance": f"{spread:.6g}",
        "features": extractor.recipe, "files": [str(path)],
    }  # fmt: skip


def _name(dataset: Dataset, split: str, source: str | None) -> str:
    return f"statistics_{dataset.name}{'' if source is not None else f'_{split}'}.npz"
