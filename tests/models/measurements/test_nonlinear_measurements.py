"""Measurements that are not linear: values, gradients and pictures."""

import torch
from torch.testing import assert_close

from scorefield.models.measurements import Clip, Gamma, Magnitude, Quantise

X = torch.tensor([[-1.5, -0.9, -0.2, 0.3, 0.9]], dtype=torch.float64)


def test_clip_gamma_and_quantise_act_in_the_range() -> None:
    assert_close(Clip((5,), 2.0)(X), torch.tensor([[-1.0, -1, -0.4, 0.6, 1]], dtype=torch.float64))
    unit = (X + 1) / 2  # the same in another range
    for kind, number in ((Clip, 2.0), (Gamma, 2.2), (Quantise, 3)):
        assert_close((kind((5,), number)(X) + 1) / 2, kind((5,), number, 0.0, 1.0)(unit), rtol=0, atol=1e-12)
    assert_close(Gamma((5,), 2.0, 0.0, 1.0)(unit)[0, 1:], unit[0, 1:] ** 2)
    assert_close(Quantise((5,), 3)(X), torch.tensor([[-1.0, -1, 0, 0, 1]], dtype=torch.float64))


def test_gradients() -> None:
    inside = torch.tensor([[0.0, 1, 1, 1, 1]], dtype=torch.float64)
    x = X.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(Quantise((5,), 3)(x).sum(), x)[0], inside)
    assert torch.equal(
        torch.autograd.grad(Clip((5,), 2.0)(x).sum(), x)[0], torch.tensor([[0.0, 0, 2, 2, 0]], dtype=torch.float64)
    )
    for measurement in (Gamma((5,), 0.4), Magnitude((5,))):
        for start in (X, torch.full_like(X, -1.0)):  # black, where powers and magnitudes are not smooth
            x = start.clone().requires_grad_()
            assert torch.autograd.grad(measurement(x).sum(), x)[0].isfinite().all()


def test_magnitudes_forget_the_phase() -> None:
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = Magnitude((3, 5, 7), 2.0, 0.0, 1.0)
    y = a(x)
    assert y.shape[1:] == a.measured_shape == (3, 10, 14)
    assert_close(a(x.flip(2, 3)), y, rtol=0, atol=1e-12)  # a turn by 180 degrees
    assert_close(y.square().sum((2, 3)), x.square().sum((2, 3)))  # Parseval
    picture = a.picture(y)
    assert picture is not None
    assert picture.shape == x.shape
    assert 0 <= picture.min() <= picture.max() <= 1


def test_no_sample_depends_on_the_others() -> None:
    x = torch.rand(5, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    for a in (Magnitude((1, 5, 7)), Gamma((1, 5, 7)), Clip((1, 5, 7)), Quantise((1, 5, 7))):
        assert torch.equal(a(x)[1:2], a(x[1:2]))
