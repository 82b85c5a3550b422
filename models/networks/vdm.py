"""The network of variational diffusion models (Kingma et al. 2021, arXiv 2107.00630, Appendix B and C)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scorefield.models.hyperparameters import save_hyperparameters
from scorefield.models.layers.attention import Attention
from scorefield.models.layers.blocks import ResidualBlock
from scorefield.models.layers.embeddings import NoiseEmbedding, fourier_features
from scorefield.models.layers.initial import as_images, channels_last, zeroed
from scorefield.models.layers.norm import make_norm

# Their gamma = log(sigma^2 / alpha^2) = 8 c_noise goes from -13.3 to 5 on CIFAR-10.
SPAN = (-13.3 / 8, 5 / 8)


@save_hyperparameters
class VDM(nn.Module):
    """F(x, c_noise, label): a U-Net that stays at full size, made for likelihood; the input is added to what it gives.

    Residual blocks down, a middle with attention, and one more block up than down, with skips (Kingma et al. 2021,
    Appendix B). It sees the input's finest detail as Fourier features (Appendix C). It predicts the noise
    (`precondition.eps`), and starts by saying that all of x is noise; the defaults are the one for CIFAR-10.

    The published network takes t = (gamma - gamma_min) / (gamma_max - gamma_min), in which gamma = -log-SNR; with
    c_noise = log(sigma / alpha) / 4 = gamma / 8 that is (c_noise - low) / (high - low) for a span (low, high) of
    (gamma_min / 8, gamma_max / 8), here the default. For a c_noise that is t itself, the span is (0, 1).

    Any number of channels and any height and width.

    Args:
        channels: of the images, in and out.
        width: channels of every block.
        blocks: residual blocks down.
        dropout: inside the residual blocks.
        fourier: powers n for which the network is also shown sin and cos of 2^n pi x; (7, 8) is for 256 levels in
            [-1, 1], of which two and one are a period.
        attention: after every block, and not only in the middle (their networks for augmented data).
        span: the c_noise of t = 0 and t = 1, the ends of the timesteps 1000 t whose sines and cosines it
            takes; None for the smooth frequencies of `UNet`, of c_noise as it is.
        num_classes: with it, the network takes `label (B,)` in 0 .. num_classes - 1; num_classes itself, and
            no label at all, mean "unknown".
        inputs: images of `channels` that x is made of, side by side; the parameterisation decides it.
        code_size: with it, the network takes `code (B, code_size)` of a path with a latent code.

    Raises:
        ValueError: if the span has no length.
    """

    def __init__(
        self,
        channels: int,
        width: int = 128,
        blocks: int = 32,
        dropout: float = 0.1,
        fourier: Sequence[int] = (7, 8),
        attention: bool = False,
        span: Sequence[float] | None = SPAN,
        num_classes: int | None = None,
        inputs: int = 1,
        code_size: int | None = None,
    ) -> None:
        super().__init__()
        if span is not None and (len(span) != 2 or span[0] == span[1]):
            raise ValueError(f"expected a span of two different values of c_noise, got {tuple(span)}")
        self.channels, self.inputs, self.fourier = channels, inputs, tuple(fourier)
        self.span = None if span is None else (float(span[0]), float(span[1]))
        unit = "smooth" if span is None else "timesteps"
        self.unknown_label = num_classes
        self.embed = NoiseEmbedding(width, 4 * width, num_classes, unit, code_size=code_size)
        self.stem = nn.Conv2d(channels * (inputs + 2 * len(self.fourier)), width, 3, padding=1)
        self.down = nn.ModuleList(VDMBlock(width, width, dropout, attention) for _ in range(blocks))
        self.middle_in = VDMBlock(width, width, dropout, attention=True)
        self.middle_out = VDMBlock(width, width, dropout, attention=False)
        self.up = nn.ModuleList(VDMBlock(2 * width, width, dropout, attention) for _ in range(blocks + 1))
        self.norm = make_norm(width)
        self.head = zeroed(nn.Conv2d(width, channels, 3, padding=1))
        for layer in (self.stem, *self.embed.perceptron):
            _lecun(layer)
        channels_last(self)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, code: Tensor | None = None) -> Tensor:
        """The prediction, shape (B, C, H, W).

        Raises:
            ValueError: if these are no such images, or a label is given to a network without classes.
        """
        x = as_images(x, self.channels * self.inputs, stride=1)
        emb = self.embed(self.timestep(c_noise), label, code)

        noisy = x[:, : self.channels]
        h = self.stem(torch.cat([x, *fourier_features(noisy, self.fourier)], 1))
        skips = [h]
        for block in self.down:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_out(self.middle_in(h, emb), emb)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], 1), emb)
        output: Tensor = noisy + self.head(silu(self.norm(h)))
        return output

    def timestep(self, c_noise: Tensor) -> Tensor:
        """What the network is conditioned on: 1000 t of the span, or c_noise itself without a span."""
        if self.span is None:
            return c_noise
        low, high = self.span
        return (c_noise - low) * (1000 / (high - low))


class VDMBlock(nn.Module):
    """A residual block, and attention or none."""

    def __init__(self, channels_in: int, width: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.residual = ResidualBlock(channels_in, width, 4 * width, dropout)
        # The convolution before it has a bias already.
        self.residual.project = zeroed(nn.Linear(4 * width, width, bias=False))
        attend = Attention(width) if attention else None
        self.attention = attend or nn.Identity()
        for layer in (self.residual.conv_in, self.residual.shortcut, attend and attend.qkv):
            _lecun(layer)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        output: Tensor = self.attention(self.residual(h, emb))
        return output


def _lecun(layer: nn.Module | None) -> None:
    """Normal weights of variance 1 / (fan in), so that joining dozens of skips shrinks nothing that passes through."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
