"""Copies of training data among samples: the values of both are compared, and held-out data say what is usual."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.run import stored_tensor
from scorefield.evaluation import plot_rows
from scorefield.evaluation.features.base import StoredAs
from scorefield.evaluation.metrics.memorisation import Memorisation, memorisation
from scorefield.training.data import Dataset

RATE = 0.01  # of false alarms
NEIGHBOUR = 5  # a copy is much nearer to its original than to this neighbour
SIDE = 32  # larger images are compared as means over patches
MOST = 1 << 28  # values of all training items
SHOWN = 8  # samples of a picture
SEED = 0  # of the items, where not all fit


@dataclass(frozen=True)
class Copies:
    """What was found.

    Args:
        numbers: for a report.
        samples: those that look most like a copy of one training item, as they are stored.
        originals: the training items that are nearest to them.
        stored_as: how both are stored.
    """

    numbers: dict[str, Any]
    samples: Tensor
    originals: Tensor
    stored_as: StoredAs

    def plot(self, path: Path) -> Path:
        """A picture with a row of samples and a row of the training items that are nearest to them."""
        unit = self.stored_as.unit
        plot_rows({"samples": unit(self.samples), "nearest in training": unit(self.originals)}, path)
        return path


def copies_of(samples: Tensor, sets: tuple[Dataset, Dataset], stored_as: StoredAs) -> Copies:
    """Search samples for copies of the training split, with the test split as the measure of what is by chance.

    Args:
        samples: as they are stored, (N, *D).
        sets: both splits of the data.
        stored_as: how samples are stored.
    """
    training, held_out = sorted(sets, key=lambda each: each.split != "train")
    most = MOST // _compared(samples[:1], stored_as).shape[1]
    if len(training) > most:
        on_stderr(f"nn compares with {most} of {len(training)} training items, drawn at random")
        training = training.subset(most, SEED)
    held_out = held_out.subset(max(len(samples), round(1 / RATE)), SEED)
    stored = stored_tensor(training)
    rate = max(RATE, (1 + 1e-9) / (len(held_out) + 1))
    ours, theirs, others = (_compared(each, stored_as) for each in (samples, stored, stored_tensor(held_out)))
    found = memorisation(ours, theirs, others, rate, min(NEIGHBOUR, len(training)))
    order = found.ratios.argsort(stable=True)[:SHOWN]
    return Copies(
        _numbers(found, len(training), len(held_out), rate), samples[order], stored[found.indices[order, 0]], stored_as
    )


def _compared(stored: Tensor, stored_as: StoredAs) -> Tensor:
    """Values (N, d), of images above 32 pixels a side as means over patches."""
    x = stored_as.unit(stored)
    if stored_as.is_image and max(stored_as.shape[1:]) > SIDE:
        height, width = (min(SIDE, side) for side in stored_as.shape[1:])
        x = adaptive_avg_pool2d(x, (height, width))
    return x.flatten(1)


def _numbers(found: Memorisation, training: int, held_out: int, rate: float) -> dict[str, Any]:
    flagged = found.flagged.nonzero().flatten().tolist()
    lines = {
        "samples that look like copies": (
            f"{len(flagged)} of {len(found.flagged)}, {100 * found.share:.3g}%   (by chance at most "
            f"{100 * rate:.2g}% in expectation)"
        ),
        "nearer to training data than held-out data are": (
            f"{'yes' if found.p < RATE else 'no sign of it'} (p = {found.p:.2g})"
        ),
    }
    return {
        "share": found.share, "share_of_held_out": found.false_share, "rate": rate, "threshold": found.threshold,
        "z": found.z, "p": found.p, "authentic": found.authentic, "authentic_held_out": found.authentic_held_out,
        "flagged": flagged, "nearest": found.indices[:, 0].tolist(),
        "distance": [round(value, 6) for value in found.distances[:, 0].tolist()],
        "ratio": [round(value, 6) for value in found.ratios.tolist()], "training": training, "held_out": held_out,
        "lines": lines,
    }  # fmt: skip
