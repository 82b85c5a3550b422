"""The batches of a training: images in the model's range, or the codes of a latent run."""

from pathlib import Path

from scorefield import training
from scorefield.commands.autoencoder_files import stored_sha256
from scorefield.commands.code_cache import CodeCache, DrawCodes, EncodeImages
from scorefield.commands.codes import FOLDER
from scorefield.commands.run import Run
from scorefield.training import Ranks
from scorefield.training.data import Dataset
from scorefield.training.data.batches import Transform


def batches_of(run: Run, dataset: Dataset, start: int) -> training.Batches:
    """The batches of a run from `start` images on.

    The codes of a latent run are drawn anew each time: from the moments beside the autoencoder, which are made first
    where they are missing, or with training.codes=online from images that are encoded each time.

    Raises:
        ValueError: if the stored codes are of another autoencoder.
    """
    settings, transform = run.config.training, run.config.transform
    to_model: Transform = training.ToModelRange(
        run.data.levels, run.low, run.high, transform.dequantise, transform.flip
    )
    if run.autoencoder is not None:
        centred = training.ToModelRange(run.data.levels, run.low, run.high, dequantise=False, flip=transform.flip)
        to_model = EncodeImages(run.autoencoder.scaled, centred)
        if settings.codes == "cached":
            dataset, to_model = cached(run, dataset), DrawCodes(run.autoencoder.scaled)
    return training.Batches(
        dataset,
        settings.batch,
        seed=run.config.seed,
        start=start,
        transform=to_model,
        labels=settings.labels,
        label_dropout=settings.label_dropout,
        device=run.device,
    )


def cached(run: Run, dataset: Dataset) -> Dataset:
    """The moments of a data set's codes, from the autoencoder's directory, or the run's own."""
    assert run.autoencoder is not None
    place = Path(run.config.autoencoder)
    home = place if stored_sha256(place) == run.autoencoder.sha256 else run.workdir
    cache = CodeCache(home / FOLDER, run.autoencoder, dataset, run.config.transform.flip)
    if Ranks.current().first:
        cache.make()
    Ranks.current().barrier()
    return cache.read()
