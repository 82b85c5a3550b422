"""The settings that every configuration has. The other files change some of them."""

from collections.abc import Collection

import ml_collections

from scorefield.configs.build import DATASETS, GRIDS, NETWORKS, PRECONDITIONS, SDES, SOLVERS, TIMES, WEIGHTINGS, spec
from scorefield.configs.text import few, suggestion


def along(config: ml_collections.ConfigDict, sde: ml_collections.ConfigDict) -> None:
    """Give a configuration a path, with the parameterisation and the loss that suit it.

    On VE and EDM, whose noise grows beyond the data, both are those of EDM. On the straight line the network predicts
    the velocity.
    """
    config.sde = sde
    if sde.name in ("ve", "edm"):
        config.precondition = spec(PRECONDITIONS, "edm")
        config.training.weight = spec(WEIGHTINGS, "edm")
        config.training.times = spec(TIMES, "log_normal")
    if sde.name == "flow":
        config.precondition = spec(PRECONDITIONS, "flow")


def check_variant(variant: str, variants: Collection[str], file: str) -> None:
    """Raises ValueError unless the configuration has the variant."""
    if variant not in variants:
        raise ValueError(
            f"expected a variant of {file} ({few(variant, variants)}), got {variant!r}{suggestion(variant, variants)}"
        )


def defaults() -> ml_collections.ConfigDict:
    """The default configuration: a U-Net that predicts noise on the variance-preserving path, on the digits."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "data": spec(DATASETS, "digits"),
            "transform": {
                "low": -1.0,  # Integers 0 .. levels - 1 become cells of [low, high].
                "high": 1.0,
                "dequantise": True,  # Uniform within the cell; otherwise its centre.
                "flip": False,  # Mirror half of the images.
            },
            "tokenizer": "",  # A tokenizer.json or vocab.txt for captions; else one is made of them.
            "autoencoder": "",  # Directory of one; the run is then of its codes.
            "sde": spec(SDES, "vp"),
            "net": spec(NETWORKS, "unet"),
            "conditioner": None,  # What makes tokens or images beside x of captions, boxes, maps; or of the classes.
            "precondition": spec(PRECONDITIONS, "eps"),
            "training": {
                "images": 1_000_000,
                "batch": 128,
                "optimizer": "adam",  # Or "muon".
                "learning_rate": 2e-4,
                "betas": (0.9, 0.999),  # Of Adam.
                "adam_eps": 1e-8,  # Added to the root of the second moment.
                "weight_decay": 0.0,  # Of AdamW.
                "decay_biases": True,  # Whether it is of biases too.
                "momentum": 0.9,  # Of Muon.
                "warmup": 0,  # Images over which the learning rate rises.
                "decay": False,  # Decay the learning rate to zero, as half a cosine.
                "clip": 1.0,  # Largest norm of the gradient; 0 for no limit.
                "ema": 0.9999,  # Decay of the averaged weights.
                "ema_ramp": 0.0,  # Their longest half-life, relative to the run so far; 0 for another rule.
                "more_ema": (),  # Decays of further averages.
                "snapshot_every": 0,  # Images between snapshots of EDM2's averages; 0 for none.
                "snapshot_lengths": (0.05, 0.10),  # Of those averages, relative to the length of training.
                "snapshot_dtype": "float16",  # Or "float32".
                "precision": "float32",  # Or "bfloat16".
                "accumulate": 1,  # Split a batch into parts to save memory.
                "recompute": False,  # Recompute activations in the backward pass to save memory.
                "compile": False,  # Compile the network with torch.compile.
                "sharding": "ddp",  # With several processes: "ddp", or "fsdp" to split the weights.
                "loss": "dsm",  # Denoising score matching, or "elbo": the bound, which ignores the weight.
                "elbo_steps": 0,  # T of the bound's chain; 0 for continuous time.
                "second_order": 0.0,  # How much of the second-order loss is added, to fine-tune a run for the flow.
                "norm": "l2",  # Of the error; or "l1", for four recipes of latent diffusion.
                "weight": spec(WEIGHTINGS, "simple"),
                "times": spec(TIMES, "stratified"),
                "labels": False,  # Train with the classes of the data set.
                "label_dropout": 0.1,  # The fraction of labels that are dropped, for guidance.
                "codes": "cached",  # Or "online": of an autoencoder, computed once or at each step.
                "explosion": 1000.0,  # Largest loss, relative to its running mean; 0 for no limit.
                "log_every": 100,  # Steps.
                "log_seconds": 30.0,  # Between printed lines.
                "sample_every": 500_000,  # Images; 0 for no pictures.
                "sample_seconds": 60.0,  # To the first picture, then twice as long each time; 0 for none by the clock.
                "sample_evaluations": 50,  # Largest number of network evaluations for a picture.
                "checkpoint_every": 500_000,  # Images; 0 for the last checkpoint alone.
                "checkpoint_seconds": 600.0,  # Between checkpoints; 0 for none by the clock.
                "keep": 2,  # Number of newest checkpoints to keep.
                "keep_every": 0,  # Images; the first checkpoint after each multiple is kept too.
                "on_full_disk": "stop",  # Or "continue" without checkpoints until there is room.
            },
            "sampling": {
                "solver": spec(SOLVERS, "adams", variable="soft_clipped"),
                "grid": spec(GRIDS, "soft_clipped"),
                "steps": 20,
                "denoise": True,
            },
        }
    )
