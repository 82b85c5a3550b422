"""Inverse problems of a run, from the flags of a command: which images, how they are measured, and what is known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.commands.arguments import at_least
from scorefield.commands.conditioning import Conditioning, data_conditioning, sampled_conditioning
from scorefield.commands.conditions import conditions_of
from scorefield.commands.images import Images, chosen_images, read_input
from scorefield.commands.run import Run, stored_tensor
from scorefield.configs import build
from scorefield.models.measurements import Measurement
from scorefield.models.measurements.files import read_array
from scorefield.models.measurements.through_decoder import ThroughDecoder
from scorefield.sde_lib.inverse_problem import known_values
from scorefield.solvers.noise import PerSampleNoise
from scorefield.training.data import Dataset

IMAGES = 16  # of a split, by default
OF_MEASUREMENT, OF_RANKS, OF_VARIANCE = 71, 72, 73  # streams of a seed


@dataclass(frozen=True)
class Measured:
    """Measurements of N images of a run, and what is known of the images.

    Args:
        run: whose images they are.
        measurement: A, of images as the data has them.
        y: the measurements, (N, *M).
        noise_std: of their noise, in the units of y.
        truth: the images as the data stores them, (N, *D); None where only their measurement is known.
        given: conditioning of the images.
        described: what a report says of all this.
        index: places of the images in their data set, (N,).
    """

    run: Run
    measurement: Measurement
    y: Tensor
    noise_std: float
    truth: Tensor | None
    given: Conditioning
    described: dict[str, Any]
    index: Any = None

    @cached_property
    def of_model(self) -> Measurement:
        """A of the model's values: of a latent run's codes, through the decoder."""
        if self.run.autoencoder is None:
            return self.measurement
        return ThroughDecoder(self.measurement, self.run.autoencoder.scaled.decode, self.run.shape)

    @cached_property
    def hidden(self) -> Tensor | None:
        """The values that a mask hides, (1, *D); None for a measurement that is no mask."""
        return hidden_by(self.measurement)


def measured(
    run: Run,
    *,
    task: str | None = None,
    noise: float = 0.05,
    source: str | None = None,
    mask: str | None = None,
    is_measured: bool | None = None,
    split: str | None = None,
    num: int | None = None,
    seed: int = 0,
    label: str | int | None = None,
    caption: str | None = None,
) -> Measured:
    """Measure images of a split, or of an input; or take an input that is measured already.

    Noise n of each image is of its own stream of the seed:  y = A(x0) + noise n.

    Args:
        run: whose images they are.
        task: a spec of the table TASKS; inpainting where a mask is given.
        noise: standard deviation of the noise, in the model's values.
        source: the flag --input.
        mask: the flag --mask, an image that is white where pixels are unknown.
        is_measured: the flag --measured: the input is y, and no noise is added. By default it is, with a mask.
        split: the flag --split.
        num: how many images.
        seed: of the images and of the noise.
        label: one class for all images, in place of their own.
        caption: one caption for all images, in place of their own.

    Raises:
        ValueError: for a task that the images do not fit, and flags that do not fit each other.
    """
    at_least(1, num=num)
    if not noise >= 0:
        raise ValueError(f"expected --noise of 0 or more, got {noise}: give the measurement's standard deviation")
    _check(run)
    spec, measurement = _task(run, task, mask)
    given_y = mask is not None and source is not None if is_measured is None else is_measured
    if given_y and source is None:
        raise ValueError("expected --input beside --measured, got none: give the file of the measurement")
    if given_y and hidden_by(measurement) is None:
        y, images, truth = _read_measurement(run, Path(str(source)), measurement, num), None, None
    else:
        images = chosen_images(run, source, split, num, seed, default=IMAGES)
        truth = images.stored
        y = _measure(run, measurement, run.in_range(truth))
    if given_y:
        truth = None
    elif noise > 0:
        y = y + noise * PerSampleNoise(seed, range(len(y)), (OF_MEASUREMENT,))(y)
    given = _conditioning(run, images, len(y), label, caption)
    described = {
        "task": spec, "noise": noise, "num": len(y), "input": source, "measured": given_y, **_of(images),
        **given.described,
    }  # fmt: skip
    return Measured(run, measurement, y, noise, truth, given, described, None if images is None else images.index)


def hidden_by(measurement: Measurement) -> Tensor | None:
    """The values that a mask hides, (1, *D) booleans on the CPU; None for a measurement that is no mask."""
    device = next((each.device for each in measurement.buffers()), torch.device("cpu"))
    known = known_values(measurement, torch.empty(0, device=device))  # type: ignore[arg-type]
    return None if known is None or bool(known.all()) else ~known[None].cpu()


def _task(run: Run, task: str | None, mask: str | None) -> tuple[str, Measurement]:
    if mask is not None:
        if task is not None and task != "inpaint":
            raise ValueError(f"expected --mask with --task=inpaint, got {task}: leave one of them out")
        task = build.unparse({"name": "inpaint", "mask": mask})
    if task is None:
        raise ValueError("expected a --task, as inpaint:box='(8,8,20,20)', got none: --mode=list prints all tasks")
    measurement: Measurement = build.build(build.TASKS, task, shape=run.data.shape, cells=(run.low, run.high))
    if measurement.shape != run.data.shape:
        raise ValueError(
            f"expected a task for data of shape {run.data.shape}, got one of {measurement.shape}: make it for this run"
        )
    return task, measurement.to(run.device)


def _measure(run: Run, measurement: Measurement, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([measurement(part.to(run.device)).cpu() for part in torch.split(x, 256)])


def _read_measurement(run: Run, path: Path, measurement: Measurement, num: int | None) -> Tensor:
    """Measurements from a file: images of the measured shape, or an .npy of values as the model's."""
    shape = measurement.measured_shape
    if path.suffix.lower() == ".npy" and path.is_file():
        y = read_array(path)[0].float()
        if y.ndim == 0 or tuple(y.shape[1:]) != shape:
            raise ValueError(
                f"expected measurements (N, {', '.join(map(str, shape))}) in {path}, got {tuple(y.shape)}: "
                "give those of this task"
            )
        return y[:num]
    if len(shape) != 3:
        raise ValueError(f"expected an .npy of measurements (N, {', '.join(map(str, shape))}), got {path}: save one")
    dataset = read_input(replace(run, data=replace(run.data, shape=shape)), path)
    return run.in_range(stored_tensor(dataset))[:num]


def _conditioning(
    run: Run, images: Images | None, num: int, label: str | int | None, caption: str | None
) -> Conditioning:
    if caption is not None:
        return sampled_conditioning(run, num, label=label, caption=caption)
    if images is not None:
        return data_conditioning(run, images.data, label)
    nothing = Dataset("the measurement", "test", np.zeros((num, 1), np.float32), None)
    return data_conditioning(run, nothing, label)


def _check(run: Run) -> None:
    """Refuse a network that is given a part of the image itself: that would tell it what is to be restored."""
    conditions = conditions_of(run)
    if conditions is not None and conditions.of_images:
        raise ValueError(
            f"expected a run that is not given its own images, got one that takes {', '.join(conditions.keywords)}: "
            "it restores by itself, with --mode=sample"
        )


def _of(images: Images | None) -> dict[str, Any]:
    if images is None:
        return {}
    data = images.data
    return {"images": images.described, "data": data.name, "split": data.split, "data_sha256": data.fingerprint}


def rows_of(cond: dict[str, Tensor], rows: Sequence[int] | Tensor, device: torch.device) -> dict[str, Any]:
    """The conditioning of these rows, on a device."""
    at = torch.as_tensor(rows)
    return {key: value[at].to(device) for key, value in cond.items()}
