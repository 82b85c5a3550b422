"""What an autoencoder's training minimises: its configuration as objectives of the engine."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from scorefield.commands.run import Run
from scorefield.configs import build
from scorefield.models.networks.patchgan import PatchGAN
from scorefield.training import Model, Objective, TrainingState
from scorefield.training.objectives.adversarial import PLATEAU, Adversary, Start
from scorefield.training.objectives.autoencoder import objectives


@dataclass(frozen=True)
class Losses:
    """The losses of a configuration.

    Args:
        run: to train.
    """

    run: Run

    @cached_property
    def distance(self) -> nn.Module | None:
        """The perceptual distance `(images, others) -> (B,)`, or None.

        Raises:
            ValueError: if its weights do not read, or it does not take images of these channels.
        """
        loss = self.run.config.loss
        if loss.perceptual == "none" or not loss.perceptual_weight:
            return None
        built: nn.Module = build.build(build.PERCEPTUAL, loss.perceptual)
        return built.to(self.run.device).eval().requires_grad_(False)

    @property
    def distance_name(self) -> str:
        """Of the perceptual distance; "" without one."""
        return "" if self.distance is None else str(build.parse(self.run.config.loss.perceptual)["name"])

    @property
    def described(self) -> str:
        """The losses in words."""
        loss = self.run.config.loss
        words = [str(loss.norm)]
        words += [f"{loss.perceptual_weight:g} {self.distance_name}"] if self.distance is not None else []
        words += [f"{loss.codebook:g} codebook" if self.run.config.net.name == "vq" else f"{loss.kl:g} KL"]
        if self.adversarial:
            when = f"from step {loss.start:,}" if loss.start else "from the plateau"
            words.append(f"{loss.adversarial:g} adversarial {when}")
        return " + ".join(words)

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator."""
        return bool(self.run.config.loss.adversarial)

    def discriminator(self) -> Adversary | None:
        """The untrained discriminator, if there is one."""
        loss = self.run.config.loss
        if not self.adversarial:
            return None
        net = PatchGAN(self.run.data.shape[0], loss.discriminator_layers, loss.discriminator_width)
        return Adversary(net).to(self.run.device)

    @property
    def start(self) -> Start:
        """Of the adversarial loss."""
        loss = self.run.config.loss
        return Start(int(loss.start) or PLATEAU, int(loss.ramp))

    @torch.no_grad()
    def try_out(self, model: Model) -> None:
        """Judge an image once, so that a size or channels that a network does not take are found before any work.

        Raises:
            ValueError: if the discriminator or the perceptual distance does not take the images.
        """
        images = torch.zeros(1, *self.run.data.shape, device=self.run.device)
        if self.distance is not None:
            self.distance(images, images)
        if model.discriminator is not None:
            model.discriminator(images)

    def objectives(self, state: TrainingState) -> list[Objective]:
        """The objective of the autoencoder, and that of its discriminator where there is one."""
        loss = self.run.config.loss
        return objectives(
            state.optimizer,
            *state.more_optimizers,
            norm=loss.norm,
            perceptual=self.distance,
            perceptual_weight=loss.perceptual_weight,
            kl=loss.kl,
            codebook=loss.codebook,
            adversarial=loss.adversarial,
            largest=loss.largest,
            start=self.start,
        )
