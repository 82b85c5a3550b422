"""Downloads of data sets: a broken transfer resumes, and a file appears only if its SHA-256 is right."""

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

from scorefield.training.checkpoints.atomic import atomic_file
from scorefield.training.data.files.paths import GZIP, data_root
from scorefield.training.data.sources.urls import ARCHIVES, Archive

ATTEMPTS = 3  # at each mirror
WAIT = 1.0  # seconds before the second attempt, twice that before the third
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 16  # bytes read in a call


class _WrongFileError(Exception):
    """The received file is damaged, or another one."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def download(name: str, root: str | os.PathLike[str] | None = None) -> None:
    """Fetches "mnist", "fashion_mnist" or "cifar10" into a folder, except the files that are there and right.

    Not for several processes at once: let one of them do it first.

    Args:
        name: the data set.
        root: the folder of the data sets; by default DATA_ROOT of the environment, or `data`.

    Raises:
        ValueError: for another name.
        FileNotFoundError: if no mirror gave the right file; it lists each mirror's answer and what to do by hand.
    """
    if name not in ARCHIVES:
        raise ValueError(f"expected a data set named {', '.join(ARCHIVES)}, got {name!r}: choose one of these")
    folder = data_root(root)
    for archive in ARCHIVES[name]:
        if not all(_right(folder / file, sha256) for file, sha256 in archive.files.items()):
            _fetch(archive, folder)


def _fetch(archive: Archive, root: Path) -> None:
    """One archive, received from the first mirror that sends it, and unpacked under the root."""
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
    """Up to `ATTEMPTS` tries at one mirror; None for success, else the last failure."""
    failure = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT * attempt)
        resumed = part.exists()
        try:
            _receive(url, part)
            _unpack(part, url, archive.files, root)
        except _WrongFileError as error:
            part.unlink(missing_ok=True)
            failure = str(error)
            if not resumed:  # this mirror sent all of it, and would send the same again
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
    """Appends to `part` what it lacks of the file at `url`.

    Raises:
        OSError, http.client.HTTPException: if the connection breaks; the received bytes are kept.
    """
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "scorefield"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # there are no more bytes; the checksum decides whether these are right
            error.close()
            return
        raise
    with response:
        if response.status != 206:
            have = 0  # the server ignores the range and sends all of it
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
    """Unpacks the files of an archive, each only if its checksum is right.

    Raises:
        _WrongFileError: if the archive is damaged, or a file is missing or another one.
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
        raise _WrongFileError(f"the received file is damaged ({error})") from error
    if absent:
        raise _WrongFileError(f"the received file has no {', '.join(absent)}")


def _plain(path: Path) -> gzip.GzipFile | BufferedReader:
    """A file, decompressed if it is in gzip's format: some servers send it decompressed."""
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    return gzip.GzipFile(path) if packed else path.open("rb")


def _place(stream: _Stream, path: Path, sha256: str) -> None:
    """Writes a stream to `path`, atomically and only if this is its checksum."""
    digest = hashlib.sha256()
    with atomic_file(path) as part:
        with part.open("wb") as file:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise _WrongFileError(f"the SHA-256 of {path.name} is {digest.hexdigest()}, expected {sha256}")


def _right(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
