"""Canvases of digits: what the captions, boxes and maps say is what the images show."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import refused

from scorefield.training.data import canvas, sources
from scorefield.training.data.sources.canvas import edges, resized


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small MNIST whose digit d is a block of (2 d + 4)^2 pixels, brighter in the test split."""
    monkeypatch.setattr(sources.mnist, "FILES", {"train": ("train", 60), "test": ("t10k", 20)})
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count, shade in (("train", 60, 100), ("t10k", 20, 200)):
        label = (np.arange(count) % 10).astype(np.uint8)
        x = np.zeros((count, 28, 28), np.uint8)
        for image, d in zip(x, label, strict=True):
            image[12 - d : 16 + d, 12 - d : 16 + d] = shade
        for name, array in (("images-idx3", x), ("labels-idx1", label)):
            head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return tmp_path


@pytest.mark.parametrize("size", [32, 45])
def test_a_caption_says_what_the_image_shows(root: Path, size: int) -> None:
    data = canvas(root, size=size, count=200)
    assert data.x.shape == (200, 1, size, size) and data.label is None
    relations = set()
    for x, caption, boxes, kinds in zip(data.x[:, 0], *(data.cond[key] for key in ("caption", "boxes", "map")),
                                        strict=True):  # fmt: skip
        matched = re.fullmatch("([0-9]) (left of|above) ([0-9])", caption)
        assert matched
        relations.add(matched[2])
        (first, *a), (second, *b) = boxes.tolist()
        assert [int(first), int(second)] == [int(matched[1]), int(matched[3])]
        # All of the first digit lies before all of the second one, in the direction of the caption.
        assert a[2] <= b[0] if matched[2] == "left of" else a[3] <= b[1]
        rest = kinds.copy()
        for kind, left, top, right, bottom in boxes.tolist():
            inside = np.s_[round(top * size) : round(bottom * size), round(left * size) : round(right * size)]
            ink = kinds[inside] == 1 + kind
            assert ink.any(0).all() and ink.any(1).all()  # from edge to edge
            rest[inside] = 0
            # A block's side in the image, of 24 pixels that became 7/16 of the canvas.
            assert (right - left) * size == pytest.approx((2 * kind + 4) * (7 * size // 16) / 24, abs=1.5)
        assert ((kinds > 0) == (x >= 64)).all() and not rest.any()
    assert relations == {"left of", "above"}


def test_splits_are_drawn_from_their_own_digits_and_from_the_seed(root: Path) -> None:
    train, test = canvas(root, count=50), canvas(root, "test", count=50)
    assert (len(train), len(test)) == (50, 5)
    assert int(train.x.max()) == 100 and int(test.x.max()) == 200
    assert train.fingerprint == canvas(root, count=50).fingerprint != canvas(root, count=50, seed=1).fingerprint


def test_a_single_digit_is_its_class(root: Path) -> None:
    data = canvas(root, digits=1, count=40)
    assert data.label is not None and data.num_classes == 10
    assert data.cond["caption"].tolist() == list(map(str, data.label))
    assert data.cond["boxes"][:, 0, 0].tolist() == data.label.tolist()


def test_resizing_shares_areas() -> None:
    x = np.random.default_rng(0).integers(256, size=(3, 28, 28), dtype=np.uint8)
    middle = x[:, 2:26, 2:26]
    assert np.array_equal(resized(x, 24), middle)
    halves = middle.reshape(3, 12, 2, 12, 2).mean((2, 4))
    assert np.array_equal(resized(x, 12), np.rint(halves))
    assert np.array_equal(resized(x, 48), middle.repeat(2, 1).repeat(2, 2))
    # 24 pixels become 16: a row of one and a half each.
    ones = np.zeros((1, 24, 24), np.uint8)
    ones[0, :, 1] = 90
    assert resized(ones, 16)[0, 0, :3].tolist() == [30, 30, 0]


def test_edges_are_those_of_the_ink() -> None:
    ink = np.zeros((2, 5, 7), bool)
    ink[0, 1:3, 2:6] = True
    assert edges(ink).tolist() == [[2, 1, 6, 3], [0, 0, 7, 5]]


def test_odd_numbers_are_refused(root: Path) -> None:
    refused("got size=8, digits=2, count=20", canvas, root, size=8, count=20)
    refused("got size=32, digits=3", canvas, root, digits=3)
