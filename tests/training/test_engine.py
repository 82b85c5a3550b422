"""The engine: several objectives with an optimiser each, and a model with more than a denoiser in it."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learned_path import LearnedPath
from torch import Generator, Tensor, nn

from scorefield.models import MLP, Denoiser, UNet
from scorefield.models.precondition import eps
from scorefield.sde_lib import VPSDE
from scorefield.training import EMA, Model, Objective, TrainingState, load, load_weights, run, save, train
from scorefield.training.checkpoints.atomic import write_tensors


class Weight(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def pair(every: int = 2, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD) -> tuple[TrainingState, Any]:
    """A critic c that follows a generator g, by (c - g)^2 x, and a generator that flees it, by g c + 1."""
    model = Model(Weight(1.0), discriminator=Weight(-0.5))
    g, c = model.denoiser.value, model.discriminator.value  # type: ignore[union-attr]
    critic, generator = optimizer([c], lr=0.1), optimizer([g], lr=0.2)  # type: ignore[call-arg]
    state = TrainingState(model, critic, EMA(model, 0.3), more_optimizers=(generator,))

    def chase(model: Model, batch: dict[str, Tensor]) -> Tensor:
        assert not g.requires_grad and c.requires_grad
        return (c - g).square() * batch["x0"]

    def flee(model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert g.requires_grad and not c.requires_grad
        return g * c + batch["u"], {"u": batch["u"]}

    def draw(model: Model, batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        return {"u": torch.rand(len(batch["x0"]), generator=generator, dtype=torch.float64)}

    return state, [Objective(critic, chase), Objective(generator, flee, draw, every=every)]


def numbers(start: int = 0) -> Iterator[Tensor]:
    while True:
        yield torch.arange(4, dtype=torch.float64) + start
        start += 1


def test_two_objectives_alternate_as_by_hand() -> None:
    state, objectives = pair()
    records = list(run(state, objectives, numbers(), images=24, clip=0.7, schedule=lambda n: 1 / (1 + n), accumulate=2))
    g, c, average = 1.0, -0.5, [1.0, -0.5]
    for step, record in enumerate(records):
        mean, factor, gradient = 1.5 + step, 1 / (1 + 4 * step), 2 * (c - g) * (1.5 + step)
        assert float(record[0].loss) == pytest.approx((c - g) ** 2 * mean, rel=1e-12)
        assert float(record[0].grad_norm) == pytest.approx(abs(gradient), rel=1e-12)
        c -= 0.1 * factor * gradient * min(1.0, 0.7 / (abs(gradient) + 1e-6))
        assert len(record) == (2 if step % 2 else 1)  # the second in steps 2, 4 and 6
        if step % 2:
            assert float(record[1].grad_norm) == pytest.approx(abs(c), rel=1e-12)
            u = record[1].numbers["u"]
            torch.testing.assert_close(record[1].losses, g * c + u, rtol=1e-12, atol=0)
            g -= 0.2 * factor * c * min(1.0, 0.7 / (abs(c) + 1e-6))
        decay = min(0.3, (1 + step) / (10 + step))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, (g, c), strict=True)]
    assert [record[0].images for record in records] == [4, 8, 12, 16, 20, 24]
    result = [float(w.detach()) for model in (state.model, state.ema.model) for w in model.parameters()]
    assert result == pytest.approx([g, c, *average], rel=1e-12)
    assert all(weight.requires_grad for weight in state.model.parameters())


def test_two_optimisers_resume_to_the_bit(tmp_path: Path) -> None:
    (unbroken, objectives), (first, same), (second, other) = (pair(3, torch.optim.Adam) for _ in range(3))
    list(run(unbroken, objectives, numbers(), images=32))
    list(run(first, same, numbers(), images=16))
    load(save(tmp_path, first), second)
    list(run(second, other, numbers(4), images=32))
    for a, b in zip(unbroken.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(unbroken.generator.get_state(), second.generator.get_state())


@pytest.mark.parametrize("refused", [0, 1])
def test_a_refused_objective_leaves_the_other_alone(refused: int) -> None:
    state, objectives = pair(1)
    objectives[refused].accept = lambda step: torch.tensor(False)
    list(run(state, objectives, numbers(), images=4))
    g, c = (float(weight.detach()) for weight in state.model.parameters())
    assert (c == -0.5) == (refused == 0)
    assert (g == 1.0) == (refused == 1)
    assert state.ema.updates == 1  # one of the two has moved


def test_losses_are_one_number_for_each_example() -> None:
    state, objectives = pair(1)
    right = objectives[0].loss
    for wrong in (
        lambda model, batch: right(model, batch).mean(),
        lambda model, batch: right(model, batch)[:, None],
    ):
        objectives[0].loss = wrong
        with pytest.raises(ValueError, match="expected the objective's loss to answer with one number for each"):
            next(run(state, objectives, numbers(), images=4))


def test_some_objective_must_take_every_step() -> None:
    state, objectives = pair()
    for some in (objectives[1:], []):
        with pytest.raises(ValueError, match="every=1"):
            next(run(state, some, numbers(), images=4))


# A learned path


def learned() -> TrainingState:
    torch.manual_seed(0)
    model = Model(Denoiser(MLP((4,), width=8, blocks=1), eps), LearnedPath())
    nn.init.normal_(model.denoiser.net.head.weight, std=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return TrainingState(model, optimizer, EMA(model, (0.9, 0.5)))


def data(start: int = 0) -> Iterator[Tensor]:
    while True:
        yield torch.randn(8, 4, generator=Generator().manual_seed(start))
        start += 8


def steps(state: TrainingState, images: int, **settings: Any) -> list[Any]:
    return list(train(state.denoiser, state.model.sde, data(state.images), images=images, state=state, **settings))


def test_a_learned_path_is_trained_clipped_averaged_saved_and_resumed(tmp_path: Path) -> None:
    unbroken, first, second = learned(), learned(), learned()
    gain = unbroken.model.sde.gain
    (record,) = steps(unbroken, 8, clip=1e-6)
    gradients = [weight.grad.norm() for weight in unbroken.model.parameters()]
    assert gain.grad.norm() > 0
    assert float(record.grad_norm) > 1e-3 and float(torch.stack(gradients).norm()) == pytest.approx(1e-6, rel=1e-2)
    average, start = unbroken.ema.model.sde.gain, learned().model.sde.gain
    assert not torch.equal(gain, start)
    torch.testing.assert_close(average, 0.1 * start + 0.9 * gain, rtol=1e-6, atol=0)

    unbroken = learned()
    steps(unbroken, 80)
    steps(first, 40)
    place = save(tmp_path, first)
    load(place, second)
    steps(second, 80)
    pairs = [(unbroken.model, second.model), *zip(unbroken.ema.models, second.ema.models, strict=True)]
    for ours, theirs in pairs:
        assert "sde.gain" in ours.state_dict()
        assert all(torch.equal(w, theirs.state_dict()[name]) for name, w in ours.state_dict().items())
    for a, b in zip(unbroken.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_state_must_hold_the_learned_path() -> None:
    denoiser, sde = learned().denoiser, LearnedPath()
    state = TrainingState(denoiser)
    with pytest.raises(ValueError, match=r"TrainingState\(Model\(denoiser, sde\)\)"):
        train(denoiser, sde, data(), images=8, state=state)
    with pytest.raises(ValueError, match=r"EMA\(model\)"):
        TrainingState(Model(denoiser, sde), ema=EMA(denoiser))
    (_step,) = train(denoiser, sde, data(), images=8)  # the default state is of both
    assert sde.gain.grad is not None


# Models


def test_a_model_is_its_denoiser_when_it_is_called() -> None:
    denoiser, x, scales = Denoiser(MLP((4,), width=8), eps), torch.randn(3, 4), VPSDE().scales(0.3)
    nn.init.normal_(denoiser.net.head.weight)
    model = Model(denoiser, VPSDE())
    assert torch.equal(model(x, *scales), denoiser(x, *scales))
    assert torch.equal(model.noise(x, *scales), denoiser.noise(x, *scales))
    assert not model.learns_path and Model(denoiser, LearnedPath()).learns_path
    assert next(name for name, _ in model.named_parameters()).startswith("denoiser.net.")


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    model = Model(nn.Linear(2, 2), autoencoder=nn.Linear(2, 2).requires_grad_(False)).eval()
    model.train()
    assert model.denoiser.training and not model.autoencoder.training


def test_files_of_a_bare_denoiser_and_of_a_model_load_into_either(tmp_path: Path) -> None:
    source = Denoiser(UNet(1, width=8, multipliers=(1,), blocks=1), eps)
    write_tensors(tmp_path / "old.safetensors", source.state_dict())
    write_tensors(tmp_path / "new.safetensors", Model(source, LearnedPath(0.7)).state_dict())
    for file, sde in (("old", VPSDE()), ("new", LearnedPath())):
        empty = copy.deepcopy(source)
        model = Model(copy.deepcopy(source), sde)
        for weight in (*empty.parameters(), *model.parameters()):
            nn.init.zeros_(weight)
        load_weights(tmp_path, empty, file)
        load_weights(tmp_path, model, file)
        for result in (empty, model.denoiser):
            assert all(torch.equal(w, result.state_dict()[name]) for name, w in source.state_dict().items())
    assert float(model.sde.gain.detach()) == pytest.approx(0.7)
    with pytest.raises(ValueError, match=r"another architecture: sde\.gain is absent there"):
        load_weights(tmp_path, Model(source, LearnedPath()), "old")


def test_a_part_that_no_objective_trains_is_frozen_while_a_loss_is_computed() -> None:
    # DistributedDataParallel waits for the gradient of every weight that requires one.
    model = Model(Weight(1.0), discriminator=Weight(-0.5))
    weight, idle = model.denoiser.value, model.discriminator.value  # type: ignore[union-attr]
    seen = []

    def loss(model: Model, batch: dict[str, Tensor]) -> Tensor:
        seen.append((weight.requires_grad, idle.requires_grad))
        return weight.square() * batch["x0"]

    optimizer = torch.optim.SGD([weight], lr=0.1)
    list(run(TrainingState(model, optimizer, EMA(model)), [Objective(optimizer, loss)], numbers(), images=8))
    assert seen == [(True, False)] * 2 and idle.requires_grad
    assert float(idle.detach()) == -0.5 and float(weight.detach()) != 1.0
