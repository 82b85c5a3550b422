"""Guidance by a classifier of noisy data, against the exact one of a labelled mixture."""

import math

import pytest
import torch
from class_gaussians import MEANS
from torch import Tensor
from torch.testing import assert_close

from scorefield.models import GaussianMixture, NoisyClassifier
from scorefield.models.guidance import ClassifierGuidance
from scorefield.sde_lib import SDE, VESDE, VPSDE, DiscreteVPSDE, predict_noise
from scorefield.sde_lib.broadcast import Scale, expand
from scorefield.training import Batches, train_classifier
from scorefield.training.data import Dataset
from scorefield.training.objectives.classifier import accuracy

K, STD = 4, 1.3
CLASSES, PRIOR = MEANS[:K].double(), torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
ALL = GaussianMixture(CLASSES, torch.full((K,), STD, dtype=torch.float64), PRIOR)
LABEL = torch.tensor([0, 1, 3, 2, 1])
X = 2 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """Logits of p(class | x), by Bayes."""
    means = expand(alpha, x) * CLASSES[:, None]
    variance = (STD * expand(alpha, x)) ** 2 + expand(sigma, x) ** 2
    return (PRIOR.log()[:, None] - ((x - means) ** 2 / variance).sum(2) / 2).T


def of_class(x: Tensor, alpha: Scale, sigma: Scale, label: Tensor) -> Tensor:
    """E[x0 | x, label]."""
    alpha, sigma, mean = expand(alpha, x), expand(sigma, x), CLASSES[label]
    return mean + alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * (x - alpha * mean)


@pytest.mark.parametrize("each", [False, True])
def test_the_exact_classifier_makes_the_denoiser_of_the_class(each: bool) -> None:
    """At a scale of 1, as x0 and as noise, with its derivative."""
    alpha, sigma = torch.tensor(0.8).double(), torch.tensor(0.6).double()
    if each:
        alpha, sigma = torch.linspace(0.9, 0.3, 5).double(), torch.linspace(0.2, 0.9, 5).double()
    guided, own = ClassifierGuidance(ALL, exact), of_class(X, alpha, sigma, LABEL)
    assert_close(guided(X, alpha, sigma, label=LABEL), own, rtol=1e-12, atol=1e-12)
    eps = (X - expand(alpha, X) * own) / expand(sigma, X)
    assert_close(predict_noise(guided, X, alpha, sigma, label=LABEL), eps, rtol=1e-12, atol=1e-12)
    x = X.clone().requires_grad_()
    slope = torch.autograd.grad(guided(x, alpha, sigma, label=LABEL).sum(), x)[0]
    gain = expand(alpha, X) * STD**2 / ((expand(alpha, X) * STD) ** 2 + expand(sigma, X) ** 2)
    assert_close(slope, gain.expand_as(X), rtol=1e-11, atol=1e-11)


def test_it_is_guided_diffusion_on_the_same_numbers() -> None:
    """Their `condition_score` adds to the noise; `condition_mean` to the mean, by the variance beta of the step."""
    sde, scale, i = DiscreteVPSDE("linear"), 3.0, 600
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    bar, before, beta = (float(v) for v in (bars[i], bars[i - 1], betas[i]))
    alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
    assert_close(sde.scales(sde.time(math.log(bar / (1 - bar))))[0].item(), alpha, rtol=1e-9, atol=0)
    x = X.clone().requires_grad_()
    log_p = exact(x, alpha, sigma).log_softmax(1)[torch.arange(5), LABEL].sum()
    gradient = scale * torch.autograd.grad(log_p, x)[0]  # what their cond_fn returns
    guided, at = ClassifierGuidance(ALL, exact, scale), (X, alpha, sigma)
    score = predict_noise(ALL, *at) - math.sqrt(1 - bar) * gradient
    assert_close(predict_noise(guided, *at, label=LABEL), score, rtol=1e-12, atol=1e-12)
    of_x0 = math.sqrt(before) * beta / (1 - bar)  # of the ancestral mean
    moved = of_x0 * (guided(*at, label=LABEL) - ALL(*at))
    assert_close(moved * math.sqrt(1 - beta), beta * gradient, rtol=1e-11, atol=1e-11)  # theirs leaves the root out


def test_the_twist_has_the_classifiers_own_probability() -> None:
    guided = ClassifierGuidance(ALL, exact, 2.0)
    twist = guided.twist(X, 0.8, 0.6, label=LABEL)
    log_p = exact(X, 0.8, 0.6).log_softmax(1)[torch.arange(5), LABEL]
    assert_close(twist.log_potential, 2 * log_p)
    assert_close((twist.guided, twist.factors[0][1]), (guided(X, 0.8, 0.6, label=LABEL), ALL(X, 0.8, 0.6)))
    end, last = guided.finish(X, 0.8, 0.6, label=LABEL)
    assert torch.equal(end, ALL(X, 0.8, 0.6)) and torch.equal(last, twist.log_potential)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20), (1, 5, 7), (6,), (2, 40)])
def test_the_networks_answer_is_each_samples_own(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = NoisyClassifier(shape, 3, width=4).double()
    x, sigma = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    logits = net(x, 1.0, sigma)
    assert logits.shape == (3, 3)
    assert_close(net(x[1:2], 1.0, 1.0), logits[1:2], rtol=1e-12, atol=1e-12)
    assert (net(x, 1.0, 0.1) - logits)[1:].abs().max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=20.0)])
def test_accuracy_is_within_2_percent_of_bayes(sde: SDE) -> None:
    """Two Gaussians at a distance of 2, with deviations of 1 / 2: the best is Phi(1 / hypot(1 / 2, sigma / alpha))."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(4000) % 2
    mean = torch.tensor([0.6, 0.8])  # of length 1
    x0 = (2 * label[:, None] - 1) * mean + 0.5 * torch.randn(4000, 2, generator=generator)
    data = Dataset("two", "train", x0.numpy(), None, label=label.numpy(), num_classes=2)
    torch.manual_seed(0)
    net = NoisyClassifier((2,), 2, width=8)
    loader = Batches(data, 250, transform=lambda x, g: x, labels=True)
    for _ in train_classifier(net, sde, loader, images=100_000):
        pass
    fresh = (2 * label[:, None] - 1) * mean + 0.5 * torch.randn(4000, 2, generator=generator)
    for level in (0.05, 0.5, 1.0, 3.0):
        t = float(sde.time(torch.tensor(-2 * math.log(level), dtype=torch.float64)))
        eps = torch.randn(4000, 2, generator=generator)
        bayes = float(torch.special.ndtr(torch.tensor(1 / math.hypot(0.5, level))))
        rounding = 3 * math.sqrt(bayes * (1 - bayes) / 4000)  # three standard errors: a false alarm in 400
        assert abs(accuracy(net, sde, t, fresh, label, eps) - bayes) < 0.02 + rounding
