"""Folders that appear whole or not at all, with a checksum of every file in them.

    FOLDER/SHA256SUMS    a line a file, as `sha256sum` writes it: `sha256sum -c SHA256SUMS` checks the folder too

A folder is written beside its place under another name, brought to the disk, and renamed.
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
# What a name before its folder's place begins and ends with: in writing, replaced, being removed.
PART, ASIDE, GONE = (".{}.part", ".{}.old", ".{}.gone")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class DiskFullError(OSError):
    """There is no room for a folder; what was there before stays."""


@contextmanager
def atomic_dir(place: Path) -> Iterator[Path]:
    """A folder to write files in, which stands at `place` afterwards: whole, checksummed and on the disk.

    Raises:
        DiskFullError: if there is no room for it.
    """
    part, aside = (place.with_name(name.format(place.name)) for name in (PART, ASIDE))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        (part / SUMS).write_text(_sums(part))
        for file in (*part.iterdir(), part):
            _to_disk(file)
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
        part.rename(place)
        _to_disk(place.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if aside.exists() and not place.exists():
            aside.rename(place)
        # torch.save loses the reason on its way, but for the context.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise DiskFullError(cause.errno, f"no room for {place} ({cause.strerror})") from None
        raise
    shutil.rmtree(aside, ignore_errors=True)


def verify(folder: Path) -> str | None:
    """What is wrong with a sealed folder, naming the file; None if every bit of it is as it was written.

    A folder without checksums, of an earlier version or from elsewhere, passes: see `is_sealed`.
    """
    if not is_sealed(folder):
        return None
    # Read strictly, so that a flipped bit in the list itself is found as well.
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


def is_sealed(folder: Path) -> bool:
    """Whether there are checksums to go by."""
    return (folder / SUMS).is_file()


def remove(folder: Path) -> None:
    """Remove a folder so that no half of it is ever found under its name."""
    gone = folder.with_name(GONE.format(folder.name))
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_partial(parent: Path) -> None:
    """Clear away what a killed process left; a folder that it had only just moved aside goes back to its place."""
    for aside in parent.glob(ASIDE.format("*")):
        place = aside.with_name(aside.name[1:].removesuffix(".old"))
        if not place.exists():
            aside.rename(place)
    for name in (PART, ASIDE, GONE):
        for left in parent.glob(name.format("*")):
            shutil.rmtree(left, ignore_errors=True)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, **metadata: object
) -> None:
    """A safetensors file, written tensor by tensor: no second copy of the weights, whatever their device and layout.

    Args:
        path: the file.
        tensors: by name.
        dtype: what floating-point tensors are stored as, by default as they are.
        metadata: kept with them as strings.

    Raises:
        OSError: if the disk is full, for one.
    """
    kinds = {name: dtype if dtype and t.is_floating_point() else t.dtype for name, t in tensors.items()}
    names = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))  # so that every tensor is aligned
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


def _to_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
