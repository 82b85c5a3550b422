"""Linear measurements: adjoints, singular values, pseudo-inverses and solutions, on odd shapes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models.measurements import (
    Bicubic,
    Blur,
    Downsample,
    Fourier,
    Grey,
    Linear,
    LinearFunction,
    Mask,
    Matrix,
    Pool,
    kernels,
    masks,
)  # fmt: skip
from scorefield.models.measurements.tasks import super_resolve

SMALL, VECTOR = (2, 5, 7), (11,)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KERNEL = normal(4, 3, seed=7)  # of even and odd sides, not symmetric
IMAGES: dict[str, Callable[[tuple[int, ...]], Linear]] = {
    "box": lambda shape: Mask(masks.box(shape), shape),
    "random": lambda shape: Mask(masks.random(shape, 0.3), shape),
    "grey": Grey,
    "pool": lambda shape: Pool(shape, 2),
    "bicubic": lambda shape: Bicubic(shape, 3),
    "gaussian": lambda shape: super_resolve(shape, 2, "gaussian"),
    "decimated": lambda shape: Downsample(shape, 3, KERNEL),
    "circular": lambda shape: Blur(shape, KERNEL),
    "mirrored": lambda shape: Blur(shape, KERNEL, "reflect"),
    "motion": lambda shape: Blur(shape, kernels.motion(4.0, 30.0), "reflect"),
    "fourier": lambda shape: Fourier(shape, 2.0),
}
VECTORS: dict[str, Callable[[tuple[int, ...]], Linear]] = {
    "half": lambda shape: Mask(masks.half(shape), shape),
    "fourier": lambda shape: Fourier(shape, 2.0),
    "wide": lambda shape: Matrix(normal(4, 11), shape),
    "tall": lambda shape: Matrix(normal(13, 5) @ normal(5, 11, seed=1), shape),  # of rank 5
    "function": lambda shape: LinearFunction(lambda x: x.cumsum(1), shape),
}
CASES = [
    *((make, (1, 5, 7), f"{name} 1x5x7") for name, make in IMAGES.items()),
    *((make, SMALL, f"{name} 2x5x7") for name, make in IMAGES.items()),
    *((make, VECTOR, name) for name, make in VECTORS.items()),
]
linear = pytest.mark.parametrize(("make", "shape"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])


@pytest.mark.parametrize("name", IMAGES)
def test_the_adjoint_is_exact(name: str) -> None:
    for shape in ((1, 5, 7), (5, 28, 20)):
        a = IMAGES[name](shape)
        _check_adjoint(a)


@pytest.mark.parametrize("name", VECTORS)
def test_the_adjoint_is_exact_on_vectors(name: str) -> None:
    _check_adjoint(VECTORS[name](VECTOR))


def _check_adjoint(a: Linear) -> None:
    x, y = normal(3, *a.shape), normal(3, *a.measured_shape, seed=1)
    left, right = (a(x) * y).flatten(1).sum(1), (x * a.adjoint(y)).flatten(1).sum(1)
    assert_close(left, right, rtol=1e-12, atol=1e-12)


@linear
def test_the_singular_values_make_the_matrix(make: Callable[..., Linear], shape: tuple[int, ...]) -> None:
    a = make(shape)
    svd = a.svd()
    assert svd is not None
    x, y = normal(2, *shape), normal(2, *a.measured_shape, seed=1)
    assert_close(svd.u(svd.s * svd.v_t(x)), a(x), rtol=0, atol=1e-12)
    coefficients = normal(2, len(svd.s), seed=2)
    for there, back in ((svd.v, svd.v_t), (svd.u, svd.u_t)):
        assert_close(back(there(coefficients)), coefficients, rtol=0, atol=1e-12)
    # U^T and U are adjoint, and V^T and V
    assert_close(
        (svd.u_t(y) * coefficients).sum(1), (y * svd.u(coefficients)).flatten(1).sum(1), rtol=1e-11, atol=1e-12
    )
    assert_close(
        (svd.v_t(x) * coefficients).sum(1), (x * svd.v(coefficients)).flatten(1).sum(1), rtol=1e-11, atol=1e-12
    )
    dense = torch.linalg.svdvals(a.matrix())
    found = svd.s.sort(descending=True).values
    count = min(len(dense), len(found))
    assert_close(found[:count], dense[:count], rtol=0, atol=1e-12)
    assert max(float(rest.max()) if len(rest) else 0.0 for rest in (found[count:], dense[count:])) < 1e-12


@linear
def test_the_pseudo_inverse(make: Callable[..., Linear], shape: tuple[int, ...]) -> None:
    a = make(shape)
    y = normal(2, *a.measured_shape, seed=1)
    expected = y.flatten(1) @ torch.linalg.pinv(a.matrix(), rtol=1e-13).T
    assert_close(a.pinv(y).flatten(1), expected, rtol=1e-9, atol=1e-9)
    x = normal(2, *shape)
    assert_close(a(a.pinv(a(x))), a(x), rtol=0, atol=1e-11)


@linear
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_solve_is_that_of_the_dense_matrix(
    make: Callable[..., Linear], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    a = make(shape)
    noise, signal = torch.tensor([1e-10, 1e-4, 1.0, 0.0]), torch.tensor([1.0, 0.5, 2.0, 1.0])
    # without noise only what A reaches has an answer that rounding does not decide
    r = a(normal(4, *shape)).to(dtype)
    found = a.solve(r, noise, signal)
    assert found.dtype == dtype
    gram = a.matrix() @ a.matrix().T
    for i in range(4):
        matrix = noise[i].double() * torch.eye(len(gram), dtype=torch.float64) + signal[i].double() * gram
        if noise[i] == 0:
            matrix = torch.linalg.pinv(matrix, rtol=1e-12)
            expected = matrix @ r[i].double().flatten()
        else:
            expected = torch.linalg.solve(matrix, r[i].double().flatten())
        scale = float(expected.abs().max())
        values = torch.linalg.svdvals(gram if noise[i] == 0 else matrix)
        least = values[values > 1e-12 * values.max()].min() if noise[i] == 0 else values.min()
        condition = float(values.max() / least)
        rounding = 1e-6 if dtype == torch.float32 else 1e-11  # of the answer
        tolerance = rounding + 30 * torch.finfo(torch.float64).eps * condition  # which the dense solution has lost
        assert_close(found[i].double().flatten() / scale, expected / scale, rtol=0, atol=tolerance)


@linear
def test_float32_and_batches(make: Callable[..., Linear], shape: tuple[int, ...]) -> None:
    """Single precision is that of double, and no sample depends on the others, to the bit."""
    a = make(shape)
    x = normal(5, *shape)
    assert_close(a(x.float()).double(), a(x), rtol=1e-5, atol=1e-5)
    y = a(x.float())
    assert y.dtype == torch.float32
    for call, whole in ((a, x.float()), (a.adjoint, y), (a.pinv, y), (lambda r: a.solve(r, 0.01, 1.0), y)):
        assert torch.equal(call(whole)[1:2], call(whole[1:2]))


@pytest.mark.parametrize("known", [masks.box(SMALL, (1, 2, 4, 5)), masks.random(SMALL, 0.4, seed=1)])
def test_hidden_values_have_no_influence(known: Tensor) -> None:
    a, x = Mask(known, SMALL, hidden=0.5), normal(2, *SMALL)
    broken = torch.where(known, x, math.nan)
    y = a(x)
    assert torch.equal(a(broken), y)
    assert torch.equal(y, x[:, known.expand(SMALL)])  # the known pixels as they are
    assert torch.equal(a.adjoint(y), torch.where(known, x, 0.0))
    assert torch.equal(Mask(known, (1, 5, 7), hidden=0.5).picture(a(x)[:, : int(known.sum())]),
                       torch.where(known, x[:, :1], 0.5))  # fmt: skip


def test_masks_hide_what_they_say() -> None:
    for known, hidden in (
        (masks.box((1, 3, 4), (0, 1, 2, 3)), [[0, 1], [0, 2], [1, 1], [1, 2]]),
        (masks.half((3, 2, 3), "left"), [[0, 0], [1, 0]]),
        (masks.half((3, 2, 3), "right"), [[0, 1], [0, 2], [1, 1], [1, 2]]),
        (masks.half((3, 2, 1), "top"), [[0, 0]]),
        (masks.half((3,), "left"), [[0]]),
        (masks.border((1, 3, 3), 1)[1:2], [[0, 0], [0, 2]]),
    ):
        assert (~known).nonzero().tolist() == hidden
    assert int(masks.random((3, 10, 10), 0.3, seed=2).sum()) == 30


@pytest.mark.parametrize(("length", "factor"), [(28, 4), (20, 3), (7, 2)])
def test_bicubic_is_that_of_torch(length: int, factor: int) -> None:
    x = normal(2, 3, length, 12)
    a = Bicubic((3, length, 12), factor)
    theirs = nn.functional.interpolate(x, a.measured_shape[1:], mode="bicubic", antialias=True)
    assert_close(a(x), theirs, rtol=0, atol=1e-12)


def test_pooling_is_that_of_torch() -> None:
    x = normal(2, 3, 6, 9)
    assert_close(Pool((3, 6, 9), 3)(x), nn.functional.avg_pool2d(x, 3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", [KERNEL, kernels.box(3)])
def test_blur_is_a_convolution(kernel: Tensor) -> None:
    """Of padded images, by torch; a kernel larger than an image is compared in the adjoint's test."""
    x = normal(2, 1, 9, 8)
    h, w = kernel.shape
    pad = (w - 1 - w // 2, w // 2, h - 1 - h // 2, h // 2)
    for boundary in ("circular", "reflect"):
        padded = nn.functional.pad(x, pad, mode=boundary)
        expected = nn.functional.conv2d(padded, kernel.flip(0, 1)[None, None])
        assert_close(Blur((1, 9, 8), kernel, boundary)(x), expected, rtol=0, atol=1e-12)


def test_fourier_measures_the_coefficients() -> None:
    a, x = Fourier((1, 6, 16), 2.0), normal(1, 1, 6, 16)
    z = torch.fft.fft2(x, norm="ortho")
    whole = Fourier((1, 6, 16), 1.0)
    assert whole.measured_shape == (1, 6, 16)
    assert_close(whole(x), z.real - z.imag, rtol=0, atol=1e-13)
    assert a.measured_shape[2] in (8, 9)
    assert_close(whole.picture(whole(x)), x, rtol=0, atol=1e-13)


def test_kernels() -> None:
    assert_close(kernels.motion(5.0, 0.0).sum(0)[3], kernels.motion(5.0, 90.0).sum(1)[3], rtol=0, atol=1e-12)
    along = kernels.motion(5.0, 45.0)
    assert along.argmax() in (along.shape[0] * 3 + 3, along.shape[0] * 2 + 4, along.shape[0] * 4 + 2)
    for kernel in (kernels.gaussian(1.5), kernels.box(4), along):
        assert_close(kernel.sum(), torch.tensor(1.0, dtype=torch.float64))
    variance = (kernels.gaussian(1.5).sum(0) * (torch.arange(13) - 6.0).square()).sum()
    assert_close(variance, torch.tensor(2.25, dtype=torch.float64), rtol=3e-3, atol=0)  # cut at 4 deviations
