"""What training shows: a progress bar, metrics.jsonl, TensorBoard, a curve of the loss, and pictures of samples."""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from commands.generate import generate
from commands.run import Run
from evaluation import save_curve, save_pictures
from training import Step, TrainingState


@dataclass
class Log:
    """What training shows: a progress bar, metrics.jsonl, TensorBoard, and pictures."""

    run: Run
    before: int
    loss: float = math.nan
    _losses: list[Tensor] = field(default_factory=list)

    def __enter__(self) -> "Log":
        workdir = self.run.workdir
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=self.before)
        self._metrics = _Metrics.opened(workdir / "metrics.jsonl", self.before)
        self._bar = tqdm(
            total=self.run.config.training.images,
            initial=self.before,
            unit="image",
            unit_scale=True,
            desc="train",
            disable=None,
        )
        self._clock = time.perf_counter()
        self._counted = self.before
        return self

    def __exit__(self, *_: object) -> None:
        if self._metrics.rows:
            xs, ys = ([row[key] for row in self._metrics.rows] for key in ("images", "loss"))
            save_curve({"loss": (xs, ys)}, self.run.workdir / "loss.png", "images seen", "loss", log="y")
        self._metrics.file.close()
        self._board.close()
        self._bar.close()

    def following(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps, their numbers written down every `log_every` of them."""
        for step in steps:
            self._bar.update(step.images - self._bar.n)
            self._losses.append(step.loss)
            last = step.images >= self.run.config.training.images
            if step.step % self.run.config.training.log_every == 0 or last:
                self._write(step)
            yield step

    def _write(self, step: Step) -> None:
        now = time.perf_counter()
        self.loss = float(torch.stack(self._losses).mean())
        if not math.isfinite(self.loss):
            raise ValueError(
                f"the loss is {self.loss} by step {step.step}, {step.images} images: lower training.learning_rate or "
                "training.clip; the last checkpoint is whole"
            )
        numbers = {
            "loss": self.loss,
            "grad_norm": float(step.grad_norm),
            "learning_rate": step.learning_rate,
            "images_per_second": (step.images - self._counted) / (now - self._clock),
        }
        self._clock, self._counted = now, step.images
        self._losses.clear()
        for name, value in numbers.items():
            self._board.add_scalar(f"train/{name}", value, step.images)
        self._metrics.write({"step": step.step, "images": step.images, **numbers})
        self._bar.set_postfix(loss=f"{self.loss:.4f}")
        if self._bar.disable:
            rate = numbers["images_per_second"]
            left = max(0, self.run.config.training.images - step.images) / rate
            print(
                f"{step.images:>12,} images  loss {self.loss:.4f}  {rate:,.0f} images/s  {left:.0f} s left", flush=True
            )

    def pictures(self, state: TrainingState) -> None:
        """Samples of the averaged weights, from the same noise each time."""
        run, sampling = self.run, self.run.config.sampling
        labels = None if run.num_classes is None else torch.arange(64) % run.num_classes
        x = generate(run, state.ema.model, 64, sampling=sampling, seed=run.config.seed, labels=labels, show=False)
        seen = run.viewable(run.to_stored(x))
        path = save_pictures(seen, run.workdir / "samples" / f"{state.images:010d}.png")
        if seen.ndim == 4:
            self._board.add_images("samples", seen if seen.shape[1] in (1, 3) else seen[:, :1], state.images)
        tqdm.write(f"wrote {path}")


@dataclass
class _Metrics:
    file: TextIO
    rows: list[dict[str, float]]

    @classmethod
    def opened(cls, path: Path, before: int) -> "_Metrics":
        """The file, less what was written after the checkpoint that training goes on from."""
        lines = path.read_text().splitlines() if path.is_file() else []
        rows = [row for row in map(_parsed, lines) if row is not None and row["images"] <= before]
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(part, path)
        return cls(path.open("a"), rows)

    def write(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()


def _parsed(line: str) -> dict[str, float] | None:
    """A row of metrics, or None for a line that a crash cut short."""
    try:
        row: dict[str, float] = json.loads(line)
    except ValueError:
        return None
    return row
