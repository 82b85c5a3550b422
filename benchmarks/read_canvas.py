"""Reads the digits of canvases back: how many are those of the captions.

python -m scorefield.benchmarks.read_canvas --folder=FOLDER [--samples=FILE.npz]

`samples` has images `x` (N, 1, size, size) of 256 levels and their `caption` (N,), as "3 left of 5". Where the caption
says that a digit is, it is cut out and classified. Printed are the shares of digits and of whole captions that are
right; first for real canvases that the classifier never saw, which is the most that samples can reach.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.benchmarks.classifier import Classifier, classifier, probabilities_of
from scorefield.training.data import Dataset, canvas, whole_array
from scorefield.training.data.batches import tensor

CAPTION = re.compile(r"(\d) (left of|above) (\d)")


def said(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The digits (N, 2) that captions name, and whether the first is above the second (N,).

    Raises:
        ValueError: for another caption.
    """
    matched = [CAPTION.fullmatch(caption) for caption in captions]
    for caption, found in zip(captions, matched, strict=True):
        if found is None:
            raise ValueError(f"expected captions such as '3 left of 5', got {caption!r}: give those of canvases")
    words = [found.groups() for found in matched if found]
    digits = torch.tensor([[int(first), int(second)] for first, _, second in words])
    return digits, torch.tensor([relation == "above" for _, relation, _ in words])


def crops(images: Tensor, above: Tensor) -> Tensor:
    """(N, 2, 1, h, h), both halves of canvases (N, 1, 2 h, 2 h): in each the square about the centre of its ink.

    Args:
        images: brighter where there is ink.
        above: (N,) bool, whether the halves lie above each other or side by side.
    """
    half = images.shape[-1] // 2
    upright = torch.where(above.view(-1, 1, 1, 1), images.transpose(2, 3), images)  # now the halves lie side by side
    cut = []
    for place in (0, half):
        part = upright[..., place : place + half].float()
        ink = (part - part.amin((2, 3), keepdim=True)).sum((1, 3))  # (N, 2 h), along the half
        centre = (ink * torch.arange(2 * half)).sum(1) / ink.sum(1).clamp(min=1e-6)
        top = (centre.round().long() - half // 2).clamp(0, half)
        rows = top[:, None] + torch.arange(half)
        square = part.gather(2, rows[:, None, :, None].expand(-1, 1, -1, half))
        cut.append(torch.where(above.view(-1, 1, 1, 1), square.transpose(2, 3), square))
    return torch.stack(cut, 1)


def crops_of(data: Dataset) -> Dataset:
    """The crops of the digits of canvases as a data set with their classes."""
    digits, above = said(data.cond["caption"].tolist())
    x = crops(tensor(data.x), above).flatten(0, 1).numpy().astype(np.uint8)
    return Dataset("canvas_digits", data.split, x, 256, digits.flatten().numpy(), 10)


def read(model: Classifier, images: Tensor, above: Tensor) -> Tensor:
    """The digits (N, 2) that a classifier of crops reads on canvases (N, 1, size, size) in -1 .. 1."""
    return probabilities_of(model, crops(images, above).flatten(0, 1)).argmax(1).view(-1, 2)


def shares(model: Classifier, images: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """The share of digits, and of captions with both digits, that are read on canvases in -1 .. 1."""
    digits, above = said(captions)
    right = read(model, images, above) == digits
    return {"digits": float(right.double().mean()), "captions": float(right.all(1).double().mean())}


def reader(folder: Path) -> Classifier:
    """The classifier of crops, trained once in a folder."""
    return classifier(crops_of(canvas()), crops_of(canvas(split="test")), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--samples", type=Path)
    args = parser.parse_args()
    model = reader(args.folder)
    sets = {"real": canvas(split="test")}
    if args.samples:
        sets["samples"] = whole_array(args.samples, 256, conditions=True)
    for name, data in sets.items():
        images = (tensor(data.x).float() + 0.5) / 128 - 1
        print(json.dumps({"of": name, "count": len(data), **shares(model, images, data.cond["caption"].tolist())}))


if __name__ == "__main__":
    main()
