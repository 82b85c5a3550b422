"""Other people's checkpoints as denoisers of ours."""

from scorefield.models.checkpoints.load import SOURCES, load_checkpoint
from scorefield.models.checkpoints.report import LoadReport
from scorefield.models.checkpoints.spec import CheckpointSpec

__all__ = ["SOURCES", "CheckpointSpec", "LoadReport", "load_checkpoint"]
