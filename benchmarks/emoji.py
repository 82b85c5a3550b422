"""Emoji with their names, for text to image: cuts the sheet of an npm package into an .npz for `array:path=...`.

python -m scorefield.benchmarks.emoji --output=FILE.npz [--size=32] [--tones] [--file=PACKAGE.tgz | --url=URL]

The package is `emoji-datasource-twitter` (62 MB; its data is under the MIT licence, the pictures are Twemoji's, under
CC BY 4.0). `npm pack` fetches it from the registry that npm is set to; `--url` names another place, `--file` a package
that is here already. Nothing of it is part of Scorefield.

The file has `x_train` and `x_test` (N, 3, size, size) of 256 levels on white, `caption_train` and `caption_test`, the
names in small letters, and `label_train` and `label_test`, the categories. Every tenth emoji, in Unicode's order, is
held out, so that each category has some. Skin tones are left out: they are half of all pictures, and differ by a colour
alone. With `--tones` they are in, on the side of the split of their emoji, so that no test picture has a twin.
"""

import argparse
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PACKAGE = "emoji-datasource-twitter@16.0.0"
SHEET, CELL = "package/img/twitter/sheets/64.png", 66  # a pixel of border about 64
TONES = {
    "1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark",
}  # fmt: skip


class Emoji(NamedTuple):
    """A picture: its place on the sheet, its name, its category, and the place of its emoji in Unicode's order."""

    column: int
    row: int
    name: str
    category: str
    order: int


def fetched(url: str, folder: Path) -> Path:
    """The package as a file, from a URL, or by npm from its registry."""
    if url:
        path = folder / "package.tgz"
        with urllib.request.urlopen(url) as source, path.open("wb") as file:
            shutil.copyfileobj(source, file)
        return path
    if shutil.which("npm") is None:
        raise ValueError("expected npm, which is not installed: install it, or give the package by --url or --file")
    subprocess.run(["npm", "pack", PACKAGE, "--silent", f"--pack-destination={folder}"], check=True, cwd=folder)
    return next(folder.glob("*.tgz"))


def read(package: Path) -> tuple[list[dict[str, Any]], NDArray[np.uint8]]:
    """The entries of emoji.json, and the sheet (height, width, 4)."""
    with tarfile.open(package) as tar:
        files = [tar.extractfile(name) for name in ("package/emoji.json", SHEET)]
        entries, sheet = (file.read() for file in files if file is not None)
    return json.loads(entries), np.asarray(Image.open(io.BytesIO(sheet)).convert("RGBA"))


def listed(entries: list[dict[str, Any]], tones: bool) -> list[Emoji]:
    """The pictures that the sheet has, in Unicode's order."""
    found = []
    for order, entry in enumerate(sorted(entries, key=lambda each: int(each["sort_order"]))):
        variants = {"": entry, **(entry.get("skin_variations", {}) if tones else {})}
        for tone, each in variants.items():
            words = " and ".join(TONES[part] for part in tone.split("-") if part)
            name = entry["name"].lower() + (f", {words} skin" if words else "")
            if each["has_img_twitter"]:
                found.append(Emoji(each["sheet_x"], each["sheet_y"], name, entry["category"], order))
    return found


def cut(sheet: NDArray[np.uint8], emoji: list[Emoji], size: int) -> NDArray[np.uint8]:
    """The pictures on white, (N, 3, size, size); a smaller size takes the mean of its pixels."""
    x = np.empty((len(emoji), 3, size, size), np.uint8)
    step = 64 // size
    for i, each in enumerate(emoji):
        top, left = each.row * CELL + 1, each.column * CELL + 1
        tile = sheet[top : top + 64, left : left + 64].astype(np.float64)
        ink = tile[..., 3:] / 255
        on_white = tile[..., :3] * ink + 255 * (1 - ink)
        x[i] = np.rint(on_white.reshape(size, step, size, step, 3).mean((1, 3))).transpose(2, 0, 1)
    return x


def split(emoji: list[Emoji], x: NDArray[np.uint8]) -> dict[str, Any]:
    """The arrays of the file: every tenth emoji, with its tones, is in the test split."""
    held = np.array([each.order % 10 == 0 for each in emoji])
    arrays = {}
    for side, rows in (("train", ~held), ("test", held)):
        arrays[f"x_{side}"] = x[rows]
        arrays[f"caption_{side}"] = np.array([each.name for each in emoji])[rows]
        arrays[f"label_{side}"] = np.array([each.category for each in emoji])[rows]
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", type=int, choices=(64, 32, 16), default=64)
    parser.add_argument("--tones", action="store_true")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--url", default="")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        entries, sheet = read(args.file or fetched(args.url, Path(temporary)))
    emoji = listed(entries, args.tones)
    arrays = split(emoji, cut(sheet, emoji, args.size))
    np.savez(args.output, **arrays)
    report = {
        "train": len(arrays["x_train"]), "test": len(arrays["x_test"]), "shape": list(arrays["x_train"].shape[1:]),
        "names": len({each.name for each in emoji}), "longest_name": max(len(each.name.split()) for each in emoji),
        "words": len({word for each in emoji for word in each.name.split()}),
        "bytes": args.output.stat().st_size, "licence": "pictures: Twemoji, CC BY 4.0; names and places: MIT",
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
