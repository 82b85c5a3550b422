"""Images in a zip or a tar, read from the archive without unpacking it to files."""

import bz2
import gzip
import lzma
import os
import posixpath
import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from scorefield.training.checkpoints.atomic import FULL
from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files import images
from scorefield.training.data.files.captions import caption_files, check_setting, with_captions
from scorefield.training.data.files.decoding import Decoding, image_reader
from scorefield.training.data.files.images import Item
from scorefield.training.data.files.listing import Listing, image_set, is_image, left_out, no_images, split_by_folders
from scorefield.training.data.files.paths import nonempty_path

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, NotImplementedError)
LINKS = 40  # links that are followed, one after the other
Place = tuple[int, int] | str  # the offset and size of a file, or the target of a link


@image_reader
def archive(
    path: str | os.PathLike[str],
    split: Split = "train",
    *,
    image: str = "",
    splits: bool = True,
    caption: str = "",
    decoding: Decoding,
) -> Dataset:
    """All images of a .zip, .tar, .tar.gz (.bz2, .xz), in order of their path, as `folder` reads them unpacked.

    A folder that contains all of them is no class and no split. Arguments are those of `folder`; by default the cache
    lies beside the archive.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no archive, or as `folder`.
    """
    check_split(split)
    check_setting(caption)
    path = existing_archive(nonempty_path(path))

    def listing() -> Listing:
        members = archive_members(path, images_only=False)
        names = sorted(filter(is_image, members), key=lambda name: name.split("/"))  # the order of `folder`
        texts = caption_files(members, names, caption)
        notes = left_out(members, set(texts))
        if not names:
            raise no_images(path, notes)
        items, said = with_captions([members[name] for name in names], names, {t: members[t] for t in texts})
        paths = without_common_folders(names)
        listed = split_by_folders(items, paths, split, str(path), (), image, splits)
        return replace(listed, notes=[*notes, *listed.notes, *said])

    name, settings = path.name.split(".")[0], [path.name, image, splits, *([] if caption == "none" else ["captions"])]
    return image_set(name, split, listing, files=[path], beside=path.parent, decoding=decoding, settings=settings)


def existing_archive(path: Path) -> Path:
    """The path of a file.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, which is not there: give the path of a .zip or .tar of images")
    return path


def archive_members(path: Path, images_only: bool = True) -> dict[str, Item]:
    """The images of an archive (or all its files) by their paths in it; a link in a tar is the file it points to.

    Raises:
        ValueError: if it cannot be read, or there is no room to unpack it.
        OSError: if the system refuses to open it.
    """
    try:
        # Tar first: a tar whose last member is a zip passes for a zip.
        is_tar = tarfile.is_tarfile(path) or not zipfile.is_zipfile(path)
        members = _of_tar(path) if is_tar else _of_zip(path)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: not a zip or tar that can be read ({reason}), {path.stat().st_size} bytes: fetch it again"
        ) from error
    return {name: item for name, item in members.items() if is_image(name)} if images_only else members


def without_common_folders(paths: Sequence[str]) -> list[str]:
    """Paths without the folders that contain all of them."""
    parts = [path.split("/") for path in paths]
    while all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts]


def _of_zip(path: Path) -> dict[str, Item]:
    packed = zipfile.ZipFile(path)
    weakref.finalize(packed, cast(Any, packed.fp).close)
    # Some of Windows' packers write its separator.
    members = {member.filename.replace("\\", "/"): member for member in packed.infolist() if not member.is_dir()}
    return {name: Item(f"{path}/{name}", cast(Any, partial(packed.open, m))) for name, m in members.items()}


def _of_tar(path: Path) -> dict[str, Item]:
    with path.open("rb") as file:
        head = file.read(6)
    packed = head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
    plain: Any = _Unpacked(path, head) if packed else path
    places: dict[str, Place] = {}
    with plain.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name, link = (posixpath.normpath(each) for each in (member.name, member.linkname))
            if member.isfile():
                places[name] = member.offset_data, member.size
            elif member.islnk():
                places[name] = places.get(link, link)  # the member of that name before this one
            elif member.issym():
                places[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    return {name: Item(f"{path}/{name}", partial(_member, plain, name, places)) for name in places}


def _member(plain: Any, name: str, places: Mapping[str, Place]) -> BinaryIO:
    place = places[name]
    for _ in range(LINKS):
        if isinstance(place, str) and place in places:
            place = places[place]
    if isinstance(place, str):
        raise OSError(f"a link to {place}, which is no file of the archive")
    offset, size = place
    with plain.open("rb") as file:
        file.seek(offset)
        return BytesIO(file.read(min(size, images.LARGEST + 1)))


class _Unpacked:
    """A compressed tar, decompressed into a nameless temporary file that closes with this object."""

    def __init__(self, path: Path, head: bytes) -> None:
        opened: Any = {b"\x1f": gzip.open, b"B": bz2.open, b"\xfd": lzma.open}[head[:1]]
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        with opened(path, "rb") as packed:
            try:
                shutil.copyfileobj(packed, self._file)
                self._file.flush()
            except lzma.LZMAError as error:
                raise EOFError(str(error)) from error
            except OSError as error:
                if error.errno not in FULL:
                    raise
                with suppress(OSError):  # closing writes the buffer, and fails as well
                    self._file.close()
                raise ValueError(
                    f"{path}: no room to unpack it in {tempfile.gettempdir()} ({error.strerror}): make room, set "
                    "TMPDIR to a folder that has it, or unpack it yourself"
                ) from error

    @contextmanager
    def open(self, _: str) -> Iterator[BinaryIO]:
        self._file.seek(0)
        yield cast(BinaryIO, self._file)
