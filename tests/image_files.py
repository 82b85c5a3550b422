"""Image files that tests write, and what they ask of readers."""

import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from scorefield.training.data import Dataset
from scorefield.training.data.sources.urls import ARCHIVES


def refused(what: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """The call raises one line of ValueError or FileNotFoundError that holds these words."""
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(what)) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def grey(value: int, width: int = 5, height: int = 4) -> NDArray[np.uint8]:
    return np.full((height, width), value, np.uint8)


def labels(data: Dataset) -> NDArray[np.int64]:
    assert data.label is not None
    return data.label


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def real(name: str) -> Path:
    root = os.environ.get("DATA_ROOT")
    if not root or not all((Path(root) / file).is_file() for archive in ARCHIVES[name] for file in archive.files):
        pytest.skip(f"DATA_ROOT does not name a folder that holds {name}")
    return Path(root)


def noise(*shape: int, seed: int = 0, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(np.iinfo(dtype).max + 1, size=shape, dtype=dtype)


def classes_of_images(root: Path, count: int = 12) -> Path:
    for i in range(count):
        save(root / ("cat", "dog")[i % 2] / f"{i:02}.png", noise(5, 4, 3, seed=i))
    return root


def png_bytes(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_shard(path: Path, samples: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def same(a: Dataset, b: Dataset) -> None:
    assert a.fingerprint == b.fingerprint and (a.levels, a.num_classes) == (b.levels, b.num_classes)
