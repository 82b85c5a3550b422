"""Losses, weightings, times, EMA, batches, checkpoints and the loop."""

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import PATHS
from seeded import seeded_normal
from torch import Generator, Tensor, nn

from scorefield.models import MLP, Denoiser, Gaussian, GaussianMixture, UNet
from scorefield.models.precondition import eps
from scorefield.sde_lib import EDMSDE, SDE, VESDE, VPSDE, RectifiedSDE
from scorefield.training import (
    EMA,
    Batches,
    TrainingState,
    dsm_loss,
    latest,
    load,
    load_weights,
    save,
    times,
    train,
    weighting,
)
from scorefield.training.adam import adam
from scorefield.training.data import Dataset, digits


def to_model(x: Tensor, generator: Generator) -> Tensor:
    return (x + torch.rand(x.shape, generator=generator)) / 17 * 2 - 1


def small_state(seed: int = 0, dropout: float = 0.0) -> TrainingState:
    torch.manual_seed(seed)
    denoiser = Denoiser(UNet(1, width=8, multipliers=(1, 2), blocks=1, dropout=dropout), eps)
    return TrainingState(denoiser, torch.optim.Adam(denoiser.parameters(), lr=1e-3), EMA(denoiser, 0.9))


def weights_of(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# The loss


@pytest.mark.parametrize("sde", PATHS.values(), ids=PATHS)
def test_the_exact_denoiser_is_the_minimiser_of_the_loss(sde: SDE) -> None:
    # |D - x0|^2 averages to the posterior variance at D = E[x0 | x]; any other function adds its squared distance.
    generator = Generator().manual_seed(0)
    exact = GaussianMixture(
        torch.tensor([[1.0, -0.5], [-1.0, 0.2]]), torch.tensor([0.3, 0.5]), torch.tensor([0.4, 0.6])
    )
    x0 = exact.sample(100_000, generator)
    t = times.uniform(sde, len(x0), generator)
    noise = torch.randn(x0.shape, generator=generator)

    def loss(denoiser: Callable[..., Tensor]) -> Tensor:
        return dsm_loss(denoiser, sde, x0, t, noise, weight=weighting.min_snr(5.0))

    shifted = lambda x, alpha, sigma: exact(x, alpha, sigma) + 0.1  # noqa: E731
    scaled = lambda x, alpha, sigma: 0.9 * exact(x, alpha, sigma)  # noqa: E731
    w = weighting.min_snr(5.0)(sde, t)
    # The shift costs w 0.1^2 in expectation; the cross term's mean is zero, within 4 standard errors (1 in 16,000).
    excess = loss(shifted) - loss(exact)
    assert abs(float((excess - 0.01 * w).mean())) < 4 * float((excess - 0.01 * w).std()) / math.sqrt(len(x0))
    assert float(loss(scaled).mean()) > float(loss(exact).mean())


def test_the_loss_of_one_gaussian_is_its_posterior_variance() -> None:
    # E |D - x0|^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2) per dimension.
    sde, s = VPSDE(), 0.7
    gaussian = Gaussian(torch.zeros(3, 2), torch.tensor(s))
    generator = Generator().manual_seed(1)
    x0, t = gaussian.sample(200_000, generator), torch.full((200_000,), 0.3)
    loss = dsm_loss(
        gaussian, sde, x0, t, torch.randn(x0.shape, generator=generator), weight=lambda sde, t: torch.ones(())
    )
    alpha, sigma = (float(a) for a in sde.scales(0.3))
    exact = s**2 * sigma**2 / (alpha**2 * s**2 + sigma**2)
    assert abs(float(loss.mean()) - exact) < 4 * float(loss.std()) / math.sqrt(len(x0))


def test_the_loss_is_one_number_an_example_and_repeats() -> None:
    denoiser = Denoiser(MLP((5, 3), width=16, num_classes=4), eps)
    x0, t, noise = torch.randn(7, 5, 3), torch.rand(7), torch.randn(7, 5, 3)
    label = torch.arange(7) % 4
    first = dsm_loss(denoiser, VPSDE(), x0, t, noise, label=label)
    assert first.shape == (7,)
    assert torch.equal(first, dsm_loss(denoiser, VPSDE(), x0, t, noise, label=label))


def test_simple_weighting_is_the_error_in_the_noise() -> None:
    sde, denoiser = VPSDE(), Denoiser(MLP((4,), width=16), eps)
    nn.init.normal_(denoiser.net.head.weight)
    x0, t, noise = torch.randn(50, 4), torch.rand(50) * 0.9 + 0.1, torch.randn(50, 4)
    alpha, sigma = sde.scales(t)
    predicted = denoiser.noise(sde.perturb(x0, t, noise), alpha, sigma)
    by_hand = (predicted - noise).square().mean(1)
    torch.testing.assert_close(dsm_loss(denoiser, sde, x0, t, noise), by_hand, rtol=1e-3, atol=1e-5)


# Weightings, against the papers' own forms


def test_weightings_against_their_papers() -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    vp, ve, flow = VPSDE(), VESDE(), RectifiedSDE()
    alpha, sigma = vp.scales(t)
    torch.testing.assert_close(weighting.simple(vp, t), (alpha / sigma) ** 2)
    # NCSN on VE: sigma^2 / 2 times the score's error, which is that of x0 over sigma^2.
    s = ve.scales(t)[1]
    torch.testing.assert_close(weighting.ncsn(ve, t), s**2 / 2 / s**4)
    # Likelihood: beta for g^2 on VP.
    beta = 0.1 + t * 19.9
    torch.testing.assert_close(weighting.likelihood(vp, t), beta * alpha**2 / sigma**4)
    # ELBO: -SNR' / 2 over the length of the path; on the straight line SNR = (1 - t)^2 / t^2.
    slope = -2 * (1 - t) / t**3
    torch.testing.assert_close(weighting.elbo(flow, t), -slope / 2 * (flow.t_max - flow.t_min))
    # EDM at sigma = t, and at sigma / alpha elsewhere.
    edm = EDMSDE()
    torch.testing.assert_close(weighting.edm(0.5)(edm, t), (t**2 + 0.25) / (t * 0.5) ** 2)
    torch.testing.assert_close(weighting.min_snr(5.0)(vp, t), torch.minimum((alpha / sigma) ** 2, torch.tensor(5.0)))


# Times


@pytest.mark.parametrize(
    "sampler", [times.uniform, times.stratified, times.log_normal(), times.discrete((1.0, 0.5, 0.1))]
)
def test_times_are_on_the_path_and_follow_their_generator(sampler: times.Times) -> None:
    sde = VESDE(sigma_min=0.05, sigma_max=2.0, t_min=0.0)
    a, b = (sampler(sde, 1000, Generator().manual_seed(3)) for _ in range(2))
    assert a.shape == (1000,)
    assert torch.equal(a, b)
    assert float(a.min()) >= sde.t_min
    assert float(a.max()) <= sde.t_max


def test_uniform_and_stratified_times_are_uniform() -> None:
    sde, n = VPSDE(), 4000
    for sampler in (times.uniform, times.stratified):
        u = sampler(sde, n, Generator().manual_seed(0)).sort().values
        distance = float((u - (torch.arange(n) + 0.5) / n).abs().max())
        assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at one in a thousand
    assert distance < 1.1 / n  # stratified: each within its stratum


def test_log_normal_times_have_edms_moments() -> None:
    log_sigma = times.log_normal(-1.2, 1.2)(EDMSDE(), 100_000, Generator().manual_seed(0)).log()
    # 4 standard errors; clamping at sigma = 0.002 and 80 touches 4 in a million and fewer.
    assert abs(float(log_sigma.mean()) + 1.2) < 4 * 1.2 / math.sqrt(100_000)
    assert abs(float(log_sigma.std()) - 1.2) < 4 * 1.2 / math.sqrt(200_000)


def test_discrete_times_are_those_of_the_levels() -> None:
    levels = [1.0, 0.3, 0.05]
    sde = VESDE(sigma_min=0.05, sigma_max=1.0)
    t = times.discrete(levels)(sde, 3000, Generator().manual_seed(0))
    result, counts = sde.scales(t)[1].mul(1e6).round().div(1e6).unique(return_counts=True)
    torch.testing.assert_close(result, torch.tensor(sorted(levels), dtype=torch.float64))
    assert all(abs(int(c) - 1000) < 4 * math.sqrt(3000 * 2 / 9) for c in counts)


# EMA


def test_ema_follows_its_recursion() -> None:
    module = nn.Linear(1, 1, bias=False)
    ema, by_hand = EMA(module, decay=0.5), float(module.weight.detach())
    for n in range(6):
        nn.init.constant_(module.weight, float(n))
        ema.update(module)
        decay = min(0.5, (1 + n) / (10 + n))
        by_hand = decay * by_hand + (1 - decay) * n
    assert float(ema.model.weight) == pytest.approx(by_hand, rel=1e-6)
    assert not ema.model.training
    assert not ema.model.weight.requires_grad


def test_ema_of_decay_zero_is_the_model_and_a_bad_decay_is_refused() -> None:
    module = nn.Linear(3, 3)
    ema = EMA(module, 0.0)
    nn.init.normal_(module.weight)
    ema.update(module)
    assert torch.equal(ema.model.weight, module.weight)
    with pytest.raises(ValueError, match="decay"):
        EMA(module, 1.0)


# Batches


def test_every_image_is_seen_equally_often_across_the_seams_of_epochs() -> None:
    data = Dataset("count", "train", np.arange(10, dtype=np.float32)[:, None], None)
    batches = Batches(data, 4, seed=5, transform=lambda x, generator: x)
    stream = torch.cat([b["x0"] for b in itertools.islice(batches, 15)]).flatten()
    for epoch in stream.reshape(6, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert stream[:10].tolist() != stream[10:20].tolist()


def test_batches_depend_on_the_position_alone() -> None:
    from_start = list(itertools.islice(Batches(digits(), 16, seed=1, transform=to_model, labels=True), 6))
    later = list(itertools.islice(Batches(digits(), 16, seed=1, start=48, transform=to_model, labels=True), 3))
    for a, b in zip(from_start[3:], later, strict=True):
        assert torch.equal(a["x0"], b["x0"])
        assert torch.equal(a["label"], b["label"])


def test_a_batch_larger_than_the_data_and_label_dropout() -> None:
    data = Dataset("few", "train", np.zeros((3, 2), np.float32), None, np.array([0, 1, 1]), 2)
    batches = Batches(data, 3000, transform=lambda x, g: x, labels=True, label_dropout=0.25)
    label = next(iter(batches))["label"]
    unknown = int((label == 2).sum())
    assert abs(unknown - 750) < 4 * math.sqrt(3000 * 0.25 * 0.75)
    with pytest.raises(ValueError, match="labels"):
        Batches(Dataset("bare", "train", np.zeros((3, 2), np.float32), None), 2, transform=lambda x, g: x, labels=True)


# The loop


def test_interrupted_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    # Dropout draws from torch's global generator, times and noise from the state's, order and cells from the position.
    few = Dataset("few", "train", digits().x[:40], 17)

    def go(state: TrainingState, images: int) -> None:
        batches = Batches(few, 24, seed=2, start=state.images, transform=to_model)
        for _ in train(
            state.denoiser, VPSDE(), batches, images=images, state=state, schedule=lambda n: 1 / (1 + n / 100)
        ):
            pass

    unbroken = small_state(dropout=0.2)
    go(unbroken, 24 * 8)

    first = small_state(dropout=0.2)
    go(first, 24 * 3)  # in the second epoch of 40 images
    save(tmp_path, first)
    torch.manual_seed(99)  # a new process would not have the old one's state
    second = small_state(seed=7, dropout=0.2)
    checkpoint = latest(tmp_path)
    assert checkpoint is not None
    load(checkpoint, second)
    go(second, 24 * 8)

    assert torch.equal(weights_of(unbroken.denoiser), weights_of(second.denoiser))
    assert torch.equal(weights_of(unbroken.ema.model), weights_of(second.ema.model))
    assert (unbroken.step, unbroken.images, unbroken.ema.updates) == (second.step, second.images, second.ema.updates)


def test_training_lowers_the_loss_towards_that_of_the_exact_denoiser() -> None:
    torch.manual_seed(0)
    exact = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0.2, 0.2]), torch.ones(2))
    loader = [exact.sample(256, Generator().manual_seed(i)) for i in range(20)]
    denoiser = Denoiser(MLP((2,), width=64, blocks=2), eps)
    state = TrainingState(denoiser, torch.optim.Adam(denoiser.parameters(), lr=3e-3))
    for _ in train(denoiser, VPSDE(), loader, images=256 * 400, state=state):
        pass
    generator = Generator().manual_seed(1)
    x0, t = exact.sample(20_000, generator), times.stratified(VPSDE(), 20_000, generator)
    noise = torch.randn(x0.shape, generator=generator)
    with torch.no_grad():
        learned, best, none = (
            float(dsm_loss(d, VPSDE(), x0, t, noise).mean())
            for d in (denoiser, exact, Denoiser(MLP((2,), width=64, blocks=2), eps))
        )
    assert best < learned < best + 0.1 * (none - best)


def test_the_record_of_a_step() -> None:
    state = small_state()
    batches = [{"x0": torch.randn(4, 1, 8, 8)}, {"x0": torch.randn(2, 1, 8, 8)}]
    steps = list(train(state.denoiser, VPSDE(), batches, images=10, state=state, schedule=lambda n: 0.5, clip=None))
    assert [s.images for s in steps] == [4, 6, 10]
    assert [s.step for s in steps] == [1, 2, 3]
    assert all(s.learning_rate == pytest.approx(5e-4) for s in steps)
    assert all(math.isfinite(float(s.loss)) and float(s.grad_norm) > 0 for s in steps)


def test_the_loader_can_be_wrong() -> None:
    state = small_state()
    with pytest.raises(ValueError, match="used-up generator"):
        next(train(state.denoiser, VPSDE(), [], images=4, state=state))
    with pytest.raises(ValueError, match='dict of "x0"'):
        next(train(state.denoiser, VPSDE(), [{"y": torch.zeros(2)}], images=4, state=state))


# Checkpoints


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = small_state()
    save(tmp_path, state)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    state.images = 100
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, state)
    assert [path.name for path in tmp_path.iterdir()] == ["0000000000"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    state = small_state()
    for images in (1, 20, 300):
        state.images = images
        save(tmp_path, state, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000000020", "0000000300"]
    assert latest(tmp_path) == tmp_path / "0000000300"
    assert latest(tmp_path / "nowhere") is None


def test_a_checkpoint_of_another_architecture_or_broken_is_refused(tmp_path: Path) -> None:
    place = save(tmp_path, small_state())
    other = Denoiser(UNet(1, width=16, multipliers=(1, 2), blocks=1), eps)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"another architecture: .* there and .* here"):
        load_weights(place, other)
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())

    file = place / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="does not read"):
        load_weights(place, small_state().denoiser)


@pytest.mark.parametrize("verify", [b"", b"not a checkpoint at all", "no keys"])
def test_a_damaged_state_is_named(tmp_path: Path, verify: bytes | str) -> None:
    place = save(tmp_path, small_state())
    if isinstance(verify, bytes):
        (place / "state.pt").write_bytes(verify)
    else:
        torch.save({"device": "cpu"}, place / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt does not"):
        load(place, small_state())


def test_a_checkpoint_of_another_device_says_where_to_go_on(tmp_path: Path) -> None:
    place = save(tmp_path, small_state())
    saved = torch.load(place / "state.pt")
    torch.save({**saved, "version": 1, "device": "cuda"}, place / "state.pt")
    (place / "SHA256SUMS").unlink()  # as an earlier version had it
    with pytest.raises(ValueError, match="--device=cuda"):
        load(place, small_state())


def test_weights_that_are_not_numbers_are_not_saved_over_good_ones(tmp_path: Path) -> None:
    state = small_state()
    save(tmp_path, state, keep=1)
    state.images = 64
    with torch.no_grad():
        next(state.denoiser.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="expected finite weights, got NaN"):
        save(tmp_path, state, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["0000000000"]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "channels last": lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
    "contiguous": lambda: nn.Conv2d(3, 4, 3),
    "1x1": lambda: nn.Conv2d(3, 4, 1).to(memory_format=torch.channels_last),
    "volumes": lambda: nn.Conv3d(3, 4, 2).to(memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
    "transposed": lambda: _transposed(nn.Linear(5, 4)),
}


def _transposed(layer: nn.Linear) -> nn.Linear:
    layer.weight.data = layer.weight.data.T.contiguous().T
    return layer


@pytest.mark.parametrize("kind", LAYERS)
def test_fused_adam_takes_weights_gradients_and_moments_of_any_memory_order(kind: str) -> None:
    result = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = LAYERS[kind]().double()
        optimizer = adam(layer, 1e-2) if fused else torch.optim.Adam(layer.parameters(), 1e-2)
        for step in range(4):
            for weight in layer.parameters():
                weight.grad = seeded_normal(f"g{step}", weight.shape)  # contiguous
                if step % 2:
                    weight.grad = torch.empty_like(weight).copy_(weight.grad)
            if step == 2:  # as from a file
                for state in optimizer.state.values():
                    state["exp_avg"] = state["exp_avg"].contiguous()
            optimizer.step()
        result.append(layer)
    for mine, other in zip(*(layer.parameters() for layer in result), strict=True):
        assert (mine - other).abs().max() < 1e-14


def test_train_alone_leaves_out_a_step_without_a_finite_gradient() -> None:
    denoiser = Denoiser(MLP((2,), width=8, blocks=1), eps)
    state = TrainingState(denoiser)
    good, bad = torch.eye(4)[:, :2], torch.full((4, 2), float("nan"))
    steps = train(denoiser, VPSDE(), [good, bad, good], images=12, state=state)
    next(steps)
    before = copy.deepcopy((denoiser.state_dict(), state.ema.model.state_dict()))
    assert not bool(next(steps).grad_norm.isfinite())
    for kept, now in zip(before, (denoiser.state_dict(), state.ema.model.state_dict()), strict=True):
        assert all(torch.equal(kept[name], now[name]) for name in kept)
    assert bool(next(steps).grad_norm.isfinite())
