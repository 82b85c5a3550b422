"""What benchmarks read: digits from their place on a canvas, emoji from their place on a sheet."""

import numpy as np
import torch
from image_files import refused

from scorefield.benchmarks.emoji import cut, listed, split
from scorefield.benchmarks.read_canvas import crops, said


def test_crops_are_the_squares_about_the_ink_of_each_half() -> None:
    first, second = (np.random.default_rng(i).integers(1, 256, size=(6, 6)) for i in (0, 1))
    beside, above = np.zeros((2, 1, 32, 32))
    # In a half of 16, so that a square of 16 about the middle has them at 5 of one axis.
    beside[0, 9:15, 3:9], beside[0, 20:26, 24:30] = first, second
    above[0, 3:9, 9:15], above[0, 24:30, 20:26] = first, second
    got = crops(torch.tensor(np.stack([beside, above])), torch.tensor([False, True]))
    assert got.shape == (2, 2, 1, 16, 16)
    for place, (digit, along) in enumerate(((first, 3), (second, 8))):
        for side, at in ((0, np.s_[:, along : along + 6]), (1, np.s_[along : along + 6, :])):
            tile = got[side, place, 0].numpy()[at]
            across = tile.sum(1 - side).nonzero()[0]
            assert 3 <= across[0] <= 7  # in the middle, to the centre of its ink
            shown = tile[across] if side == 0 else tile[:, across]
            assert np.array_equal(shown, digit) and tile.sum() == digit.sum()


def test_captions_say_digits_and_their_relation() -> None:
    digits, above = said(["3 left of 5", "7 above 2"])
    assert digits.tolist() == [[3, 5], [7, 2]] and above.tolist() == [False, True]
    refused("got '3 right of 5'", said, ["3 right of 5"])


def test_emoji_are_cut_from_their_places_and_tones_stay_together() -> None:
    def entry(place: int, **more: object) -> dict[str, object]:
        return {"sheet_x": place % 6, "sheet_y": place // 6, "has_img_twitter": True, **more}

    entries = [
        entry(i, name=f"NUMBER {i}", category="ab"[i % 2], sort_order=20 - i,
              skin_variations={"1F3FB": entry(20 + i), "1F3FB-1F3FF": entry(20 + i)})
        for i in range(12)
    ]  # fmt: skip
    sheet = np.zeros((6 * 66, 6 * 66, 4), np.uint8)
    for place in range(36):
        top, left = 66 * (place // 6) + 1, 66 * (place % 6) + 1
        sheet[top : top + 64, left : left + 64] = [place, 0, 0, 255]
        sheet[top : top + 64, left] = 0  # transparent, so white
    plain, toned = listed(entries, False), listed(entries, True)
    assert [each.name for each in plain] == [f"number {i}" for i in range(11, -1, -1)]
    assert toned[2].name == "number 11, light and dark skin" and len(toned) == 36
    x = cut(sheet, toned, 32)
    assert x.shape == (36, 3, 32, 32) and [*x[:3, 0, 5, 5]] == [11, 31, 31]
    assert x[0, :, 5, 0].tolist() == [133, 128, 128]  # the mean of white and of (11, 0, 0)
    assert [*x[0, 0, 5]] == [133, *[11] * 31] and [*x[0, 0, 1:, 5]] == [11] * 31 and x[0, 0, 0, 5] == 11
    arrays = split(toned, x)
    assert [name.split(",")[0] for name in arrays["caption_test"]] == ["number 11"] * 3 + ["number 1"] * 3
    assert len(arrays["x_train"]) == 30 and arrays["label_test"].tolist() == ["b"] * 6
