"""The classes that a network is given: of samples, and of data."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.commands.data_facts import SHOWN
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.run import Run
from scorefield.configs.text import suggestion


@dataclass(frozen=True)
class Labels:
    """The class of each sample.

    Args:
        label: their numbers (N,), or None where the network is given none.
        described: what a report says of them.
    """

    label: Tensor | None
    described: dict[str, Any]


def sampled_labels(
    run: Run, num: int, label: int | str | None = None, guidance: float = 1.0, guided: bool = False
) -> Labels:
    """The classes of `num` samples: `label`, or each class in turn that had an example in training.

    `guided` allows guidance by other conditioning than classes.

    Raises:
        ValueError: for a class or a guidance that the run does not have.
    """
    if guidance != 1.0 and not guided:
        _refuse_guidance(run)
    if run.num_classes is None or label is not None:
        return _same_label(run, num, label)
    classes = run.classes
    described: dict[str, Any] = {"label": "each in turn"}
    if len(classes) < run.num_classes:
        described["classes"] = classes
    return Labels(torch.tensor(classes)[torch.arange(num) % len(classes)], described)


def data_labels(run: Run, own: Tensor | None, num: int, label: int | str | None, source: str) -> Labels:
    """The classes of `num` images: `label` for all, or else their own (num,).

    Args:
        run: whose network is given them.
        own: the classes that came with the images, if any.
        num: how many images.
        label: the number or name of one class for all.
        source: where the images come from, for messages.

    Raises:
        ValueError: for classes that the run does not have, or if there are none and the network was always given one.
    """
    if run.num_classes is None:
        return _same_label(run, num, label)
    if label is not None:
        one = _same_label(run, num, label)
        return Labels(one.label, {**one.described, **_replaced(one.label, own)})
    if own is not None:
        own = _checked(own, num, run.num_classes, source)
        return Labels(own, {"label": "of the images", **_unseen(run, own)})
    if run.label_required:
        raise ValueError(
            f"expected a class for each image, because this network was always given one in training, got none in "
            f"{source}: give --label, one class for all of them ({_known(run)}), or images with labels"
        )
    return Labels(None, {"label": "none: the network is used without a class"})


def class_number(run: Run, label: int | str) -> int:
    """The number of a class, given by it or by the name.

    Raises:
        ValueError: if the run has no such class, or it had no example in training.
    """
    names, count = run.data.class_names, run.num_classes
    assert count is not None
    if label in names:
        number = names.index(str(label))
        if str(label).isdecimal() and int(label) != number:
            on_stderr(f"--label={label} is the name of class number {number}")
    else:
        try:
            number = int(label)
        except ValueError:
            hint = suggestion(str(label), names) or ": give its number"
            raise ValueError(
                f"expected --label to be a class of this run ({_known(run)}), got {label!r}{hint}"
            ) from None
    if not 0 <= number < count:
        raise ValueError(f"expected --label within 0 .. {count - 1}, got {label}")
    if number not in run.classes:
        raise ValueError(
            f"expected --label to be a class with examples in the training data ({_known(run)}), got {label}, which "
            "had none: choose another"
        )
    return number


def _same_label(run: Run, num: int, label: int | str | None) -> Labels:
    if label is None:
        return Labels(None, {})
    if run.num_classes is None:
        raise ValueError(
            f"expected no --label, because this run was trained without classes, got {label!r}: {_with_classes(run)}"
        )
    number = class_number(run, label)
    name = {"class": run.data.class_names[number]} if run.data.class_names else {}
    return Labels(torch.full((num,), number), {"label": number, **name})


def _refuse_guidance(run: Run) -> None:
    if run.num_classes is None:
        raise ValueError(f"expected no --guidance, because this run was trained without classes: {_with_classes(run)}")
    if run.label_required:
        raise ValueError(
            "expected no --guidance: this network was always trained with labels, so it has no unconditional denoiser: "
            "leave it out, or train with --config.training.label_dropout=0.1 in a new --workdir"
        )


def _with_classes(run: Run) -> str:
    """What to do for classes, in a run that was trained without them."""
    first = "" if run.data.num_classes is not None else "on data with classes "
    return f"leave it out, or train {first}with --config.training.labels=true in a new --workdir"


def _checked(label: Tensor, num: int, num_classes: int, source: str) -> Tensor:
    """Class numbers (N,) as int64, from (N, 1) and from floats without fractions too."""
    flat = label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label
    number = flat.long()
    if flat.shape != (num,) or not torch.equal(number.to(flat.dtype), flat):
        raise ValueError(
            f"expected the number of a class for each of {num} images in {source}, got labels of shape "
            f"{tuple(label.shape)} in {str(label.dtype).removeprefix('torch.')}: correct them, or give --label"
        )
    if int(number.min()) < 0 or int(number.max()) >= num_classes:
        raise ValueError(
            f"expected classes within 0 .. {num_classes - 1}, as this run was trained on, got {int(number.min())} to "
            f"{int(number.max())} in {source}: correct them, or give --label"
        )
    return number


def _unseen(run: Run, label: Tensor) -> dict[str, int]:
    """How many images are of classes without an example in training, for a report, with a line on stderr."""
    unseen = int((~torch.isin(label, torch.tensor(run.classes))).sum())
    if not unseen:
        return {}
    on_stderr(
        f"{unseen} of {len(label)} images are of classes that had no example in training: their results mean nothing"
    )
    return {"of_classes_without_examples": unseen}


def _replaced(label: Tensor | None, own: Tensor | None) -> dict[str, int]:
    """How many images get another class than their own, for a report, with a line on stderr."""
    others = 0 if own is None or label is None else int((own.reshape(-1) != label).sum())
    if not others:
        return {}
    on_stderr(f"--label replaces the classes of {others} images, which had another")
    return {"of_other_classes": others}


def _known(run: Run) -> str:
    """The classes with examples, at most SHOWN of them, by name or number."""
    names, classes = run.data.class_names, run.classes
    if not names and len(classes) == run.num_classes:
        return f"0 .. {len(classes) - 1}"
    shown = ", ".join(names[i] if names else str(i) for i in classes[:SHOWN])
    return shown if len(classes) <= SHOWN else f"{shown}, ... of {len(classes)}"
