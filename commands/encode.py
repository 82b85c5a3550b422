"""Images to latents along the probability flow, and back."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.commands.generate import grid as grid_of
from scorefield.commands.generate import label_cond, progress_bar
from scorefield.commands.images import Images
from scorefield.commands.labels import data_labels
from scorefield.commands.run import Run, open_trained, output_path, write_arrays, write_json
from scorefield.configs import build
from scorefield.evaluation import save_rows
from scorefield.sde_lib.denoiser import DenoiserLike
from scorefield.solvers import BELM, Solver
from scorefield.training.data import Dataset, image_files, read_images, whole_array
from scorefield.training.data.files.images import image_suffixes

Options = dict[str, Any]


def encode(
    workdir: Path,
    *,
    input: str | None = None,  # noqa: A002 - the flag's name
    data: str | None = None,
    split: str | None = None,
    num: int | None = None,
    seed: int = 0,
    label: str | int | None = None,
    solver: str = "ddim",
    grid: str | None = None,
    steps: int = 100,
    batch: int = 256,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Encode images to an .npz of `latent` (N, *D) float32, the images `x` and, with classes, their `label`.

    The images are those of `input` (a folder, an .npy or an .npz), or a split of the run's data set, or of `data`.
    `num` of them are drawn at random by the seed, by default 64 of a split; `index` has their places in it. The picture
    shows images over latents. The solver belm also stores the state `before` the latent, from which `decode` inverts it
    exactly.

    Raises:
        ValueError: if there is no trained run, the images do not fit it, or the solver cannot encode.
    """
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    path = output_path(output, workdir / "latents.npz")
    run = trained.run.on(data)
    options = {"solver": solver, "grid": grid or "log_snr", "steps": steps}
    flow_solver(options)
    images = _images(run, input, split, num, seed)
    stored = images.stored
    labels = data_labels(run, images.label, len(stored), label, images.data.name)
    x0 = run.centred(stored).to(run.device)

    began = time.perf_counter()
    latent, before = along_flow(run, trained.denoiser, x0, options, up=True, batch=batch, labels=labels.label)
    seconds = time.perf_counter() - began

    known = images.label if run.num_classes is None else labels.label
    before_t = None if before is None else grid_of(run, options)[1]
    write_arrays(path, latent=latent, before=before, before_t=before_t, x=stored, label=known, index=images.index)
    shown = min(len(stored), 16)
    scaled = (latent[:shown] / float(run.sde.scales(run.sde.t_max)[1]) / 6 + 0.5).clamp(0, 1)  # three deviations
    picture = save_rows([run.viewable(stored[:shown]), scaled], path.with_suffix(".png"))
    spread = float(latent.std()) / float(run.sde.scales(run.sde.t_max)[1])
    summary = {
        "num": len(stored),
        "images": images.described,
        **labels.described,
        **options,
        "latent_std_over_prior": spread,
        **trained.described,
        "seconds": round(seconds, 2),
    }
    report = write_json(path.with_suffix(".json"), summary)
    return {"latent_std_over_prior": round(spread, 4), "files": [str(path), str(picture), str(report)]}


def decode(
    workdir: Path,
    *,
    input: str | None = None,  # noqa: A002 - the flag's name
    label: str | int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    steps: int | None = None,
    batch: int = 256,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Decode a file of latents to an .npz of `x`, with a picture and the distance from the encoded images.

    Solver, grid and steps are by default those of the report beside the latents, else ddim with 100 steps.

    Raises:
        ValueError: if there is no trained run, the file does not read, or the latents do not fit the run.
    """
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    path = output_path(output, workdir / "decoded.npz")
    run = trained.run
    source = Path(input) if input else workdir / "latents.npz"
    latent, stored_arrays = _latents(run, source)
    options = _options_of(source, belm="before" in stored_arrays)
    options |= {
        key: value for key, value in (("solver", solver), ("grid", grid), ("steps", steps)) if value is not None
    }
    flow_solver(options)
    stored, encoded = stored_arrays.get("x"), stored_arrays.get("label")
    labels = data_labels(run, encoded, len(latent), label, str(source))

    before = _neighbour(run, options, stored_arrays)
    x0, _ = along_flow(
        run, trained.denoiser, latent, options, up=False, batch=batch, labels=labels.label, before=before
    )
    back = run.to_stored(x0)

    write_arrays(path, x=back, label=encoded if run.num_classes is None else labels.label)
    rows = [run.viewable(images[: min(len(back), 16)]) for images in ([back] if stored is None else [stored, back])]
    picture = save_rows(rows, path.with_suffix(".png"))
    summary: Options = {"num": len(back), **labels.described, **options, **trained.described}
    if stored is not None:
        summary["round_trip_rms"] = rms(x0.cpu(), run.centred(stored).cpu())
    report = write_json(path.with_suffix(".json"), summary)
    shown = {"round_trip_rms": round(summary["round_trip_rms"], 5)} if stored is not None else {}
    return {**options, **shown, "files": [str(path), str(picture), str(report)]}


def _options_of(latents: Path, belm: bool) -> Options:
    """Solver, grid and steps of the report beside a file of latents, or the defaults."""
    options: Options = {"solver": "belm" if belm else "ddim", "grid": "log_snr", "steps": 100}
    report = latents.with_suffix(".json")
    try:
        written = json.loads(report.read_text()) if report.is_file() else {}
    except ValueError:
        raise ValueError(f"{report} does not read: remove it, and give --solver, --grid and --steps") from None
    return options | {key: written[key] for key in options if key in written}


def along_flow(
    run: Run,
    denoiser: DenoiserLike,
    x: Tensor,
    options: Options,
    *,
    up: bool,
    batch: int = 256,
    labels: Tensor | None = None,
    before: Tensor | None = None,
    show: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Take `x (N, *D)` from data to noise (`up`), or from noise to data, in batches. The result is on the CPU.

    BELM also returns the states before the last, (N, *D), and starts from the states `before` where there are any.

    Raises:
        ValueError: for a stochastic solver, or values that are not finite.
    """
    if batch < 1:
        raise ValueError(f"expected --batch of at least 1, got {batch}")
    solver, ts = flow_solver(options), grid_of(run, options)
    ts = ts.flip(0) if up else ts
    arrived, befores = [], []
    with progress_bar("encode" if up else "decode", len(x), show) as bar:
        for first in range(0, len(x), batch):
            chunk, label, neighbour = (
                None if each is None else each[first : first + batch].to(run.device) for each in (x, labels, before)
            )
            assert chunk is not None
            cond, on_step = label_cond(label, run.device), bar.steps(len(chunk))
            if isinstance(solver, BELM):
                there, neighbour = solver.pair(denoiser, run.sde, chunk, ts, neighbour, cond=cond, on_step=on_step)
                befores.append(neighbour.cpu())
            else:
                there = solver(denoiser, run.sde, chunk, ts, cond=cond, on_step=on_step)
            arrived.append(there.cpu())
    there = torch.cat(arrived)
    if not bool(there.isfinite().all()):
        raise ValueError(f"{solver} gave values that are not finite: use more --steps, or look for NaN in the input")
    return there, torch.cat(befores) if befores else None


def flow_solver(options: Options) -> Solver:
    """The solver of the options.

    Raises:
        ValueError: if it is stochastic.
    """
    solver: Solver = build.build(build.SOLVERS, options["solver"])
    if solver.stochastic:
        raise ValueError(
            f"{solver} adds noise and cannot encode: use ddim, heun, unipc or adaptive, or belm to invert exactly"
        )
    return solver


def rms(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference."""
    return float((a - b).square().mean().sqrt())


def _images(run: Run, source: str | None, split: str | None, num: int | None, seed: int) -> Images:
    """The images to encode."""
    if num is not None and num < 1:
        raise ValueError(f"expected --num of at least 1, got {num}")
    if source is not None and split is not None:
        raise ValueError("expected --input or --split, got both")
    if source is None:
        return Images.of(run.dataset(split or "test"), num or 64, seed)
    path = Path(source)
    if path.is_dir() or path.suffix.lower() in image_suffixes():
        x, levels = read_images(image_files(path) if path.is_dir() else [path])
        dataset = Dataset(path.name, "test", x, levels)
    else:
        dataset = whole_array(path, run.data.levels, labels=run.num_classes is not None)
    return Images.of(run.accept(dataset), num, seed)


def _latents(run: Run, path: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The latents of a file, and all its arrays."""
    if not path.is_file():
        raise ValueError(f"expected latents in {path}, found no file: make them with --mode=encode, or give --input")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Tensor] = {key: torch.as_tensor(file[key]) for key in file.files}
    except Exception:  # numpy and zipfile raise anything for a damaged file
        raise ValueError(f"{path} cannot be read: it is damaged, or no .npz of arrays; encode again") from None
    latent = arrays.get("latent")
    if latent is None or tuple(latent.shape[1:]) != run.data.shape:
        got = "none" if latent is None else str(tuple(latent.shape))
        raise ValueError(
            f"expected an array `latent` of shape (N, {', '.join(map(str, run.data.shape))}) in {path}, got {got}"
        )
    return latent.float(), arrays


def _neighbour(run: Run, options: Options, arrays: dict[str, Tensor]) -> Tensor | None:
    """The states before the latents, for the solver that inverts exactly with them."""
    if "before" not in arrays or not isinstance(flow_solver(options), BELM):
        return None
    if abs(float(arrays["before_t"]) - float(grid_of(run, options)[1])) > 1e-9:
        raise ValueError(
            "expected the --grid and --steps that these latents were encoded with: belm inverts step by step"
        )
    return arrays["before"].float()
