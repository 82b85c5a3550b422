"""The pictures of a training run: samples during it, curves at its end."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from scorefield.commands.conditioning import sampled_conditioning
from scorefield.commands.generate import generate
from scorefield.commands.run import Run
from scorefield.evaluation import plot_curves, plot_samples
from scorefield.solvers import Progress
from scorefield.training import Model, TrainingState

SAMPLES = 36  # in each panel
STAGES = 4  # parts of the run, each a curve over noise levels
QUICK = {"solver": "adams:variable=soft_clipped", "grid": "soft_clipped", "steps": 20, "denoise": True}
IN_TIME = {"solver": "heun", "grid": "uniform", "steps": 20, "denoise": True}  # where each dimension has its level


def save_samples(
    run: Run, state: TrainingState, board: SummaryWriter | None, stopped: Callable[[], object] = lambda: False
) -> str:
    """Draw samples of the raw weights and of their first average, side by side, from the same noise.

    They are drawn by the configuration's sampler, or in 20 steps of DPM-Solver++ if that takes more evaluations of the
    network than `training.sample_evaluations`. Sampling that fails (raw weights, early in training) costs only its
    panel. Weights in shards need every process to sample; processes without a board write nothing. Sampling is
    abandoned once `stopped` is true.

    Returns:
        A line to print.
    """
    sampling = sampling_of(run)
    side_by_side: dict[str, Tensor] = {}
    missing: list[str] = []
    for name, model in {"raw": state.model, f"EMA {state.ema.decay:g}": state.ema.model}.items():
        with _evaluating(model), _collecting(missing):
            side_by_side[name] = _samples(_along(run, model), model, sampling, stopped)
    if board is None:
        return ""
    if not side_by_side:
        return f"no samples after {state.images:,} images: {missing[0]}"
    plot_samples(side_by_side, path := run.workdir / "samples" / f"{state.images:010d}.png")
    for name, seen in side_by_side.items():
        if seen.ndim == 4:
            shown = seen if seen.shape[1] in (1, 3) else seen[:, :1]
            board.add_images(f"samples/{name.split()[0].lower()}", shown, state.images)
    quick = sampling in (QUICK, IN_TIME)
    how = f" ({sampling['steps']} steps of {sampling['solver']}: training.sample_evaluations)" if quick else ""
    return f"wrote {path}{how}" + "".join(f" without {reason}" for reason in missing)


def save_curves(rows: Sequence[dict[str, Any]], workdir: Path) -> None:
    """The loss along the run as loss.png, and by noise level as loss_by_log_snr.png, a curve for each quarter."""
    rows = [row for row in rows if "loss" in row]
    if not rows:
        return
    xs = [row["images"] for row in rows]
    loss = {"loss": (xs, [row["loss"] for row in rows])}
    plot_curves(loss, workdir / "loss.png", x="images seen", y="loss", log="y")
    curves = curves_by_level(rows)
    if curves:
        y = "error in the noise, |eps_hat - eps|^2 / D"
        plot_curves(curves, workdir / "loss_by_log_snr.png", x="log-SNR", y=y, log="y")


def curves_by_level(
    rows: Sequence[dict[str, Any]], value: str = "eps_error"
) -> dict[str, tuple[list[float], list[float]]]:
    """A value of metrics.jsonl by log-SNR, a curve for each quarter of the run.

    The value is a mean over the samples of a noise level.
    """
    counted = [row for row in rows if value in row.get("levels", {})]
    curves = {}
    for stage in range(STAGES):
        low, high = (counted[-1]["images"] * each / STAGES for each in (stage, stage + 1)) if counted else (0, 0)
        part = [row for row in counted if low < row["images"] <= high]
        if part:
            curves[f"to {part[-1]['images']:,} images"] = _by_level(part, value)
    return curves


def sampling_of(run: Run) -> Mapping[str, Any]:
    """The sampler of pictures: the configuration's own, or a quick one where that takes too many evaluations.

    The evaluations are counted with a denoiser of zeros.
    """
    left = run.config.training.sample_evaluations

    def counted(x: Tensor, alpha: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooManyError
        return torch.zeros_like(x)

    try:
        with torch.no_grad():  # a learned path gives its grid a graph
            generate(run, counted, 1, sampling=run.config.sampling, seed=0, show=False)
    except _TooManyError:
        return IN_TIME if run.sde.needs_code else QUICK
    except ValueError:  # reported when the pictures are drawn
        pass
    return run.config.sampling  # type: ignore[no-any-return]


class _TooManyError(Exception):
    """The sampler takes more evaluations than a picture may."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
        ):  # else it compiles again for another batch and mode
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _collecting(failures: list[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        failures.append(str(error))


def _along(run: Run, model: nn.Module) -> Run:
    """The run on the model's own path, where that is learned."""
    if isinstance(model, Model) and model.learns_path and model.sde is not None:
        run = dataclasses.replace(run)
        run.sde = model.sde
    return run


def _samples(run: Run, denoiser: nn.Module, sampling: Mapping[str, Any], stopped: Callable[[], object]) -> Tensor:
    def abandoned(progress: Progress) -> None:
        if stopped():
            raise ValueError("interrupted")

    x = generate(
        run,
        denoiser,
        SAMPLES,
        sampling=sampling,
        seed=run.config.seed,
        cond=sampled_conditioning(run, SAMPLES, few=True).cond,
        show=False,
        trajectory=abandoned,
    )
    return run.viewable(run.to_stored(x))


def _by_level(rows: Sequence[dict[str, Any]], value: str) -> tuple[list[float], list[float]]:
    """The centres of the bins and their means over some rows of one path; empty bins are left out."""
    edges = rows[-1]["levels"]["edges"]
    sums, counts = [0.0] * (len(edges) - 1), [0] * (len(edges) - 1)
    for row in rows:
        for i, (count, error) in enumerate(zip(row["levels"]["count"], row["levels"][value], strict=True)):
            if count and i < len(sums):
                sums[i], counts[i] = sums[i] + count * error, counts[i] + count
    kept = [i for i, count in enumerate(counts) if count]
    return [(edges[i] + edges[i + 1]) / 2 for i in kept], [sums[i] / counts[i] for i in kept]
