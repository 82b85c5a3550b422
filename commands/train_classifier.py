"""Train the noisy classifier of a run, and load it."""

import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from scorefield.commands.arguments import at_least
from scorefield.commands.outputs import output_path, write_json
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.run import Run, stored_tensor, with_labels
from scorefield.commands.train.batches import batches_of
from scorefield.commands.trained import Trained, open_trained
from scorefield.evaluation import plot_curves
from scorefield.models import NoisyClassifier
from scorefield.sde_lib.arguments import shown
from scorefield.solvers import PerSampleNoise
from scorefield.training import EMA, Model, Step, TrainingState
from scorefield.training import train_classifier as train
from scorefield.training.checkpoints.atomic import atomic_file, write_tensors
from scorefield.training.objectives.classifier import accuracy

VERSION = 1
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05  # the decay is of Dhariwal and Nichol 2021, Table 12
CHECKED = 512  # images of the test split, at random, whose classes are told
MEASURED = 5  # measurements during training
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)  # sigma / alpha of the accuracies


def train_classifier(
    workdir: Path,
    *,
    num: int = 60_000,
    seed: int = 0,
    batch: int = 128,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Train p(label | x_t) on `num` noisy images of a run's training split, for --classifier.

    The run itself may be trained without classes. The accuracy on test images is printed and stored by noise level
    sigma / alpha. Writes classifier.safetensors, classifier.json and curves at the end. An interrupted training leaves
    the old files, and starts from the beginning.

    Raises:
        ValueError: if there is no trained run, its data have no classes, or the loss is not finite.
    """
    at_least(1, num=num, batch=batch)
    at_least(0, seed=seed)
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("train_classifier")
    run = with_labels(trained.run)
    run.sde = trained.run.sde  # with the weights of a learned one
    run.config.seed, run.config.training.batch = seed, batch
    dataset = run.dataset("train")

    torch.manual_seed(seed)
    assert run.num_classes is not None
    module = NoisyClassifier(run.shape, run.num_classes).to(run.device)
    model = Model(classifier=module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    state = TrainingState(model, optimizer, EMA(model, 0.999), Generator(run.device).manual_seed(seed))
    steps = train(
        module, run.sde, batches_of(run, dataset, 0), images=num, state=state,
        schedule=lambda images: (1 + math.cos(math.pi * images / num)) / 2,
    )  # fmt: skip
    began = time.perf_counter()
    history = _followed(steps, run, state, num, seed)
    seconds = time.perf_counter() - began

    output_path(None, _files(workdir)[0])  # says that it replaces another
    weights = _files(workdir)[0]
    with atomic_file(weights) as part:
        write_tensors(part, state.ema.model.classifier.state_dict())
    facts = {
        "version": VERSION, "classifier": module.settings, "images": state.images, "batch": batch, "seed": seed,
        "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "history": history, "data": dataset.name,
        "data_sha256": dataset.fingerprint, "classifier_sha256": _digest(weights), "seconds": round(seconds, 2),
        "torch": torch.__version__,
    }  # fmt: skip
    report = write_json(_files(workdir)[1], facts)
    levels = [float(level) for level in history[-1]["accuracy"]]
    curves = {f"{row['images']:,} images": (levels, list(row["accuracy"].values())) for row in history}
    plot_curves(curves, picture := workdir / "classifier.png", x="sigma / alpha", y="accuracy on test images")
    return {
        "images": state.images,
        **{f"accuracy at sigma / alpha = {level}": round(v, 4) for level, v in history[-1]["accuracy"].items()},
        "seconds": round(seconds, 1),
        "files": [str(path) for path in (weights, report, picture)],
    }


def load_classifier(trained: Trained) -> tuple[NoisyClassifier, dict[str, Any]]:
    """The classifier of a run in evaluation mode, on its device, and the report of its training.

    Raises:
        ValueError: if there is none, or it does not read.
    """
    workdir, run = trained.run.workdir, trained.run
    with_labels(run)
    weights, report = _files(workdir)
    remedy = f"train one with --mode=train_classifier --workdir={workdir}"
    if not weights.is_file() or not report.is_file():
        raise ValueError(f"expected a classifier in {workdir}, found no {weights.name} with its .json: {remedy}")
    try:
        facts = json.loads(report.read_text())
        module = NoisyClassifier(**facts["classifier"])
        if facts["classifier_sha256"] != _digest(weights):
            raise ValueError("the weights are not those of the report")
        module.load_state_dict(load_file(weights))
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{weights} does not read ({shown(error)}): {remedy}") from None
    if module.shape != run.shape:
        raise ValueError(
            f"expected a classifier of {run.shape}, as this run's samples are, got one of {module.shape}: {remedy}"
        )
    return module.to(run.device).eval().requires_grad_(False), facts


def _followed(steps: Iterator[Step], run: Run, state: TrainingState, num: int, seed: int) -> list[dict[str, Any]]:
    """The measurements of a training, to its end.

    Raises:
        ValueError: if the loss is not finite.
    """
    held_out = run.dataset("test").subset(CHECKED, seed)
    assert held_out.label is not None
    x0 = run.centred(stored_tensor(held_out)).to(run.device)
    label = torch.as_tensor(held_out.label).to(run.device)
    history: list[dict[str, Any]] = []
    due, seen = num / MEASURED, 0
    with progress_bar("train classifier", num, unit="image") as bar:
        for step in steps:
            bar.skip(step.images - seen)
            seen = step.images
            if step.images < min(due, num):
                continue
            due += num / MEASURED
            if not math.isfinite(float(step.loss)):
                raise ValueError(
                    f"the loss is not finite after {step.images} images, so nothing was saved: is the data?"
                )
            accuracies = _accuracies(run, state.ema.model.classifier, x0, label, seed)
            history.append({"images": step.images, "loss": float(step.loss), "accuracy": accuracies})
            told = "  ".join(f"{level}: {100 * value:.0f}%" for level, value in accuracies.items())
            bar.say(loss=f"{float(step.loss):.3f}")
            print(f"{step.images:>12,} images  accuracy at sigma / alpha = {told}", flush=True)
    return history


def _accuracies(run: Run, module: torch.nn.Module, x0: Tensor, label: Tensor, seed: int) -> dict[str, float]:
    """The share of test images whose class is told, by noise level of the path."""
    module.eval()
    found = {}
    for level in LEVELS:
        t = float(run.sde.time(torch.tensor(-2 * math.log(level), dtype=torch.float64)))
        eps = PerSampleNoise(seed, range(len(x0)))(x0)
        found[f"{level:g}"] = accuracy(module, run.sde, t, x0, label, eps)
    return found


def _files(workdir: Path) -> tuple[Path, Path]:
    return workdir / "classifier.safetensors", workdir / "classifier.json"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
