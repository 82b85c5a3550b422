"""The output of an autoencoder's training: progress, metrics.jsonl, timing.jsonl, TensorBoard, pictures and curves."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.progress_bar import say
from scorefield.commands.run import Run
from scorefield.commands.train_autoencoder.held_out import HeldOut, in_words
from scorefield.commands.training.board import open_board
from scorefield.commands.training.json_lines import JsonLines
from scorefield.commands.training.progress import Progress
from scorefield.commands.training.room import room
from scorefield.commands.training.settings import PRECISIONS
from scorefield.evaluation import plot_panels
from scorefield.models.networks.autoencoder import ImageAutoencoder
from scorefield.training import LossGuard, Model, Objective, Ranks, Step, TrainingState
from scorefield.training.monitor.number_means import NumberMeans

LARGE_WEIGHT = 10.0  # of the adversarial loss, from which on it may spoil reconstructions
# What curves.png shows, where it was measured.
MEASURED = {
    "PSNR (dB), held out": ("psnr",),
    "SSIM, held out": ("ssim",),
    "KL (nats/dim), held out": ("kl_per_dimension",),
    "share of the codebook in use, held out": ("codes_used",),
    "perplexity, held out": ("perplexity",),
}
TRAINED = {
    "loss of the autoencoder": ("loss", "reconstruction", "perceptual"),
    "loss of the discriminator": ("discriminator_loss",),
    "weight of the adversarial loss": ("adversarial_weight",),
}


def autoencoder_of(model: Model) -> ImageAutoencoder:
    """The autoencoder in a model."""
    assert isinstance(model.autoencoder, ImageAutoencoder)
    return model.autoencoder


def merged(steps: Sequence[Step]) -> Step:
    """The autoencoder's step, with the numbers of the discriminator's, if there was one."""
    first, *others = steps
    for other in others:
        own = {"discriminator_loss": other.losses, "discriminator_grad_norm": other.grad_norm}
        first = first._replace(numbers={**first.numbers, **other.numbers, **own})
    return first


@dataclass
class Log:
    """The log of a training; see `commands.training.loop.TrainingLog`.

    metrics.jsonl has a row every `log_every` steps with the means over them, and one for each measurement on held-out
    images. It depends only on the run's numbers, so interruptions do not change its bytes.

    Args:
        run: in training.
        state: of it.
        held_out: the images to measure on.
        loss: the mean over the steps of the last row.
        measured: the last numbers of held-out images.
    """

    run: Run
    state_of_training: TrainingState
    held_out: HeldOut
    loss: float = math.nan
    measured: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = self.state_of_training.images
        self._window, self._guards = NumberMeans(), list[LossGuard]()
        self._first, self._warned = Ranks.current().first, False

    def guard(self, objective: Objective, explosion: float) -> None:
        """Watch an objective: its steps are taken only while they are finite, and no loss explodes."""
        precision = PRECISIONS[self.run.config.training.precision]

        def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            assert isinstance(model, Model)
            answer = objective.loss(model, batch)
            return answer if isinstance(answer, tuple) else (answer, {})

        guard = LossGuard(
            None, self.state_of_training.model, loss=loss_of, precision=precision, explosion=explosion,
            folder=self.run.workdir,
        )  # fmt: skip
        objective.accept = guard.accept
        self._guards.append(guard)

    def __enter__(self) -> "Log":
        if self._first:
            self._board = open_board(self.run, self.before)
            self._metrics = JsonLines(self.run.workdir / "metrics.jsonl", self.before)
            self._timing = JsonLines(self.run.workdir / "timing.jsonl", self.before)
            for row in self._metrics.rows:
                self.loss, self.measured = row.get("loss", self.loss), row.get("held_out", self.measured)
        self._progress = Progress(self.run.config.training, self.before, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        if self._first:
            with room(self.run, optional=True):
                self.curves()
            self._metrics.close()
            self._timing.close()
            with room(self.run, optional=True):
                self._board.close()

    def following(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps; a row is written every `log_every` of them.

        Raises:
            ValueError: at a step that is not finite or explodes.
        """
        settings = self.run.config.training
        began = time.perf_counter()
        for step in steps:
            self._progress.update(step.images)
            self._window.add(loss=step.losses, grad_norm=step.grad_norm, **step.numbers)
            due = step.step % settings.log_every == 0 or step.images >= settings.images
            if due:
                self.settle()
                means = self._window.means()
                self._window.clear()
            self._progress.add(time.perf_counter() - began)
            if due:
                self._write(step, means)
            self._progress.line(step.images, self._facts)
            yield step
            began = time.perf_counter()

    def settle(self) -> None:
        """Read what the guards found, waiting for the device.

        Raises:
            ValueError: if a step was bad.
        """
        for guard in self._guards:
            guard.settle()

    def evaluate(self, step: Step) -> None:
        """Measure the averaged weights on held-out images, and write a row."""
        self.settle()
        if not self._first:
            return
        self.measured = self.held_out.measure(autoencoder_of(self.state_of_training.ema.model))
        with room(self.run):
            self._metrics.write({"step": step.step, "images": step.images, "held_out": self.measured})
        with room(self.run):
            for name, value in self.measured.items():
                if isinstance(value, list):
                    continue
                self._board.add_scalar(f"held_out/{name}", value, step.images)
        say(f"{step.images:>12,} images  {in_words(self.measured, self.held_out.distance_name)}")

    def pictures(self, state: TrainingState, stopped: Callable[[], object] = lambda: False) -> None:
        """Originals above reconstructions of the weights in training and of their average."""
        if not self._first:
            return
        path = self.run.workdir / "reconstructions" / f"{state.images:010d}.png"
        raw, average = autoencoder_of(state.model), autoencoder_of(state.ema.model)
        raw.eval()
        with room(self.run):
            self.held_out.picture({"raw": raw, f"EMA {state.ema.decay:g}": average}, path)
            say(f"wrote {path}")
        raw.train()

    def curves(self) -> None:
        """Draw what was measured along the run."""
        name = self.held_out.distance_name
        measured = MEASURED | ({f"{name}, held out": (name,)} if name else {})
        rows = self._metrics.rows
        held_out = [{"images": row["images"], **row["held_out"]} for row in rows if "held_out" in row]
        drawn: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for panels, source in ((measured, held_out), (TRAINED, rows)):
            for title, keys in panels.items():
                for key in keys:
                    points = [(row["images"], row[key]) for row in source if key in row]
                    if any(y for _, y in points):  # what is not in use is 0
                        drawn.setdefault(title, {})[key] = [x for x, _ in points], [y for _, y in points]
        if drawn:
            plot_panels(drawn, self.run.workdir / "curves.png", x="images seen")

    def state(self) -> dict[str, Any]:
        """The sums since the last row, which a checkpoint keeps so that the next row is the same.

        Every process must call, and gets the same.

        Raises:
            ValueError: if a step was bad, so that nothing of it is saved.
        """
        self.settle()
        if self._first:
            with room(self.run):
                self._metrics.flush()
                self._timing.flush()
        own = {"window": self._window.state_dict(), "guards": [guard.state_dict() for guard in self._guards]}
        return {"ranks": Ranks.current().all_gather_object(own)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from the sums of a checkpoint; without them a new window starts."""
        every, here = state.get("ranks", []), Ranks.current()
        if len(every) == here.world:
            self._window.load_state_dict(every[here.rank]["window"], self.run.device)
            for guard, own in zip(self._guards, every[here.rank]["guards"], strict=True):
                guard.load_state_dict(own)

    def _facts(self) -> str:
        loss = f"loss {self._guards[0].state_dict()['mean']:.4f}"  # over some 100 steps
        return f"{loss}  PSNR {self.measured['psnr']:.2f} dB" if self.measured else loss

    def _write(self, step: Step, means: dict[str, float]) -> None:
        self.loss = means["loss"]
        if not self._first:
            return
        timing = self._progress.timing(step.images, self.run.device)
        place = {"step": step.step, "images": step.images}
        numbers = {**means, "learning_rate": step.learning_rate}
        with room(self.run):
            self._metrics.write({**place, **numbers})
        with room(self.run):
            self._timing.write({**place, **timing})
        with room(self.run):
            for name, value in {**numbers, **timing}.items():
                self._board.add_scalar(f"train/{name}", value, step.images)
        if means.get("adversarial_weight", 0.0) > LARGE_WEIGHT and not self._warned:
            self._warned = True
            on_stderr(
                f"the adversarial loss is weighted by {means['adversarial_weight']:.3g}, which may spoil "
                "reconstructions: lower loss.adversarial, or loss.largest"
            )
