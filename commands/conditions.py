"""From a data set to the keywords that a run's conditioner takes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn.functional import adaptive_avg_pool2d

from scorefield.commands.autoencoder_files import encoded_at_once
from scorefield.commands.captions import captions_in
from scorefield.commands.run import Run, stored_tensor
from scorefield.configs import build
from scorefield.training.data import Dataset

OF_IMAGES = ("low", "masked", "mask")  # keywords that are made of the image itself
HOLES = (0.2, 0.7)  # sides of the missing rectangle, relative to the image's


@dataclass(frozen=True)
class Conditions:
    """What the conditioner of a run takes, and where it comes from.

    Args:
        run: with a conditioner.
        keywords: those of the conditioner, but for the class.
    """

    run: Run
    keywords: tuple[str, ...]

    @property
    def of_images(self) -> bool:
        """Whether they are made of the images themselves."""
        return any(key in OF_IMAGES for key in self.keywords)

    def arrays(self, dataset: Dataset) -> dict[str, NDArray[Any]]:
        """The rows of a data set as numbers, by keyword: tokens of captions, boxes, maps.

        Raises:
            ValueError: if the data set has none.
        """
        found = {}
        for key in self.keywords:
            if key in OF_IMAGES:
                continue
            if key == "tokens":
                found[key] = self.run.tokenizer.encode(captions_in(dataset))
            elif key in dataset.cond:
                found[key] = dataset.cond[key]
            else:
                raise ValueError(
                    f"expected {key} for each item of {dataset.name}, because this run is conditioned on it, got none: "
                    "give data that has it (docs/training.md)"
                )
        return found

    def of_data(self, dataset: Dataset) -> dict[str, Tensor]:
        """The conditioning of all items of a data set, with a row for each; masks are drawn from a fixed seed.

        Raises:
            ValueError: as `arrays`.
        """
        cond = {key: _as_tensor(rows) for key, rows in self.arrays(dataset).items()}
        if not self.of_images:
            return cond
        run, generator, parts = self.run, Generator().manual_seed(0), []
        for images in torch.split(run.in_range(stored_tensor(dataset)), encoded_at_once(run.data.shape)):
            made = self.of_model_images(images, generator)
            parts.append({key: value.cpu() for key, value in made.items()})
        return {**cond, **{key: torch.cat([part[key] for part in parts]) for key in parts[0]}}

    def of_caption(self, caption: str, num: int) -> dict[str, Tensor]:
        """The same caption for `num` samples.

        Raises:
            ValueError: if the run takes no captions.
        """
        if "tokens" not in self.keywords:
            raise ValueError(
                f"expected no --caption, because this run takes {' and '.join(self.keywords)}, got {caption!r}: leave "
                "it out"
            )
        return {"tokens": _as_tensor(self.run.tokenizer.encode([caption])).expand(num, -1)}

    def of_model_images(self, images: Tensor, generator: Generator) -> dict[str, Tensor]:
        """What is made of images (B, C, H, W) in the model's range: `low`, or `masked` and `mask`."""
        if "low" in self.keywords:
            factor = self.run.config.conditioner.get("factor", 4)
            height, width = (side // factor for side in images.shape[-2:])
            return {"low": adaptive_avg_pool2d(images, (height, width))}
        mask = rectangles(images, generator)
        seen = torch.where(mask.bool(), self.run.low, images)  # black, as in the published code
        stored = self.run.autoencoder
        masked = seen
        if stored is not None:
            with torch.no_grad():
                masked = stored.scaled.encode(seen.to(self.run.device))
        return {"masked": masked, "mask": mask}

    def shown(self, dataset: Dataset) -> tuple[str, ...]:
        """The captions of a data set, for pictures."""
        return tuple(dataset.cond["caption"].tolist()) if "tokens" in self.keywords else ()


def conditions_of(run: Run) -> Conditions | None:
    """What the conditioner of a run takes beside the class; None where that is nothing."""
    keywords = tuple(key for key in build.conditioning_keywords(run.config) if key != "label")
    return Conditions(run, keywords) if keywords else None


def rectangles(images: Tensor, generator: Generator) -> Tensor:
    """Masks (B, 1, H, W) with 1 in a rectangle of each image, at a random place and with random sides."""
    count, _, height, width = images.shape
    low, high = HOLES
    drawn = torch.rand(4, count, generator=generator, device=generator.device)
    sides = low + (high - low) * drawn[:2]
    starts = (1 - sides) * drawn[2:]
    inside = []
    for start, side, length in zip(starts, sides, (height, width), strict=True):
        at = (torch.arange(length, device=drawn.device) + 0.5) / length
        inside.append((at > start[:, None]) & (at < (start + side)[:, None]))
    mask: Tensor = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return mask.to(images)


def _as_tensor(rows: NDArray[Any]) -> Tensor:
    value = torch.as_tensor(np.ascontiguousarray(rows))
    return value if value.is_floating_point() or value.dtype == torch.bool else value.long()
