"""What a network is given beside x: of samples, and of data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scorefield.commands.conditions import conditions_of
from scorefield.commands.labels import data_labels, sampled_labels
from scorefield.commands.run import Run
from scorefield.training.data import Dataset


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of some samples.

    Args:
        cond: keywords of the denoiser, with a row for each sample.
        described: what a report says of it.
        shown: the caption of each sample, where they have any.
    """

    cond: dict[str, Tensor]
    described: dict[str, Any] = field(default_factory=dict)
    shown: tuple[str, ...] = ()

    @property
    def label(self) -> Tensor | None:
        """The classes, (N,), where there are any."""
        return self.cond.get("label")

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """The keywords of some samples."""
        return {key: value[rows] for key, value in self.cond.items()}


def sampled_conditioning(
    run: Run,
    num: int,
    *,
    label: str | int | None = None,
    caption: str | None = None,
    few: bool = False,
    guidance: float = 1.0,
) -> Conditioning:
    """The conditioning of `num` samples.

    Classes are `label`, or each class in turn. A conditioner is given `caption`, or what belongs to the first items of
    the test split: their captions, boxes or maps, or what is made of their images. `few` repeats the first 64.

    Raises:
        ValueError: for options that the run does not take, or data without what it needs.
    """
    conditions = conditions_of(run)
    labels = sampled_labels(run, num, label, guidance, guided=conditions is not None)
    known = {} if labels.label is None else {"label": labels.label}
    if conditions is None:
        if caption is not None:
            raise ValueError(
                f"expected no --caption, because this run was trained without captions, got {caption!r}: leave it out"
            )
        return Conditioning(known, labels.described)
    if guidance != 1.0 and run.config.training.label_dropout == 0:
        raise ValueError(
            "expected no --guidance: this network was always given its conditioning, so it has no unconditional "
            "denoiser: leave it out, or train with --config.training.label_dropout=0.1 in a new --workdir"
        )
    if caption is not None:
        cond = conditions.of_caption(caption, num)
        return Conditioning({**known, **cond}, {**labels.described, "caption": caption}, (caption,) * num)
    dataset = run.examples if few else run.dataset("test")
    rows = torch.arange(num) % len(dataset)
    part = dataset.at(rows.numpy())
    described = {"conditioning": f"of the first {min(num, len(dataset))} items of {dataset.name} ({dataset.split})"}
    return Conditioning(
        {**known, **conditions.of_data(part)}, {**labels.described, **described}, conditions.shown(part)
    )


def data_conditioning(
    run: Run, dataset: Dataset, label: int | str | None = None, source: str | None = None
) -> Conditioning:
    """The conditioning of the items of a data set: `label` as the class of all, or else their own.

    Raises:
        ValueError: for classes that the run does not have, or data without what the conditioner needs.
    """
    own = None if dataset.label is None else torch.as_tensor(dataset.label)
    labels = data_labels(run, own, len(dataset), label, source or dataset.name)
    known = {} if labels.label is None else {"label": labels.label}
    conditions = conditions_of(run)
    if conditions is None:
        return Conditioning(known, labels.described)
    return Conditioning({**known, **conditions.of_data(dataset)}, labels.described, conditions.shown(dataset))


def stored_conditioning(
    run: Run, kept: Mapping[str, Tensor], num: int, label: int | str | None, source: str
) -> Conditioning:
    """The conditioning that a file of latents keeps, or `label` as the class of all.

    Raises:
        ValueError: as `data_conditioning`.
    """
    own = kept.get("label") if label is None else None
    labels = data_labels(run, own, num, label, source)
    known = {} if labels.label is None else {"label": labels.label}
    return Conditioning({**{key: value for key, value in kept.items() if key != "label"}, **known}, labels.described)
