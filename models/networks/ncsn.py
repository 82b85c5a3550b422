"""The noise-conditional score network of Song and Ermon 2019 (arXiv 1907.05600, Appendix A)."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, one_hot, pad

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.networks.refinenet import (
    InstanceNormPlus,
    cascade,
    check_images,
    conv,
    refining_blocks,
    residual_stages,
)
from scorefield.sde_lib.arguments import shown

SIGMAS = tuple(0.01 ** (i / 9) for i in range(10))


@save_hyperparameters
class NCSN(nn.Module):
    """F(x, c_noise, label): a cascaded RefineNet with dilated residual blocks, ELU and InstanceNorm++.

    Song and Ermon 2019, Appendix A, as in their published code. Stages of residual blocks come first: one at full size,
    the others at half, the last two dilated by 2 and 4 in place of smaller maps. A refining block for each stage then
    merges it with the output of the deeper ones. There is a normalisation before every convolution, and means take the
    place of RefineNet's maxima. It predicts the score (`precondition.score`).

    At a listed noise level this is the published network, which looks up rows of its normalisations by the
    level's index; between levels the rows are interpolated linearly in log sigma, and outside they are the
    nearest level's, so that any solver can use it.

    Any number of channels; height and width multiples of the stride, 2 (4, 8) for a depth of 4 (5, 6), and at least
    twice the stride, square or not.

    Args:
        channels: of the images, in and out.
        sigmas: the levels sigma / alpha it is trained on, decreasing.
        width: channels of the first stage; the others have twice or four times that.
        num_classes: with it, the network takes `label (B,)` in 0 .. num_classes - 1; num_classes itself, and
            no label at all, mean "unknown".
        unit_range: whether x is 2x - 1 first, as published for images in 0 .. 1 (not for their logits).
        depth: how many stages: 4 as published, or 5 (their "deeper" network, for larger images) or 6, which
            halve the size once or twice more.

    Raises:
        ValueError: if the levels are not positive and decreasing, or there is no network of this depth.
    """

    def __init__(
        self,
        channels: int,
        sigmas: Sequence[float] = SIGMAS,
        width: int = 128,
        num_classes: int | None = None,
        unit_range: bool = True,
        depth: int = 4,
    ) -> None:
        super().__init__()
        self.channels, self.unit_range, self.depth = channels, unit_range, depth
        self.unknown_label = num_classes
        self.condition = Condition(sigmas, num_classes)
        norm = partial(InstanceNormPlus, len(sigmas), self.condition.labels)

        self.stem = conv(channels, width)
        self.stages = residual_stages(norm, width, depth)
        self.refine = refining_blocks(norm, nn.AvgPool2d(5, stride=1, padding=2), width, depth)
        self.norm = norm(width)
        self.head = conv(width, channels)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, C, H, W), for c_noise = log(sigma / alpha) / 4 of shape (B,).

        Raises:
            ValueError: if the channels or the size do not fit, or a label is given to a network without classes.
        """
        check_images(x, self.channels, self.depth)
        rows = self.condition(c_noise, label).to(x.dtype)
        h = self.stem(2 * x - 1 if self.unit_range else x)
        h = cascade(self.stages, self.refine, h, rows)
        output: Tensor = self.head(elu(self.norm(h, rows)))
        return output


class Condition(nn.Module):
    """Which rows of the normalisations' tables a sample takes, and how much of each: (B, levels + labels).

    The first columns place c_noise among the levels, (0, .., 1 - f, f, .., 0) at the fraction f of the way to the next
    in log sigma; the last are one at the sample's label.
    """

    bounds: Tensor

    def __init__(self, sigmas: Sequence[float], num_classes: int | None) -> None:
        super().__init__()
        levels = [float(sigma) for sigma in sigmas]
        if not levels or levels[-1] <= 0 or any(after >= before for before, after in pairwise(levels)):
            raise ValueError(f"expected positive, decreasing noise levels, got {shown(levels)}: sort them")
        self.num_classes = num_classes
        self.labels = 0 if num_classes is None else num_classes + 1
        log = torch.tensor(levels, dtype=torch.float64).log() / 4
        # A level that went through float32 is still that level: each ends a little inside its neighbours' interval.
        slack = (-log.diff() / 4).clamp(max=1e-6)
        bounds = torch.stack([log[:-1] - slack, -log.diff() - 2 * slack])
        self.register_buffer("bounds", bounds.to(torch.get_default_dtype()), persistent=False)

    def forward(self, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        if label is not None and self.num_classes is None:
            raise ValueError("expected no label: the network was made without num_classes; got one: leave it out")
        start, gap = self.bounds.to(c_noise.dtype)
        passed = ((start - c_noise[:, None]) / gap).clamp(0, 1)
        rows = pad(passed, (1, 0), value=1.0) - pad(passed, (0, 1))
        if self.num_classes is None:
            return rows
        known = torch.full_like(c_noise, self.num_classes, dtype=torch.long) if label is None else label.long()
        return torch.cat([rows, one_hot(known, self.labels).to(rows.dtype)], 1)
