"""Images to a file of the length that the likelihood promises, and back to the bit."""

import itertools
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.commands.arguments import at_least
from scorefield.commands.codec import (
    CHAIN,
    DRAWS,
    NOT_THE_SAME,
    TOGETHER,
    RunCodec,
    check_codec,
    images_sha256,
    machine_of,
    model_sha256,
    same_arithmetic,
)
from scorefield.commands.conditioning import data_conditioning
from scorefield.commands.images import Images, chosen_images
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.outputs import check_output, output_path, write_arrays, write_json
from scorefield.commands.run import Run
from scorefield.commands.trained import open_trained
from scorefield.compression import ChainPlan, Coded, Container
from scorefield.evaluation.plain_codecs import as_png, entropy_bits, png_bits, xz_bits
from scorefield.sde_lib.denoiser import take_rows
from scorefield.training.checkpoints.atomic import atomic_file
from scorefield.training.data import image_files
from scorefield.training.data.files.array import stored_dtype
from scorefield.training.data.files.images import image_suffixes

SUFFIX = ".scorefield"
IMAGES = 100  # of a split, by default


def compress(
    workdir: Path,
    *,
    input: str | None = None,  # noqa: A002 - the flag's name
    data: str | None = None,
    split: str | None = None,
    num: int | None = None,
    seed: int = 0,
    label: str | int | None = None,
    chain: int = CHAIN,
    batch: int = TOGETHER,
    draws: int = DRAWS,
    verify: bool = True,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Compress images to one file, without a loss, by bits back through a chain of the run.

    The images are those of `input`, all of them, or 100 of a split of the run's data set, or of `data`. The report has
    the length of the file, and the net length, without the bits that the first images lend. It also has the bound of
    the chain, and what PNG, xz and the entropy of single values make of these images. The file is decoded once to
    verify it.

    Only this run's weights can read the file, on the same kind of processor, with the same version of PyTorch.

    Args:
        workdir: of the run.
        input: see `read_input`.
        data: a data set in place of the run's own.
        split: "train" or "test" (the default).
        num: how many images, drawn at random by the seed.
        seed: of the images and of the bound's random numbers.
        label: the class of all images, in place of their own.
        chain: steps of the chain. Each is an evaluation of the network; more make the file shorter.
        batch: the most images that are coded together.
        draws: evaluations of the bound for each image; 0 for no bound, and a multiple of `chain` for an exact one.
        verify: decode the file and compare.
        ema: use the averaged weights.
        checkpoint: see `find_checkpoint`.
        device: see `open_run`.
        output: the file, .scorefield.

    Raises:
        ValueError: if there is no trained run, or one that `check_codec` refuses. Also if the images do not fit it, or
            the file does not decode to them.
    """
    at_least(1, num=num, chain=chain, batch=batch)
    at_least(0, seed=seed, draws=draws)
    check_output(output, SUFFIX)
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    check_codec(trained, "compress")
    run = trained.run.on(data)
    images, restored = _images(run, input, split, num, seed)
    given = data_conditioning(run, images.data, label)
    settings = {
        "num": len(images.stored), "images": images.described, "data": images.data.name,
        "data_sha256": images.data.fingerprint, "chain": chain, "batch": batch, **given.described, **trained.described,
    }  # fmt: skip
    stored, machine = images.stored, machine_of(run.device)
    began = time.perf_counter()
    codec = RunCodec.chosen(trained, stored, given.cond, chain, batch)
    with same_arithmetic(machine, run.device):
        coded = codec.compress(stored, given.cond)
        seconds = time.perf_counter() - began
        header = {
            "model": model_sha256(trained), "checkpoint": trained.checkpoint.name, "weights": "ema" if ema else "raw",
            "images": images_sha256(stored.numpy().astype(np.int64)), **restored, "shape": list(run.shape),
            "levels": run.levels, "plan": vars(codec.plan), "plain": coded.plain,
            "batches": [[size, len(list(same))] for size, same in itertools.groupby(coded.batches)], **machine,
        }  # fmt: skip
        packed = Container(header, coded.words, {key: value.numpy() for key, value in given.cond.items()}).pack()
        if verify:
            kept = Container.unpack(packed, "the new file")
            back = codec.decompress(_coded(kept), _cond(kept), name="verify")
            if not np.array_equal(back, stored.numpy()):
                raise ValueError(NOT_THE_SAME)
    of_model = slice(coded.plain % len(stored), None)  # all, if the model codes none
    rest = take_rows(given.cond, of_model, len(stored))
    bound = codec.bound(stored[of_model], rest, draws, seed) if draws else (None, None)
    lengths = _lengths(stored, coded, 8 * len(packed), bound)

    path = output_path(output, workdir / f"compressed{SUFFIX}", settings)
    with atomic_file(path) as part:
        part.write_bytes(packed)
    rate = len(stored) / seconds
    facts = {
        **lengths, "plan": vars(codec.plan), "plain": coded.plain, "initial_bits": codec.codec.coder.chain.initial_bits,
        "verified": verify, "images_per_second": rate, **machine,
    }  # fmt: skip
    report = write_json(path.with_suffix(".json"), {**settings, **facts})
    said = {**_lines(lengths, coded, packed), "chain": codec.described, "speed": f"{rate:.2f} images/s"}
    return {**said, "files": [str(path), str(report)]}


def decompress(
    workdir: Path,
    *,
    input: str | None = None,  # noqa: A002 - the flag's name
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """The images of a file of `compress`, equal to the bit: an .npz of `x` with their `label`, or a folder of PNGs.

    The file is `input`, or the one in the working directory. Its images are written as a folder, with their names, if
    they were images of 8 bits in files, and as an array of the same type otherwise. `output` decides, if it is given.

    Raises:
        ValueError: if there is no such file, it is truncated, of another run or other weights, or does not decode to
            the images that were compressed.
    """
    source = Path(input) if input else workdir / f"compressed{SUFFIX}"
    kept = Container.read(source)
    header = kept.header
    if output is not None and not _is_folder(output):
        check_output(output, ".npz")
    if checkpoint is None and (workdir / "checkpoints" / header["checkpoint"]).is_dir():
        checkpoint = header["checkpoint"]
    trained = open_trained(workdir, device, header["weights"] == "ema", checkpoint=checkpoint)
    check_codec(trained, "decompress")
    if model_sha256(trained) != header["model"]:
        raise ValueError(
            f"expected the run and the weights that compressed {source} (checkpoint {header['checkpoint']}, "
            f"{header['weights']}), got others in {workdir}: give their --workdir or --checkpoint"
        )
    plan = ChainPlan(**{**header["plan"], "density": tuple(header["plan"]["density"])})
    began = time.perf_counter()
    k = None
    with same_arithmetic(header, trained.run.device), suppress(ValueError):  # of other bits, which no code has
        k = RunCodec(trained, plan, 1).decompress(_coded(kept), _cond(kept))
    if k is None or images_sha256(k) != header["images"]:
        raise ValueError(
            f"expected the images that were compressed to {source}, got others, because this machine rounds another "
            f"way: decompress with torch {header['torch']} on {header['device']}"
        )
    seconds = time.perf_counter() - began
    x = k.astype(header["dtype"])
    files = _write(workdir, output, x, kept)
    return {"images": len(x), "decoded": "to the bit", "speed": f"{len(x) / seconds:.2f} images/s", "files": files}


def _images(
    run: Run, source: str | None, split: str | None, num: int | None, seed: int
) -> tuple[Images, dict[str, Any]]:
    """The images to compress, and what it takes to restore them: their type, and names where they are files."""
    images = chosen_images(run, source, split, num, seed, default=IMAGES)
    if source is None:
        return images, {"dtype": images.data.x.dtype.str, "names": None}
    path = Path(source)
    if not path.is_dir() and path.suffix.lower() not in image_suffixes():
        return images, {"dtype": stored_dtype(path).str, "names": None}
    files = image_files(path) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    names = [files[i].relative_to(root).as_posix() for i in images.index]
    names = [name if name.lower().endswith(".png") else f"{name}.png" for name in names]  # beside a.png there is a.jpg
    return images, {"dtype": images.data.x.dtype.str, "names": names}


def _coded(kept: Container) -> Coded:
    batches = itertools.chain.from_iterable([size] * count for size, count in kept.header["batches"])
    return Coded(kept.words, kept.header["plain"], tuple(batches))


def _cond(kept: Container) -> dict[str, Tensor]:
    return {key: torch.from_numpy(array.copy()) for key, array in kept.arrays.items()}


def _lengths(
    stored: Tensor, coded: Coded, file_bits: int, bound: tuple[float | None, float | None]
) -> dict[str, float | None]:
    """Bits/dim of the file and of other codecs."""
    images = stored.numpy()
    png, dims = png_bits(images), math.prod(images.shape[1:])
    return {
        "bytes": file_bits // 8,
        "file": file_bits / images.size,
        "net": coded.net_bits / dims if coded.batches else None,
        "bound": bound[0],
        "bound_error": bound[1],
        "png": None if png is None else png / images.size,
        "xz": xz_bits(images) / images.size,
        "entropy": entropy_bits(images) / images.size,
    }


def _lines(lengths: Mapping[str, float | None], coded: Coded, packed: bytes) -> dict[str, str]:
    """What is printed of the lengths."""
    images, extra = coded.plain + sum(coded.batches), len(packed) - 4 * len(coded.words)
    lines = {"file": f"{lengths['file']:.4f} bits/dim, {len(packed):,} bytes of {images:,} images ({extra} of header)"}
    if coded.batches:
        lines["net"] = f"{lengths['net']:.4f} bits/dim of {sum(coded.batches):,} images, without initial bits"
    else:
        lines["net"] = "none: there are too few images to lend the model bits, so a plain code has all of them"
    if lengths["bound"] is not None:
        error = "" if lengths["bound_error"] is None else f" +- {lengths['bound_error']:.4f}"
        lines["bound of the chain"] = f"{lengths['bound']:.4f}{error} bits/dim"
    others = {"PNG": lengths["png"], "xz": lengths["xz"], "entropy of values": lengths["entropy"]}
    shown = [f"{name} {value:.4f}" for name, value in others.items() if value is not None]
    return {**lines, "others": f"{', '.join(shown)} bits/dim"}


def _is_folder(output: str) -> bool:
    return Path(output).suffix == ""


def _write(workdir: Path, output: str | None, x: NDArray[Any], kept: Container) -> list[str]:
    """Write the images as an .npz, or as PNGs with their names."""
    names = kept.header["names"]
    as_files = names is not None and kept.header["levels"] == 256
    if (output is None and not as_files) or (output is not None and not _is_folder(output)):
        path = Path(output) if output else workdir / "decompressed.npz"
        if path.exists():
            on_stderr(f"replaces {path}")
        label = kept.arrays.get("label")
        write_arrays(path, x=x, label=label, name=names)
        return [str(path)]
    if not as_files:
        raise ValueError(
            f"expected --output of an .npz file, got the folder {output}: these were no images of 8 bits in files"
        )
    folder = Path(output) if output else workdir / "decompressed"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"expected --output to be a new folder, and there is something in {folder}")
    for name, image in zip(names, x, strict=True):
        place = (folder / name).resolve()
        if folder.resolve() not in place.parents:
            raise ValueError(f"expected names of images within the folder {folder}, got {name}: the file is not ours")
        with atomic_file(place) as part:
            part.write_bytes(as_png(image))
    return [str(folder)]
