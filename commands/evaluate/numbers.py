"""From features to metrics, each with its error and the sizes of both sides."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scorefield.evaluation.metrics.estimate import Estimate
from scorefield.evaluation.metrics.frechet import frechet_at_infinity, frechet_distance, frechet_estimate
from scorefield.evaluation.metrics.kernel import clip_distance, kernel_distance
from scorefield.evaluation.metrics.moments import Moments
from scorefield.evaluation.metrics.neighbours import density_coverage, precision_recall
from scorefield.evaluation.metrics.scores import inception_score, vendi

Numbers = dict[str, dict[str, Any]]
Sides = Mapping[str, Tensor]  # features by name, of samples


def no_images(metric: str) -> ValueError:
    """The error of a metric that statistics do not suffice for."""
    return ValueError(
        f"expected images as the reference of {metric}, got statistics, which have moments alone: give --data in place "
        "of --reference, or --metrics=fid"
    )


@dataclass(frozen=True)
class Side:
    """The reference of a metric: features of its samples, or their moments alone.

    Args:
        count: samples, or None where statistics do not say.
        features: by name, each (M, d).
        moments: by the same names, of statistics without samples.
    """

    count: int | None
    features: Mapping[str, Tensor] | None
    moments: Mapping[str, Moments]

    def of(self, name: str) -> "Tensor | Moments":
        """The features or the moments of this name.

        Raises:
            ValueError: if there are none.
        """
        found = (self.features or self.moments).get(name)
        if found is None:
            raise ValueError(
                f"expected {name} features in the reference, got {', '.join(self.features or self.moments)}: leave "
                "sfid out, or take --features=inception"
            )
        return found

    def samples(self, metric: str) -> Tensor:
        """The features of its samples, for a metric that moments do not suffice for.

        Raises:
            ValueError: if there are moments alone.
        """
        if self.features is None:
            raise no_images(metric)
        return self.features["features"]


def _fid(samples: Sides, reference: Side) -> Numbers:
    return {"fid": _frechet(samples["features"], reference.of("features"))}


def _sfid(samples: Sides, reference: Side) -> Numbers:
    return {"sfid": _frechet(_named(samples, "spatial", "sfid"), reference.of("spatial"))}


def _fd_inf(samples: Sides, reference: Side) -> Numbers:
    return {"fd_inf": _described(frechet_at_infinity(samples["features"], reference.of("features")))}


def _kid(samples: Sides, reference: Side) -> Numbers:
    return {"kid": _described(kernel_distance(samples["features"], reference.samples("kid")))}


def _cmmd(samples: Sides, reference: Side) -> Numbers:
    return {"cmmd": _described(clip_distance(samples["features"], reference.samples("cmmd")))}


def _pr(samples: Sides, reference: Side) -> Numbers:
    found = precision_recall(samples["features"], reference.samples("pr"))
    return {name: _described(value) for name, value in zip(("precision", "recall"), found, strict=True)}


def _dc(samples: Sides, reference: Side) -> Numbers:
    found = density_coverage(samples["features"], reference.samples("dc"))
    return {name: _described(value) for name, value in zip(("density", "coverage"), found, strict=True)}


def _is(samples: Sides, reference: Side) -> Numbers:
    value, deviation = inception_score(_named(samples, "probabilities", "is"), PARTS)
    return {"is": {"value": value, "deviation": deviation, "standard_error": deviation / math.sqrt(PARTS - 1)}}


def _vendi(samples: Sides, reference: Side) -> Numbers:
    return {"vendi": _described(vendi(samples["features"]))}


METRICS: dict[str, Callable[[Sides, Side], Numbers]] = {
    "fid": _fid, "kid": _kid, "pr": _pr, "dc": _dc, "is": _is, "sfid": _sfid, "vendi": _vendi, "cmmd": _cmmd,
    "fd_inf": _fd_inf,
}  # fmt: skip
BLOCKS, WIDE = 20, 1024  # blocks of the jackknife of a Frechet distance; half of them in more dimensions than WIDE
PARTS = 10  # of the samples, for the Inception score
LEAST_FOR_INFINITY = 5000  # samples of an extrapolation
OF_SIZE = ("fid", "sfid", "pr", "dc", "cmmd", "is", "vendi")  # metrics whose value depends on the number of samples
HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage", "is", "vendi")
MEANINGS = {
    "fid": "squared Frechet distance of the features' Gaussians (Heusel et al. 2017), biased upwards by about K / n",
    "kid": "unbiased squared maximum mean discrepancy, cubic kernel (Binkowski et al. 2018)",
    "precision": "share of samples within the reference's 3rd-neighbour balls (Kynkaanniemi et al. 2019)",
    "recall": "share of the reference within the samples' 3rd-neighbour balls (Kynkaanniemi et al. 2019)",
    "density": "mean number of the reference's 5th-neighbour balls around a sample, over 5 (Naeem et al. 2020)",
    "coverage": "share of the reference's 5th-neighbour balls that hold a sample (Naeem et al. 2020)",
    "is": "exp of the mutual information of class and sample (Salimans et al. 2016)",
    "sfid": "Frechet distance of spatial features (Nash et al. 2021)",
    "vendi": "effective number of different samples (Friedman and Dieng 2023)",
    "cmmd": "squared maximum mean discrepancy, Gaussian kernel, times 1000, biased (Jayasumana et al. 2024)",
    "fd_inf": "Frechet distance extrapolated to infinitely many samples (Chong and Forsyth 2020)",
}


def numbers_of(metrics: Sequence[str], samples: Sides, reference: Side) -> Numbers:
    """Each metric by name: its `value`, its `standard_error` (None where none is known), and the sizes `n` and `m`.

    Args:
        metrics: names of `METRICS`.
        samples: their features.
        reference: what they are compared with.

    Raises:
        ValueError: for a metric that these features or this reference do not have.
    """
    found: Numbers = {}
    for metric in metrics:
        for name, number in METRICS[metric](samples, reference).items():
            alone = metric in ("is", "vendi")
            found[name] = {**number, "n": len(samples["features"]), "m": None if alone else reference.count}
    return found


def _frechet(samples: Tensor, reference: "Tensor | Moments") -> dict[str, Any]:
    """The Frechet distance, with its error where there are enough samples for the blocks of the jackknife."""
    least = min(len(samples), len(samples) if isinstance(reference, Moments) else len(reference))
    blocks = BLOCKS if samples.shape[1] <= WIDE else BLOCKS // 2
    if least < 2 * blocks:
        return _described(Estimate(frechet_distance(samples, reference)))
    return _described(frechet_estimate(samples, reference, blocks))


def _named(samples: Sides, name: str, metric: str) -> Tensor:
    if name not in samples:
        raise ValueError(
            f"expected features that have {name} too, for {metric}: take --features=inception with weights that have "
            f"them{' or classifier' if metric == 'is' else ''}, or leave {metric} out"
        )
    return samples[name]


def _described(found: Any) -> dict[str, Any]:
    """The fields of an estimate as JSON has them; nan is None."""
    fields = found._asdict() if hasattr(found, "_asdict") else {"value": found}
    return {key: float(v) if v is not None and math.isfinite(v) else None for key, v in fields.items()}
