"""The two sets of ImageNet 32x32, from tiny files in their layouts."""

import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scorefield.tests.image_files import noise, refused, save
from scorefield.training.data import imagenet32


def write_new(folder: Path, form: str) -> list[tuple[NDArray[Any], list[int]]]:
    """Ten batches of training and one of validation, as npz or as pickles of `data`, `labels` and `mean`."""
    folder.mkdir(parents=True)
    batches = [(noise(3, 3072, seed=i), (100 * i + np.array([1, 2, 3]) % 1000).tolist()) for i in range(10)]
    batches.append((noise(2, 3072, seed=10), [1000, 1]))
    for i, (x, y) in enumerate(batches):
        name, mean = f"train_data_batch_{i + 1}" if i < 10 else "val_data", x.mean(0)
        if form == "npz":
            np.savez(folder / f"{name}.npz", data=x, labels=y, mean=mean)
        else:
            (folder / name).write_bytes(pickle.dumps({"data": x, "labels": y, "mean": mean}, protocol=int(form)))
    return batches


@pytest.mark.parametrize("form", ["npz", "2", "5"])
def test_the_new_set(tmp_path: Path, form: str) -> None:
    batches = write_new(tmp_path / "imagenet32" / "Imagenet32_train", form)
    (top := tmp_path / "imagenet32" / "Imagenet32_val").mkdir()
    ending = ".npz" if form == "npz" else ""
    (tmp_path / "imagenet32" / "Imagenet32_train" / f"val_data{ending}").rename(top / f"val_data{ending}")
    train, test = imagenet32(tmp_path), imagenet32(tmp_path, "test", version="new")
    assert train.name == test.name == "imagenet32_new"
    assert train.label is not None and test.label is not None
    assert (train.x.reshape(-1, 3072) == np.concatenate([x for x, _ in batches[:10]])).all()
    assert train.label.tolist() == [label - 1 for _, y in batches[:10] for label in y]
    assert test.label.tolist() == [999, 0] and (test.levels, test.num_classes) == (256, 1000)
    # The red, the green and the blue plane follow each other.
    assert test.x[1, 2, 5, 9] == batches[10][0][1, 2 * 1024 + 5 * 32 + 9]


def test_a_file_of_the_new_set_that_is_missing_or_odd(tmp_path: Path) -> None:
    refused("Imagenet32_train_npz.zip from image-net.org and unpack it there", imagenet32, tmp_path)
    write_new(tmp_path / "imagenet32", "2")
    file = tmp_path / "imagenet32" / "val_data"
    for content, what in [
        (b"<html>", "expected a pickled batch of images, got 6 bytes"),
        (pickle.dumps({"data": os.getcwd}), "refused: it asks for"),
        (pickle.dumps({"data": noise(2, 3000), "labels": [1, 2]}), "expected data, uint8 (N, 3072)"),
        (pickle.dumps({"data": noise(2, 3072).astype(np.float64), "labels": [1, 2]}), "expected data, uint8"),
        (pickle.dumps({"data": noise(2, 3072), "labels": [0, 2]}), "expected labels 1 to 1000, got 0 to 2"),
        (pickle.dumps([noise(2, 3072)]), "expected a pickled batch of images"),
    ]:
        file.write_bytes(content)
        refused(what, imagenet32, tmp_path, "test")


@pytest.mark.parametrize("packed", [False, True])
def test_the_old_set(tmp_path: Path, packed: bool) -> None:
    parts = {"train_32x32": noise(5, 32, 32, 3), "valid_32x32": noise(2, 32, 32, 3, seed=1)}
    for part, images in parts.items():
        (tmp_path / part).mkdir()
        for i, pixels in enumerate(images):
            save(tmp_path / part / f"{i + 8:07d}.png", pixels)
        if packed:
            with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
                tar.add(tmp_path / part, part)
            for file in (tmp_path / part).iterdir():
                file.unlink()
            (tmp_path / part).rmdir()
    for split, images in zip(("train", "test"), parts.values(), strict=True):
        read = imagenet32(tmp_path, split, version="old")
        assert (read.name, read.levels, read.label) == ("imagenet32_old", 256, None)
        assert (read.x == images.transpose(0, 3, 1, 2)).all()


def test_a_file_of_the_old_set_that_is_missing_or_odd(tmp_path: Path) -> None:
    refused("train_32x32.tar, or a folder of that name without .tar", imagenet32, tmp_path, version="old")
    refused("expected version to be new (Imagenet32_train.zip) or old", imagenet32, tmp_path, version="2")
    refused("train or test", imagenet32, tmp_path, "val")
    (tmp_path / "train_32x32.tar").write_bytes(b"<html>")
    refused("not a zip or tar that can be read", imagenet32, tmp_path, version="old")
    (tmp_path / "valid_32x32").mkdir()
    save(tmp_path / "valid_32x32" / "1.png", noise(64, 64, 3))
    refused("expected images of 32x32 pixels, got shape (3, 64, 64)", imagenet32, tmp_path, "test", version="old")
    with tarfile.open(tmp_path / "train_32x32.tar", "w") as tar:
        tar.add(__file__, "train_32x32/readme.py")
    refused("expected images in", imagenet32, tmp_path, version="old")
