"""The adversarial part of an autoencoder's training: the losses, their weight, and when they start."""

from typing import Any

import torch
from torch import Tensor, nn

from scorefield.training.distributed.ranks import Ranks
from scorefield.training.distributed.shards import is_part
from scorefield.training.state import TrainingState

PLATEAU = "plateau"
OFFSET = 1e-4  # of the norm of the adversarial gradient


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, (B,):  1/2 mean relu(1 - D(x)) + 1/2 mean relu(1 + D(x_hat))  (Lim and Ye 2017).

    Args:
        real: D(x), logits (B, ...).
        fake: D(x_hat), of the same shape.
    """
    return ((1 - real).relu().flatten(1).mean(1) + (1 + fake).relu().flatten(1).mean(1)) / 2


def adaptive_weight(images: Tensor, last_layer: Tensor, first: Tensor, second: Tensor, largest: float = 1e4) -> Tensor:
    """The weight that makes two losses equally strong at the decoder's last layer L, ():

        lambda = |d nll / dL| / (|d g / dL| + 1e-4),   at most `largest`    (Esser et al. 2021, Eq. 7)

    With several processes the gradients are those of the complete batch. All must call.

    Args:
        images: the decoder's output (B, C, H, W), with its graph.
        last_layer: L, the weight of its last convolution.
        first: d nll / d images for the mean nll of the batch, of the images' shape.
        second: d g / d images.
        largest: limit of the weight.

    Raises:
        ValueError: if the last layer is frozen, or in shards.
    """
    if not last_layer.requires_grad or is_part(last_layer):
        why = "in shards" if is_part(last_layer) else "frozen"
        raise ValueError(
            f"expected the decoder's last layer to be trained on one device, for the adaptive weight, got one that is "
            f"{why}: train without the adversarial loss (adversarial=0)"
        )
    gradients = [
        torch.autograd.grad(images, last_layer, gradient.to(images.dtype), retain_graph=True)[0]
        for gradient in (first, second)
    ]
    nll, g = Ranks.current().mean(torch.stack(gradients)).flatten(1).norm(dim=1)
    weight: Tensor = nll / (g + OFFSET)
    return weight.clamp(max=largest)


class Adversary(nn.Module):
    """A discriminator, with what the start by a plateau needs to resume.

    Args:
        net: images (B, C, H, W) -> logits (B, 1, h, w), as `models.networks.patchgan.PatchGAN`.
    """

    started: Tensor
    window: Tensor
    best: Tensor
    stale: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        # The step before the first adversarial one, -1 until then; the sum and count of the losses of a window; the
        # least mean of a window; and how many windows have passed since.
        self.register_buffer("started", torch.tensor(-1))
        self.register_buffer("window", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("best", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("stale", torch.tensor(0))

    def forward(self, images: Tensor) -> Tensor:
        """The logits: positive for images, negative for reconstructions."""
        logits: Tensor = self.net(images)
        return logits


class Start:
    """When the adversarial loss starts, and how quickly it grows.

    Args:
        start: the first step with it; or "plateau": once the mean reconstruction loss of `patience` windows in a row
            was not lower than the best of the earlier ones by the share `improvement`.
        ramp: over how many steps its weight grows from 0 to what it is; 0 for at once.
        window: steps of a window.
        improvement: the least share by which a window must improve.
        patience: windows without an improvement.

    Raises:
        ValueError: for another word, or a number that is out of range.
    """

    def __init__(
        self,
        start: int | str = 50_001,
        ramp: int = 1000,
        window: int = 500,
        improvement: float = 0.01,
        patience: int = 2,
    ) -> None:
        if (isinstance(start, str) and start != PLATEAU) or (isinstance(start, int) and start < 1):
            raise ValueError(f"expected the start to be a step, 1 or later, or {PLATEAU}, got {start}")
        if ramp < 0 or min(window, patience) < 1 or not 0 <= improvement < 1:
            raise ValueError(
                "expected a ramp of at least 0, window and patience of at least 1 step and an improvement within "
                f"[0, 1), got {ramp}, {window}, {patience} and {improvement}"
            )
        self.start, self.ramp, self.window = start, ramp, window
        self.improvement, self.patience = improvement, patience
        self._started = -1
        self._read_at: tuple[int, Any] | None = None  # reading it waits for the device

    def share(self, state: TrainingState) -> float:
        """The share of the weight at the step that comes: 0 before the start, 1 after the ramp."""
        first = self.start - 1 if isinstance(self.start, int) else self._by_plateau(state)
        if first < 0 or state.step < first:
            return 0.0
        return min((state.step + 1 - first) / self.ramp, 1.0) if self.ramp else 1.0

    @torch.no_grad()
    def watch(self, state: TrainingState, loss: Tensor) -> None:
        """Count a step's reconstruction loss, (B,) of this process; every process must call."""
        if isinstance(self.start, int) or self._started >= 0:
            return
        adversary = _adversary(state)
        mean = Ranks.current().mean(loss.double().mean())
        counts = mean.isfinite()  # a step that is refused says nothing of the plateau
        adversary.window += torch.stack((mean.nan_to_num(0, 0, 0), counts.double()))
        if (state.step + 1) % self.window:
            return
        mean = adversary.window[0] / adversary.window[1]
        better = mean < (1 - self.improvement) * adversary.best
        adversary.stale.copy_(torch.where(better, 0, adversary.stale + 1))
        adversary.best.copy_(torch.where(better, mean, adversary.best))
        adversary.window.zero_()
        if int(adversary.stale) >= self.patience:
            adversary.started.fill_(state.step + 1)
            self._started = state.step + 1

    def _by_plateau(self, state: TrainingState) -> int:
        if self._read_at is None or self._read_at != (state.step - 1, state):
            self._started = int(_adversary(state).started)
        self._read_at = state.step, state
        return self._started


def _adversary(state: TrainingState) -> Adversary:
    adversary = state.model.discriminator
    assert isinstance(adversary, Adversary)
    return adversary
