"""The data readers, against files written here byte by byte, scikit-learn's arrays, and the real sets if present."""

import gzip
import importlib
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import grey, labels, real, refused, save
from numpy.typing import NDArray

from scorefield.training.data import Dataset, array, cifar10, digits, fashion_mnist, folder, mnist, read_idx, toy
from scorefield.training.data.dataset import hold_out
from scorefield.training.data.sources.toys import NAMES

BYTES = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
LABELS = np.array([0, 2, 1, 2])


# The class


def test_dataset_knows_its_shape_and_length() -> None:
    data = Dataset("a", "train", BYTES, 24, LABELS, 3)
    assert (len(data), data.shape, data.levels, data.num_classes) == (4, (2, 3), 24, 3)


def test_fingerprint_follows_every_part_of_the_content_and_nothing_else() -> None:
    first = Dataset("a", "train", BYTES, 24, LABELS, 3)
    assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)
    strided = np.asfortranarray(BYTES)
    assert first.fingerprint == Dataset("b", "test", strided, 30, LABELS.copy(), 4).fingerprint
    changed = BYTES.copy()
    changed[3, 1, 2] -= 1
    others = [
        Dataset("a", "train", changed, 24, LABELS, 3),
        Dataset("a", "train", BYTES.reshape(4, 6), 24, LABELS, 3),
        Dataset("a", "train", BYTES.astype(np.int16), 24, LABELS, 3),
        Dataset("a", "train", BYTES, 24, LABELS[::-1].copy(), 3),
        Dataset("a", "train", BYTES, 24),
    ]
    assert len({data.fingerprint for data in [first, *others]}) == 6


def test_dataset_refuses_what_it_cannot_be() -> None:
    floats = BYTES.astype(np.float32)
    broken = floats.copy()
    broken[0, 0, :2] = np.nan, np.inf
    cases: list[tuple[str, tuple[Any, ...]]] = [
        ("split to be train or test, got 'val'", ("a", "val", BYTES, 24)),
        ("a: expected data of shape (N, *D), got (24,)", ("a", "train", BYTES.ravel(), 24)),
        ("at least one item of at least one entry, got shape (0, 2, 3)", ("a", "train", BYTES[:0], 24)),
        ("in float32, got float64", ("a", "train", floats.astype(float), None)),
        ("in float32, got uint8", ("a", "train", BYTES, None)),
        ("got 2 NaN or infinite entries", ("a", "train", broken, None)),
        ("levels of at least 2, or None for continuous data, got 1", ("a", "train", BYTES * 0, 1)),
        ("integers in 0..22 for 23 levels, got uint8 from 0 to 23", ("a", "train", BYTES, 23)),
        ("got int16 from -1 to 22", ("a", "train", BYTES.astype(np.int16) - 1, 256)),
        ("got float32 from 0.0 to 23.0", ("a", "train", floats, 256)),
        ("together, got no num_classes", ("a", "train", BYTES, 24, LABELS)),
        ("together, got no label", ("a", "train", BYTES, 24, None, 3)),
        ("labels of shape (4,) in int64, got (3,)", ("a", "train", BYTES, 24, LABELS[:3], 3)),
        ("in int64, got (4,) in float64", ("a", "train", BYTES, 24, LABELS.astype(float), 3)),
        ("labels in 0..1, got 0 to 2", ("a", "train", BYTES, 24, LABELS, 2)),
        ("labels in 0..2, got -1 to 1", ("a", "train", BYTES, 24, LABELS - 1, 3)),
    ]
    for what, arguments in cases:
        refused(what, Dataset, *arguments)


def test_hold_out_parts_every_count() -> None:
    for count in (2, 9, 10, 11, 57):
        train, test = hold_out(count, "train"), hold_out(count, "test")
        assert sorted([*train, *test]) == list(range(count))
        assert test.tolist() == list(range(0, count, 10))
    refused("at least two items, because one of them is held out", hold_out, 1, "train")


# Digits


def test_digits_are_scikit_learns_split_by_class() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1437, 360)
    for data in (train, test):
        assert (data.shape, data.levels, data.num_classes, data.x.dtype) == ((1, 8, 8), 17, 10, np.dtype(np.uint8))
    complete = sorted((int(y), *image) for y, image in zip(bunch.target, bunch.data.astype(int).tolist(), strict=True))
    parts = [(int(y), *x.ravel().tolist()) for d in (train, test) for x, y in zip(d.x, labels(d), strict=True)]
    assert sorted(parts) == complete
    fifth = np.bincount(bunch.target) / 5
    assert (np.abs(np.bincount(labels(test)) - fifth) < 1).all()
    assert digits("test").fingerprint == test.fingerprint
    refused("train or test", digits, "valid")


# IDX


def idx_bytes(code: int, shape: tuple[int, ...], content: bytes) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


@pytest.mark.parametrize(
    ("code", "letter", "dtype"),
    [(8, "B", "u1"), (9, "b", "i1"), (11, "h", "i2"), (12, "i", "i4"), (13, "f", "f4"), (14, "d", "f8")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_reads_every_type(tmp_path: Path, code: int, letter: str, dtype: str, packed: bool) -> None:
    values = [0, 1, 2, 100, 5, 127]
    data = idx_bytes(code, (2, 3), struct.pack(f">6{letter}", *values))
    (tmp_path / "a").write_bytes(gzip.compress(data) if packed else data)
    got = read_idx(tmp_path / "a")
    assert got.dtype == np.dtype(dtype) and got.dtype.isnative and got.flags.writeable
    assert got.tolist() == [values[:3], values[3:]]


def test_idx_finds_the_packed_file_next_to_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx_bytes(8, (3,), b"abc")))
    assert bytes(read_idx(tmp_path / "a")) == b"abc"


def test_idx_refuses_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    refused("a, which is not there", read_idx, path)
    good = idx_bytes(8, (2, 3), b"abcdef")
    for content, what in [
        (good[:-1], "expected 18 bytes for uint8 (2, 3), got 17: delete it, then download it"),
        (good + b"!", "expected 18 bytes for uint8 (2, 3), got 19"),
        (good[:6], "expected an IDX header, got 6 bytes from '00000802'"),
        (b"", "expected an IDX header, got 0 bytes"),
        (b"<html>not found</html>", "expected an IDX header, got 22 bytes from '3c68746d'"),
        (idx_bytes(10, (1,), b"a"), "expected an IDX header"),
        (gzip.compress(good)[:-9], "bytes of damaged gzip"),
        (gzip.compress(good)[:10] + b"\xff" * 20, "bytes of damaged gzip"),
    ]:
        path.write_bytes(content)
        refused(what, read_idx, path)
        refused(str(path), read_idx, path)


@pytest.mark.parametrize(("reader", "name"), [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
def test_mnist_in_torchvisions_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Callable[..., Dataset], name: str
) -> None:
    raw = tmp_path / name / "raw"
    refused(f"{raw / 't10k-images-idx3-ubyte'}, which is not there", reader, tmp_path, "test")
    refused("DATA_ROOT", reader, tmp_path, "test")
    refused("train or test", reader, tmp_path, "val")
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels, y = random.integers(256, size=(10_000, 28, 28), dtype=np.uint8), random.integers(10, size=10_000)
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(8, pixels.shape, pixels.tobytes()))
    refused("t10k-labels-idx1-ubyte, which is not there", reader, tmp_path, "test")
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(8, y.shape, bytes(y.tolist())))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    for data in (reader(tmp_path, "test"), reader(split="test")):
        assert (data.shape, data.levels, data.num_classes) == ((1, 28, 28), 256, 10)
        assert (data.x[:, 0] == pixels).all() and (labels(data) == y).all()
    (raw / "train-images-idx3-ubyte").write_bytes(idx_bytes(8, pixels.shape, pixels.tobytes()))
    refused("expected 47040000 bytes as (60000, 28, 28), got 7840000 as (10000, 28, 28)", reader, tmp_path, "train")


# CIFAR-10


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> int:
    """Batches of 20 images in place of 10,000."""
    monkeypatch.setattr(importlib.import_module("scorefield.training.data.sources.cifar10"), "COUNT", 20)
    return 20


def cifar_content(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], list[int]]:
    random = np.random.default_rng(seed)
    return random.integers(256, size=(count, 3072), dtype=np.uint8), random.integers(10, size=count).tolist()


def write_binary(path: Path, x: NDArray[np.uint8], y: list[int]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(bytes([label]) + image.tobytes() for image, label in zip(x, y, strict=True)))


def python2_pickle(x: NDArray[np.uint8], y: list[int]) -> bytes:
    """The dictionary as Python 2 wrote it: byte strings, and the array with the names of NumPy 1."""

    def string(text: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(text)) + text

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + integer(0) + integer(1) + b"tR"
    dtype += b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    data = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + integer(0) + b"t" + string(b"b") + b"tR"
    data += b"(" + integer(1) + b"(" + integer(len(x)) + integer(3072) + b"t" + dtype + b"\x89"
    data += string(x.tobytes()) + b"tb"
    label = b"](" + b"".join(map(integer, y)) + b"e"
    return b"\x80\x02}(" + string(b"data") + data + string(b"labels") + label + b"u."


def test_cifar10_reads_binary_records(tmp_path: Path) -> None:
    x, y = cifar_content(10_000)
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    refused(f"{path}, which is not there", cifar10, tmp_path, "test")
    write_binary(path, x, y)
    data = cifar10(tmp_path, "test")
    assert (data.shape, data.levels, data.num_classes) == ((3, 32, 32), 256, 10)
    # Red, green and blue planes of rows: entry (c, i, j) is byte 1024 c + 32 i + j.
    assert data.x[7, 2, 5, 9] == x[7, 2 * 1024 + 5 * 32 + 9]
    assert (data.x.reshape(-1, 3072) == x).all() and labels(data).tolist() == y
    os.truncate(path, 30_729_999)
    refused(f"{path}: expected 30730000 bytes, got 30729999: delete it, then download it", cifar10, tmp_path, "test")
    refused("train or test", cifar10, tmp_path, "val")


def test_cifar10_takes_its_batches_in_order(tmp_path: Path, small_batches: int) -> None:
    batches = [cifar_content(small_batches, seed) for seed in range(5)]
    for i, (x, y) in enumerate(batches):
        write_binary(tmp_path / "cifar-10-batches-bin" / f"data_batch_{i + 1}.bin", x, y)
    data = cifar10(tmp_path)
    assert (data.x.reshape(5, 20, 3072) == np.stack([x for x, _ in batches])).all()
    assert labels(data).tolist() == [label for _, y in batches for label in y]
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    refused("data_batch_4.bin, which is not there", cifar10, tmp_path)


@pytest.mark.parametrize("kind", ["python 2", 0, 1, 2, 3, 4, 5, "fortran", "numpy 1"])
def test_cifar10_reads_every_pickle_of_the_same_content(tmp_path: Path, small_batches: int, kind: str | int) -> None:
    x, y = cifar_content(small_batches)
    content = {"data": np.asfortranarray(x) if kind == "fortran" else x, "labels": y, "batch_label": "one"}
    if kind == "python 2":
        packed = python2_pickle(x, y)
    else:
        packed = pickle.dumps(content, protocol=kind if isinstance(kind, int) else 2)
    if kind == "numpy 1":
        packed = packed.replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(packed)
    data = cifar10(tmp_path, "test")
    assert (data.x.reshape(-1, 3072) == x).all() and labels(data).tolist() == y


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def test_cifar10_refuses_a_pickle_that_asks_for_more(tmp_path: Path, small_batches: int) -> None:
    x, y = cifar_content(small_batches)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.parent.mkdir()
    sign = tmp_path / "was-run"
    for content, what in [
        ({"data": x, "labels": y, "more": Call(os.system, f"touch {sign}")}, f"refused: it asks for {os.name}.system"),
        (Call(eval, f"open({str(sign)!r}, 'w')"), "refused: it asks for builtins.eval"),
        (Call(os.mkdir, str(sign)), f"refused: it asks for {os.name}.mkdir"),
        (Call(getattr, x, "data"), "refused: it asks for builtins.getattr"),
        ({"data": x.astype(object), "labels": y}, "refused: an array of 'O8'"),
        ({"data": x, "labels": np.array(y)}, "refused: an array of 'i8'"),
        ({"data": x, "labels": [np.int64(3)]}, "multiarray.scalar"),
        ({"data": x[:5], "labels": y[:5]}, "expected 61440 bytes as (20, 3072), got 15360 as (5, 3072)"),
        ({"labels": y}, "not a batch of CIFAR-10 (KeyError: 'data')"),
        ([1, 2], "not a batch of CIFAR-10"),
    ]:
        path.write_bytes(pickle.dumps(content, protocol=4))
        refused(what, cifar10, tmp_path, "test")
        refused(f"{path}: not a batch", cifar10, tmp_path, "test")
    assert not sign.exists()


def test_cifar10_refuses_damaged_pickles(tmp_path: Path, small_batches: int) -> None:
    x, y = cifar_content(small_batches)
    packed = python2_pickle(x, y)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.parent.mkdir()
    for content in (packed[:-1000], packed[:3], b"", b"<html>", packed.replace(b"ndarray", b"ndxrray")):
        path.write_bytes(content)
        refused(f"{len(content)} bytes: delete it, then download it", cifar10, tmp_path, "test")
    path.rename(path.with_name("data_batch_1"))
    path.with_name("data_batch_1").write_bytes(packed)
    refused("data_batch_2, which is not there", cifar10, tmp_path, "train")


# Folders


def colour(value: int) -> NDArray[np.uint8]:
    return np.stack([grey(value), grey(value + 1), grey(value + 2)], axis=2)


def test_folder_sorts_and_holds_a_tenth_out(tmp_path: Path) -> None:
    suffixes = ["png", "bmp", "PNG", "webp"]
    for i in range(23):
        save(tmp_path / f"{i:02}.{suffixes[i % 3]}", colour(10 * i))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._00.png").write_bytes(b"what some systems leave behind")
    train, test = folder(tmp_path, "train"), folder(tmp_path, "test")
    assert test.x[:, :, 0, 0].tolist() == [[v, v + 1, v + 2] for v in (0, 100, 200)]
    assert train.x[:, 0, 3, 4].tolist() == [10 * i for i in range(23) if i not in (0, 10, 20)]
    assert (train.shape, train.levels, train.label, train.num_classes) == ((3, 4, 5), 256, None, None)
    assert train.name == tmp_path.name


def test_folder_reads_lossy_formats(tmp_path: Path) -> None:
    for i, suffix in enumerate(["jpg", "jpeg", "webp", "png"]):
        save(tmp_path / f"{i}.{suffix}", np.full((16, 16), 60 * i, np.uint8))
    values = np.concatenate([folder(tmp_path, "test").x, folder(tmp_path, "train").x]).astype(int)
    assert np.abs(values - 60 * np.arange(4)[:, None, None, None]).max() <= 3


def test_folder_is_grey_only_if_all_of_it_is(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.png", grey(7))
    save(tmp_path / "train" / "b.png", np.eye(4, 5, dtype=bool))
    save(tmp_path / "test" / "a.png", grey(9))
    train = folder(tmp_path, "train")
    assert train.shape == (1, 4, 5)
    assert (train.x[0, 0] == 7).all() and (train.x[1, 0] == np.eye(4, 5) * 255).all()
    save(tmp_path / "test" / "b.png", np.dstack([colour(20), grey(3)]))
    train, test = folder(tmp_path, "train"), folder(tmp_path, "test")
    assert train.shape == test.shape == (3, 4, 5)
    assert (train.x[0] == 7).all() and test.x[1, :, 0, 0].tolist() == [20, 21, 22]


def test_folder_keeps_sixteen_bits(tmp_path: Path) -> None:
    deep = np.arange(65526, 65546, dtype=np.uint32).clip(0, 65535).astype(np.uint16).reshape(4, 5)
    save(tmp_path / "a.png", deep)
    save(tmp_path / "b.png", deep // 2)
    data = folder(tmp_path, "test")
    assert data.levels == 65536 and data.x.dtype == np.uint16 and (data.x[0, 0] == deep).all()
    save(tmp_path / "c.png", grey(1))
    refused("a.png of 16 bits and", folder, tmp_path)
    refused("c.png of 8", folder, tmp_path)


def test_folder_classes_are_sub_folders(tmp_path: Path) -> None:
    for name, values in {"dog": (1, 2), "cat": (3,), "ant/nest": (5,)}.items():
        for value in values:
            save(tmp_path / "train" / name / f"{value}.png", grey(value))
    save(tmp_path / "test" / "dog" / "4.png", grey(4))
    train, test = folder(tmp_path, "train"), folder(tmp_path, "test")
    assert (train.num_classes, test.num_classes) == (3, 3)
    save(tmp_path / "extra" / "other.png", grey(9, width=7))
    save(tmp_path / "train" / ".thumbnails" / "5.png", grey(9, width=2))
    train = folder(tmp_path, "train")
    assert train.num_classes == 3
    assert dict(zip(train.x[:, 0, 0, 0].tolist(), labels(train).tolist(), strict=True)) == {5: 0, 3: 1, 1: 2, 2: 2}
    assert labels(test).tolist() == [2]
    save(tmp_path / "train" / "loose.png", grey(6))
    train = folder(tmp_path)
    assert sorted(train.x[:, 0, 0, 0].tolist()) == [1, 2, 3, 5] and labels(train).tolist() == [0, 1, 2, 2]
    assert "left out 1 image above the folders of the classes: train/loose.png" in train.notes
    assert "left out images beside the splits, in extra" in train.notes


def test_folder_train_alone_is_no_class(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "train" / f"{i}.png", grey(i))
    data = folder(tmp_path)
    assert len(data) == 3 and data.label is None


def test_folder_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    refused(f"expected a folder {missing}, which is not there", folder, missing)
    refused("train or test", folder, tmp_path, "val")
    refused(f"in {tmp_path} (.png, .jpg and all that Pillow reads), found none: put some", folder, tmp_path)
    save(tmp_path / "a.png", grey(1))
    refused("at least two items", folder, tmp_path)
    save(tmp_path / "b.png", grey(1, width=6))
    sizes = f"got {tmp_path / 'a.png'} of 5x4 and {tmp_path / 'b.png'} of 6x4: crop or resize them"
    refused(sizes, folder, tmp_path)
    complete = (tmp_path / "a.png").read_bytes()
    noise = np.random.default_rng(0).integers(256, size=(4, 5), dtype=np.uint8)
    save(tmp_path / "noise.bmp", noise)
    for name, content in {"b.png": complete[:50], "c.png": b"", "d.jpg": b"<html>", "e.png": complete[:20]}.items():
        (tmp_path / "b.png").unlink(missing_ok=True)
        (tmp_path / name).write_bytes(content)
        refused(f"{tmp_path / name}: not an image that can be read", folder, tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "noise.bmp").unlink()
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    refused(f"expected images in {tmp_path / 'test'}, found none", folder, tmp_path, "test")


# Arrays


def test_array_reads_npy_of_any_shape(tmp_path: Path) -> None:
    for i, shape in enumerate([(20, 3), (20, 4, 8, 3), (20, 2, 3, 4, 5)]):
        x = np.random.default_rng(i).normal(size=shape)
        np.save(tmp_path / "a.npy", x)
        train, test = array(tmp_path / "a.npy", "train"), array(tmp_path / "a.npy", "test")
        assert (train.shape, train.levels, train.x.dtype, train.name) == (shape[1:], None, np.dtype(np.float32), "a")
        assert (test.x == x[[0, 10]].astype(np.float32)).all()
        assert (train.x == np.delete(x, [0, 10], axis=0).astype(np.float32)).all()


@pytest.mark.parametrize(
    ("dtype", "levels_given", "levels", "stored"),
    [
        ("u1", None, 256, "u1"),
        ("u2", None, 65536, "u2"),
        ("?", None, 2, "u1"),
        (">u2", 2, 2, "u1"),
        ("u1", 17, 17, "u1"),
        ("i8", 1000, 1000, "u2"),
        ("f8", 4, 4, "u1"),
    ],
)
def test_array_levels(tmp_path: Path, dtype: str, levels_given: int | None, levels: int, stored: str) -> None:
    x = np.arange(20).reshape(10, 2) % 2
    np.save(tmp_path / "a.npy", x.astype(dtype))
    data = array(tmp_path / "a.npy", "train", levels_given)
    assert data.levels == levels and data.x.dtype == np.dtype(stored) and (data.x == x[1:]).all()


def test_array_reads_npz_keys(tmp_path: Path) -> None:
    x, y = np.arange(60, dtype=np.uint8).reshape(20, 3), np.arange(20) % 4
    path = tmp_path / "a.npz"
    for key, name in [("x", "label"), ("images", "labels"), ("anything", "y")]:
        np.savez(path, **{name: y.astype(np.int32), key: x})  # type: ignore[arg-type]
        train, test = array(path, "train"), array(path, "test")
        assert (test.x == x[[0, 10]]).all() and labels(test).tolist() == [0, 2]
        assert labels(train).tolist() == np.delete(y, [0, 10]).tolist() and train.num_classes == 4
    np.savez_compressed(path, label=y[:15], x=x[:15], x_test=x[15:], label_test=y[15:] + 3)
    train, test = array(path, "train"), array(path, "test")
    assert (train.x == x[:15]).all() and (test.x == x[15:]).all()
    assert labels(test).tolist() == (y[15:] + 3).tolist() and train.num_classes == test.num_classes == 7


def test_array_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    path, packed = tmp_path / "a.npy", tmp_path / "a.npz"
    refused(f"expected {path}, which is not there", array, path)
    refused("train or test", array, path, "val")

    def saved(x: NDArray[Any]) -> Path:
        np.save(path, x, allow_pickle=x.dtype == object)
        return path

    refused("expected data of shape (N, *D), got (5,)", array, saved(np.zeros(5)))
    refused("got shape (0, 3)", array, saved(np.zeros((0, 3))))
    refused(
        "expected floats, uint8, uint16 or bool, got int64: give the number of levels", array, saved(LABELS[:, None])
    )
    refused("got complex128", array, saved(np.zeros((4, 2), complex)))
    refused("within float32's range, 3.4e38, got 1e+300", array, saved(np.full((4, 2), 1e300)))
    refused("got fractions: scale it, or give no levels", array, saved(np.full((4, 2), 0.5)), levels=256)
    refused("got float64 from -1.0", array, saved(np.full((4, 2), -1.0)), levels=256)
    refused("for 17 levels, got uint8 from 0 to 23", array, saved(BYTES), levels=17)
    refused("that cannot be read (Object arrays cannot be loaded", array, saved(np.array([[{}]], object)))
    saved(BYTES)
    for size in (151, 90, 4, 0):
        os.truncate(path, size)
        refused(f"{path}: expected an .npy or .npz file of numbers, got {size} bytes that cannot be read", array, path)
    path.write_bytes(pickle.dumps(BYTES))
    refused("that cannot be read", array, path)
    np.savez(packed, x=BYTES)
    for size in (packed.stat().st_size - 5, 60):
        os.truncate(packed, size)
        refused(f"got {size} bytes that cannot be read", array, packed)
    np.savez(packed, label=LABELS, x_test=BYTES)
    refused("expected data to train on, got only x_test", array, packed)
    np.savez(packed, x=BYTES, label=LABELS[:3])
    refused("labels of shape (4,)", array, packed)
    np.savez(packed, x=BYTES, label=LABELS / 2)
    refused("in float64: give the number of its class", array, packed)
    np.savez(packed, x=BYTES, label=LABELS - 1)
    refused("got -1 to 1", array, packed)


# Toys


@pytest.mark.parametrize("name", NAMES)
def test_toys_are_scaled_and_deterministic(name: str) -> None:
    train, test = toy(name, "train"), toy(name, "test", n=30_000)
    assert (train.x.shape, test.x.shape, train.x.dtype, train.levels) == (
        (10_000, 2),
        (30_000, 2),
        np.dtype(np.float32),
        None,
    )
    assert train.fingerprint == toy(name).fingerprint
    assert np.isin(train.x, toy(name, "test").x).mean() < 0.01
    # One standard error is below 0.01 here; half a per cent for the variance.
    assert np.abs(test.x.mean(0)).max() < 0.03
    assert abs(test.x.var(0).mean() - 1) < 0.03


def test_toys_have_their_shapes() -> None:
    x = toy("eight_gaussians", n=40_000).x
    angle = np.arange(8) * np.pi / 4
    centres = np.sqrt(1.98) * np.stack([np.cos(angle), np.sin(angle)], 1)
    nearest = np.linalg.norm(x[:, None] - centres, axis=2).argmin(1)
    assert np.abs(np.bincount(nearest) / 40_000 - 1 / 8).max() < 0.01
    assert np.abs((x - centres[nearest]).std(0) - 0.1).max() < 0.002

    field = np.floor((toy("checkerboard", n=40_000).x / (np.sqrt(3) / 2)) + 2).astype(int)
    counts = np.bincount(4 * field[:, 0] + field[:, 1], minlength=16).reshape(4, 4)
    black = np.add.outer(np.arange(4), np.arange(4)) % 2 == 0
    assert counts[~black].sum() == 0 and np.abs(counts[black] / 40_000 - 1 / 8).max() < 0.01

    radius = np.linalg.norm(toy("circles").x, axis=1)
    outer = radius > radius.mean()
    assert abs(np.median(radius[~outer]) / np.median(radius[outer]) - 0.5) < 0.02

    # Each moon as scikit-learn draws it, up to shift and scale: the distance to its two arcs is the noise alone.
    from sklearn.datasets import make_moons

    arcs = make_moons(4000, noise=0)[0] - [0.5, 0.25]
    points = toy("moons", n=2000).x / np.sqrt((1 - 0.05**2) / arcs.var(0).mean())
    distance = np.linalg.norm(points[:, None] - arcs, axis=2).min(1)
    assert abs(np.sqrt(np.square(distance).mean()) - 0.05 * np.sqrt(arcs.var(0).mean())) < 0.005


def test_toys_refuse() -> None:
    refused("moons, circles, swissroll, checkerboard, eight_gaussians, got 'moon'", toy, "moon")
    refused("at least one point, got n = 0", toy, "moons", n=0)
    refused("train or test", toy, "moons", "val")


# The real sets


def test_real_mnist() -> None:
    real("mnist")
    train, test = mnist(), mnist(split="test")
    assert (train.x.shape, test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert np.bincount(labels(train)).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(labels(test)).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(train.x.mean() / 255 - 0.1307) < 1e-4 and abs(train.x.std() / 255 - 0.3081) < 1e-4


def test_real_fashion_mnist() -> None:
    root = real("fashion_mnist")
    train, test = fashion_mnist(root), fashion_mnist(root, "test")
    assert (train.x.shape, test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert np.bincount(labels(train)).tolist() == [6000] * 10 and np.bincount(labels(test)).tolist() == [1000] * 10
    assert abs(train.x.mean() / 255 - 0.2860) < 1e-4 and abs(train.x.std() / 255 - 0.3530) < 1e-4


def test_real_cifar10() -> None:
    root = real("cifar10")
    train, test = cifar10(root), cifar10(root, "test")
    assert (train.x.shape, test.x.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert np.bincount(labels(train)).tolist() == [5000] * 10 and np.bincount(labels(test)).tolist() == [1000] * 10
    means = [train.x[:, channel].mean() / 255 for channel in range(3)]
    assert np.abs(np.array(means) - [0.4914, 0.4822, 0.4465]).max() < 1e-4


@pytest.mark.parametrize("read", [folder, array])
def test_an_empty_path_is_not_the_current_folder(read: Callable[..., Dataset]) -> None:
    with pytest.raises(ValueError, match="empty one"):
        read("")
