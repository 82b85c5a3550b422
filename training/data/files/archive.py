"""Images in a zip or a tar, read where they lie: nothing is unpacked."""

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
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from scorefield.training.checkpoints.atomic import FULL
from scorefield.training.data.dataset import Dataset, Split, check_split
from scorefield.training.data.files import images
from scorefield.training.data.files.decoding import Decoding
from scorefield.training.data.files.images import Item
from scorefield.training.data.files.listing import Listing, arranged, image_set, seen
from scorefield.training.data.files.paths import given_path

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, NotImplementedError)
LINKS = 40  # that are followed from one to the next
Place = tuple[int, int] | str  # where a file lies and its size, or where a link leads


def archive(
    path: str | os.PathLike[str],
    split: Split = "train",
    *,
    size: int | Sequence[int] = 0,
    fit: str = "resize_crop",
    resample: str = "bicubic",
    channels: int = 0,
    alpha: str = "drop",
    bits: int = 0,
    corrupt: str = "error",
    cache: str | os.PathLike[str] = "",
) -> Dataset:
    """All images of a .zip, .tar, .tar.gz (.bz2, .xz), in order of their path: what `folder` makes of them.

    A folder that all of them lie in is no class and no split. Arguments and errors are those of `folder`;
    the decoded images are kept beside the archive by default.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is no archive, or as `folder`.
    """
    check_split(split)
    decoding = Decoding(size, fit, 0, resample, channels, alpha, bits)
    path = archive_file(given_path(path))

    def listing() -> Listing:
        members = archived(path)
        if not members:
            raise ValueError(f"expected images in {path}, found none: choose another archive")
        names = sorted(members, key=lambda name: name.split("/"))  # as the folder would be
        return arranged([members[name] for name in names], shortened(names), split, str(path))

    return image_set(
        path.name.split(".")[0], split, listing,
        files=[path], beside=path.parent, decoding=decoding, corrupt=corrupt, cache=cache, settings=path.name,
    )  # fmt: skip


def archive_file(path: Path) -> Path:
    """The path, if a file is there.

    Raises:
        FileNotFoundError: if not.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}, which is not there: give the path of a .zip or .tar of images")
    return path


def archived(path: Path, every: bool = False) -> dict[str, Item]:
    """The images of an archive (or every file) by their paths in it; a link in a tar is the file that it leads to.

    Raises:
        ValueError: if it cannot be read, or there is no room to unpack it.
        OSError: what the system says of a file that it does not give.
    """
    try:
        # A tar may end as a zip does, in a zip that it holds.
        tarred = tarfile.is_tarfile(path) or not zipfile.is_zipfile(path)
        found = _tarred(path) if tarred else _zipped(path)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: not a zip or tar that can be read ({reason}), {path.stat().st_size} bytes: fetch it again"
        ) from error
    return found if every else {name: item for name, item in found.items() if seen(name)}


def shortened(paths: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them lie in."""
    parts = [path.split("/") for path in paths]
    while all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    return ["/".join(part) for part in parts]


def _zipped(path: Path) -> dict[str, Item]:
    packed = zipfile.ZipFile(path)
    weakref.finalize(packed, cast(Any, packed.fp).close)
    # Some of Windows' packers write its separator.
    members = {member.filename.replace("\\", "/"): member for member in packed.infolist() if not member.is_dir()}
    return {name: Item(f"{path}/{name}", cast(Any, partial(packed.open, m))) for name, m in members.items()}


def _tarred(path: Path) -> dict[str, Item]:
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
                places[name] = places.get(link, link)  # what has that name so far
            elif member.issym():
                places[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    return {name: Item(f"{path}/{name}", partial(_part, plain, name, places)) for name in places}


def _part(plain: Any, name: str, places: Mapping[str, Place]) -> BinaryIO:
    place = places[name]
    for _ in range(LINKS):
        if isinstance(place, str) and place in places:
            place = places[place]
    if isinstance(place, str):
        raise OSError(f"a link to {place}, which leads to no file of the archive")
    offset, size = place
    with plain.open("rb") as file:
        file.seek(offset)
        return BytesIO(file.read(min(size, images.LARGEST + 1)))


class _Unpacked:
    """A compressed tar made plain, to be read in any order, in a file without a name that goes with this object."""

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
                with suppress(OSError):  # once more, of what is left to write
                    self._file.close()
                raise ValueError(
                    f"{path}: no room to unpack it in {tempfile.gettempdir()} ({error.strerror}): make room, set "
                    "TMPDIR to a folder that has it, or unpack it yourself"
                ) from error

    @contextmanager
    def open(self, _: str) -> Iterator[BinaryIO]:
        self._file.seek(0)
        yield cast(BinaryIO, self._file)
