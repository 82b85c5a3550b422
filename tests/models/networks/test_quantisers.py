"""Quantisers against their formulae, the means of clusters and k-means' separated points."""

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from scorefield.models.networks.quantisers import FSQ, LFQ, Codebook, Quantiser


def codes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def codebook(size: int = 6, width: int = 3, **settings: object) -> Codebook:
    """One whose vectors are spread like the codes, in float64."""
    made = Codebook(size, width, **settings).double()
    with torch.no_grad():
        made.weight.copy_(codes(size, width, seed=1))
    return made


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_code_goes_to_its_nearest_vector_at_the_published_loss(legacy: bool, decay: float | None) -> None:
    made, z = codebook(beta=0.3, legacy=legacy, decay=decay), codes(2, 3, 4, 5).requires_grad_()
    out = made(z)
    index = torch.cdist(z.detach().movedim(1, -1).reshape(-1, 3), made.weight.detach()).argmin(1).reshape(2, 4, 5)
    assert torch.equal(out.index, index)
    assert_close(out.z, made.weight[index].movedim(-1, 1))
    assert torch.equal(made.lookup(index), made.weight[index].movedim(-1, 1))
    squares = (out.z - z).square().flatten(1).mean(1)
    of_codes, of_vectors = (1.0, 0.3) if legacy else (0.3, 1.0)
    of_vectors = of_vectors if decay is None else 0.0
    assert_close(out.loss, (of_codes + of_vectors) * squares)
    # The gradients: each term moves one side alone.
    out.loss.sum().backward()
    assert_close(z.grad, of_codes * 2 * (z - out.z).detach() / 60)
    if decay is None:
        moved = torch.zeros(6, 3, dtype=torch.float64)
        moved.index_add_(0, index.flatten(), (out.z - z).detach().movedim(1, -1).reshape(-1, 3))
        assert_close(made.weight.grad, of_vectors * 2 * moved / 60)
    else:
        assert not list(made.parameters())


@pytest.mark.parametrize("made", [codebook(), LFQ(3).double()], ids=["codebook", "lfq"])
def test_the_gradient_passes_straight_through(made: Quantiser) -> None:
    z, w = codes(2, 3, 4, 4).requires_grad_(), codes(2, 3, 4, 4, seed=2)
    (made(z).z * w).sum().backward()
    assert torch.equal(z.grad, w)


def test_moving_averages_end_at_the_means_of_their_codes() -> None:
    made, z = codebook(decay=0.5, restart=0.0), codes(4, 3, 8, 8)
    for _ in range(80):
        index = made(z).index
        made.update(Generator())
    vectors = z.movedim(1, -1).reshape(-1, 3)
    used = index.unique()
    assert len(used) >= 4
    means = torch.stack([vectors[index.flatten() == k].mean(0) for k in used])
    assert_close(made.weight[used], means, rtol=0, atol=1e-12)  # k-means' fixed point: no smoothing moves it


def separated(count: int) -> Tensor:
    """Points of a grid of distance 1, one at each place of an image."""
    side = math.ceil(count ** (1 / 3))
    grid = torch.cartesian_prod(*[torch.arange(float(side))] * 3)[:count]
    return grid.T.reshape(1, 3, count, 1)


def test_restart_brings_every_vector_into_use() -> None:
    z, generator = separated(512), Generator().manual_seed(0)
    torch.manual_seed(0)
    without, made, late = Codebook(512, 3, restart=0.0), Codebook(512, 3), Codebook(512, 3, decay=0.8)
    for _ in range(2):
        for each in (without, made):
            each(z)
            each.update(generator)
    assert len(without(z).index.unique()) < 51  # the control: a tenth
    assert len(made(z).index.unique()) == 512
    assert_close(made(z).z, z, rtol=0, atol=1e-5)
    # Later, too: after a time at one point, which leaves 511 vectors without use.
    for step in range(60):
        late(torch.zeros_like(z) if step < 10 else z)
        late.update(generator)
    assert len(late(z).index.unique()) == 512


@pytest.mark.parametrize("made", [codebook(), LFQ(3).double()], ids=["codebook", "lfq"])
def test_neither_parts_nor_the_batch_matter(made: Quantiser) -> None:
    z, single = codes(4, 3, 4, 4), codes(1, 3, 4, 4, seed=3)
    made.eval()
    assert_close(made(torch.cat((z, single))).loss[-1:], made(single).loss)
    results = []
    for parts in (1, 2):
        state = {name: each.clone() for name, each in made.state_dict().items()}
        made.train()
        for part in z.chunk(parts):
            made(part)
        made.update(Generator().manual_seed(0))
        results.append(made.state_dict() | {})
        results[-1] = {name: each.clone() for name, each in results[-1].items()}
        changed = [name for name, each in state.items() if not torch.equal(each, results[-1][name])]
        assert changed == list(state)
        made.load_state_dict(state)
    for name, each in results[0].items():
        assert_close(results[1][name], each)


@pytest.mark.parametrize("made", [codebook(), LFQ(3).double(), codebook(decay=None)], ids=["ema", "lfq", "gradient"])
def test_codes_that_are_not_finite_change_nothing(made: Quantiser) -> None:
    before = {name: each.clone() for name, each in made.state_dict().items()}
    made(torch.full((1, 3, 2, 2), torch.nan, dtype=torch.float64))
    made.update(Generator())
    for name, each in made.state_dict().items():
        assert torch.equal(each, before[name])


@pytest.mark.parametrize("levels", [(8, 6, 5), (7, 5, 3, 3), (2, 2)])
def test_every_point_of_fsq_has_its_index(levels: tuple[int, ...]) -> None:
    made = FSQ(levels).double()
    assert made.size == math.prod(levels)
    points = made.lookup(torch.arange(made.size)[None, :, None]).double()
    # The codes that the paper's bound maps to the points.
    count = torch.tensor(levels, dtype=torch.float64)[:, None, None]
    half, offset = (count - 1) * 1.001 / 2, (count % 2 == 0) / 2
    z = ((points * (count // 2) + offset) / half).atanh() - (offset / half).atanh()
    assert torch.equal(made(z).index[0, :, 0], torch.arange(made.size))
    assert_close(made(z).z, points)
    assert len({tuple(point) for point in points[0, :, :, 0].T.tolist()}) == made.size
    assert not made(z).loss.any()
    # The gradient is that of the bound.
    z = (0.3 * codes(2, len(levels), 3, 3)).requires_grad_()
    made(z).z.sum().backward()
    bound = half * (z + (offset / half).atanh()).tanh() / (count // 2)
    assert_close(z.grad, torch.autograd.grad(bound.sum(), z)[0])


def test_an_index_beyond_the_integers_of_float32_is_exact() -> None:
    made = FSQ((5,) * 12)  # 244 million points, and a place value of 5^11, odd and above 2^24
    out = made(3 * codes(2, 12, 8, 8).float())
    assert int(out.index.max()) > 2**24
    assert_close(made.lookup(out.index), out.z, rtol=0, atol=1e-6)


def test_fsq_uses_at_least_half_of_its_points() -> None:
    index = FSQ((8, 5, 5, 5))(codes(64, 4, 8, 8).float()).index
    assert len(index.unique()) >= 500


def test_the_entropies_of_lfq_are_those_of_the_set() -> None:
    made, z = LFQ(3, penalty=0.7, commitment=0.4, temperature=2.0).double(), codes(4, 3, 5, 5).requires_grad_()
    q = (4 * z / 2.0).sigmoid()
    mean = q.mean((0, 2, 3))

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log() + (1 - p) * (1 - p).log())

    expected = 0.7 * 3 * (entropy(q).mean() - entropy(mean).mean()) + 0.4 * (z - z.detach().sign()).square().mean()
    made.mean.copy_(mean.detach())
    result = made(z).loss.mean()
    assert_close(result, expected)
    # To first order around the average of the set, so the gradient is exact.
    assert_close(torch.autograd.grad(result, z)[0], torch.autograd.grad(expected, z)[0])
    made.mean.fill_(0.5)
    made.update(Generator())
    assert_close(made.mean, 0.5 * 0.9 + 0.1 * mean.detach())


def test_the_index_of_lfq_is_its_bits() -> None:
    made = LFQ(4)
    index = torch.arange(16)[None, :, None]
    points = made.lookup(index)
    assert sorted(points.flatten().unique().tolist()) == [-1, 1] and points[0, :, 6, 0].tolist() == [-1, 1, 1, -1]
    assert torch.equal(made(0.1 * points).index, index) and torch.equal(made(0.1 * points).z, points)


def test_half_precision_chooses_the_same_points() -> None:
    made, z = Codebook(64, 3), codes(2, 3, 4, 4).float()
    expected = made(z.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        result = made(z.bfloat16())
    assert torch.equal(result.index, expected.index) and result.z.dtype == torch.bfloat16
    assert result.loss.dtype == torch.float32 and torch.equal(result.loss, expected.loss)


def test_wrong_settings_are_refused() -> None:
    for make, words in (
        (lambda: Codebook(0, 3), "size and width of at least 1"),
        (lambda: Codebook(4, 3, decay=1.0), "within"),
        (lambda: FSQ((8, 1)), "levels of at least 2"),
        (lambda: LFQ(63), "bits within 1 .. 62"),
        (lambda: Codebook(4, 3)(torch.zeros(1, 2, 4, 4)), r"codes \(B, 3, h, w\) for Codebook, got \(1, 2, 4, 4\)"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
