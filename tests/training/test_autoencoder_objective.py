"""Training an autoencoder: its losses in closed form, the adaptive weight, the start, processes, and resuming."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from scorefield.models.moments import Moments, Reconstruction
from scorefield.models.networks.autoencoder import ImageAutoencoder, KLAutoencoder, VQAutoencoder
from scorefield.models.networks.patchgan import PatchGAN
from scorefield.models.networks.quantisers import Codebook
from scorefield.models.perceptual import LaplacianPyramid
from scorefield.training import EMA, Model, TrainingState
from scorefield.training.checkpoints import checkpoint
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.engine import Step, run
from scorefield.training.objectives.adversarial import Adversary, Start, adaptive_weight, hinge
from scorefield.training.objectives.autoencoder import objectives


class Linear(ImageAutoencoder):
    """A linear encoder and decoder of single pixels, with a variance for each channel of the code."""

    def __init__(self, channels: int, code_channels: int) -> None:
        super().__init__(channels, code_channels, 1)
        generator = Generator().manual_seed(0)
        self.encoder = nn.Conv2d(channels, code_channels, 1, bias=False)
        self.decoder = nn.Conv2d(code_channels, channels, 1, bias=False)
        self.log_var = nn.Parameter(torch.zeros(code_channels, 1, 1))
        for layer in (self.encoder, self.decoder):
            nn.init.normal_(layer.weight, std=0.5, generator=generator)

    def moments(self, images: Tensor) -> Moments:
        mean = self.encoder(images)
        return Moments(mean, self.log_var.expand_as(mean))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def reconstruct(self, images: Tensor, noise: Tensor) -> Reconstruction:
        moments = self.moments(images)
        return Reconstruction(self.decode(moments.sample(noise)), moments.kl(), {})

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.weight


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def optimizers(model: Model, learning_rate: float = 1e-3) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    first, second = (
        # A larger eps than usual: Adam scales up the rounding of gradients that are exactly 0 in theory.
        torch.optim.Adam(part.parameters(), learning_rate, betas=(0.5, 0.9), eps=1e-3)
        for part in (model.autoencoder, model.discriminator)
    )
    return first, second


def vq_state(start: Start | None = None) -> tuple[TrainingState, list[Any]]:
    """A small quantised autoencoder with a discriminator, and its objectives."""
    torch.manual_seed(0)
    net = VQAutoencoder(1, Codebook(8, 2), 2, width=4, multipliers=(1, 2), blocks=1, middle_attention=False)
    model = Model(autoencoder=net, discriminator=Adversary(PatchGAN(1, layers=1, width=4)))
    first, second = optimizers(model)
    state = TrainingState(model, first, EMA(model, 0.9), more_optimizers=[second])
    return state, objectives(first, second, perceptual=LaplacianPyramid(2), start=start or Start(3, ramp=2))


def steps(state: TrainingState, parts: list[Any], until: int, **settings: Any) -> list[tuple[Step, ...]]:
    batches = [randn(8, 1, 8, 8, seed=seed).tanh() for seed in range(until)]
    loader = batches[state.step :] + batches[: state.step]
    return list(run(state, parts, loader, images=8 * until, **settings))


def flat(module: nn.Module) -> Tensor:
    return torch.cat([each.detach().double().flatten() for each in module.state_dict().values()])


# Losses


def test_the_loss_is_that_of_latent_diffusion_for_each_dimension() -> None:
    model, x, noise = Model(autoencoder=Linear(3, 2)), randn(4, 3, 5, 5), randn(4, 2, 5, 5, seed=1)
    distance = LaplacianPyramid(2)
    for norm, power in (("l1", 1), ("l2", 2)):
        (objective,) = objectives(
            torch.optim.SGD(model.parameters()), norm=norm, perceptual=distance, perceptual_weight=0.3, kl=1e-2
        )
        losses, numbers = objective.loss(model, {"x0": x, "noise": noise})
        made = model.autoencoder.reconstruct(x, noise)
        # Rombach et al.'s code: sums over the image, where the perceptual distance is added to every value.
        pixels = (x - made.images).abs() ** power + 0.3 * distance(x, made.images)[:, None, None, None]
        moments = model.autoencoder.moments(x)
        kl = 0.5 * (moments.mean**2 + moments.log_var.exp() - 1 - moments.log_var).flatten(1).sum(1)
        assert_close(75 * losses, pixels.flatten(1).sum(1) + 1e-2 * kl)
        assert_close(numbers["regulariser"], 1e-2 * kl / 75)
        assert not numbers["adversarial"].any() and not numbers["adversarial_weight"].any()


def test_the_hinge_of_known_logits() -> None:
    real, fake = torch.tensor([[0.5, 2.0], [-1.0, 1.0]]), torch.tensor([[-0.5, -3.0], [0.0, 1.0]])
    assert_close(hinge(real, fake), torch.tensor([0.25, 1.25]))


def test_the_adaptive_weight_of_a_linear_decoder() -> None:
    layer = nn.Conv2d(2, 3, 1, bias=False).double()
    z, x = randn(4, 2, 5, 5).double(), randn(4, 3, 5, 5, seed=1).double()
    images = layer(z)
    first, second = 2 * (images - x).detach() / 300, torch.full_like(images, -1 / 75)  # of mean squares, of -3 mean
    # d/dL of a function of L z: the sum over places of its gradient times z.
    norms = [torch.einsum("bihw,bjhw->ij", each, z).norm() for each in (first, second)]
    expected = norms[0] / (norms[1] + 1e-4)
    assert_close(adaptive_weight(images, layer.weight, first, second), expected)
    assert_close(adaptive_weight(images, layer.weight, 10 * first, second), 10 * expected)
    assert adaptive_weight(images, layer.weight, first, second, largest=0.01) == 0.01
    assert_close(adaptive_weight(images, layer.weight, first, 0 * second), (norms[0] / 1e-4).clamp(max=1e4))
    layer.requires_grad_(False)
    with pytest.raises(ValueError, match="got one that is frozen"):
        adaptive_weight(images, layer.weight, first, second)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_the_gradient_with_an_adversary_is_that_of_the_formula(share: float) -> None:
    torch.manual_seed(0)
    model = Model(autoencoder=Linear(2, 2), discriminator=Adversary(PatchGAN(2, layers=1, width=4))).double()
    x, noise = randn(4, 2, 8, 8).double(), randn(4, 2, 8, 8, seed=1).double()
    first, second = optimizers(model)
    state = TrainingState(model, first, more_optimizers=[second], step=11)
    objective, of_discriminator = objectives(first, second, adversarial=0.7, kl=0.1, start=Start(12, int(1 / share)))
    assert objective.due(state) and of_discriminator.due(state)
    losses, numbers = objective.loss(model, {"x0": x, "noise": noise})
    weights = list(model.autoencoder.parameters())
    result = torch.autograd.grad(losses.mean(), weights)

    made = model.autoencoder.reconstruct(x, noise)
    nll, g = (x - made.images).abs().flatten(1).mean(1), -model.discriminator(made.images).flatten(1).mean(1)
    norms = [torch.autograd.grad(each.mean(), made.images, retain_graph=True)[0] for each in (nll, g)]
    norms = [
        torch.autograd.grad(made.images, model.autoencoder.last_layer, each, retain_graph=True)[0].norm()
        for each in norms
    ]
    expected = norms[0] / (norms[1] + 1e-4)
    assert_close(numbers["adversarial_weight"], expected.expand(4))
    assert_close(numbers["adversarial"], g)
    value = nll + 0.1 * made.regulariser / 128 + share * 0.7 * expected * g
    assert_close(losses, value)
    for ours, theirs in zip(result, torch.autograd.grad(value.mean(), weights), strict=True):
        assert_close(ours, theirs)

    # The discriminator learns of the same reconstructions, and finds them again, in parts or together.
    for _ in range(2):
        losses, numbers = of_discriminator.loss(model, {"x0": x})
        assert_close(losses, hinge(model.discriminator(x), model.discriminator(made.images)))
    assert_close(numbers["logit_fake"], -g)
    assert objective.due(state)
    for rows in (slice(0, 2), slice(2, 4)):
        objective.loss(model, {"x0": x[rows], "noise": noise[rows]})
    for rows in (slice(0, 2), slice(2, 4), slice(0, 4)):
        numbers = of_discriminator.loss(model, {"x0": x[rows]})[1]
        assert_close(numbers["logit_fake"], -g[rows])


# The start


def test_nothing_is_paid_before_the_start_and_both_move_after_it() -> None:
    state, parts = vq_state(Start(3, ramp=0))
    calls = {"autoencoder": 0, "forward": 0, "backward": 0}

    def count(name: str) -> None:  # a hook: what it returns would replace the output
        calls[name] += 1

    def through(module: nn.Module, inputs: Any, output: Tensor) -> None:
        count("forward")
        output.register_hook(lambda gradient: count("backward"))

    state.model.autoencoder.encoder.register_forward_hook(lambda *_: count("autoencoder"))
    state.model.discriminator.net.net[0].register_forward_hook(through)
    before = [flat(state.model.autoencoder), flat(state.model.discriminator.net)]
    for step, records in zip(range(1, 6), run(state, parts, [randn(8, 1, 8, 8)], images=40), strict=True):
        started = step >= 3
        # A pass of the autoencoder; each way through the discriminator once for the images and once for its weights.
        assert calls == {"autoencoder": 1, "forward": 2 * started, "backward": 2 * started}
        calls.update(dict.fromkeys(calls, 0))
        after = [flat(state.model.autoencoder), flat(state.model.discriminator.net)]
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, started]
        assert len(records) == 1 + started and bool(records[0].numbers["adversarial_weight"].all()) == started
        assert len(state.more_optimizers[0].state) == (
            len(list(state.model.discriminator.parameters())) if started else 0
        )
        before = after


def test_the_start_by_a_step_and_its_ramp() -> None:
    state, start = vq_state()[0], Start(4, ramp=4)
    shares = []
    for step in range(9):
        state.step = step
        shares.append(start.share(state))
    assert shares == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    for wrong in (0, "soon"):
        with pytest.raises(ValueError, match="the start to be a step, 1 or later, or plateau, got"):
            Start(wrong)
    with pytest.raises(ValueError, match="window and patience of at least 1"):
        Start(window=0)


def test_the_start_by_a_plateau() -> None:
    # Windows of 2 steps: the third is the last that improves by a tenth, and two more must not.
    losses = [8, 6, 5, 5, 3, 3, 2.9, 2.9, 2.71, 2.71, 9, 9]
    state, start = vq_state()[0], Start("plateau", ramp=0, window=2, improvement=0.1, patience=2)
    shares = []
    for state.step, loss in enumerate(losses):
        if state.step == 7:  # a resumed run has the buffers alone
            start = Start("plateau", ramp=0, window=2, improvement=0.1, patience=2)
        shares.append(start.share(state))
        start.watch(state, torch.tensor([loss - 1, loss + 1.0]))
    assert shares == [0] * 10 + [1] * 2
    assert int(state.model.discriminator.started) == 10
    state.step = 12
    assert Start("plateau", ramp=4).share(state) == 0.75
    assert Start("plateau", ramp=4).share(vq_state()[0]) == 0


def test_a_step_that_is_refused_is_no_sign_of_a_plateau() -> None:
    state, start = vq_state()[0], Start("plateau", ramp=0, window=2, patience=1)
    for state.step, loss in enumerate((8.0, 8.0, 6.0, math.nan, 5.0, math.inf, 4.0, 4.0)):
        start.watch(state, torch.tensor([loss, loss]))
    assert int(state.model.discriminator.started) == -1  # the means of the windows are 8, 6, 5, 4


# A whole training


def test_a_linear_autoencoder_finds_the_principal_subspace() -> None:
    """By probabilistic PCA (Tipping and Bishop 1999) with noise sigma^2 = kl / 2, as Lucas et al. 2019 show."""
    variances, noise = torch.tensor([6.0, 1.2, 0.4, 0.2]), 0.3
    axes = torch.linalg.qr(randn(4, 4, seed=3))[0]
    x = randn(256, 4)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 256)).T  # the covariance is exactly 1
    x = (x * variances.sqrt()) @ axes.T
    net = Linear(4, 2)
    optimizer = torch.optim.Adam(net.parameters(), 0.1, betas=(0.9, 0.99))
    state, images = TrainingState(Model(autoencoder=net), optimizer), 256 * 300
    parts = objectives(optimizer, norm="l2", kl=2 * noise)
    for _ in run(state, parts, [x[:, :, None, None]], images=images, clip=None,
                 schedule=lambda seen: min(1.0, 2 - 2 * seen / images)):  # fmt: skip
        pass
    w = net.decoder.weight.detach()[:, :, 0, 0]
    expected = axes[:, :2] @ (variances[:2] - noise).diag() @ axes[:, :2].T
    # The draws of the codes' noise leave 0.05. Twice the weight of KL would give 0.3.
    assert_close(w @ w.T, expected, rtol=0, atol=0.1)
    cosines = torch.linalg.svdvals(torch.linalg.qr(w)[0].T @ axes[:, :2])
    assert cosines.min() > 0.999
    # The posterior variance is sigma^2 / lambda of each axis.
    result = net.log_var.detach().exp().flatten().sort()[0]
    assert_close(result, noise / variances[:2], rtol=0.1, atol=0)


def test_the_average_has_the_codebook_itself() -> None:
    state, parts = vq_state()
    steps(state, parts, 4)
    quantiser, average = (model.autoencoder.quantiser for model in (state.model, state.ema.model))
    for name, each in quantiser.state_dict().items():
        assert torch.equal(each, average.state_dict()[name])
    assert quantiser.use.sum() > 0


def test_half_precision_trains_nearly_the_same() -> None:
    results = []
    for precision in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        net = KLAutoencoder(1, 2, width=4, multipliers=(1, 2), blocks=1, middle_attention=False)
        model = Model(autoencoder=net, discriminator=Adversary(PatchGAN(1, layers=1, width=4)))
        first, second = optimizers(model)
        parts = objectives(first, second, perceptual=LaplacianPyramid(2), start=Start(2, ramp=0))
        results.append(steps(TrainingState(model, first, more_optimizers=[second]), parts, 4, precision=precision))
    for exact, half in zip(*results, strict=True):
        for ours, theirs in zip(half, exact, strict=True):
            assert ours.losses.dtype == torch.float32
            for name, each in ours.numbers.items():
                # 8 bits, and a few layers. The adaptive weight divides by a small gradient.
                rtol = 0.2 if name == "adversarial_weight" else 0.03
                assert_close(each.mean(), theirs.numbers[name].mean(), rtol=rtol, atol=0.01)


def everything(state: TrainingState) -> list[Tensor]:
    moments = [each for o in state.optimizers for of in o.state.values() for each in of.values()]
    return [flat(state.model), flat(state.ema.model), *moments]


def test_a_resumed_training_ends_at_the_same_bits(tmp_path: Path) -> None:
    def start() -> Start:  # after three windows
        return Start("plateau", ramp=3, window=1, improvement=0.9, patience=2)

    whole, parts = vq_state(start())
    records = steps(whole, parts, 6)
    assert [len(each) for each in records] == [1, 1, 1, 2, 2, 2]
    for before, until in ((0, 2), (2, 4), (4, 6)):  # while it watches, and in the ramp
        state, parts = vq_state(start())
        if before:
            nn.init.zeros_(state.model.autoencoder.last_layer)
            checkpoint.load(tmp_path / f"{8 * before:010d}", state)
        steps(state, parts, until)
        checkpoint.save(tmp_path, state)
    for ours, theirs in zip(everything(state), everything(whole), strict=True):
        assert torch.equal(ours, theirs)


def work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    state, parts = vq_state()
    records = steps(state, parts, 6)
    weights = [float(record[0].numbers["adversarial_weight"].mean()) for record in records]
    if rank == 1:
        torch.save({"all": everything(state), "weights": weights}, folder / "result.pt")
    Ranks.current().shutdown()


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(work, (2, tmp_path), nprocs=2, start_method="fork")
    result = torch.load(tmp_path / "result.pt", weights_only=False)
    state, parts = vq_state()
    records = steps(state, parts, 6)
    weights = [float(record[0].numbers["adversarial_weight"].mean()) for record in records]
    assert weights[0] == 0 < weights[-1]
    assert_close(result["weights"], weights, rtol=1e-4, atol=0)
    for ours, theirs in zip(result["all"], everything(state), strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # as in test_distributed


def test_parts_of_a_batch_give_what_it_gives_before_the_start() -> None:
    results = []
    for accumulate in (1, 2):
        state, parts = vq_state(Start(100))
        steps(state, parts, 3, accumulate=accumulate)
        results.append(flat(state.model))
    assert_close(*results, rtol=1e-3, atol=1e-5)
    state, parts = vq_state(Start(1))
    records = steps(state, parts, 2, accumulate=4)  # the discriminator sees the reconstructions of its own part
    assert [len(each) for each in records] == [2, 2]


def test_wrong_settings_are_refused() -> None:
    optimizer = torch.optim.SGD(Linear(1, 1).parameters())
    for settings, words in (
        ({"norm": "l3"}, "norm of l1 or l2, got 'l3'"),
        ({"kl": -1.0}, "weights of at least 0, got kl=-1.0"),
        ({"adversarial": math.nan}, "got adversarial=nan"),
    ):
        with pytest.raises(ValueError, match=words):
            objectives(optimizer, **settings)
    assert len(objectives(optimizer, copy.deepcopy(optimizer), adversarial=0)) == 1
