"""Readers of images wherever they lie, the decoded cache, mapped arrays, and batches; against NumPy and Pillow."""

import dataclasses
import importlib
import inspect
import io
import json
import os
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import classes_of_images, grey, labels, noise, png_bytes, refused, same, save, write_shard
from numpy.typing import NDArray
from PIL import Image

from scorefield.training import Batches
from scorefield.training.data import (
    Decoding,
    archive,
    array,
    celeba,
    folder,
    huggingface,
    image_files,
    imagenet,
    shards,
)
from scorefield.training.data.dataset import inspected

# Sizes, channels, depths


def test_sizes_by_each_policy(tmp_path: Path) -> None:
    # Halved by a box filter, a pixel is the mean of four, to a rounding; cropping moves no pixel.
    wide, tall = noise(16, 28, 3), noise(20, 16, 3, seed=1)
    save(tmp_path / "a.png", wide)
    save(tmp_path / "b.png", tall)
    refused("28x16 and", folder, tmp_path, "test")
    refused("size=64", folder, tmp_path, "test")

    def halved(x: NDArray[Any]) -> NDArray[Any]:
        return x.reshape(8, 2, 8, 2, 3).mean((1, 3)).transpose(2, 0, 1)

    a, b = (folder(tmp_path, split, size=8, resample="box").x[0].astype(int) for split in ("test", "train"))
    assert np.abs(a - halved(wide[:, 6:22])).max() <= 1 and np.abs(b - halved(tall[2:18])).max() <= 1
    a, b = (folder(tmp_path, split, size=(16, 12), fit="crop").x[0] for split in ("test", "train"))
    assert (a == wide[:, 8:20].transpose(2, 0, 1)).all() and (b == tall[2:18, 2:14].transpose(2, 0, 1)).all()
    a = folder(tmp_path, "test", crop=10).x[0]
    assert (a == wide[3:13, 9:19].transpose(2, 0, 1)).all()
    for filter_name, kind in (("bicubic", Image.Resampling.BICUBIC), ("lanczos", Image.Resampling.LANCZOS)):
        a = folder(tmp_path, "test", size=(6, 9), fit="resize", resample=filter_name).x[0]
        assert (a == np.asarray(Image.fromarray(wide).resize((9, 6), kind)).transpose(2, 0, 1)).all()
    refused("a.png: expected at least 20x20 pixels to crop, got 28x16", folder, tmp_path, size=20, fit="crop")


@pytest.mark.parametrize("reader", [folder, archive, shards, huggingface])
def test_readers_of_images_have_the_keywords_of_decoding(reader: Any, tmp_path: Path) -> None:
    parameters = inspect.signature(reader).parameters
    assert "decoding" not in parameters
    for field in dataclasses.fields(Decoding):
        assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[field.name].default == field.default
    with pytest.raises(TypeError, match="sizes"):
        reader(tmp_path, sizes=3)


def test_size_that_does_not_divide_gives_that_size(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(31, 17), (7, 64), (9, 9), (64, 65)]):
        save(tmp_path / f"{i}.png", noise(height, width, seed=i))
    assert folder(tmp_path, size=(9, 13)).shape == (1, 9, 13)


def test_policies_that_are_none(tmp_path: Path) -> None:
    save(tmp_path / "a.png", grey(1))
    for what, wrong in [
        ("fit to be one of resize_crop, resize, crop, got 'pad'", {"fit": "pad"}),
        ("resample to be one of", {"resample": "cubic"}),
        ("size of a side, or (height, width)", {"size": -1}),
        ("size of a side", {"size": (1, 2, 3)}),
        ("channels of 1, 3 or 0", {"channels": 2}),
        ("channels of 1, 3 or 0", {"channels": 3, "alpha": "keep"}),
        ("bits of 8, or 0", {"bits": 16}),
        ("alpha to be drop, keep or a colour as white, got 'whit'", {"alpha": "whit"}),
        ("corrupt to be one of error, skip", {"corrupt": "ignore"}),
    ]:
        refused(what, folder, tmp_path, **wrong)


def test_transparency_by_each_policy(tmp_path: Path) -> None:
    rgba = noise(6, 5, 4)
    for name in "ab":
        save(tmp_path / f"{name}.png", rgba)
    planes = rgba.transpose(2, 0, 1).astype(float)
    assert (folder(tmp_path).x[0] == planes[:3]).all()
    kept = folder(tmp_path, alpha="keep")
    assert kept.shape == (4, 6, 5) and (kept.x[0] == planes).all()
    share = planes[3] / 255
    for name, value in {"white": (255, 255, 255), "#ff8000": (255, 128, 0)}.items():
        laid = share * planes[:3] + (1 - share) * np.reshape(value, (3, 1, 1))
        assert np.abs(folder(tmp_path, alpha=name).x[0] - laid).max() <= 1
    # ITU-R 601-2 luma, as Pillow documents for its mode L.
    luma = np.tensordot([0.299, 0.587, 0.114], planes[:3], 1)
    one = folder(tmp_path, channels=1)
    assert one.shape == (1, 6, 5) and np.abs(one.x[0, 0] - luma).max() <= 1
    save(tmp_path / "c.png", grey(9, 5, 6))
    assert folder(tmp_path, alpha="keep").x[1, :, 0, 0].tolist() == [9, 9, 9, 255]


def test_sixteen_bits(tmp_path: Path) -> None:
    deep = noise(8, 8, dtype=np.uint16)
    for name in "ab":
        save(tmp_path / f"{name}.png", deep)
    shallow = folder(tmp_path, bits=8)
    assert shallow.levels == 256 and (shallow.x[0, 0] == deep >> 8).all()
    half = folder(tmp_path, size=4, resample="box")
    assert half.levels == 65536
    assert np.abs(half.x[0, 0] - deep.reshape(4, 2, 4, 2).mean((1, 3))).max() <= 1
    save(tmp_path / "c.png", grey(3, 8, 8))
    assert folder(tmp_path, bits=8).x[1, 0, 0, 0] == 3


def test_sixteen_bit_colour_is_not_cut_in_silence(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deep = noise(4, 5, 3, dtype=np.uint16)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    content = chunk(b"IHDR", struct.pack(">2I5B", 5, 4, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(lines))
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
    refused("a.png: 16 bits are read of one channel", folder, tmp_path)
    assert (folder(tmp_path, bits=8).x[0] == (deep >> 8).transpose(2, 0, 1)).all()


# Splits and damage


def test_validation_folders_are_test_splits(tmp_path: Path) -> None:
    for name in ("train", "val"):
        for value in range(3):
            save(tmp_path / name / "one" / f"{value}.png", grey(10 * len(name) + value))
    train, test = folder(tmp_path), folder(tmp_path, "test")
    assert train.x[:, 0, 0, 0].tolist() == [50, 51, 52] and test.x[:, 0, 0, 0].tolist() == [30, 31, 32]
    assert train.num_classes == test.num_classes == 1


def test_corrupt_images_are_named_or_skipped_and_counted(tmp_path: Path) -> None:
    root = classes_of_images(tmp_path / "d")
    complete = folder(root, cache="off")
    broken = [root / "cat" / "04.png", root / "dog" / "05.png", root / "dog" / "11.png"]
    for file, size in zip(broken, (0, 70, 30), strict=True):  # no head, no end, half a head
        os.truncate(file, size)
    refused(f"{broken[0]}: not an image that can be read", folder, root)
    for cache in ("off", "", ""):  # decoded in memory, into a cache, and from it
        left = folder(root, corrupt="skip", cache=cache)
        assert sorted(left.skipped) == sorted(map(str, broken))
        names = [f for f in sorted(root.rglob("*.png")) if "scorefield" not in str(f)]
        rows = [names.index(f) - sum(names.index(f) > t for t in (0, 10)) for f in broken]
        keep = [i for i in range(len(complete)) if i not in rows]
        assert (left.x == complete.x[keep]).all() and (labels(left) == labels(complete)[keep]).all()
    for file in root.rglob("*.png"):
        os.truncate(file, 3)
    refused("none of 12 can be read", folder, root, corrupt="skip")


def test_a_zip_with_a_damaged_member_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for i in range(4):
            file.writestr(f"{i}.png", png_bytes(noise(9, 9, 3, seed=i)))
    content = bytearray(path.read_bytes())
    at = content.index(b"2.png") + 200  # in its pixels
    content[at] ^= 255
    path.write_bytes(content)
    refused(f"{path}/2.png: not an image that can be read", archive, path)
    assert archive(path, corrupt="skip").skipped == (f"{path}/2.png",)
    for size in (len(content) // 2, 0):
        os.truncate(path, size)
        refused(f"{path}: not a zip or tar that can be read", archive, path)
    refused("b.zip, which is not there", archive, tmp_path / "b.zip")


# Archives and shards


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("top", ["", "wrapped/twice/"])
def test_an_archive_is_the_folder_it_was_made_of(tmp_path: Path, kind: str, top: str) -> None:
    root, path = classes_of_images(tmp_path / "d"), tmp_path / f"a.{kind}"
    files = sorted((f for f in root.rglob("*") if f.is_file()), reverse=True)
    members = {top + f.relative_to(root).as_posix(): f.read_bytes() for f in files}
    members |= {top + "readme.txt": b"no image", "__MACOSX/cat/._00.png": b"no image"}
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in members.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(path, f"w:{kind[4:]}") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    for split in ("train", "test"):
        same(archive(path, split, cache=tmp_path / "cache"), folder(root, split))  # type: ignore[arg-type]
    assert archive(path, cache="off").num_classes == 2


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz"])
def test_a_tar_that_ends_early(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    with tarfile.open(path, f"w:{kind[4:]}") as tar:
        for i in range(5):
            info = tarfile.TarInfo(f"{i}.png")
            content = png_bytes(noise(20, 20, 3, seed=i))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    os.truncate(path, 3700)
    refused(f"{path}: not a zip or tar that can be read", archive, path)


def test_shards_of_numbers_words_and_json(tmp_path: Path) -> None:
    pixels = [noise(4, 4, 3, seed=i) for i in range(12)]
    for style in ("cls", "word", "json", "none"):
        for shard in range(3):
            samples = {}
            for i in range(4 * shard, 4 * shard + 4):
                samples[f"x/{i:04}.png"] = png_bytes(pixels[i])
                if style == "json":
                    samples[f"x/{i:04}.json"] = json.dumps({"kind": i % 3, "other": "b"}).encode()
                elif style != "none":
                    samples[f"x/{i:04}.cls"] = (str(i % 3) if style == "cls" else "cab"[i % 3]).encode() + b"\n"
            write_shard(tmp_path / f"{style}-{shard:03}.tar", samples)
    stacked = np.stack(pixels).transpose(0, 3, 1, 2)
    rows = [i for i in range(12) if i not in (0, 10)]
    for pattern in (f"{tmp_path}/cls-{{000..002}}.tar", f"{tmp_path}/cls-*.tar", f"{tmp_path}/cls-{{000,001,002}}.tar"):
        data = shards(pattern)
        assert (data.x == stacked[rows]).all() and labels(data).tolist() == [i % 3 for i in rows]
        assert data.num_classes == 3 and shards(pattern, "test").x.shape[0] == 2
    assert labels(shards(f"{tmp_path}/word-*.tar")).tolist() == [(2, 0, 1)[i % 3] for i in rows]
    assert labels(shards(f"{tmp_path}/json-*.tar", label="kind")).tolist() == [i % 3 for i in rows]
    assert shards(f"{tmp_path}/json-*.tar").label is None and shards(f"{tmp_path}/none-*.tar").label is None
    refused("cls-003.tar, which is not there", shards, f"{tmp_path}/cls-{{000..003}}.tar")
    refused("expected shards of train", shards, f"{tmp_path}/no-*.tar")
    refused("expected numbers as {000..012}", shards, f"{tmp_path}/cls-{{a..c}}.tar")
    write_shard(
        tmp_path / "gap.tar",
        {f"{i}.{s}": c for i in range(3) for s, c in (("png", png_bytes(pixels[i])), ("cls", b"%d" % (3 * i)))},
    )
    assert labels(shards(tmp_path / "gap.tar")).tolist() == [3, 6] and shards(tmp_path / "gap.tar").num_classes == 7
    write_shard(tmp_path / "half.tar", {"a.png": png_bytes(pixels[0]), "b.png": png_bytes(pixels[1]), "a.cls": b"1"})
    refused("a class for every sample or for none, got none for b", shards, tmp_path / "half.tar")


def test_shards_with_splits_of_their_own(tmp_path: Path) -> None:
    for name, values in {"train": range(5), "val": range(5, 8)}.items():
        write_shard(
            tmp_path / f"{name}-0.tar",
            {
                f"{i}.{s}": c
                for i in values
                for s, c in (("jpg.cls", b""), ("png", png_bytes(grey(i))), ("cls", b"%d" % i))
            },
        )
    train, test = (shards(f"{tmp_path}/{{split}}-*.tar", split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert train.x[:, 0, 0, 0].tolist() == [*range(5)] and test.x[:, 0, 0, 0].tolist() == [5, 6, 7]
    assert train.num_classes == test.num_classes == 8 and labels(test).tolist() == [5, 6, 7]


# The cache


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by every image file that is looked into."""
    import scorefield.training.data.files.images as module

    seen: list[str] = []
    kind_of = module.kind_of
    monkeypatch.setattr(
        module, "kind_of", lambda file, exif: seen.append(getattr(file, "name", "")) or kind_of(file, exif)
    )
    return seen


def test_decoded_images_are_read_once(tmp_path: Path, opened: list[str]) -> None:
    root = classes_of_images(tmp_path / "d")
    first = folder(root)
    assert len(opened) == 12
    second = folder(root)
    assert len(opened) == 12 and not second.x.flags.writeable
    same(first, second)
    folder(root, cache=tmp_path / "elsewhere")
    assert len(opened) == 24 and list((tmp_path / "elsewhere").iterdir())
    assert folder(root, cache="off").x.flags.c_contiguous  # or every batch would pay for it
    assert len(opened) == 36
    folder(root, size=3)
    assert len(opened) == 48


def test_what_changes_makes_the_cache_anew(tmp_path: Path, opened: list[str]) -> None:
    root = classes_of_images(tmp_path / "d")
    folder(root)
    file = root / "cat" / "02.png"
    save(file, noise(5, 4, 3, seed=99))
    os.utime(file, ns=(1, time.time_ns()))
    fresh = folder(root)
    assert len(opened) == 24 and (fresh.x[0] == noise(5, 4, 3, seed=99).transpose(2, 0, 1)).all()
    save(root / "cat" / "99.png", noise(5, 4, 3))
    assert len(folder(root)) == 11 and len(opened) == 37
    assert len([place for place in (root / ".scorefield").iterdir() if place.is_dir()]) == 1  # old ones are removed


def test_a_cache_half_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scorefield.training.data.files.cache as module

    root = classes_of_images(tmp_path / "d")
    expected = folder(root, cache="off").x

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_to_disk", stop)
        with pytest.raises(KeyboardInterrupt):
            folder(root)
    assert (folder(root).x == expected).all()
    (complete,) = (place for place in (root / ".scorefield").iterdir() if place.is_dir())
    for file, size in (("x.bin", 100), ("about.json", 20), ("about.json", 0)):
        os.truncate(complete / file, size)
        assert (folder(root).x == expected).all()
    rows, size = complete / "x.bin", expected.nbytes
    os.truncate(rows, size + 1)
    assert (folder(root).x == expected).all() and rows.stat().st_size == size
    (complete / "x.bin").unlink()
    assert (folder(root).x == expected).all()


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scorefield.training.data.files.cache as module

    root = classes_of_images(tmp_path / "d")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_to_disk", full)
    refused("No space left on device): make room, choose another folder (cache=FOLDER", folder, root)
    assert not [place for place in (root / ".scorefield").iterdir() if place.is_dir()]


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes_of_images(tmp_path / "d")
    expected = folder(root, cache="off").x
    (tmp_path / "file").write_text("")
    refused("cache to be a folder that can be written", folder, root, cache=tmp_path / "file")
    monkeypatch.setattr("scorefield.training.data.files.cache.os.access", lambda *_: False)
    assert (folder(root).x == expected).all()
    refused("cache to be a folder that can be written", folder, root, cache=tmp_path / "given")


# Distributed formats


def test_celeba_is_cropped_as_the_papers_do(tmp_path: Path) -> None:
    # torchvision's CenterCrop(140) of 178x218 begins at row 39 and column 19.
    place = tmp_path / "celeba" / "img_align_celeba"
    refused("img_align_celeba, a folder or .zip, which is not there", celeba, tmp_path)
    faces = {number: noise(218, 178, 3, seed=number) for number in (1, 162770, 162771, 182637, 182638, 202599)}
    place.mkdir(parents=True)
    for number, face in faces.items():
        Image.fromarray(face).save(place / f"{number:06}.png")
    train = celeba(tmp_path, size=140)
    assert len(train) == 2 and (train.x[1] == faces[162770][39:179, 19:159].transpose(2, 0, 1)).all()
    cropped = Image.fromarray(faces[182638][39:179, 19:159]).resize((64, 64), Image.Resampling.BILINEAR)
    assert (celeba(tmp_path, "test").x[0] == np.asarray(cropped).transpose(2, 0, 1)).all()
    assert len(celeba(tmp_path, "test", test="valid")) == 2
    partition = place.parent / "list_eval_partition.txt"
    partition.write_text("".join(f"{n:06}.jpg {int(n > 1)}\n" for n in faces))
    assert len(celeba(tmp_path)) == 1
    refused("expected images of test, found none", celeba, tmp_path, "test")
    partition.write_text("000001.jpg nine\n")
    refused("list_eval_partition.txt: expected lines as", celeba, tmp_path)
    partition.unlink()
    other = tmp_path / "zipped" / "celeba"
    other.mkdir(parents=True)
    with zipfile.ZipFile(other / "img_align_celeba.zip", "w") as packed:
        for file in place.iterdir():
            packed.write(file, f"img_align_celeba/{file.name}")
    same(celeba(tmp_path / "zipped", "test"), celeba(tmp_path, "test"))


def test_imagenet_as_it_is_distributed(tmp_path: Path) -> None:
    batches = [(noise(7, 3072, seed=i), np.random.default_rng(i).integers(1, 1001, 7)) for i in range(11)]
    top = tmp_path / "imagenet32"
    refused("train_data_batch_1.npz, or a pickle of that name without an ending", imagenet, tmp_path, size=32)
    for i, (x, y) in enumerate(batches):
        name = f"train_data_batch_{i + 1}" if i < 10 else "val_data"
        place = top / ("Imagenet32_train_npz" if i % 2 else ".")
        place.mkdir(parents=True, exist_ok=True)
        np.savez(place / f"{name}.npz", data=x, labels=y, mean=x.mean(0))
    for _ in range(2):
        train, test = imagenet(tmp_path, size=32), imagenet(tmp_path, "test", size=32)
        assert (train.x.reshape(70, -1) == np.concatenate([x for x, _ in batches[:10]])).all()
        assert train.x[3, 2, 5, 9] == batches[0][0][3, 2 * 1024 + 5 * 32 + 9]
        assert (labels(test) == batches[10][1] - 1).all() and test.num_classes == 1000
    refused("expected size of 8, 16, 32 or 64", imagenet, tmp_path, size=33)
    np.savez(top / "val_data.npz", data=batches[0][0], labels=batches[0][1] - 1000)
    refused("val_data.npz: expected labels 1 to 1000", imagenet, tmp_path, "test", size=32)
    np.savez(top / "val_data.npz", data=batches[0][0][:, :3000], labels=batches[0][1])
    refused("val_data.npz: expected data, uint8 (N, 3072)", imagenet, tmp_path, "test", size=32)


def test_huggingface_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("pip install 'scorefield[datasets]'", huggingface, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["saved", "parquet", "split"])
def test_huggingface_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    package = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    pixels = [noise(4, 6, 3, seed=i) for i in range(12)]
    features = package.Features({"picture": package.Image(), "label": package.ClassLabel(names=["a", "b", "c"])})
    table = package.Dataset.from_dict(
        {"picture": [{"bytes": png_bytes(x), "path": None} for x in pixels], "label": [i % 2 for i in range(12)]},
        features=features,
    )
    root = tmp_path / "set"
    if form == "parquet":
        root.mkdir()
        table.to_parquet(root / "train.parquet")
    elif form == "saved":
        table.save_to_disk(root)
    else:
        parts = {"train": table.select(range(9)), "validation": table.select(range(9, 12))}
        package.DatasetDict(parts).save_to_disk(root)
    tests = [9, 10, 11] if form == "split" else [0, 10]
    stacked = np.stack(pixels).transpose(0, 3, 1, 2)
    for _ in range(2):
        train, test = huggingface(root), huggingface(root, "test")
        assert (test.x == stacked[tests]).all() and (train.x == np.delete(stacked, tests, 0)).all()
        assert labels(test).tolist() == [i % 2 for i in tests] and train.num_classes == test.num_classes == 3
    refused("expected a column 'image', got picture, label", huggingface, root, column="image")
    assert huggingface(root, size=2).shape == (3, 2, 2)


@pytest.mark.filterwarnings("ignore")
def test_huggingface_of_vectors(tmp_path: Path) -> None:
    package = pytest.importorskip("datasets", reason="the package datasets is not installed")
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    package.Dataset.from_dict({"name": list("abcdefghijk"), "v": x.tolist()}).save_to_disk(tmp_path / "v")
    data = huggingface(tmp_path / "v")
    assert data.levels is None and data.label is None and (data.x == np.delete(x, [0, 10], 0)).all()
    refused("not a set that datasets can load", huggingface, tmp_path / "none")


# Mapped arrays


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of any size are treated as large ones."""
    monkeypatch.setattr(importlib.import_module("scorefield.training.data.files.npz"), "IN_MEMORY", 0)


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("form", ["npy", "npz", "fortran", "compressed", "big-endian"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "f8", "?"])
def test_mapped_arrays_are_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(23, 2, 5)) * 50 + 100
    x = np.asfortranarray(x.astype(dtype)) if form == "fortran" else x.astype(dtype)
    x = x.astype(x.dtype.newbyteorder(">")) if form == "big-endian" else x
    path = tmp_path / ("a.npz" if form in ("npz", "compressed") else "a.npy")
    y = np.arange(23) % 4
    if form == "compressed":
        np.savez_compressed(path, x=x, label=y)
    elif form == "npz":
        np.savez(path, label=y, x=x)
    else:
        np.save(path, x)
    got = [array(path, "train"), array(path, "test")]
    monkeypatch.undo()
    for data, split in zip(got, ("train", "test"), strict=True):
        read = array(path, split)  # type: ignore[arg-type]
        same(data, read)
        assert (np.asarray(data.x) == read.x).all() and not isinstance(data.x, np.ndarray)
        assert (data.x[np.array([1, 0])] == read.x[[1, 0]]).all() and (data.x[1:] == read.x[1:]).all()
        a, b = (next(iter(Batches(d, 2, transform=lambda k, g: k)))["x0"] for d in (data, read))
        assert torch.equal(a, b)


def test_raw_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3, 4)).astype(np.float32)
    x.tofile(tmp_path / "a.bin")
    data = array(tmp_path / "a.bin", "test", shape=(3, 4), dtype="float32")
    assert (data.x == x[[0, 10]]).all() and data.levels is None
    refused(
        "expected items of 44 bytes, (11,) of f4, got 960 bytes",
        array,
        tmp_path / "a.bin",
        shape=(11,),
        dtype="f4",
    )
    refused("expected dtype to be a NumPy type", array, tmp_path / "a.bin", shape=(3,), dtype="float33")
    refused("which is not there", array, tmp_path / "b.bin", shape=(3,))


def test_a_large_array_is_never_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 256 MiB of holes; above 16 MiB counts as large here.
    monkeypatch.setattr(importlib.import_module("scorefield.training.data.files.npz"), "IN_MEMORY", 1 << 24)
    monkeypatch.setattr(importlib.import_module("scorefield.training.data.dataset"), "LARGE", 1 << 24)
    head = io.BytesIO()
    np.lib.format.write_array_header_2_0(head, {"descr": "<f4", "fortran_order": False, "shape": (1 << 18, 256)})
    path = tmp_path / "a.npy"
    path.write_bytes(head.getvalue())
    os.truncate(path, len(head.getvalue()) + (1 << 28))
    tracemalloc.start()
    data = array(path)
    assert len(data.fingerprint) == 64 and sum(len(rows) for rows in inspected(data.x)) == 16_384
    next(iter(Batches(data, 64, transform=lambda k, g: k)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26  # what is looked at, 16 MiB, and the places of the rows


# Batches


# The check


def test_a_link_that_leads_back_is_gone_through_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png_bytes(np.zeros((4, 4), np.uint8)))
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [file.name for file in image_files(tmp_path)] == ["a.png", "b.png"]
