"""Train the dequantiser of a trained run, and load it."""

import dataclasses
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from scorefield.commands.arguments import at_least
from scorefield.commands.generate import of_rows
from scorefield.commands.labels import data_labels
from scorefield.commands.outputs import output_path, write_json
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.trained import Trained, open_trained
from scorefield.evaluation import plot_curves
from scorefield.likelihood import mean_and_error
from scorefield.models.networks.dequantiser import Dequantiser
from scorefield.sde_lib.arguments import shown
from scorefield.solvers import PerSampleNoise
from scorefield.training import EMA, Batches, Model, TrainingState
from scorefield.training.checkpoints.atomic import atomic_file, write_tensors
from scorefield.training.data import Dataset
from scorefield.training.data.batches import tensor
from scorefield.training.objectives.dequantiser import dequantiser_gain
from scorefield.training.objectives.dequantiser import train_dequantiser as train

VERSION = 1
LEARNING_RATE = 2e-3
CHECKED = 64  # images of the training split, at random, for measuring the gain
MEASURED = 10  # measurements during training


def train_dequantiser(
    workdir: Path,
    *,
    num: int = 50_000,
    label: str | int | None = None,
    seed: int = 0,
    batch: int = 128,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Train q(u | k) for a run's newest weights, on `num` images of its training split.

    The reported gain is that of `dequantiser_gain`, by the score at t_min; --mode=likelihood measures the gain of the
    flow's bits/dim. Writes dequantiser.safetensors, dequantiser.json and a curve at the end. An interrupted training
    leaves the old files, and starts from the beginning.

    Args:
        workdir: of the run.
        num: images to see, with repetition.
        label: the number or name of one class for all images, in place of their own.
        seed: of the weights, the order and the noise.
        batch: images a step.
        ema: for the run's averaged weights.
        checkpoint: see `find_checkpoint`.
        device: see `open_run`.

    Raises:
        ValueError: if there is no trained run, its data are not integer images, or q is not finite.
    """
    at_least(1, num=num, batch=batch)
    at_least(0, seed=seed)
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("train_dequantiser")
    run, levels = trained.run, _levels(trained)
    dataset = run.dataset("train")
    own = None if dataset.label is None else torch.as_tensor(dataset.label)
    known = data_labels(run, own, len(dataset), label, dataset.name)
    labels, fingerprint = known.label is not None, dataset.fingerprint
    if known.label is not None:
        dataset = dataclasses.replace(dataset, label=known.label.numpy(), num_classes=run.num_classes)

    torch.manual_seed(seed)
    settings = {"channels": run.data.shape[0]}
    module = Dequantiser(**settings).to(run.device)
    model, optimizer = Model(dequantiser=module), torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    state = TrainingState(model, optimizer, EMA(model, 0.999), Generator(run.device).manual_seed(seed))
    steps = train(
        module, trained.denoiser, run.sde, Batches(dataset, batch, seed=seed, transform=_as_stored, labels=labels),
        levels=levels, low=run.low, high=run.high, images=num, state=state,
        schedule=lambda images: (1 + math.cos(math.pi * images / num)) / 2,
    )  # fmt: skip

    average = state.ema.model.dequantiser
    began, due = time.perf_counter(), 0.0
    history: list[dict[str, Any]] = []
    dims = math.prod(run.data.shape)
    seen = 0
    with progress_bar("train dequantiser", num, unit="image") as bar:
        for step in steps:
            bar.skip(step.images - seen)
            seen = step.images
            if step.images < min(due, num):
                continue
            due += num / MEASURED
            gain, error = mean_and_error(_gains(trained, average, dataset.subset(CHECKED, seed), seed, batch, labels))
            row = {
                "images": step.images,
                "log_q": float(step.numbers["log_q"].mean()) / math.log(2),
                "grad_norm": float(step.grad_norm),
                "gain": gain / dims / math.log(2),
                "gain_error": error / dims / math.log(2) if math.isfinite(error) else None,
            }
            if not all(math.isfinite(row[name] or 0.0) for name in ("log_q", "grad_norm", "gain")):
                raise ValueError(
                    f"q is not finite after {step.images} images, so nothing was saved: is the run trained?"
                )
            history.append(row)
            bar.say(gain=f"{row['gain']:.4f}")
            if bar.in_lines:
                print(f"{step.images:>12,} images  gain {row['gain']:.4f} bits/dim", flush=True)
    seconds = time.perf_counter() - began

    output_path(None, _files(workdir)[0])  # says that it replaces another
    weights = _save(workdir, average)
    facts = {
        "version": VERSION,
        "dequantiser": settings,
        "images": state.images,
        "batch": batch,
        "learning_rate": LEARNING_RATE,
        "seed": seed,
        "unit": "bits_per_dim, the gain over uniform by the score at t_min",
        "history": history,
        "t_min": run.sde.t_min,
        "levels": levels,
        "data": dataset.name,
        "data_sha256": fingerprint,
        **known.described,
        **trained.described,
        "dequantiser_sha256": _digest(weights),
        "seconds": round(seconds, 2),
        "torch": torch.__version__,
    }
    report = write_json(_files(workdir)[1], facts)
    xs = [row["images"] for row in history]
    curves = {name: (xs, [row[name] for row in history]) for name in ("gain", "log_q")}
    plot_curves(curves, picture := workdir / "dequantiser.png", x="images seen", y="bits/dim")
    return {
        "images": state.images,
        "log_q": round(history[-1]["log_q"], 5),
        "gain over uniform by the score, bits/dim": _with_error(history[-1]),
        "the flow's own gain": "another number, negative for a poor network: measure it with --mode=likelihood",
        "seconds": round(seconds, 1),
        "files": [str(path) for path in (weights, report, picture)],
    }


def load_dequantiser(trained: Trained) -> tuple[Dequantiser, dict[str, Any]]:
    """The dequantiser of a run in evaluation mode, on its device, and the report of its training.

    Raises:
        ValueError: if there is none, it does not read, or it was trained for other weights.
    """
    workdir = trained.run.workdir
    weights, report = _files(workdir)
    remedy = f"train one with --mode=train_dequantiser --workdir={workdir}" + ("" if trained.ema else " --ema=false")
    if not weights.is_file() or not report.is_file():
        raise ValueError(f"expected a dequantiser in {workdir}, found no {weights.name} with its .json: {remedy}")
    try:
        facts = json.loads(report.read_text())
        there, file = facts["checkpoint_sha256"], facts["dequantiser_sha256"]
        named = f"{facts['weights']} of {facts['checkpoint']}"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{report} does not read ({shown(error)}): {remedy}") from None
    here = trained.described
    if there != here["checkpoint_sha256"]:
        raise ValueError(
            f"{weights} was trained for other weights, {named} ({there[:12]}), than these, {here['weights']} of "
            f"{here['checkpoint']} ({here['checkpoint_sha256'][:12]}): {remedy}"
        )
    if file != _digest(weights):
        raise ValueError(f"{weights} is not the file that {report.name} describes: {remedy}")
    try:
        module = Dequantiser(**facts["dequantiser"])
        module.load_state_dict(load_file(weights))
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{weights} is of another architecture ({shown(error)}): {remedy}") from None
    return module.to(trained.run.device).eval().requires_grad_(False), facts


def _levels(trained: Trained) -> int:
    data = trained.run.data
    if trained.run.autoencoder is not None:
        raise ValueError(
            "expected a run of pixels, got one of an autoencoder's codes, which are continuous: it needs no dequantiser"
        )
    if data.levels is None:
        raise ValueError(f"expected integers, got continuous data, {data.name}: it needs no dequantiser")
    if len(data.shape) != 3:
        raise ValueError(
            f"expected images (C, H, W), got data of shape {data.shape}: dequantise other data by uniform noise"
        )
    return data.levels


def _as_stored(stored: Tensor, generator: Generator) -> Tensor:
    return stored


def _gains(trained: Trained, module: torch.nn.Module, dataset: Dataset, seed: int, batch: int, labels: bool) -> Tensor:
    """What q adds to the uniform bound on some images, in nats, (N,)."""
    run, gains = trained.run, []
    for start in range(0, len(dataset), batch):
        rows = slice(start, min(start + batch, len(dataset)))
        k = tensor(dataset.x[rows]).to(run.device)
        uniform = PerSampleNoise(seed, range(rows.start, rows.stop)).uniform(k.float())
        known = torch.as_tensor(dataset.label[rows]) if labels and dataset.label is not None else None
        gains.append(
            dequantiser_gain(
                module,
                trained.denoiser,
                run.sde,
                k,
                uniform,
                cond=of_rows({} if known is None else {"label": known}, run.device),
                levels=_levels(trained),
                low=run.low,
                high=run.high,
            ).cpu()
        )
    return torch.cat(gains)


def _save(workdir: Path, module: torch.nn.Module) -> Path:
    """Write the weights, completely or not at all."""
    path = _files(workdir)[0]
    with atomic_file(path) as part:
        write_tensors(part, module.state_dict())
    return path


def _files(workdir: Path) -> tuple[Path, Path]:
    return workdir / "dequantiser.safetensors", workdir / "dequantiser.json"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _with_error(row: dict[str, Any]) -> str:
    return f"{row['gain']:.4f}" + ("" if row["gain_error"] is None else f" +- {row['gain_error']:.4f}")
