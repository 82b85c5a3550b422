"""An autoencoder in training, and the files that others read."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorefield.commands.autoencoder_files import StoredAutoencoder, write_autoencoder
from scorefield.commands.codes import measure_codes
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.training.room import room
from scorefield.commands.training.session import Session
from scorefield.models.code_statistics import CodeStatistics
from scorefield.training import Ranks
from scorefield.training.data import Dataset

FEW = 1_000  # training images over which the scale of the codes is measured at a checkpoint before the last


@dataclass
class AutoencoderSession(Session):
    """A session that writes the averaged weights for others at each checkpoint.

    Args:
        dataset: the training images.
        statistics: shift and scale of the codes, at the last checkpoint.
        written: the files for others.
    """

    dataset: Dataset = dataclasses.field(kw_only=True)
    statistics: CodeStatistics | None = None
    written: tuple[Path, ...] = ()

    def save(self, log: dict[str, Any] | None = None) -> Path:
        """Write a checkpoint, with the state of the log; then autoencoder.safetensors and autoencoder.json.

        Raises:
            ValueError: if there is no room for them.
        """
        place = super().save(log)
        if Ranks.current().first:
            with room(self.run):
                self.written = tuple(write_autoencoder(self.run.workdir, self.stored()))
        return place

    def stored(self) -> StoredAutoencoder:
        """The averaged weights, with shift and scale of their codes; codes that do not vary keep their own."""
        run, state = self.run, self.state
        stored = StoredAutoencoder(
            state.ema.model.autoencoder,
            run.config.net,
            run.data.shape,
            run.data.levels,
            run.low,
            run.high,
            data=run.config.data,
            source=f"trained by Scorefield on {state.images:,} images of {run.data.name}",
        )
        settings = run.config.training
        over = state.images >= settings.images
        count = settings.measure_images if over else min(FEW, settings.measure_images)
        try:
            self.statistics = measure_codes(stored, self.dataset, count, show=False)
        except ValueError as error:
            on_stderr(f"shift and scale of the codes are not measured: {error}")
            return stored
        return stored.with_statistics(self.statistics, run.data.name)
