"""The settings that every configuration of an autoencoder has. The names are those of configs/defaults.py."""

import ml_collections

from scorefield.configs.build import AUTOENCODERS, DATASETS, spec


def autoencoder_defaults() -> ml_collections.ConfigDict:
    """The default configuration of an autoencoder: KL, on the digits, with losses that need nobody's weights."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "data": spec(DATASETS, "digits"),
            "transform": {
                "low": -1.0,  # Integers 0 .. levels - 1 become cells of [low, high], and images their centres.
                "high": 1.0,
                "dequantise": False,  # Uniform within the cell instead.
                "flip": False,  # Mirror half of the images.
            },
            "net": spec(AUTOENCODERS, "kl"),
            "loss": {
                "norm": "l1",  # Or "l2": of the difference, a mean over values.
                "perceptual": "laplacian",  # A distance of images beside it: "none", or "lpips:weights=PATH".
                "perceptual_weight": 1.0,
                "kl": 1e-6,  # Weight of the KL, for a sum over the values of an image as in LDM.
                "codebook": 1.0,  # Weight of a quantiser's loss.
                "adversarial": 0.0,  # Weight of the discriminator; 0 for none.
                "largest": 1e4,  # Limit of the factor that makes both losses equally strong.
                "start": 0,  # The first step with the adversarial loss; 0 to wait until the others cease to fall.
                "ramp": 1000,  # Steps over which it rises from there.
                "discriminator_width": 64,  # Channels of its first layer.
                "discriminator_layers": 3,  # Its convolutions of stride 2.
            },
            "training": {
                "images": 1_000_000,
                "batch": 32,
                "learning_rate": 1e-4,  # Of both networks.
                "betas": (0.5, 0.9),  # Of Adam.
                "adam_eps": 1e-8,  # Added to the root of the second moment.
                "weight_decay": 0.0,  # Of AdamW.
                "warmup": 0,  # Images over which the learning rate rises.
                "decay": False,  # Decay the learning rate to zero, as half a cosine.
                "clip": 0.0,  # Largest norm of the gradient; 0 for no limit.
                "ema": 0.999,  # Decay of the averaged weights.
                "ema_ramp": 0.0,  # Their longest half-life, relative to the run so far; 0 for another rule.
                "precision": "float32",  # Or "bfloat16".
                "accumulate": 1,  # Split a batch into parts to save memory.
                "recompute": False,  # Recompute activations in the backward pass to save memory.
                "explosion": 1000.0,  # Largest loss, relative to its running mean; 0 for no limit.
                "log_every": 100,  # Steps.
                "log_seconds": 30.0,  # Between printed lines.
                "evaluate_every": 50_000,  # Images between measurements on held-out images; 0 for the last alone.
                "evaluate_images": 500,  # Of the test split.
                "measure_images": 10_000,  # Training images over which the scale of the codes is measured at the end.
                "sample_every": 500_000,  # Images between pictures; 0 for none.
                "sample_seconds": 30.0,  # To the first picture, then twice as long each time; 0 for none by the clock.
                "checkpoint_every": 500_000,  # Images; 0 for the last checkpoint alone.
                "checkpoint_seconds": 600.0,  # Between checkpoints; 0 for none by the clock.
                "keep": 2,  # Number of newest checkpoints to keep.
                "keep_every": 0,  # Images; the first checkpoint after each multiple is kept too.
                "on_full_disk": "stop",  # Or "continue" without checkpoints until there is room.
            },
        }
    )
