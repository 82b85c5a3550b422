"""What an autoencoder does with images that it was not trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.commands.autoencoder_files import encoded_at_once
from scorefield.commands.run import Run, stored_tensor
from scorefield.evaluation import plot_rows
from scorefield.evaluation.reconstruction import DimensionCounter, UsageCounter, psnr, ssim
from scorefield.likelihood import mean_and_error
from scorefield.models.moments import Reconstruction
from scorefield.models.networks.autoencoder import ImageAutoencoder, VQAutoencoder
from scorefield.training.data import Dataset

SHOWN = 16  # images in a picture
WIDE = 64  # pixels of a side; of images as large as this, half are shown


@dataclass(frozen=True)
class HeldOut:
    """Images of the test split, always the same ones.

    Args:
        run: in training.
        dataset: the images.
        distance: the perceptual distance `(images, others) -> (B,)`, if one is in use.
        distance_name: its name.
    """

    run: Run
    dataset: Dataset
    distance: Callable[[Tensor, Tensor], Tensor] | None = None
    distance_name: str = ""

    @classmethod
    def of(cls, run: Run, distance: Callable[[Tensor, Tensor], Tensor] | None, name: str) -> "HeldOut":
        """`training.evaluate_images` images of the test split, or all if there are no more."""
        split = run.dataset("test")
        return cls(run, split.subset(run.config.training.evaluate_images, run.config.seed), distance, name)

    @cached_property
    def images(self) -> Tensor:
        """In the range of the autoencoder, (N, C, H, W), on the CPU."""
        return self.run.in_range(stored_tensor(self.dataset))

    @property
    def span(self) -> float:
        """The distance of the largest value that an image can have from the smallest one."""
        levels = self.dataset.levels
        return (self.run.high - self.run.low) * (1.0 if levels is None else (levels - 1) / levels)

    @torch.no_grad()
    def measure(self, autoencoder: ImageAutoencoder) -> dict[str, Any]:
        """The means over the images, of reconstructions by the means of their codes.

        `psnr` in dB with its standard error, `ssim`, the perceptual distance by its name; `kl_per_dimension`, the mean
        in nats over the numbers of a code, and `kl_by_channel`; of a quantiser `codes_used`, the share of its points in
        use over all images, and `perplexity`, exp(H) of their frequencies.
        """
        values: dict[str, list[Tensor]] = {}
        dimensions, usage = DimensionCounter(), UsageCounter(_size(autoencoder))
        for stored in torch.split(self.images, encoded_at_once(self.dataset.shape)):
            x = stored.to(self.run.device)
            made, moments = _reconstructed(autoencoder, x), autoencoder.moments(x)
            y = made.images.float().clamp(self.run.low, self.run.high)
            each = {"psnr": psnr(x, y, self.span), "ssim": ssim(x, y, self.span)}
            if self.distance is not None:
                each[self.distance_name] = self.distance(y, x)
            for name, value in each.items():
                values.setdefault(name, []).append(value.double().cpu())
            if moments.log_var is not None:
                dimensions.add(moments.kl_of_each())
            if made.index is not None:
                usage.add(made.index)
        means: dict[str, Any] = {name: float(torch.cat(parts).mean()) for name, parts in values.items()}
        means["psnr_error"] = mean_and_error(torch.cat(values["psnr"]))[1]
        if moments.log_var is not None:
            by_channel = dimensions.kl().mean((1, 2))
            means |= {"kl_per_dimension": float(by_channel.mean()), "kl_by_channel": by_channel.tolist()}
        if made.index is not None:
            counted = usage.usage()
            means |= {"codes_used": counted.share, "perplexity": counted.perplexity}
        return means

    @torch.no_grad()
    def picture(self, autoencoders: dict[str, ImageAutoencoder], path: Path) -> Path:
        """Originals above the reconstructions of each autoencoder."""
        count = SHOWN if max(self.dataset.shape[1:]) < WIDE else SHOWN // 2
        x = self.images[:count]
        rows = {"originals": x}
        for name, autoencoder in autoencoders.items():
            made = _reconstructed(autoencoder, x.to(self.run.device)).images
            rows[name] = made.float().cpu().clamp(self.run.low, self.run.high)
        plot_rows(rows, path, low=self.run.low, high=self.run.high)
        return path


def _reconstructed(autoencoder: ImageAutoencoder, images: Tensor) -> Reconstruction:
    """By the means of the codes: without noise."""
    side = [length // autoencoder.factor for length in images.shape[2:]]
    return autoencoder.reconstruct(images, images.new_zeros(len(images), autoencoder.code_channels, *side))


def _size(autoencoder: ImageAutoencoder) -> int:
    """The points of its quantiser, 0 without one."""
    return int(autoencoder.quantiser.size) if isinstance(autoencoder, VQAutoencoder) else 0


def in_words(means: dict[str, Any], distance_name: str) -> str:
    """The numbers of `HeldOut.measure` in a line."""
    words = [f"PSNR {means['psnr']:.2f} +- {means['psnr_error']:.2f} dB", f"SSIM {means['ssim']:.3f}"]
    if distance_name in means:
        words.append(f"{distance_name} {means[distance_name]:.4f}")
    if "kl_per_dimension" in means:
        words.append(f"KL {means['kl_per_dimension']:.2f} nats/dim")
    if "codes_used" in means:
        words.append(f"{100 * means['codes_used']:.0f}% of the codebook, perplexity {means['perplexity']:.0f}")
    return "  ".join(words)
