"""`--mode=train_autoencoder`."""

from scorefield.commands.train_autoencoder.command import train_autoencoder

__all__ = ["train_autoencoder"]
