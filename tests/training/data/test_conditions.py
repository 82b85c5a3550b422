"""Captions, boxes and maps beside the items of a data set, and in batches."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from image_files import refused

from scorefield.training.data import Batches, Dataset, ToModelRange

COUNT = 12
SHADES = np.arange(COUNT * 3, dtype=np.uint8).reshape(COUNT, 1, 1, 3)  # every pixel is another value


def boxes() -> np.ndarray:
    corners = np.sort(np.random.default_rng(0).random((COUNT, 2, 2, 2)), axis=2).reshape(COUNT, 2, 4)
    kinds = np.arange(COUNT * 2).reshape(COUNT, 2, 1) % 4 - 1
    return np.concatenate([kinds, corners], -1).astype(np.float32)


def with_conditions(**more: Any) -> Dataset:
    cond = {
        "caption": np.array([f"number {i}" for i in range(COUNT)]),
        "boxes": boxes(),
        "map": SHADES[:, 0].astype(np.int16),  # the image itself, so that it must turn with it
        "tokens": np.arange(COUNT * 5).reshape(COUNT, 5),
    }
    return Dataset("shades", "train", SHADES, 256, cond={**cond, **more})


def test_the_fingerprint_without_conditions_is_that_of_the_data_alone() -> None:
    digest = hashlib.sha256(f"|u1 {SHADES.shape} ".encode() + SHADES.tobytes()).hexdigest()
    assert Dataset("a", "train", SHADES, 256).fingerprint == digest
    prints = {digest, with_conditions().fingerprint}
    prints.add(with_conditions(caption=np.array(["other"] * COUNT)).fingerprint)
    prints.add(with_conditions(boxes=boxes()[::-1]).fingerprint)
    assert len(prints) == 4
    wide = with_conditions().cond["caption"].astype("U99")
    assert with_conditions(caption=wide).fingerprint == with_conditions().fingerprint


def test_a_subset_takes_the_conditions_of_its_items() -> None:
    some = with_conditions().subset(5, seed=2)
    numbers = some.x[:, 0, 0, 0] // 3
    assert some.cond["caption"].tolist() == [f"number {i}" for i in numbers]
    assert np.array_equal(some.cond["map"], some.x[:, 0])


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        ({"caption": np.array(["a"] * 3)}, "expected 12 rows of 'caption', one for each item, got 3"),
        ({"caption": np.arange(COUNT)}, "expected 'caption' as text (N,) of NumPy's str"),
        ({"boxes": boxes().astype(np.float64)}, "expected 'boxes' as float32 (N, K, 5)"),
        ({"boxes": boxes() * 2}, "got"),
        ({"boxes": boxes()[..., [0, 3, 2, 1, 4]]}, "0 <= x0 <= x1 <= 1"),
        ({"map": SHADES}, "expected 'map' as integers (N, height, width)"),
        ({"map": SHADES[:, 0].astype(np.int64) - 1}, "expected classes from 0 in 'map', got -1"),
        ({"low": np.full((COUNT, 1), np.nan, np.float32)}, "expected finite 'low', got 12"),
        ({"low": np.array(["a"] * COUNT)}, "expected 'low' as numbers (N, ...)"),
    ],
)
def test_rows_that_are_no_conditions_are_refused(cond: dict[str, Any], words: str) -> None:
    refused(words, with_conditions, **cond)


def batch(count: int = 1, **settings: Any) -> list[dict[str, torch.Tensor]]:
    data = with_conditions()
    cond = {key: data.cond[key] for key in ("boxes", "map", "tokens")}
    batches = Batches(data, 8, **{"seed": 1, "transform": ToModelRange(256), "cond": cond, "known": True, **settings})
    return list(itertools.islice(batches, count))


def test_batches_carry_the_conditions_of_their_items() -> None:
    data = with_conditions()
    (got,) = batch()
    rows = got["tokens"][:, 0] // 5
    assert torch.equal(got["map"], torch.as_tensor(SHADES[rows, 0]).long()) and got["map"].dtype == torch.int64
    assert torch.equal(got["boxes"], torch.as_tensor(data.cond["boxes"][rows]))
    assert bool(got["known"].all())


def test_boxes_and_maps_turn_with_their_image() -> None:
    data = with_conditions()
    (got,) = batch(transform=ToModelRange(256, 0.0, 256.0, dequantise=False, flip=True))
    assert torch.equal(got["map"], got["x0"][:, 0].long())
    rows = got["tokens"][:, 0] // 5
    assert torch.equal(got["tokens"], torch.as_tensor(data.cond["tokens"][rows]))
    for place, row in enumerate(rows.tolist()):
        flipped = int(got["map"][place, 0, 0]) != int(SHADES[row, 0, 0, 0])
        for ours, stored in zip(got["boxes"][place].tolist(), data.cond["boxes"][row].tolist(), strict=True):
            kind, x0, y0, x1, y1 = stored
            expected = [kind, 1 - x1, y0, 1 - x0, y1] if flipped and kind >= 0 else stored
            assert ours == pytest.approx(expected, abs=1e-6)
    assert {int(m[0, 0]) % 3 for m in got["map"]} == {0, 2}  # some turned, some not


def test_conditions_leave_the_stream_of_images_as_it_was() -> None:
    settings: dict[str, Any] = {"seed": 1, "transform": ToModelRange(256, flip=True)}
    plain = itertools.islice(Batches(with_conditions(), 8, **settings), 4)
    for a, b in zip(plain, batch(4, **settings, known=False), strict=True):
        assert list(a) == ["x0"] and torch.equal(a["x0"], b["x0"])
        assert list(b) == ["x0", "boxes", "map", "tokens"]


def test_examples_are_dropped_at_the_rate_with_their_labels() -> None:
    label = np.zeros(COUNT, np.int64)
    data = Dataset("a", "train", SHADES, 256, label, 1)
    batches = Batches(data, 4000, transform=ToModelRange(256), labels=True, label_dropout=0.25, known=True)
    got = next(iter(batches))
    assert torch.equal(got["known"], got["label"] == 0)
    assert abs(float(got["known"].float().mean()) - 0.75) < 0.03  # 4 deviations of a share of 4000
    parts = [next(iter(Batches(data, 4000, transform=ToModelRange(256), labels=True, label_dropout=0.25, known=True,
                               rows=slice(i, i + 2000)))) for i in (0, 2000)]  # fmt: skip
    assert torch.equal(torch.cat([part["known"] for part in parts]), got["known"])


def test_a_mirrored_caption_that_names_a_side_is_refused() -> None:
    tokens = {"tokens": np.zeros((COUNT, 2), np.int64)}
    captions = np.array([*["3 above 5"] * (COUNT - 1), "3 left of 5"])
    data = with_conditions(caption=captions)
    refused("got '3 left of 5' in shades: set config.transform.flip to False", Batches, data, 4, cond=tokens,
            transform=ToModelRange(256, flip=True))  # fmt: skip
    Batches(data, 4, cond=tokens, transform=ToModelRange(256))
    Batches(data, 4, transform=ToModelRange(256, flip=True))  # captions that nobody reads may be wrong
    Batches(with_conditions(caption=np.array(["bright leftovers"] * COUNT)), 4, cond=tokens,
            transform=ToModelRange(256, flip=True))  # fmt: skip


def test_conditions_of_another_length_are_refused() -> None:
    refused("expected 'tokens' as numbers with 12 rows", batch, cond={"tokens": np.zeros((3, 2), np.int64)})
    refused("expected 'tokens' as numbers with 12 rows", batch, cond={"tokens": np.array(["a"] * COUNT)})
