"""The random numbers of samples: those of two seeds, or of two streams of a seed, have nothing in common."""

import torch

from scorefield.solvers import PerSampleNoise

STREAMS = ((), (0,), (1,), (2,), (0, 1), (1, 0), (1000,))
SEEDS = (0, 1, 2, 1000)


def test_streams_of_neighbouring_seeds_share_no_number_and_are_uncorrelated() -> None:
    """28 streams of 8,000 numbers: 378 correlations are below 5 deviations, a false alarm in 5,000 sets of seeds."""
    x = torch.zeros(40, 200, dtype=torch.float64)
    drawn = torch.stack([PerSampleNoise(seed, range(40), stream)(x) for seed in SEEDS for stream in STREAMS])
    assert len(drawn.unique()) == drawn.numel()  # whichever samples are compared
    correlation = torch.corrcoef(drawn.flatten(1))
    off_diagonal = correlation[~torch.eye(len(drawn), dtype=torch.bool)]
    assert float(off_diagonal.abs().max()) < 5 / x.numel() ** 0.5


def test_a_sample_has_its_numbers_in_any_batch_of_its_stream() -> None:
    x = torch.zeros(6, 3)
    for stream in STREAMS:
        whole = PerSampleNoise(4, range(6), stream)(x)
        parts = [PerSampleNoise(4, rows, stream)(x[: len(rows)]) for rows in (range(2), range(2, 6))]
        assert torch.equal(whole, torch.cat(parts))


def test_without_a_stream_the_numbers_are_those_of_earlier_versions() -> None:
    """Samples of a seed stay the same: its generators begin at this 32-bit number."""
    first, second = PerSampleNoise(7, range(2))(torch.zeros(2, 4))
    for row, i in ((first, 0), (second, 1)):
        generator = torch.Generator().manual_seed(2083679832 + i)
        assert torch.equal(row, torch.randn(4, generator=generator))
