"""The file of a compressed set: what goes in comes out, and damaged files are refused."""

import numpy as np
import pytest

from scorefield.compression import Container

WORDS = np.arange(1, 9, dtype=np.uint32)
LABELS = np.array([3, 1, 9], np.int64)


def packed() -> bytes:
    return Container({"shape": [1, 8, 8], "names": None}, WORDS, {"label": LABELS, "box": np.ones((3, 2))}).pack()


def test_a_file_holds_what_was_given() -> None:
    kept = Container.unpack(packed(), "a")
    assert kept.header["shape"] == [1, 8, 8] and kept.header["names"] is None
    np.testing.assert_array_equal(kept.words, WORDS)
    np.testing.assert_array_equal(kept.arrays["label"], LABELS)
    np.testing.assert_array_equal(kept.arrays["box"], np.ones((3, 2)))
    assert (kept.arrays["label"].dtype, kept.arrays["box"].dtype) == (np.int64, np.float64)


def test_the_header_is_short() -> None:
    assert len(packed()) - 4 * len(WORDS) < 120


@pytest.mark.parametrize("length", [0, 5, 8, 16, 20, 60, -4, -1])
def test_a_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        Container.unpack(packed()[:length], "a")


def test_other_files_and_flipped_bits_are_refused() -> None:
    data = bytearray(packed())
    with pytest.raises(ValueError, match="expected a file of --mode=compress in a, got another"):
        Container.unpack(b"\x89PNG" + bytes(data), "a")
    for place in range(12, len(data)):
        data[place] ^= 16
        with pytest.raises(ValueError, match="truncated or damaged"):
            Container.unpack(bytes(data), "a")
        data[place] ^= 16
    Container.unpack(bytes(data), "a")
