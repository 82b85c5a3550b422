"""Folders, archives and shards as people lay them out: splits, masks, strays, formats and rotations."""

import io
import shutil
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from image_files import grey, labels, noise, png_bytes, refused, save, write_shard
from PIL import Image, ImageOps

from scorefield.configs import build
from scorefield.training.data import archive, folder, huggingface, shards
from scorefield.training.data.files.names import split_of, splits_of


def first(data: Any) -> list[int]:
    return sorted(data.x[:, 0, 0, 0].tolist())


def laid_out(root: Path, *paths: str) -> Path:
    """Grey images, the i-th of value i."""
    for i, path in enumerate(paths):
        save(root / path, grey(i))
    return root


def zipped(root: Path) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(root.rglob("*.*")):
            if file.is_file() and ".scorefield" not in file.parts:
                packed.write(file, f"wrapper/{file.relative_to(root)}")
    return path


# Splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"), ("TRAIN", "VAL"), ("training", "testing"), ("train", "validation"), ("train", "Valid"),
        ("tr", "te"), ("train2017", "val2017"), ("seg_train", "seg_test"), ("trainset", "testset"), ("train", "dev"),
        ("train_images", "test_images"), ("Training Set", "Test Set"), ("trainval", "test"), ("train", "eval"),
        ("train", "hold-out"), ("trains", "tests"), ("data/Train", "data/Test"),
    ],
)  # fmt: skip
def test_splits_in_their_usual_forms(tmp_path: Path, train: str, test: str) -> None:
    paths = [f"{train}/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)] + [f"{test}/dog/0.png"]
    root = laid_out(tmp_path / "d", *paths)
    for reader, path in ((folder, root), (archive, zipped(root))):
        data = [reader(path, split, cache="off") for split in ("train", "test")]  # type: ignore[arg-type]
        assert [first(each) for each in data] == [[0, 1, 2, 3], [4]]
        assert [labels(each).tolist() for each in data] == [[0, 0, 1, 1], [1]]
        assert all(each.class_names == ("cat", "dog") for each in data)
        (line,) = data[0].notes
        assert line == f"training on {train.split('/')[-1]}, testing on {test.split('/')[-1]}"


def test_the_test_split_comes_before_the_validation_split(tmp_path: Path) -> None:
    root = laid_out(tmp_path, "Train/0.png", "Val/1.png", "Test/2.png")
    train, test = folder(root), folder(root, "test")
    assert (first(train), first(test)) == ([0], [2])
    assert train.notes == ("training on Train, testing on Test, Val not used",)


def test_splits_below_the_classes(tmp_path: Path) -> None:
    root = laid_out(tmp_path, *(f"{name}/{split}/0.png" for name in ("cat", "dog") for split in ("train", "test")))
    train, test = folder(root), folder(root, "test")
    assert (first(train), first(test)) == ([0, 2], [1, 3]) and train.class_names == ("cat", "dog")
    assert labels(train).tolist() == labels(test).tolist() == [0, 1]


def test_a_class_that_is_named_as_a_split(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "a", "bus/0.png", "bus/1.png", "train/2.png", "train/3.png")
    data = folder(root)
    assert data.class_names == ("bus", "train") and labels(data).tolist() == [0, 1, 1]
    assert data.notes == ("train taken for a class, as no folder is the other split",)
    inner = laid_out(tmp_path / "b", "train/bus/0.png", "train/test/1.png", "test/bus/2.png", "test/test/3.png")
    train, test = folder(inner), folder(inner, "test")
    assert (first(train), first(test)) == ([0, 1], [2, 3]) and test.class_names == ("bus", "test")
    both = laid_out(tmp_path / "c", "test/0.png", "train/1.png", "val/2.png")
    assert folder(both, "test", splits=False).class_names == ("test", "train", "val")
    assert archive(zipped(both), "test", splits=False).class_names == ("test", "train", "val")


def test_splits_that_cannot_be_told(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "a", "cat_train/0.png", "cat_test/1.png", "dog_train/2.png", "dog_test/3.png")
    refused("expected one training and one test split in", folder, root)
    assert folder(root, splits=False).num_classes == 4
    refused("expected a training split beside test, val", folder, laid_out(tmp_path / "b", "val/0.png", "test/1.png"))


def test_words_that_are_no_split() -> None:
    for name in ("contest", "tree", "trainer", "latest", "develop", "attest_1", "protest"):
        assert split_of(name)[0] == "", name
    assert splits_of(["train", "bus", "contest"], "here") == splits_of(["test_tube", "train_station"], "here") == {}
    assert split_of("XTrain") == split_of("x_train") == ("train", "x_*")


@pytest.mark.parametrize("names", ["set-train-{}.tar set-VAL-{}.tar", "Train/{}.tar Test/{}.tar"])
def test_shards_of_two_splits_are_not_one_set(tmp_path: Path, names: str) -> None:
    values = iter(range(5))
    for name, count in zip(names.split(), (2, 1), strict=True):
        for i in range(count):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write_shard(tmp_path / name.format(f"{i:03}"), {f"{next(values)}.png": png_bytes(grey(10 * i + count))})
    pattern = str(tmp_path / ("*/*.tar" if "/" in names else "*.tar"))
    train, test = shards(pattern), shards(pattern, "test")
    assert (first(train), first(test)) == ([2, 12], [1]) and train.notes[0].startswith("training on ")
    assert len(shards(pattern, splits=False)) == 2
    if "/" not in names:
        assert first(shards(str(tmp_path / "set-{split}-*.tar"), "test")) == [1]


# Several images of a sample


def jpg_bytes(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=100)
    return file.getvalue()


@pytest.mark.parametrize(
    ("photo", "mask", "choice"),
    [
        ("jpg", "png", "jpg"),
        ("image.jpg", "mask.png", "image.jpg"),
        ("jpg", "seg.png", "jpg"),
        ("png", "seg.png", "png"),
        ("image.png", "depth.png", "image.*"),
    ],
)
def test_shards_with_photo_and_mask(tmp_path: Path, photo: str, mask: str, choice: str) -> None:
    path, files = tmp_path / "a.tar", {}
    for i in range(3):
        files[f"{i}.{mask}"] = png_bytes(grey(200 + i))
        files[f"{i}.{photo}"] = (jpg_bytes if photo.endswith("jpg") else png_bytes)(grey(i))
    write_shard(path, files)
    refused(f"got 0.{mask} and 0.{photo}: choose image={mask} or image={photo}", shards, path)
    assert first(shards(path, image=choice)) == [1, 2]
    assert first(shards(path, image=mask)) == [201, 202]


def test_samples_without_the_image_are_counted(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "a.tar",
        {"0.jpg": png_bytes(grey(0)), "1.jpg": png_bytes(grey(1)), "2.txt": b"words", "3.heic": b"other"},
    )
    assert shards(tmp_path / "a.tar").notes == ("left out 2 samples without an image",)
    write_shard(tmp_path / "b.tar", {"3.heic": b"other"})
    refused("found none: left out 1 file of other kinds (1 .heic), as 3.heic", shards, tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("photo", "mask", "choice"),
    [
        ("{}.jpg", "{}.png", "jpg"),
        ("benign ({}).png", "benign ({})_mask.png", "!*_mask.png"),
        ("images/{}.png", "masks/{}.png", "*/images/*"),
        ("train/{}.jpg", "train_masks/{}_mask.gif", "jpg"),
        ("{}/image.png", "{}/mask.png", "!*/mask.png"),
    ],
)
def test_folders_with_photo_and_mask(tmp_path: Path, photo: str, mask: str, choice: str) -> None:
    for i in range(4):
        save(tmp_path / "d" / photo.format(i), grey(i))
        save(tmp_path / "d" / mask.format(i), grey(200 + i))
    for reader, path in ((folder, tmp_path / "d"), (archive, zipped(tmp_path / "d"))):
        refused("expected one image for each sample", reader, path)
        assert first(reader(path, image=choice)) == [1, 2, 3]
        assert len(reader(path, image="*")) == 7


def test_two_images_of_one_name_by_accident_are_said(tmp_path: Path) -> None:
    root = laid_out(tmp_path, *(f"{i:02}.png" for i in range(20)), "07.bmp")
    data = folder(root)
    assert len(data) == 18 and data.notes == (
        "1 image with the name of another one, as 07.bmp and 07.png: all are read",
    )
    refused("expected images as 'jpg'", folder, root, image="jpg")


# What is read and what is left out


@pytest.mark.parametrize("ending", ["tif", "tiff", "gif", "jfif", "jpe", "bmp", "webp", "ppm", "tga", "jp2", "PNG"])
def test_every_format_that_pillow_reads(tmp_path: Path, ending: str) -> None:
    for i in range(3):
        save(tmp_path / "a" / f"{i}.{ending}", grey(60 * i))
        save(tmp_path / "b" / f"{i}.png", grey(60 * i))
    data = folder(tmp_path)
    values = dict(zip(((labels(data) == 0).nonzero()[0]).tolist(), data.x[labels(data) == 0, 0, 0, 0], strict=True))
    assert data.class_names == ("a", "b") and data.notes == () and len(data) == 5
    assert np.abs(np.array([*values.values()], int) - [60, 120]).max() <= 2


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "d", *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)))
    for name in ("cat/9.heic", "owl/0.heic", "readme.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    line = "left out 3 files of other kinds (2 .heic, 1 .txt), as {}cat/9.heic"
    assert folder(root).notes == (line.format(""),)
    assert archive(zipped(root)).notes == (line.format("wrapper/"),)
    (root / "new.avi").write_bytes(b"no image")  # the images are in the cache
    assert folder(root).notes[0].startswith("left out 4 files of other kinds (2 .heic, ")
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")
    refused("found none: left out 3 files of other kinds (1 .avi, 1 .heic, 1 .txt)", folder, root)


def test_a_stray_image_does_not_drop_the_classes(tmp_path: Path) -> None:
    root = laid_out(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)))
    save(root / "cover.png", grey(9, 50, 30))
    data = folder(root)
    assert labels(data).tolist() == [0, 0, 1, 1, 1]
    assert data.notes == ("left out 1 image above the folders of the classes: cover.png",)
    for i in range(3):
        save(root / f"{i}.png", grey(9))
    (root / "cover.png").unlink()
    data = folder(root)
    assert data.label is None and len(data) == 8
    assert data.notes == ("no classes: 3 of 9 images lie above the folders cat, dog",)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_the_rotation_flag_of_a_camera(tmp_path: Path, ending: str) -> None:
    rows, columns = np.mgrid[0:16, 0:24]
    pixels = np.stack([rows // 8 * 200, columns // 12 * 200, 0 * rows + 90], 2).astype(np.uint8)
    for flag in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = flag
        for i in range(2):
            file = tmp_path / str(flag) / f"{i}.{ending}"
            file.parent.mkdir(exist_ok=True)
            options: Any = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
            Image.fromarray(pixels).save(file, exif=exif, **options)
        with Image.open(file) as image:
            shown = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1).astype(int)
        data = folder(tmp_path / str(flag))
        assert data.shape == shown.shape == ((3, 24, 16) if flag > 4 else (3, 16, 24))
        assert np.abs(data.x[0] - shown).max() <= 4
        if ending != "tif":
            assert (
                np.abs(folder(tmp_path / str(flag), exif=False).x[0] - pixels.transpose(2, 0, 1).astype(int)).max() <= 4
            )


@pytest.mark.filterwarnings("ignore")  # of Pillow's
def test_damaged_exif_is_no_damaged_image(tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(grey(7)).save(tmp_path / f"{i}.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff damaged")
    assert first(folder(tmp_path)) == [7]


def test_of_several_frames_the_first_is_read(tmp_path: Path) -> None:
    for i in range(2):
        frames = [Image.fromarray(grey(value)) for value in (40 + i, 200)]
        for ending in ("gif", "tif"):
            frames[0].save(tmp_path / f"{i}{ending}.{ending}", save_all=True, append_images=frames[1:])
    data = folder(tmp_path)
    assert first(data) == [40, 41, 41]
    assert data.notes == (f"the first frame is read of 4 images with several, as {tmp_path}/0gif.gif",)


def test_sixteen_and_thirty_two_bits_of_a_tiff(tmp_path: Path) -> None:
    deep = noise(4, 5, dtype=np.uint16)
    for i in range(2):
        save(tmp_path / "deep" / f"{i}.tif", deep)
        save(tmp_path / "float" / f"{i}.tif", deep.astype(np.float32) / 65535)
        save(tmp_path / "wide" / f"{i}.tif", deep.astype(np.int32))
    data = folder(tmp_path / "deep")
    assert data.levels == 65536 and (data.x[0, 0] == deep).all()
    refused("0.tif: not an image that can be read (pixels of mode F", folder, tmp_path / "float")
    refused("0.tif: not an image that can be read (pixels of mode I", folder, tmp_path / "wide")


def colour_tiff(pixels: np.ndarray) -> bytes:
    """16 bits of three channels, as Pillow cannot write them: one strip without compression."""
    height, width, _ = pixels.shape
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8 + 2 + 9 * 12 + 4), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 8 + 2 + 9 * 12 + 4 + 6), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, pixels.nbytes),
    ]  # fmt: skip
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries)
    return head + struct.pack("<I3H", 0, 16, 16, 16) + pixels.astype("<u2").tobytes()


def test_sixteen_bit_colour_of_any_format_is_not_cut_in_silence(tmp_path: Path) -> None:
    deep = noise(4, 5, 3, dtype=np.uint16)
    contents = {"tif": colour_tiff(deep), "ppm": b"P6 5 4 65535\n" + deep.astype(">u2").tobytes()}
    for ending, content in contents.items():
        root = tmp_path / ending
        root.mkdir()
        for i in range(2):
            (root / f"{i}.{ending}").write_bytes(content)
        refused(f"0.{ending}: 16 bits are read of one channel", folder, root)
        assert np.abs(folder(root, bits=8).x[0].astype(int) - (deep >> 8).transpose(2, 0, 1)).max() <= 1


def test_what_systems_leave_behind_is_left_out_without_noise(tmp_path: Path) -> None:
    root = laid_out(tmp_path / "d", *(f"{i}.png" for i in range(4)))
    names = ("Thumbs.db", ".DS_Store", "desktop.ini", "__MACOSX/._0.png", ".ipynb_checkpoints/0.png", "@eaDir/0.png")
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(png_bytes(grey(1)))
    assert first(folder(root)) == [1, 2, 3] and folder(root).notes == ()
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        tar.add(root, "d")
    assert archive(tmp_path / "d.tar").notes == () and len(archive(tmp_path / "d.tar")) == 3


def test_a_run_that_read_images_as_the_camera_stored_them_still_does() -> None:
    saved = build.spec(build.DATASETS, "folder", path="photos").to_dict()
    assert saved["exif"] is True and build.modern_config({"data": saved})["data"]["exif"] is True
    del saved["exif"]  # as an earlier version saved it
    assert build.modern_config({"data": saved})["data"]["exif"] is False
    assert build.modern_config({"data": {"name": "folder", "path": "photos"}})["data"]["exif"] is True


# Data sets of Hugging Face, by the parts of the package that the reader uses


class Kind:
    """A feature of a column, whose type's name is what the reader looks at."""

    def __init__(self, dtype: str = "", names: Any = None) -> None:
        self.dtype, self.names = dtype, names


Picture, ClassLabel, Value = (type(name, (Kind,), {}) for name in ("Image", "ClassLabel", "Value"))


class Table:
    """A split: columns of lists."""

    cache_files = ()

    def __init__(self, features: dict[str, Kind], rows: dict[str, list[Any]]) -> None:
        self.features, self.rows, self.column_names = features, rows, list(features)
        self.num_rows = len(next(iter(rows.values())))

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, key: Any) -> Any:
        return self.rows[key] if isinstance(key, str) else {name: column[key] for name, column in self.rows.items()}

    def cast_column(self, *_: Any) -> "Table":
        return self

    def with_format(self, _: Any) -> "Table":
        return self


def hub(monkeypatch: pytest.MonkeyPatch, parts: dict[str, list[int]], **features: Kind) -> None:
    """Installs a package `datasets` whose one set has these splits of grey images, whatever the column."""

    def column(name: str, values: list[int]) -> list[Any]:
        if isinstance(features[name], Picture):
            extra = 100 if name != "image" else 0
            return [{"bytes": png_bytes(grey(value + extra)), "path": None} for value in values]
        if features[name].dtype == "string":
            return [f" {name} {value}" if value else None for value in values]
        return [value % 2 for value in values]

    tables = {part: Table(features, {name: column(name, v) for name in features}) for part, v in parts.items()}
    package = SimpleNamespace(load_dataset=lambda *_: tables, Image=lambda **_: None)
    monkeypatch.setitem(sys.modules, "datasets", package)


@pytest.mark.parametrize("parts", [("train", "validation"), ("Training", "Test"), ("train", "dev"), ("TRAIN", "TEST")])
def test_splits_of_a_hub_in_their_usual_forms(monkeypatch: pytest.MonkeyPatch, parts: tuple[str, str]) -> None:
    hub(monkeypatch, {parts[0]: [1, 2], parts[1]: [3]}, image=Picture(), label=ClassLabel(names=["a", "b"]))
    train, test = huggingface("x"), huggingface("x", "test")
    assert (first(train), first(test)) == ([1, 2], [3]) and train.notes[0].startswith(f"training on {parts[0]}, test")
    assert labels(train).tolist() == [1, 0] and test.class_names == ("a", "b")


def test_columns_of_a_hub_that_could_be_the_data_or_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"train": [1, 2, 3]}, mask=Picture(), image=Picture(), fine=ClassLabel(), coarse=ClassLabel())
    refused("expected one column of data, got mask, image: choose one (column=NAME)", huggingface, "x")
    refused(
        "expected one column of classes, got fine, coarse: choose one (label=NAME)", huggingface, "x", column="image"
    )
    assert labels(huggingface("x", column="image", label="coarse")).tolist() == [0, 1]
    unlabelled = huggingface("x", column="image", label="none")
    assert unlabelled.label is None and first(unlabelled) == [2, 3]
    hub(monkeypatch, {"train": [1, 2, 3]}, image=Picture(), target=Value("int64"), weight=Value("float32"))
    assert labels(huggingface("x")).tolist() == [0, 1]
    hub(monkeypatch, {"train": [1, 2, 3]}, image=Picture(), label=Picture())
    assert huggingface("x", column="image").label is None


def test_a_column_of_text_is_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"train": [1, 0], "test": [3]}, image=Picture(), text=Value("string"), note=Value("string"))
    train, test = huggingface("x"), huggingface("x", "test")
    assert train.cond["caption"].tolist() == ["text 1", ""] and test.cond["caption"].tolist() == ["text 3"]
    assert train.notes[1:] == ("captions of column text", "1 item without a caption, read as empty")
    assert huggingface("x", "test", caption="note").cond["caption"].tolist() == ["note 3"]
    assert not huggingface("x", caption="none").cond
    refused("expected text in column 'image'", huggingface, "x", caption="image")
    hub(monkeypatch, {"train": [1, 2]}, image=Picture(), text=Value("string"), caption=Value("string"))
    refused("expected one column of captions, got text, caption: choose one (caption=NAME)", huggingface, "x")
