"""A discriminator of patches (Isola et al. 2017, "Pix2Pix", Section 3.2.2)."""

from torch import Tensor, nn

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.norm import make_norm

SLOPE, WIDEST, SPREAD = 0.2, 8, 0.02


@save_hyperparameters
class PatchGAN(nn.Module):
    """Images (B, C, H, W) to a logit for each of their overlapping patches, (B, 1, h, w).

    Convolutions 4x4: `layers` of stride 2, two of stride 1; 70 pixels see each other with 3 layers, 34 with 2.
    Group normalisation stands where the paper has batch normalisation, with as many parameters. So a logit depends on
    one image alone, and neither parts of a batch nor processes change it.

    Args:
        channels: C, any number.
        layers: of stride 2.
        width: channels of the first layer; they double from layer to layer, up to 8 times.

    Raises:
        ValueError: if one of them is below 1.
    """

    def __init__(self, channels: int, layers: int = 3, width: int = 64) -> None:
        super().__init__()
        if min(channels, layers, width) < 1:
            raise ValueError(
                f"expected channels, layers and width of at least 1, got {channels}, {layers} and {width}: change them"
            )
        self.channels, self.smallest = channels, 3 * 2**layers
        self.net = nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(SLOPE))
        current = width
        for level in range(1, layers + 1):
            wider = width * min(2**level, WIDEST)
            stride = 2 if level < layers else 1
            self.net.append(nn.Conv2d(current, wider, 4, stride, 1, bias=False))
            self.net.extend((make_norm(wider), nn.LeakyReLU(SLOPE)))
            current = wider
        self.net.append(nn.Conv2d(current, 1, 4, 1, 1))
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, SPREAD)
            elif isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.weight, 1, SPREAD)

    def forward(self, images: Tensor) -> Tensor:
        """The logits.

        Raises:
            ValueError: for images of other channels, or too small for a patch.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or min(images.shape[2:]) < self.smallest:
            raise ValueError(
                f"expected images (B, {self.channels}, H, W) of at least {self.smallest} pixels a side for the "
                f"discriminator, got {tuple(images.shape)}: use fewer layers"
            )
        logits: Tensor = self.net(images)
        return logits
