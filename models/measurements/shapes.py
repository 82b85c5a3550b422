"""The shapes of samples that a measurement takes."""


def spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The part of a sample's shape without its channels: (H, W) of images (C, H, W), and all of other shapes."""
    return tuple(shape[1:]) if len(shape) == 3 else tuple(shape)


def as_image(shape: tuple[int, ...], what: str) -> tuple[int, int, int]:
    """The shape (C, H, W) of images.

    Raises:
        ValueError: for samples that are no images; `what` needs them.
    """
    if len(shape) != 3:
        raise ValueError(
            f"expected images (C, H, W) for {what}, got samples of shape {tuple(shape)}: use a task that takes "
            "vectors, as half, sense or matrix"
        )
    channels, height, width = shape
    return channels, height, width
