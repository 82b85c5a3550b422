"""Data sets from their own homes: resumed where the line broke, and in place only when right to the bit."""

import gzip
import hashlib
import http.client
import os
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from scorefield.training.data.files.paths import MAGIC, data_root
from scorefield.training.data.sources.urls import ARCHIVES, Archive

ATTEMPTS = 3  # at each mirror
WAIT = 1.0  # seconds before the second attempt, twice that before the third
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 16


class _WrongError(Exception):
    """What arrived is damaged or not the file that was meant."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def download(name: str, root: str | os.PathLike[str] | None = None) -> None:
    """Fetches "mnist", "fashion_mnist" or "cifar10" into a folder; what is there and right is left alone.

    Not for several processes at once: of a group, let one do it first.

    Args:
        name: the data set.
        root: the folder of the data sets; DATA_ROOT of the environment, or `data`, if not given.

    Raises:
        ValueError: for another name.
        FileNotFoundError: if no mirror gave the right file, with what each did and what to do by hand.
    """
    if name not in ARCHIVES:
        raise ValueError(f"expected a data set named {', '.join(ARCHIVES)}, got {name!r}: choose one of these")
    folder = data_root(root)
    for archive in ARCHIVES[name]:
        if not all(_right(folder / file, sha256) for file, sha256 in archive.files.items()):
            _fetch(archive, folder)


def _fetch(archive: Archive, root: Path) -> None:
    """One archive, received from the first mirror that gives it and unpacked under the root."""
    first = root / next(iter(archive.files))
    part = first.with_name(archive.urls[0].rsplit("/", 1)[-1] + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in archive.urls:
        failure = _try(url, part, archive, root)
        if failure is None:
            return
        failures.append(f"{url}: {failure}")
    raise FileNotFoundError(
        f"{first} could not be downloaded ({'; '.join(failures)}): fetch one of these by hand and "
        f"unpack {', '.join(Path(file).name for file in archive.files)} into {first.parent}"
    )


def _try(url: str, part: Path, archive: Archive, root: Path) -> str | None:
    """One mirror, some attempts; None if it worked, otherwise what happened."""
    failure = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT * attempt)
        resumed = part.exists()
        try:
            _receive(url, part)
            _unpack(part, url, archive.files, root)
        except _WrongError as error:
            part.unlink(missing_ok=True)
            failure = str(error)
            if not resumed:  # all of it came from here: it would come again
                break
        except urllib.error.HTTPError as error:
            error.close()
            failure = f"HTTP status {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                break
        except (OSError, http.client.HTTPException) as error:
            failure = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        else:
            part.unlink()
            return None
    return failure


def _receive(url: str, part: Path) -> None:
    """Appends to `part` what it lacks of the file at `url`; one that is whole is left as it is.

    Raises:
        OSError, http.client.HTTPException: if the line breaks; what came is kept.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "scorefield"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing lies beyond what we have; the checksum tells if that is right
            error.close()
            return
        raise
    with response:
        if response.status != 206:
            have = 0  # the server sends all of it, whatever was asked
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        name = url.rsplit("/", 1)[-1]
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            have = file.tell()
    if total is not None and have < total:
        raise ConnectionError(f"the connection closed after {have} of {total} bytes")


def _unpack(part: Path, url: str, files: Mapping[str, str], root: Path) -> None:
    """Puts the files of an archive in place, each only if its checksum is right.

    Raises:
        _WrongError: if the archive is damaged, lacks a file, or has another in its place.
    """
    try:
        if not url.endswith(".tar.gz"):
            ((file, sha256),) = files.items()
            with _plain(part) as stream:
                _place(stream, root / file, sha256)
            return
        absent = dict(files)
        with tarfile.open(part, "r:gz") as tar:
            for member in tar:
                # The path is ours, never the member's, and only regular files are opened.
                sha256 = absent.pop(member.name, "") if member.isfile() else ""
                if sha256 and (content := tar.extractfile(member)):
                    _place(content, root / member.name, sha256)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise _WrongError(f"what arrived is damaged ({error})") from error
    if absent:
        raise _WrongError(f"what arrived has no {', '.join(absent)}")


def _plain(path: Path) -> gzip.GzipFile | BufferedReader:
    """A file, decompressed if it is in gzip's format: some servers have done that already."""
    with path.open("rb") as file:
        packed = file.read(len(MAGIC)) == MAGIC
    return gzip.GzipFile(path) if packed else path.open("rb")


def _place(stream: _Stream, path: Path, sha256: str) -> None:
    """Writes a stream to `path`, atomically and only if this is its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    digest = hashlib.sha256()
    try:
        with fresh.open("wb") as file:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise _WrongError(f"the SHA-256 of {path.name} is {digest.hexdigest()}, expected {sha256}")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _right(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
