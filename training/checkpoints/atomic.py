"""Files and folders that appear complete or not at all, and checksums of every file in a folder.

    FOLDER/SHA256SUMS    a line for each file, as `sha256sum` writes it: `sha256sum -c SHA256SUMS` checks the folder too

A file or folder is written beside its place under a hidden name, and renamed. A folder is flushed to the disk first.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

SUMS = "SHA256SUMS"
# Hidden names of a folder or file: being written, replaced by a new one, being removed.
PART, OLD, GONE = (".{}.part", ".{}.old", ".{}.gone")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class DiskFullError(OSError):
    """There is no room for a folder; what was there before stays."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A hidden path to write to, renamed to `path` if the block succeeds and removed if it fails.

    The folder is made where it does not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(PART.format(path.name))
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_dir(place: Path) -> Iterator[Path]:
    """A hidden folder to write files in, renamed to `place` at the end: complete, with checksums, flushed to the disk.

    Raises:
        DiskFullError: if there is no room for it.
    """
    part, old = (place.with_name(name.format(place.name)) for name in (PART, OLD))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        (part / SUMS).write_text(_sums(part))
        for file in (*part.iterdir(), part):
            _flush(file)
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        part.rename(place)
        _flush(place.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not place.exists():
            old.rename(place)
        # torch.save raises another error, whose context is the disk's.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise DiskFullError(cause.errno, f"no room for {place} ({cause.strerror})") from None
        raise
    shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path) -> str | None:
    """What is wrong with a folder of `atomic_dir`, naming the file; None if every bit is as it was written.

    A folder without checksums passes: see `has_checksums`.
    """
    if not has_checksums(folder):
        return None
    # The list is parsed strictly, so that a flipped bit in it is found too.
    lines = (folder / SUMS).read_bytes().decode("ascii", "replace").splitlines(keepends=True)
    sums = [match.groups() for line in lines if (match := re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)\n", line))]
    names = [name for _, name in sums]
    if not sums or len(sums) != len(lines) or names != sorted(set(names)):
        return f"{folder / SUMS} is not as it was written"
    for digest, name in sums:
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if _sha256(folder / name) != digest:
            return f"{folder / name} does not match its checksum"
    extra = sorted({path.name for path in folder.iterdir()} - {SUMS, *names})
    return f"{folder / SUMS} does not list {extra[0]}" if extra else None


def has_checksums(folder: Path) -> bool:
    """Whether the folder has a list of checksums."""
    return (folder / SUMS).is_file()


def remove(folder: Path) -> None:
    """Remove a folder, renamed first, so that its name never holds a part of it."""
    gone = folder.with_name(GONE.format(folder.name))
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_partial(parent: Path) -> None:
    """Remove the hidden folders that a killed process left; a replaced folder whose place is empty is restored."""
    for old in parent.glob(OLD.format("*")):
        place = old.with_name(old.name[1:].removesuffix(".old"))
        if not place.exists():
            old.rename(place)
    for name in (PART, OLD, GONE):
        for left in parent.glob(name.format("*")):
            shutil.rmtree(left, ignore_errors=True)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None, **metadata: object
) -> None:
    """Write a safetensors file tensor by tensor, without a second copy of the weights.

    Args:
        path: the file.
        tensors: by name.
        dtypes: of floating-point tensors in the file, by name; by default their own.
        metadata: stored in the file as strings.

    Raises:
        OSError: if it cannot be written, for example on a full disk.
    """
    kinds = {name: t.dtype for name, t in tensors.items()}
    kinds |= {name: dtype for name, dtype in (dtypes or {}).items() if tensors[name].is_floating_point()}
    names = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))  # aligns every tensor
    header: dict[str, object] = {"__metadata__": {key: str(value) for key, value in metadata.items()}}
    offset = 0
    for name in names:
        end = offset + tensors[name].numel() * kinds[name].itemsize
        header[name] = {
            "dtype": _DTYPES[kinds[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            plain = tensors[name].detach().to(device="cpu", dtype=kinds[name]).contiguous()
            file.write(plain.reshape(-1).view(torch.uint8).numpy().data)


def _sums(folder: Path) -> str:
    return "".join(f"{_sha256(folder / name)}  {name}\n" for name in sorted(path.name for path in folder.iterdir()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
