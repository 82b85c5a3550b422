"""TensorBoard's files of a training."""

import json
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from scorefield.commands.run import Run
from scorefield.commands.training.differences import flat
from scorefield.commands.training.room import room


def open_board(run: Run, before: int) -> SummaryWriter:
    """The writer of a run that has seen `before` images: what came after them is taken back.

    It has the configuration, as text and as hyperparameters to compare runs by.
    """
    board = SummaryWriter(str(run.workdir / "tensorboard"), purge_step=before + 1)
    described = run.described()["config"]
    settings = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flat(described).items()}
    with room(run, optional=True):
        board.add_text("config", f"```json\n{json.dumps(described, indent=2)}\n```")
        writer: Any = board.file_writer
        for summary in hparams(settings, {"train/loss": 0.0}):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
    return board
