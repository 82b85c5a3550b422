"""Training: `(model, objectives, data) -> weights`."""

from scorefield.training import times, weighting
from scorefield.training.averages.ema import EMA
from scorefield.training.averages.power_ema import PowerEMA, reconstruct, snapshots
from scorefield.training.checkpoints.atomic import DiskFullError, atomic_dir, remove_partial
from scorefield.training.checkpoints.checkpoint import latest, latest_valid, load, load_weights, save
from scorefield.training.data.batches import Batches, ToModelRange
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.distributed.sharding import Shards, shard
from scorefield.training.engine import Objective, Step, run
from scorefield.training.model import Model
from scorefield.training.monitor.loss_guard import LossGuard
from scorefield.training.objectives.classifier import train_classifier
from scorefield.training.objectives.dequantiser import dequantiser_gain, train_dequantiser
from scorefield.training.objectives.dsm import dsm_loss, train
from scorefield.training.state import TrainingState

__all__ = [
    "EMA", "Batches", "DiskFullError", "LossGuard", "Model", "Objective", "PowerEMA", "Ranks", "Shards", "Step",
    "ToModelRange", "TrainingState", "atomic_dir", "dequantiser_gain", "dsm_loss", "latest", "latest_valid",
    "load", "load_weights", "reconstruct", "remove_partial", "run", "save", "shard", "snapshots", "times", "train",
    "train_classifier", "train_dequantiser", "weighting",
]  # fmt: skip
