"""Other people's autoencoders as ours."""

from scorefield.models.checkpoints.autoencoders.load import (
    SOURCES,
    OpenedAutoencoder,
    holds_autoencoder,
    load_autoencoder_checkpoint,
)

__all__ = ["SOURCES", "OpenedAutoencoder", "holds_autoencoder", "load_autoencoder_checkpoint"]
