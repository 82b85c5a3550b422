"""Denoising score matching: `(denoiser, sde, data) -> weights`."""

from training import times, weighting
from training.batches import Batches, Scaled
from training.checkpoint import latest, load, load_weights, newest_whole, save
from training.dequantiser import DequantiserStep, dequantiser_gain, train_dequantiser
from training.distributed import Ranks
from training.ema import EMA
from training.loop import Step, TrainingState, train
from training.loss import dsm_loss
from training.power_ema import PowerEMA, reconstruct, snapshots
from training.sealed import DiskFullError, sealed, tidy
from training.sharding import Sharding
from training.watch import Watch

__all__ = [
    "EMA",
    "Batches",
    "DequantiserStep",
    "DiskFullError",
    "PowerEMA",
    "Ranks",
    "Scaled",
    "Sharding",
    "Step",
    "TrainingState",
    "Watch",
    "dequantiser_gain",
    "dsm_loss",
    "latest",
    "load",
    "load_weights",
    "newest_whole",
    "reconstruct",
    "save",
    "sealed",
    "snapshots",
    "tidy",
    "times",
    "train",
    "train_dequantiser",
    "weighting",
]
