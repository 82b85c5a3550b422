"""The batches of a training: images in the model's range, or the codes of a latent run."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Generator, Tensor

from scorefield import training
from scorefield.commands.autoencoder_files import stored_sha256
from scorefield.commands.code_cache import CodeCache, DrawCodes, EncodeImages
from scorefield.commands.codes import FOLDER
from scorefield.commands.conditions import Conditions, conditions_of
from scorefield.commands.run import Run
from scorefield.training import Ranks
from scorefield.training.data import Dataset
from scorefield.training.data.batches import Transform


@dataclass(frozen=True)
class WithConditions:
    """Images in the model's range or their codes, with the conditioning that is made of the same images.

    Args:
        to_range: from stored values to images.
        conditions: of the run.
        codes: how images become codes, in a latent run.
    """

    to_range: training.ToModelRange
    conditions: Conditions
    codes: EncodeImages | None = None

    @property
    def flip(self) -> bool:
        """Whether images are mirrored."""
        return self.to_range.flip

    def __call__(self, stored: Tensor, generator: Generator) -> dict[str, Tensor]:
        return self.with_flips(stored, generator)[0]

    def with_flips(self, stored: Tensor, generator: Generator) -> tuple[dict[str, Tensor], Tensor | None]:
        """x0 and the conditioning, and which images are mirrored, (B,) bool."""
        images, flipped = self.to_range.with_flips(stored, generator)
        x0 = images if self.codes is None else self.codes.of_images(images, generator)
        return {"x0": x0, **self.conditions.of_model_images(images, generator)}, flipped


def batches_of(run: Run, dataset: Dataset, start: int) -> training.Batches:
    """The batches of a run from `start` images on.

    The codes of a latent run are drawn anew each time: from the moments beside the autoencoder, which are made first
    where they are missing, or with training.codes=online from images that are encoded each time.

    Raises:
        ValueError: if the stored codes are of another autoencoder, or the data lacks what the conditioner takes.
    """
    settings, transform, conditions = run.config.training, run.config.transform, conditions_of(run)
    dequantise = transform.dequantise and run.autoencoder is None
    to_range = training.ToModelRange(run.data.levels, run.low, run.high, dequantise, transform.flip)
    codes = None if run.autoencoder is None else EncodeImages(run.autoencoder.scaled, to_range)
    to_model: Transform = codes or to_range
    if conditions is not None and conditions.of_images:
        to_model = WithConditions(to_range, conditions, codes)
    elif run.autoencoder is not None and settings.codes == "cached":
        dataset, to_model = cached(run, dataset), DrawCodes(run.autoencoder.scaled, transform.flip)
    return training.Batches(
        dataset,
        settings.batch,
        seed=run.config.seed,
        start=start,
        transform=to_model,
        labels=settings.labels,
        label_dropout=settings.label_dropout,
        device=run.device,
        cond={} if conditions is None else conditions.arrays(dataset),
        known=conditions is not None,
    )


def cached(run: Run, dataset: Dataset) -> Dataset:
    """The moments of a data set's codes, from the autoencoder's directory.

    They are in the run's own where that has another autoencoder now, or where it has no codes and cannot be written.
    """
    assert run.autoencoder is not None
    place, flip = Path(run.config.autoencoder), run.config.transform.flip
    own, cache = (CodeCache(home / FOLDER, run.autoencoder, dataset, flip) for home in (run.workdir, place))
    if stored_sha256(place) != run.autoencoder.sha256 or not (os.access(place, os.W_OK) or cache.complete):
        cache = own
    if Ranks.current().first:
        cache.make()
    Ranks.current().barrier()
    return cache.read()
