"""The images of a data set that a command uses."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.commands.arguments import at_least
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.run import Run, stored_tensor
from scorefield.configs import build
from scorefield.training.data import Dataset, Decoding, image_files, read_images, whole_array
from scorefield.training.data.dataset import random_rows
from scorefield.training.data.files.decoding import kind_of
from scorefield.training.data.files.images import image_suffixes


@dataclass(frozen=True)
class Images:
    """All images of a data set in their order, or some at random.

    Args:
        data: the images, with their labels.
        index: their places in the data set, (N,).
        described: what they are, for a report.
    """

    data: Dataset
    index: NDArray[np.int64]
    described: str

    @classmethod
    def of(cls, dataset: Dataset, num: int | None, seed: int) -> "Images":
        """All images, or `num` that the seed chooses (`Dataset.subset`). A line on stderr says if they lack classes."""
        part = dataset.subset(num, seed)
        if part is dataset:
            return cls(part, np.arange(len(part)), "all")
        described = f"{num} of {len(dataset)}, at random (seed {seed})"
        if part.label is not None and dataset.label is not None:
            some, every = (len(np.unique(label)) for label in (part.label, dataset.label))
            if some < every:
                on_stderr(f"{dataset.split} images, {described}: {some} of {every} classes")
        return cls(part, random_rows(len(dataset), num, seed), described)

    @property
    def stored(self) -> Tensor:
        """The stored values, (N, *D)."""
        return stored_tensor(self.data)

    @property
    def label(self) -> Tensor | None:
        """The classes, (N,), where the data set has them."""
        return None if self.data.label is None else torch.as_tensor(self.data.label)


def chosen_images(
    run: Run, source: str | None, split: str | None, num: int | None, seed: int, *, default: int
) -> Images:
    """The images of --input (see `read_input`), all or `num` of them; or `num` of a split, which is the test split.

    Args:
        run: that takes them.
        source: the flag --input.
        split: the flag --split.
        num: how many, drawn at random by the seed.
        seed: of the images.
        default: how many of a split, if `num` is not given.

    Raises:
        ValueError: for a number below 1, or both an input and a split.
    """
    at_least(1, num=num)
    if source is None:
        if run.config.data.get("path") == "":
            raise ValueError(
                "expected images beside a run without a data set, as imported ones are, got no --input: give "
                "--input=FOLDER, or an image, .npy or .npz"
            )
        return Images.of(run.dataset(split or "test"), num or default, seed)
    if split is not None:
        raise ValueError("expected --input or --split, got both")
    return Images.of(read_input(run, Path(source)), num, seed)


def read_input(run: Run, path: Path) -> Dataset:
    """A folder of images, an image, or an .npy or .npz file, as a data set for this run.

    Images in folders with the names of the run's classes are of these. Images get the size and the channels of the run
    as its reader gave them to the training images. Where that reader had no size, a line on stderr says that images
    were resized.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the images cannot be read, or an array has another shape than the run's data.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"expected {path}, which is not there: give an image, a folder of images, or an .npy or .npz file"
        )
    if not path.is_dir() and path.suffix.lower() not in image_suffixes():
        labels = run.num_classes is not None
        conditions = run.config.get("conditioner") is not None
        known = whole_array(path, run.data.levels, shape=run.data.shape, labels=labels, conditions=conditions)
        return run.accept(known)
    files = image_files(path) if path.is_dir() else [path]
    if len(run.data.shape) != 3:
        raise ValueError(
            f"expected an array (.npy, .npz) of shape (N, {', '.join(map(str, run.data.shape))}), as this run has, got "
            f"images in {path}: save them as an array"
        )
    channels, height, width = run.data.shape
    settings = {key: value for key, value in run.config.data.items() if key in _of_reader(run)}
    settings |= {"channels": 0, "alpha": "keep"} if channels == 4 else {"channels": channels}
    settings |= {"bits": 8 if run.data.levels == 256 else 0, "corrupt": "error"}
    sized = Decoding(**settings).sides is not None
    x, levels = read_images(files, Decoding(**(settings if sized else {**settings, "size": (height, width)})))
    dataset = run.accept(Dataset(path.name, "test", x, levels, **_classes_of(run, files)))
    others = 0 if sized else sum(_side(file) != (height, width) for file in files)
    if others:
        on_stderr(f"{others} of {len(files)} images are resized to {height}x{width} (height x width)")
    return dataset


def _classes_of(run: Run, files: Sequence[Path]) -> dict[str, Any]:
    """The classes of images, if each lies in a folder that has the name of one."""
    names, folders = run.data.class_names, [file.absolute().parent.name for file in files]
    if run.num_classes is None or not set(folders) <= set(names):
        return {}
    label = np.array([names.index(folder) for folder in folders], np.int64)
    return {"label": label, "num_classes": len(names), "class_names": names}


def _of_reader(run: Run) -> set[str]:
    """The keywords of `Decoding`, if the run's reader has them."""
    keywords = {field.name for field in fields(Decoding)}
    reader = build.DATASETS.parts.get(run.config.data.name)
    return keywords if reader is not None and keywords <= inspect.signature(reader).parameters.keys() else set()


def _side(file: Path) -> tuple[int, int]:
    with file.open("rb") as opened:
        kind = kind_of(opened)
    return kind.height, kind.width
