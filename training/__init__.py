"""Denoising score matching: `(denoiser, sde, data) -> weights`."""

from scorefield.training import times, weighting
from scorefield.training.averages.ema import EMA
from scorefield.training.averages.power_ema import PowerEMA, reconstruct, snapshots
from scorefield.training.checkpoints.atomic import DiskFullError, atomic_dir, remove_partial
from scorefield.training.checkpoints.checkpoint import latest, latest_valid, load, load_weights, save
from scorefield.training.data.batches import Batches, ToModelRange
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.distributed.sharding import Sharding
from scorefield.training.engine import Step, TrainingState, train
from scorefield.training.monitor.loss_guard import LossGuard
from scorefield.training.objectives.dequantiser import DequantiserStep, dequantiser_gain, train_dequantiser
from scorefield.training.objectives.dsm import dsm_loss

__all__ = [
    "EMA",
    "Batches",
    "DequantiserStep",
    "DiskFullError",
    "LossGuard",
    "PowerEMA",
    "Ranks",
    "Sharding",
    "Step",
    "ToModelRange",
    "TrainingState",
    "atomic_dir",
    "dequantiser_gain",
    "dsm_loss",
    "latest",
    "latest_valid",
    "load",
    "load_weights",
    "reconstruct",
    "remove_partial",
    "save",
    "snapshots",
    "times",
    "train",
    "train_dequantiser",
    "weighting",
]
