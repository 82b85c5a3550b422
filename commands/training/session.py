"""A training in progress, and how it is saved."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scorefield import training
from scorefield.commands.run import Run
from scorefield.commands.training.settings import SNAPSHOTS
from scorefield.training import DiskFullError, PowerEMA, Ranks, Shards, TrainingState


@dataclass
class Session:
    """What a training changes. With several processes, all must call each method.

    Args:
        run: the configuration and where it is trained.
        state: model, optimiser, averages, generator and progress.
        power: EDM2's averages, where they are followed.
        shards: of the state and the averages, if they are in shards.
    """

    run: Run
    state: TrainingState
    power: PowerEMA | None = None
    shards: Shards | None = None

    def shard(self) -> None:
        """Divide weights, averages and moments over the processes."""
        self.shards = training.shard(self.state, *([self.power] if self.power else []))

    def save(self, log: dict[str, Any] | None = None) -> Path:
        """Write a checkpoint, with the state of the log.

        Raises:
            ValueError: if there is no room for it.
        """
        settings, folder = self.run.config.training, self.run.workdir / "checkpoints"
        state = self.shards.gather(self.state) if self.shards else self.state
        extra = {"log": log or {}}
        try:
            return training.save(
                folder, state, settings.keep, keep_every=settings.keep_every, power=self._power(), extra=extra
            )
        except DiskFullError as error:
            last = training.latest(folder)
            left = "there is none before it" if last is None else f"the last complete one is {last}"
            raise ValueError(f"{error.strerror}: {left}; make room, and run the same command again") from None

    def save_if_room(self, log: dict[str, Any]) -> None:
        """`save`; on a full disk training continues where `training.on_full_disk` allows it."""
        try:
            self.save(log)
        except ValueError as error:
            if not isinstance(error.__context__, DiskFullError):
                raise
            self._full(str(error), error)

    def store_snapshot(self) -> None:
        """Write a snapshot of EDM2's averages; a full disk is as for `save_if_room`."""
        power = self._power()
        if power is None or not Ranks.current().first:
            return
        dtype = SNAPSHOTS[self.run.config.training.snapshot_dtype]
        try:
            power.store(self.run.workdir / "snapshots", self.state.images, dtype)
        except DiskFullError as error:
            self._full(f"{error.strerror}: make room, and run the same command again", error)

    def _full(self, line: str, error: Exception) -> None:
        if self.run.config.training.on_full_disk != "continue":
            raise ValueError(line) from error
        tqdm.write(f"{line}; training continues without it", file=sys.stderr)

    def _power(self) -> PowerEMA | None:
        return self.shards.gather_averages(self.power) if self.shards and self.power else self.power
