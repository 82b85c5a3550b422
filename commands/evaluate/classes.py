"""KID of each class against the images of that class."""

from typing import Any

from scorefield.commands.evaluate.extract import Extracted
from scorefield.commands.evaluate.numbers import Side, numbers_of
from scorefield.commands.evaluate.reference import Reference

LEAST = 10  # samples of a class on both sides


def per_class(samples: Extracted, reference: Reference) -> dict[str, Any]:
    """KID by class with its error and sizes. Classes with fewer than ten samples on a side are left out.

    KID alone, because it is not biased: classes have few samples.
    """
    if samples.label is None or reference.label is None or reference.side.features is None:
        return {}
    names = reference.data.class_names if reference.data is not None else ()
    found = {}
    for number in sorted(set(reference.label.tolist())):
        ours, theirs = samples.label == number, reference.label == number
        if min(int(ours.sum()), int(theirs.sum())) < LEAST:
            continue
        side = Side(int(theirs.sum()), {"features": reference.side.features["features"][theirs]}, {})
        name = names[number] if names else str(number)
        found[name] = numbers_of(["kid"], {"features": samples.features["features"][ours]}, side)["kid"]
    return found
