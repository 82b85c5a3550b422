"""The output of training: a progress bar, metrics.jsonl, timing.jsonl, TensorBoard, curves, and pictures."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from scorefield.commands.progress_bar import say
from scorefield.commands.run import Run
from scorefield.commands.train.objective import Loss
from scorefield.commands.train.pictures import save_curves, save_samples
from scorefield.commands.training.board import open_board
from scorefield.commands.training.json_lines import JsonLines
from scorefield.commands.training.progress import Progress
from scorefield.commands.training.room import room
from scorefield.commands.training.settings import PRECISIONS
from scorefield.training import Ranks, Step, TrainingState
from scorefield.training.distributed.shards import in_shards
from scorefield.training.monitor.loss_guard import LossGuard
from scorefield.training.monitor.step_metrics import StepMetrics


@dataclass
class Log:
    """The output of training: a progress bar, metrics.jsonl, timing.jsonl, TensorBoard, curves and pictures.

    metrics.jsonl depends only on the run's numbers, so interruptions do not change its bytes. timing.jsonl has the
    numbers of the machine. Every process counts its rows of the steps; the first one writes. Nothing waits for the
    device unless a row is due.

    Args:
        run: in training.
        before: images seen before; rows of more images come from after the checkpoint, and are removed.
        training: its state; with it the layer of a bad step is named.
        minimised: by default that of the run's configuration.
        loss: the mean over the steps of the last row.
    """

    run: Run
    before: int
    training: TrainingState | None = None
    minimised: Loss | None = None
    loss: float = math.nan

    def __post_init__(self) -> None:
        run, settings = self.run, self.run.config.training
        minimised = self.minimised or Loss(run)
        self._window = StepMetrics(run.sde, run.device, minimised.parts, minimised.numbers)
        self._unit, self._nats = ("bits/dim", math.log(2)) if run.levels else ("nats/dim", 1.0)
        self._parts_in = self._unit.replace("/", "_per_")  # the key of a bound's parts
        self._bound = ""
        self.guard = LossGuard(
            run.sde,
            self.training.denoiser if self.training else None,
            loss=minimised.of_batch,
            precision=PRECISIONS[settings.precision],
            explosion=float(settings.get("explosion", 1e3)),
            folder=run.workdir,
        )
        self._first = Ranks.current().first

    def __enter__(self) -> "Log":
        if self._first:
            workdir = self.run.workdir
            self._board = open_board(self.run, self.before)
            self._metrics = JsonLines(workdir / "metrics.jsonl", self.before)
            self._timing = JsonLines(workdir / "timing.jsonl", self.before)
            self.loss = self._metrics.rows[-1].get("loss", math.nan) if self._metrics.rows else math.nan
        self._progress = Progress(self.run.config.training, self.before, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        if self._first:
            with room(self.run, optional=True):
                save_curves(self._metrics.rows, self.run.workdir)
            self._metrics.close()
            self._timing.close()
            with room(self.run, optional=True):
                self._board.close()

    def following(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps; a row is written every `log_every` of them.

        Raises:
            ValueError: at a step that is not finite or explodes, where `guard.accept` was passed to `train`.
        """
        began = time.perf_counter()
        for step in steps:
            self._progress.update(step.images)
            self._window.add(step)
            last = step.images >= self.run.config.training.images
            due = step.step % self.run.config.training.log_every == 0 or last
            if due:
                self.guard.settle()
                means = self._window.means()
                self._window.clear()
            self._progress.add(time.perf_counter() - began)
            if due:
                self._write(step, means)
            self._progress.line(step.images, self._facts)
            yield step
            began = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """The sums since the last row, which a checkpoint keeps so that the next row is the same.

        Every process must call, and gets the same.

        Raises:
            ValueError: if a step was bad, so that nothing of it is saved.
        """
        self.guard.settle()
        if self._first:
            with room(self.run):
                self._metrics.flush()
                self._timing.flush()
        own = {"window": self._window.state_dict(), "watch": self.guard.state_dict()}
        return {"ranks": Ranks.current().all_gather_object(own)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the sums of a checkpoint; without them a new window starts."""
        every, here = state.get("ranks", []), Ranks.current()
        if len(every) == here.world:
            self._window.load_state_dict(every[here.rank]["window"])
            self.guard.load_state_dict(every[here.rank]["watch"])

    def pictures(self, state: TrainingState, stopped: Callable[[], object] = lambda: False) -> None:
        """Draw samples of the weights in training and of their average, side by side, from the same noise each time.

        They are abandoned once `stopped` is true, except those of shards, which all processes draw together.
        """
        sharded = in_shards(state.model)
        if self._first or sharded:
            # Pictures by the clock come at any step: the random numbers are those of a run without them.
            devices = [self.run.device] if self.run.device.type == "cuda" else []
            with room(self.run), torch.random.fork_rng(devices):
                message = save_samples(
                    self.run, state, self._board if self._first else None, (lambda: False) if sharded else stopped
                )
                if message:
                    say(message)

    def _write(self, step: Step, means: dict[str, Any]) -> None:
        self.loss = means["loss"]
        if not self._first:
            return
        timing = self._progress.timing(step.images, self.run.device)
        place = {"step": step.step, "images": step.images}
        numbers = {**self._in_units(means), "learning_rate": step.learning_rate}
        with room(self.run):
            self._metrics.write({**place, **numbers})
        with room(self.run):
            self._timing.write({**place, **timing})
        with room(self.run):
            self._plot(step.images, {**numbers, **timing})

    def _in_units(self, means: dict[str, Any]) -> dict[str, Any]:
        """The means, with the parts of a bound in bits/dim, or nats/dim for continuous data."""
        if "parts" not in means:
            return means
        parts, levels = means.pop("parts"), means["levels"]
        means[self._parts_in] = {
            name: {"mean": mean / self._nats, "error": error / self._nats} for name, (mean, error) in parts.items()
        }
        levels[self._parts_in] = [each / self._nats for each in levels.pop("diffusion")]
        total = means[self._parts_in]["total"]
        self._bound = f"  {total['mean']:.3f} +- {total['error']:.3f} {self._unit}"
        return means

    def _plot(self, images: int, numbers: dict[str, Any]) -> None:
        levels = numbers.pop("levels")
        for part, value in numbers.pop(self._parts_in, {}).items():
            self._board.add_scalar(f"{self._parts_in}/{part}", value["mean"], images)
        for name, value in numbers.items():
            self._board.add_scalar(f"train/{name}", value, images)
        for i, low in enumerate(levels["edges"][:-1]):
            for name in ("loss", "eps_error"):
                if levels["count"][i]:
                    self._board.add_scalar(f"{name}_by_log_snr/{low:+03.0f}", levels[name][i], images)

    def _facts(self) -> str:
        return f"loss {self.guard.state_dict()['mean']:.4f}{self._bound}"  # over some 100 steps
