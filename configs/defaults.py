"""What every configuration has; the files beside this one say what differs."""

from collections.abc import Iterable

import ml_collections

from scorefield.configs.build import DATASETS, GRIDS, NETWORKS, PRECONDITIONS, SDES, SOLVERS, TIMES, WEIGHTINGS, spec


def along(config: ml_collections.ConfigDict, sde: ml_collections.ConfigDict) -> None:
    """Put a configuration on a path, with the parameterisation and the loss that suit it.

    Where the noise grows beyond the data (VE, EDM) those are EDM's, on the straight line its velocity.
    """
    config.sde = sde
    if sde.name in ("ve", "edm"):
        config.precondition = spec(PRECONDITIONS, "edm")
        config.training.weight = spec(WEIGHTINGS, "edm")
        config.training.times = spec(TIMES, "log_normal")
    if sde.name == "flow":
        config.precondition = spec(PRECONDITIONS, "flow")


def check_variant(variant: str, variants: Iterable[str], file: str) -> None:
    """Raises ValueError unless the file has the variant."""
    if variant not in variants:
        raise ValueError(f"expected a variant of configs/{file}.py ({', '.join(variants)}), got {variant!r}")


def defaults() -> ml_collections.ConfigDict:
    """A U-Net that predicts noise along the variance-preserving path, on the embedded digits."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "data": spec(DATASETS, "digits"),
            "transform": {
                "low": -1.0,  # integers 0 .. levels - 1 become cells of [low, high]
                "high": 1.0,
                "dequantise": True,  # uniform within the cell, rather than its centre
                "flip": False,  # left and right, half of the time
            },
            "sde": spec(SDES, "vp"),
            "net": spec(NETWORKS, "unet"),
            "precondition": spec(PRECONDITIONS, "eps"),
            "training": {
                "images": 1_000_000,
                "batch": 128,
                "learning_rate": 2e-4,
                "betas": (0.9, 0.999),  # Adam's
                "adam_eps": 1e-8,  # what it adds to the root of the second moment
                "weight_decay": 0.0,  # AdamW's: times the learning rate, the share of weights that a step takes off
                "warmup": 0,  # images over which the learning rate rises
                "decay": False,  # let it fall to zero along a half cosine
                "clip": 1.0,  # largest norm of the gradient; 0 for no limit
                "ema": 0.9999,
                "more_ema": (),  # decays of further averages, kept beside it
                "snapshot_every": 0,  # images between snapshots of EDM2's averages; 0 to follow none
                "snapshot_lengths": (0.05, 0.10),  # of those averages, relative to the length of training
                "snapshot_dtype": "float16",  # or "float32"
                "precision": "float32",  # or "bfloat16"
                "accumulate": 1,  # parts that a process takes its share of a batch in, for less memory
                "recompute": False,  # activations in the backward pass, for less memory
                "compile": False,  # the network by torch.compile; on CPUs its normalisations, as loops in C
                "sharding": "ddp",  # of several processes: each a whole network, or "fsdp" for a share of it
                "weight": spec(WEIGHTINGS, "simple"),
                "times": spec(TIMES, "stratified"),
                "labels": False,  # train with the data set's classes
                "label_dropout": 0.1,  # the share of them left out, for guidance
                "explosion": 1000.0,  # times its running mean that a loss may be; 0 for any
                "log_every": 100,  # steps
                "sample_every": 500_000,  # images
                "sample_evaluations": 50,  # pictures are drawn faster than by `sampling` where that takes more
                "checkpoint_every": 500_000,  # images
                "keep": 2,  # the newest checkpoints
                "keep_every": 0,  # images; the first checkpoint past each multiple stays as well
                "on_full_disk": "stop",  # or "continue", until there is room for a checkpoint again
            },
            "sampling": {"solver": spec(SOLVERS, "dpm"), "grid": spec(GRIDS, "log_snr"), "steps": 20, "denoise": True},
        }
    )
