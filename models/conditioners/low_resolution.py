"""A low-resolution image beside x, for super-resolution (Rombach et al. 2022, Section 4.4)."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import interpolate

from scorefield.models.conditioners.base import Conditioner, Size, blank, check_channels
from scorefield.models.hyperparameters import save_hyperparameters


@save_hyperparameters
class LowResolution(Conditioner):
    """`low (B, c, h, w)`, an image in -1 .. 1, as concat: as it is, or resized to the size of the codes.

    At the factor of the autoencoder both sizes are equal, as published. Zeros are nothing.

    Args:
        image_channels: of the image.
        factor: by which training makes it smaller than the data's images.
    """

    keywords = ("low",)

    def __init__(self, image_channels: int = 3, factor: int = 4) -> None:
        super().__init__()
        self.concat, self.factor = image_channels, factor

    def encode(self, raw: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        low = raw["low"]
        check_channels("low", low, self.concat)
        if size is not None and low.shape[2:] != size:
            low = interpolate(low, size=size, mode="bicubic", antialias=True)
        return {"concat": low}

    def nothing(self, batch: int, size: Size) -> dict[str, Tensor]:
        return {"concat": blank(batch, self.concat, size, self.device)}
