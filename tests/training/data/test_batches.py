"""Batches: the formula, the parts of a batch, the thread that prefetches."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from scorefield.training.data import Batches, Dataset, ToModelRange, digits
from scorefield.training.data.batches import Prefetcher


def test_to_model_range_is_the_formula_and_flips_half() -> None:
    k = torch.randint(17, (400, 1, 3, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    g = torch.Generator()
    u = torch.rand(k.shape, generator=g.manual_seed(3))
    plain = (-1 + 2 / 17 * (k.double() + u)).float()
    turned = torch.rand(400, generator=g) < 0.5
    assert torch.equal(ToModelRange(17)(k, g.manual_seed(3)), plain)
    flipped = ToModelRange(17, flip=True)(k, g.manual_seed(3))
    assert torch.equal(flipped[~turned], plain[~turned]) and torch.equal(flipped[turned], plain[turned].flip(-1))
    assert 150 < int(turned.sum()) < 250
    centred = ToModelRange(17, 0.0, 1.0, dequantise=False)(k, g)
    assert torch.allclose(centred, (k + 0.5) / 17)
    x = torch.randn(5, 2)
    assert torch.equal(ToModelRange(None)(x, g), x)


def test_the_parts_of_a_batch_are_the_batch() -> None:
    def first(**more: Any) -> list[dict[str, torch.Tensor]]:
        settings: dict[str, Any] = {
            "seed": 1,
            "transform": ToModelRange(17, flip=True),
            "labels": True,
            "label_dropout": 0.3,
        }
        return list(itertools.islice(Batches(digits(), 12, **settings, **more), 3))

    batches, parts = first(), [first(rows=slice(4 * i, 4 * i + 4)) for i in range(3)]
    for i, batch in enumerate(batches):
        for key in ("x0", "label"):
            assert torch.equal(batch[key], torch.cat([part[i][key] for part in parts]))


def test_noise_depends_on_seed_and_position() -> None:
    black = Dataset("black", "train", np.zeros((40, 3), np.uint8), 17)

    def noise(count: int, **settings: int) -> list[torch.Tensor]:
        batches = Batches(black, 12, transform=ToModelRange(17), **settings)  # type: ignore[arg-type]
        return [batch["x0"] for batch in itertools.islice(batches, count)]

    first = noise(5)
    assert len({tuple(x.flatten().tolist()) for x in [*first, *noise(1, seed=1)]}) == 6
    assert torch.equal(noise(1, start=48)[0], first[4])  # over the seam of two permutations


def test_the_prefetcher_keeps_order_ends_and_raises_errors() -> None:
    def count(most: int) -> Iterator[Any]:
        yield from range(most)
        raise OSError("the disk went away")

    with Prefetcher(count(1000), 3) as ready:
        assert [next(ready) for _ in range(10)] == [*range(10)]
    prefetcher = Prefetcher(count(4), 3)
    with pytest.raises(OSError, match="went away"), prefetcher as ready:
        list(ready)
    assert not prefetcher._thread.is_alive()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_batches_on_cuda_are_those_of_their_positions() -> None:
    def some(start: int, count: int, device: str, transform: Any) -> list[torch.Tensor]:
        stream = Batches(digits(), 24, seed=3, start=start, transform=transform, device=device, labels=True)
        return [batch["x0"].cpu() for batch in itertools.islice(stream, count)]

    for a, b in zip(some(0, 70, "cuda", lambda k, g: k), some(0, 70, "cpu", lambda k, g: k), strict=True):
        assert torch.equal(a, b)
    all_batches, later = (
        some(0, 70, "cuda", ToModelRange(17, flip=True)),
        some(24 * 60, 10, "cuda", ToModelRange(17, flip=True)),
    )
    assert all(torch.equal(a, b) for a, b in zip(all_batches[60:], later, strict=True))
