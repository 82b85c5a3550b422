"""Metrics of the same features, against numbers of torch-fidelity and prdc."""

from typing import Any

import pytest
from seeded import load, seeded_normal
from torch import Tensor

from scorefield.evaluation.metrics.frechet import frechet_distance
from scorefield.evaluation.metrics.kernel import kernel_distance_of_subsets
from scorefield.evaluation.metrics.moments import Moments
from scorefield.evaluation.metrics.neighbours import density_coverage, precision_recall
from scorefield.evaluation.metrics.scores import inception_score

pytestmark = pytest.mark.agreement
THEIRS = load("metrics/torch_fidelity_and_prdc")


def sets(of: dict[str, Any]) -> tuple[Tensor, Tensor]:
    n, m, d = of["n"], of["m"], of["d"]
    return 1.1 * seeded_normal("fake", (n, d)) + 0.1, seeded_normal("real", (m, d))


@pytest.mark.parametrize("of", THEIRS["frechet"], ids=["full rank", "singular"])
def test_frechet(of: dict[str, Any]) -> None:
    fake, real = sets(of)
    assert frechet_distance(fake, real) == pytest.approx(of["distance"], rel=1e-6)
    assert frechet_distance(Moments.of(fake), real) == pytest.approx(of["distance"], rel=1e-6)


def test_kernel() -> None:
    of = THEIRS["kernel"]
    found = kernel_distance_of_subsets(*sets(of), subsets=of["subsets"], size=of["size"])
    assert found == pytest.approx((of["mean"], of["deviation"]), rel=1e-10)


def test_inception_score() -> None:
    of = THEIRS["inception"]
    found = inception_score((2 * seeded_normal("logits", (200, 10))).softmax(1), of["splits"])
    assert found == pytest.approx((of["mean"], of["deviation"]), rel=1e-10)


@pytest.mark.parametrize("of", THEIRS["prdc"], ids=["k = 3", "k = 5"])
def test_shares(of: dict[str, Any]) -> None:
    shares, dense = precision_recall(*sets(of), of["k"]), density_coverage(*sets(of), of["k"])
    assert (shares.precision.value, shares.recall.value, dense.coverage.value) == (
        of["precision"],
        of["recall"],
        of["coverage"],
    )
    assert dense.density.value == pytest.approx(of["density"], rel=1e-14)
