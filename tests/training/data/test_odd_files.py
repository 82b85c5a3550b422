"""Files that a reader does not expect: links, bombs, full disks, odd modes and names; against what the test wrote."""

import errno
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from image_files import classes_of_images, grey, labels, noise, png_bytes, refused, save
from PIL import Image

from scorefield.training.data import archive, array, folder, image_files, shards
from scorefield.training.data.files import images as images_module
from scorefield.training.data.files.archive import archive_members
from scorefield.training.data.files.images import Images, Item


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", link: str = "", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.linkname, info.type = len(content), link, kind
    tar.addfile(info, io.BytesIO(content))


# Archives


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_links_in_a_tar_are_the_images_they_name(tmp_path: Path, kind: str) -> None:
    pixels = [noise(4, 5, 3, seed=i) for i in range(3)]
    path = tmp_path / f"a.{kind}"
    with tarfile.open(path, f"w:{kind[4:]}") as tar:
        add(tar, "./one/a.png", png_bytes(pixels[0]))
        add(tar, "./one/b.png", link="./one/a.png", kind=tarfile.LNKTYPE)
        add(tar, "./two/c.png", link="../three/./e.png", kind=tarfile.SYMTYPE)  # to one that comes later
        add(tar, "./two/d.png", link="c.png", kind=tarfile.SYMTYPE)
        add(tar, "./three/e.png", png_bytes(pixels[1]))
        add(tar, "./three/f.png", png_bytes(pixels[2]))
        add(tar, "./three/g.png", link="three/f.png", kind=tarfile.LNKTYPE)
        add(tar, "./three/f.png", png_bytes(pixels[0]))  # same name; the link before it points to the first
    test, train = archive(path, "test", cache="off"), archive(path, cache="off")
    # By path: one/a, one/b, three/e, three/f, three/g, two/c, two/d; the first is the test split's.
    expected = np.stack([pixels[i] for i in (0, 0, 1, 0, 2, 1, 1)]).transpose(0, 3, 1, 2)
    assert (np.concatenate([test.x, train.x]) == expected).all()
    assert labels(train).tolist() == [0, 1, 1, 1, 2, 2] and train.class_names == ("one", "three", "two")


def test_links_in_a_tar_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            add(tar, f"{i}.png", png_bytes(noise(4, 4, 3, seed=i)))
        add(tar, "5.png", link="none.png", kind=tarfile.LNKTYPE)
        add(tar, "6.png", link="/etc/passwd", kind=tarfile.SYMTYPE)
        add(tar, "7.png", link="8.png", kind=tarfile.SYMTYPE)
        add(tar, "8.png", link="7.png", kind=tarfile.SYMTYPE)
    refused(f"{path}/5.png: not an image that can be read (a link to none.png", archive, path)
    left = archive(path, corrupt="skip")
    assert left.skipped == tuple(f"{path}/{i}.png" for i in (5, 6, 7, 8)) and len(left) == 3


def test_links_in_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(3):
            add(tar, f"{i}.png", png_bytes(grey(i)))
        add(tar, "0.cls", b"dog")
        add(tar, "1.cls", b"cat")
        add(tar, "2.cls", link="0.cls", kind=tarfile.LNKTYPE)
    data = shards(tmp_path / "a.tar")
    assert labels(data).tolist() == [0, 1] and data.class_names == ("cat", "dog")


@pytest.mark.parametrize("kind", ["tar", "old"])
def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path: Path, kind: str) -> None:
    inner, path = io.BytesIO(), tmp_path / "a.tar"
    with zipfile.ZipFile(inner, "w") as packed:
        for i in range(4):
            packed.writestr(f"{i}.png", png_bytes(grey(100 + i)))
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            add(tar, f"{i}.png", png_bytes(grey(i)))
        add(tar, "more.zip", inner.getvalue())
    if kind == "old":  # tars before POSIX have no magic word in their heads
        content = bytearray(path.read_bytes())
        content[257:265] = bytes(8)
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
        path.write_bytes(content)
    assert zipfile.is_zipfile(path)
    assert archive(path, cache="off").x[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_a_zip_that_windows_made(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for i in range(4):
            packed.writestr(("cat", "dog")[i % 2] + f"\\{i}.png", png_bytes(grey(i)))
        packed.writestr("cat\\.hidden.png", b"no image")
    data = archive(tmp_path / "a.zip")
    assert data.class_names == ("cat", "dog") and data.x[:, 0, 0, 0].tolist() == [2, 1, 3]


def test_a_full_disk_is_not_a_broken_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for i in range(4):
            add(tar, f"{i}.png", png_bytes(noise(40, 40, 3, seed=i)))
    for buffer in (-1, 1 << 20):  # the disk is found to be full at a write, or at the end
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full", "w+b", buffer))
            refused(f"{path}: no room to unpack it in {tempfile.gettempdir()} (No space left on device)", archive, path)

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(tarfile, "is_tarfile", denied)
    with pytest.raises(PermissionError, match="Permission denied"):
        archive(path)


@pytest.mark.parametrize("kind", ["zip", "bzip2", "tar", "tar.gz", "folder"])
def test_a_member_larger_than_any_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(images_module, "LARGEST", 1 << 20)
    members = {f"{i}.png": png_bytes(noise(4, 4, 3, seed=i)) for i in range(3)}
    members["bomb.png"] = members["1.png"] + bytes(1 << 22)
    path = tmp_path / f"a.{kind}"
    if kind == "folder":
        path.mkdir()
        for name, content in members.items():
            (path / name).write_bytes(content)
    elif "tar" in kind:
        with tarfile.open(path, f"w:{kind[4:]}") as tar:
            for name, content in members.items():
                add(tar, name, content)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2 if kind == "bzip2" else zipfile.ZIP_DEFLATED) as packed:
            for name, content in members.items():
                packed.writestr(name, content)
    reader = folder if kind == "folder" else archive
    refused(f"{path}/bomb.png: not an image that can be read (more than 1 MiB", reader, path, cache="off")
    data = reader(path, cache="off", corrupt="skip")
    assert data.skipped == (f"{path}/bomb.png",) and len(data) == 2
    if "tar" in kind:  # whose parts are read when they are opened
        assert len(archive_members(path)["bomb.png"].open().read()) == (1 << 20) + 1


def test_a_zip_that_lies_about_a_size(tmp_path: Path) -> None:
    # 384 MiB of zeros, which the zip says are 1000 bytes: little more than those is unpacked at once.
    path = tmp_path / "a.zip"
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = packer.compress(png_bytes(grey(1))) + b"".join(packer.compress(bytes(1 << 24)) for _ in range(24))
    body += packer.flush()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
        for i in range(3):
            packed.writestr(f"{i}.png", png_bytes(grey(i)))
        packed.writestr("bomb.png", body)
    content = path.read_bytes()
    for mark, method, size in ((b"PK\3\4", 8, 22), (b"PK\1\2", 10, 24)):
        at = content.rindex(mark, 0, content.rindex(b"bomb.png") if mark == b"PK\1\2" else content.index(b"bomb.png"))
        head = bytearray(content[at : at + size + 4])
        head[method : method + 2], head[size : size + 4] = (8).to_bytes(2, "little"), (1000).to_bytes(4, "little")
        content = content[:at] + bytes(head) + content[at + size + 4 :]
    path.write_bytes(content)
    code = (
        "import resource, sys; from scorefield.training.data import archive\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "skipped = archive(sys.argv[1], corrupt='skip', cache='off').skipped\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *skipped)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    grown, *skipped = done.stdout.split()
    assert int(grown) < 100_000 and skipped == [f"{path}/bomb.png"]  # KiB


def test_large_files_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{i}.png" for i in range(10)]
    for i, file in enumerate(files):
        save(file, noise(30, 30, 3, seed=i))  # 2,700 bytes of noise, and some more as a file
    items = [Item(str(file), lambda file=file: file.open("rb")) for file in files]  # type: ignore[misc]
    one_chunk = list(Images(items, range(10)).chunks())
    monkeypatch.setattr(images_module, "CHUNK_BYTES", 15_000)
    parts = list(Images(items, range(10)).chunks())
    assert [len(part) for part in one_chunk] == [10] and [len(part) for part in parts] == [3, 3, 3, 1]
    assert (np.concatenate(parts) == one_chunk[0]).all()


# Folders


def test_a_link_that_leads_nowhere_is_a_corrupt_image(tmp_path: Path) -> None:
    root = classes_of_images(tmp_path / "d")
    (root / "cat" / "03.png").symlink_to(tmp_path / "nowhere.png")
    refused(f"{root}/cat/03.png: not an image that can be read ([Errno 2]", folder, root)
    for cache in ("off", "", ""):
        left = folder(root, corrupt="skip", cache=cache)
        assert left.skipped == (f"{root}/cat/03.png",) and len(left) == 10
    save(tmp_path / "nowhere.png", noise(5, 4, 3))
    assert len(folder(root, corrupt="skip")) == 11  # what was kept is not taken for what is there now


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = classes_of_images(tmp_path / "d"), os.scandir

    def denied(place: Any) -> Any:
        if str(place).endswith("dog"):
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="dog"):
        image_files(root)


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    root = classes_of_images(tmp_path / "d")
    for name in ("Thumbs.db", ".DS_Store", "._00.png", "notes.txt", "desktop.ini", "a.png.part"):
        (root / "cat" / name).write_bytes(b"no image")
    for place in ("__MACOSX", ".cache", "empty"):
        (root / place).mkdir()
    (root / "__MACOSX" / "._00.png").write_bytes(b"no image")
    assert len(image_files(root)) == 12 and folder(root).class_names == ("cat", "dog")


def test_names_in_any_writing(tmp_path: Path) -> None:
    names = sorted(["猫", "e\u0301té", 'it\'s "a" cat, or\ttwo'])
    for name in names:
        for i in range(3):
            save(tmp_path / name / f"{i}ü.png", grey(i))
    for _ in range(2):
        data = folder(tmp_path)
        assert data.class_names == tuple(names) and data.num_classes == 3


MODES: dict[str, Callable[[Image.Image, BinaryIO], None]] = {
    "palette": lambda image, file: image.quantize(8).save(file, "png"),
    "palette with one clear colour": lambda image, file: image.quantize(8).save(file, "png", transparency=0),
    "palette with alphas": lambda image, file: image.quantize(8).save(
        file, "png", transparency=bytes(range(0, 80, 10))
    ),
    "cmyk": lambda image, file: image.convert("CMYK").save(file, "jpeg", quality=100, subsampling=0),
    "animated webp": lambda image, file: image.save(
        file, "webp", lossless=True, save_all=True, append_images=[Image.new("RGB", image.size)]
    ),
    "animated png": lambda image, file: image.save(
        file, "png", save_all=True, append_images=[Image.new("RGB", image.size)]
    ),
}


@pytest.mark.filterwarnings("error::UserWarning")  # a warning for each image helps no one
@pytest.mark.parametrize("mode", MODES)
def test_odd_modes_are_the_colours_they_show(tmp_path: Path, mode: str) -> None:
    rows, columns = np.mgrid[0:16, 0:12]
    image = Image.fromarray(np.stack([rows // 8 * 200, columns // 6 * 200, 0 * rows + 90], 2).astype(np.uint8))
    for name in "ab":
        with (tmp_path / f"{name}.png").open("wb") as file:  # by its content, whatever its name says
            MODES[mode](image, file)
    x = folder(tmp_path, cache="off").x[0].astype(int)
    assert np.abs(x - np.asarray(image).transpose(2, 0, 1)).max() <= (3 if mode == "cmyk" else 0)


def test_a_file_system_without_locks_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    root = classes_of_images(tmp_path / "d")

    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    refused(f"{root / '.scorefield'}: no file can be locked there (Function not implemented)", folder, root)
    assert len(folder(root, cache="off")) == 10


# Arrays


def test_an_npy_that_ends_as_a_zip_does_is_one(tmp_path: Path) -> None:
    end = io.BytesIO()
    with zipfile.ZipFile(end, "w") as packed:
        packed.writestr("a", b"b")
    x = np.frombuffer(bytes(300) + end.getvalue(), np.uint8)[None].repeat(3, 0)
    np.save(tmp_path / "a.npy", x)
    assert zipfile.is_zipfile(tmp_path / "a.npy") and (array(tmp_path / "a.npy").x == x[1:]).all()


def test_a_zip_that_holds_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as packed:
        packed.writestr("notes.txt", "no array")
    refused("a.npz: expected an array named x, got no arrays", array, tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros((4, 2)))
    with zipfile.ZipFile(tmp_path / "b.npz", "a") as packed:
        packed.writestr("notes.txt", "no array")
    assert len(array(tmp_path / "b.npz")) == 3


def test_an_array_larger_than_memory(tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_2_0(head, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 1 << 10)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x.npy", head.getvalue() + bytes(1 << 20))
    refused("a.npz: expected an .npy or .npz file of numbers", array, tmp_path / "a.npz")


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}, {}], object), allow_pickle=True)
    refused("Object arrays cannot be loaded", array, tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), label=np.array(list("abcd"), object))
    refused("Object arrays cannot be loaded", array, tmp_path / "a.npz")


def test_a_thread_of_an_image_is_not_made_a_wall(tmp_path: Path) -> None:
    # A row of 60,000 pixels at 256 a side would be one of 15,360,000 x 256 before it is cropped.
    for name in "ab":
        save(tmp_path / f"{name}.png", grey(1, 9, 9))
    save(tmp_path / "c.png", np.zeros((1, 60_000), np.uint8))
    refused("c.png: not an image that can be read (60000x1 is too long for 256x256", folder, tmp_path, size=256)
    assert folder(tmp_path, size=256, corrupt="skip").skipped == (str(tmp_path / "c.png"),)
    assert folder(tmp_path, size=256, fit="resize", cache="off").shape == (1, 256, 256)


def test_messages_do_not_show_python_objects(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("a.png", "b.png"):
            packed.writestr(name, "no image")
    refused("a.png: not an image that can be read (cannot identify image file): repair", archive, tmp_path / "a.zip")
