"""The largest distance of a data set, against scipy."""

import numpy as np
from scipy.spatial.distance import pdist

from scorefield.training.data.distance import largest_distance


def test_the_largest_distance_is_that_of_all_pairs() -> None:
    for seed, (count, size) in enumerate([(2, 3), (700, 2), (1500, 40), (1025, 3)]):
        x = np.random.default_rng(seed).standard_t(3, size=(count, size)).astype(np.float32)
        largest, exact = largest_distance(x)
        assert exact and abs(largest / pdist(x.astype(float)).max() - 1) < 1e-6
    x = np.random.default_rng(9).normal(size=(3000, 50))  # all about as far from the mean
    some, exact = largest_distance(x, work=1.0)
    assert not exact and 0 < some <= largest_distance(x)[0]
