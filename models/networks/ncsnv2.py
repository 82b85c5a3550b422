"""NCSNv2, the unconditional score network of Song and Ermon 2020 (arXiv 2006.09011, Appendix B)."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import elu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.networks.refinenet import (
    InstanceNormPlus,
    Unnormalised,
    cascade,
    check_images,
    conv,
    refining_blocks,
    residual_stages,
)


@save_hyperparameters
class NCSNv2(nn.Module):
    """F(x) = sigma grad log p(x): a cascaded RefineNet with dilated residual blocks, ELU and InstanceNorm++.

    Song and Ermon 2020, Technique 3 (Section 3.3): one network, which does not see the noise level, is divided by sigma
    to give the score. The parameterisation divides (`precondition.scaled_score`), and F has about unit variance at
    every level.

    The network is NCSN's with InstanceNorm++ in the residual stages only, unconditional; the refining blocks have no
    normalisation, and RefineNet's maxima (Appendix B).

    Any number of channels; height and width multiples of the stride, 2 (4, 8) for a depth of 4 (5, 6), and at least
    twice the stride, square or not.

    Args:
        channels: of the images, in and out.
        width: channels of the first stage; the others have twice or four times that.
        depth: how many stages: 4 (published for 32x32 and 64x64), 5 (64x64 to 128x128) or 6 (256x256).
        unit_range: whether x is 2x - 1 first, as published for images in 0 .. 1.

    Raises:
        ValueError: if there is no network of this depth.
    """

    def __init__(self, channels: int, width: int = 128, depth: int = 4, unit_range: bool = True) -> None:
        super().__init__()
        self.channels, self.unit_range, self.depth = channels, unit_range, depth
        norm = partial(InstanceNormPlus, 1, 0)

        self.stem = conv(channels, width)
        self.stages = residual_stages(norm, width, depth)
        self.refine = refining_blocks(Unnormalised, nn.MaxPool2d(5, stride=1, padding=2), width, depth)
        self.norm = norm(width)
        self.head = conv(width, channels)

    def forward(self, x: Tensor, c_noise: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, C, H, W); c_noise is ignored.

        Raises:
            ValueError: if the channels or the size do not fit, or a label is given.
        """
        check_images(x, self.channels, self.depth)
        if label is not None:
            raise ValueError("expected no label: NCSNv2 is unconditional; got one: leave it out")
        rows = x.new_ones(1, 1)
        h = self.stem(2 * x - 1 if self.unit_range else x)
        h = cascade(self.stages, self.refine, h, rows)
        output: Tensor = self.head(elu(self.norm(h, rows)))
        return output
