"""What training shows: a progress bar, metrics.jsonl, timing.jsonl, TensorBoard, curves, and pictures of samples."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from scorefield.commands.run import Run
from scorefield.commands.train.json_lines import Rows
from scorefield.commands.train.pictures import save_curves, save_samples
from scorefield.commands.train.settings import PRECISIONS
from scorefield.configs import build
from scorefield.training import Step, TrainingState
from scorefield.training.checkpoints import randomness
from scorefield.training.checkpoints.atomic import FULL
from scorefield.training.memory import memory
from scorefield.training.monitor.loss_guard import LossGuard
from scorefield.training.monitor.step_metrics import StepMetrics


@dataclass
class Log:
    """What training shows: a progress bar, metrics.jsonl, timing.jsonl, TensorBoard, curves and pictures.

    metrics.jsonl holds what the run's numbers decide alone, so it has the same bytes however often the run was
    interrupted; timing.jsonl holds what the machine does. Every process counts its part of the steps; the first one
    writes. Nothing waits for the device unless a row is due.

    Args:
        run: what is trained, and where.
        before: images seen before; rows of later ones are of a future that was lost, and are removed.
        state: what is trained: with it, the layer of a bad step is named.
        loss: the mean over the last row's steps.
    """

    run: Run
    before: int
    state: TrainingState | None = None
    loss: float = math.nan

    def __post_init__(self) -> None:
        run, state, settings = self.run, self.state, self.run.config.training
        weight = build.build(build.WEIGHTINGS, settings.weight)
        self._window = StepMetrics(run.sde, weight, run.device)
        self.watch = LossGuard(
            run.sde,
            state.denoiser if state else None,
            weight=weight,
            precision=PRECISIONS[settings.precision],
            explosion=float(settings.get("explosion", 1e3)),
            folder=run.workdir,
        )
        self._first = randomness.rank() == 0

    def __enter__(self) -> "Log":
        if self._first:
            workdir = self.run.workdir
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=self.before + 1)
            self._metrics = Rows(workdir / "metrics.jsonl", self.before)
            self._timing = Rows(workdir / "timing.jsonl", self.before)
            self.loss = self._metrics.rows[-1].get("loss", math.nan) if self._metrics.rows else math.nan
        total = self.run.config.training.images
        off = None if self._first else True
        self._bar = tqdm(total=total, initial=self.before, unit="image", unit_scale=True, desc="train", disable=off)
        self._clock, self._stepping, self._counted = time.perf_counter(), 0.0, self.before
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._first:
            with self._room(spared=True):
                save_curves(self._metrics.rows, self.run.workdir)
            self._metrics.close()
            self._timing.close()
            with self._room(spared=True):
                self._board.close()

    def following(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps, each judged, their numbers written down every `log_every` of them.

        Raises:
            ValueError: at a step that is not finite or explodes; see `training.monitor.loss_guard`.
        """
        began = time.perf_counter()
        for step in steps:
            self._bar.update(step.images - self._bar.n)
            self.watch.see(step)
            self._window.add(step)
            last = step.images >= self.run.config.training.images
            due = step.step % self.run.config.training.log_every == 0 or last
            if due:
                self.watch.settle()
                means = self._window.means()
                self._window.clear()
            self._stepping += time.perf_counter() - began
            if due:
                self._write(step, means)
            yield step
            began = time.perf_counter()

    def held(self) -> dict[str, Any]:
        """What it has taken in since its last row; a checkpoint keeps it, so that the next row is the same.

        Every process must ask, and every one is given the same.

        Raises:
            ValueError: if a step was bad, so that nothing of it is saved.
        """
        self.watch.settle()
        if self._first:
            with self._room():
                self._metrics.to_disk()
                self._timing.to_disk()
        own = {"window": self._window.state_dict(), "watch": self.watch.state_dict()}
        return {"ranks": randomness.of_every_rank(own)}

    def hold(self, held: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept; one that kept nothing starts a window of its own."""
        ranks = held.get("ranks", [])
        if len(ranks) == randomness.processes():
            self._window.load_state_dict(ranks[randomness.rank()]["window"])
            self.watch.load_state_dict(ranks[randomness.rank()]["watch"])

    def pictures(self, state: TrainingState, asked: Callable[[], object] = lambda: False) -> None:
        """Samples of the weights in training and of their average, side by side, from the same noise each time.

        They are abandoned once `asked` is true, but for those of shards, which all processes draw together.
        """
        sharded = any(hasattr(weights, "full_tensor") for weights in state.denoiser.parameters())
        if self._first or sharded:
            with self._room():
                said = save_samples(
                    self.run, state, self._board if self._first else None, (lambda: False) if sharded else asked
                )
                if said:
                    tqdm.write(said)

    def _write(self, step: Step, means: dict[str, Any]) -> None:
        self.loss = means["loss"]
        if not self._first:
            return
        now = time.perf_counter()
        seen = step.images - self._counted
        timing = {
            "images_per_second": seen / self._stepping,
            "seconds": now - self._clock,
            "seconds_outside_steps": now - self._clock - self._stepping,
            **memory(self.run.device),
        }
        self._clock, self._stepping, self._counted = now, 0.0, step.images
        place = {"step": step.step, "images": step.images}
        numbers = {**means, "learning_rate": step.learning_rate}
        with self._room():
            self._metrics.write({**place, **numbers})
        with self._room():
            self._timing.write({**place, **timing})
        with self._room():
            self._plot(step.images, {**numbers, **timing})
        self._say(step, timing["images_per_second"])

    def _plot(self, images: int, numbers: dict[str, Any]) -> None:
        levels = numbers.pop("levels")
        for name, value in numbers.items():
            self._board.add_scalar(f"train/{name}", value, images)
        for i, low in enumerate(levels["edges"][:-1]):
            for name in ("loss", "eps_error"):
                if levels["count"][i]:
                    self._board.add_scalar(f"{name}_by_log_snr/{low:+03.0f}", levels[name][i], images)

    @contextmanager
    def _room(self, spared: bool = False) -> Iterator[None]:
        """What cannot be written for want of room is said, and spared or fatal as `training.on_full_disk` says."""
        try:
            yield
        except OSError as error:
            where, mended = error.filename or self.run.workdir, "make room" if error.errno in FULL else "mend that"
            line = f"{error.strerror or error}: part of what training shows is not written in {where}"
            if not spared and self.run.config.training.get("on_full_disk", "stop") != "continue":
                raise ValueError(f"{line}; {mended}, and give the same command again") from None
            tqdm.write(line, file=sys.stderr)

    def _say(self, step: Step, rate: float) -> None:
        self._bar.set_postfix(loss=f"{self.loss:.4f}")
        if self._bar.disable:
            left = max(0, self.run.config.training.images - step.images) / rate
            line = f"{step.images:>12,} images  loss {self.loss:.4f}  {rate:,.0f} images/s  {left:.0f} s left"
            print(line, flush=True)
