"""A loss that is not finite or explodes: the error names the step, the noise level, the layer and the batch."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import (
    BATCH,
    batches,
    new_state,
    watched,
    with_value,
)

from scorefield.sde_lib import SDE, VPSDE
from scorefield.training import Step, TrainingState, dsm_loss, engine, save, train
from scorefield.training.monitor import loss_guard
from scorefield.training.monitor.loss_guard import LossGuard


class Poisoned(nn.Module):
    """Infinite at one example, whose first value is beyond a threshold."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 1e3, math.inf, x)


def poisoned(state: TrainingState) -> None:
    denoiser: Any = state.denoiser
    denoiser.net.stem = nn.Sequential(Poisoned(), denoiser.net.stem)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_layer_that_overflows_names_its_step_level_and_layer(tmp_path: Path, precision: torch.dtype) -> None:
    state = new_state()
    poisoned(state)
    seen, message = watched(state, with_value(1e7, 23, 5), tmp_path, precision=precision)
    t = seen[-1].times[5]
    assert message.startswith("step 23 (368 images): the loss is nan, in 1 of 16 examples; the worst is example 5 at ")
    assert f"log-SNR {float(VPSDE().log_snr(t)):.4g} (t = {float(t):.4g})" in message
    assert "the first output that is not finite is that of net.stem.0 (Poisoned)" in message
    assert "\n" not in message
    # The state is finite. The stored batch has the same losses again, to the bit for the other examples.
    assert all(bool(p.isfinite().all()) for p in (*state.denoiser.parameters(), *state.ema.model.parameters()))
    kept = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert (kept["step"], kept["example"]) == (23, 5)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        repeated = dsm_loss(state.denoiser, VPSDE(), kept["x0"], kept["times"], kept["eps"])
    torch.testing.assert_close(repeated, kept["losses"], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(kept["losses"], seen[-1].losses, rtol=0, atol=0, equal_nan=True)
    assert save(tmp_path / "checkpoints", state).is_dir()


def test_a_pixel_that_is_not_finite_is_named(tmp_path: Path) -> None:
    _, message = watched(new_state(), with_value(math.nan, 3, 11), tmp_path)
    assert message.startswith("step 3 ")
    assert "example 11 at" in message
    assert "x0 of example 11 is not finite, and the first output that is not finite is that of net.stem" in message


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    state = new_state()

    denoiser: Any = state.denoiser

    def planted() -> Iterator[Tensor]:
        for i, x in enumerate(batches((4,)), start=1):
            if i == 4:
                denoiser.net.blocks[1].first.weight.data[2, 3] = math.nan
            yield x

    _, message = watched(state, planted(), tmp_path)
    assert message.startswith("step 4 ")
    assert "in 16 of 16 examples" in message
    assert "the weight net.blocks.1.first.weight is not finite" in message


def test_a_batch_that_cannot_be_kept_does_not_hide_the_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _, message = watched(new_state(), with_value(math.nan, 3, 11), tmp_path / "file")
    assert message.startswith("step 3 ")
    assert "the batch is not kept (" in message


def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path) -> None:
    class Root(nn.Module):
        """0 at 0, where the slope is infinite: the chain rule gives 0 times infinity."""

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return x + (self.gain * x).abs().sqrt() * 0

    state = new_state()
    state.denoiser.net.stem = nn.Sequential(Root(), state.denoiser.net.stem)
    state = TrainingState(state.denoiser)
    before = [p.clone() for p in state.denoiser.parameters()]
    _, message = watched(state, batches((4,)), tmp_path)
    assert message.startswith("step 1 (16 images): the gradient's norm is nan at a loss of ")
    assert "the first gradient that is not finite is that of net.stem.0.gain" in message
    assert all(torch.equal(a, b) for a, b in zip(before, state.denoiser.parameters(), strict=True))


def with_jump(state: TrainingState, at: int) -> Iterator[Tensor]:
    """The head's weights are 10,000 times as large for one step."""
    denoiser: Any = state.denoiser
    for i, x in enumerate(batches((4,)), start=1):
        denoiser.net.head.weight.data *= {at: 1e4, at + 1: 1e-4}.get(i, 1)
        yield x


def test_a_loss_that_explodes_is_named_after_a_warm_up_and_not_before(tmp_path: Path) -> None:
    state = new_state()
    seen, message = watched(state, with_jump(state, 120), tmp_path, steps=130)
    ratio = float(seen[-1].loss) / np.mean([float(step.loss) for step in seen[:-1]])
    assert message.startswith("step 120 ")
    assert f"example {int(seen[-1].losses.argmax())} at" in message
    ratio_in_message = float(message.split(", ")[1].split(" times its mean")[0])
    assert ratio_in_message == pytest.approx(ratio, rel=0.2)  # of a mean that forgets, of losses that fall
    assert "the largest output is that of net.head (Linear)" in message
    for at, explosion in ((50, 1e3), (120, 0)):  # within the warm-up; and switched off
        state = new_state()
        guard = LossGuard(VPSDE(), folder=tmp_path, explosion=explosion)
        loader = with_jump(state, at)
        list(train(state.denoiser, VPSDE(), loader, images=BATCH * 130, state=state, accept=guard.accept))
    with pytest.raises(ValueError, match=r"more than 1 times the mean loss, got 0\.5"):
        LossGuard(VPSDE(), explosion=0.5)


class Late:
    """An event that is never ready, and must be waited for."""

    waited = 0

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        Late.waited += 1


def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Late, "waited", 0)
    monkeypatch.setattr(loss_guard, "_to_host", lambda flag: (flag, Late()))
    monkeypatch.setattr(engine, "HOST_DEVICES", ())


def test_a_verdict_that_is_late_names_the_step_it_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda(monkeypatch)
    seen, message = watched(new_state(), with_value(math.nan, 9, 1), tmp_path)
    assert message.startswith("step 9 ")
    assert seen[-1].step == 9 + loss_guard.BEHIND
    assert Late.waited == 9
    # Settled, before a checkpoint say, it comes at once.
    state = new_state()
    guard = LossGuard(VPSDE(), state.denoiser, folder=tmp_path)
    steps = train(state.denoiser, VPSDE(), with_value(math.nan, 2, 1), images=99, state=state, accept=guard.accept)
    list(itertools.islice(steps, 3))
    with pytest.raises(ValueError, match=r"^step 2 "):
        guard.settle()


@pytest.mark.parametrize("fused", [True, False])
def test_no_step_is_taken_after_a_bad_one_before_its_verdict_is_read(
    fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_cuda(monkeypatch)
    states = []
    for loader, steps in ((batches((4,)), 8), (with_value(math.nan, 9, 1), 60)):
        denoiser = new_state().denoiser
        states.append(TrainingState(denoiser, torch.optim.Adam(denoiser.parameters(), lr=1e-3, fused=fused)))
        if steps == 60:
            watched(states[-1], loader, tmp_path)
        else:
            list(train(denoiser, VPSDE(), loader, images=BATCH * steps, state=states[-1]))
    for before, after in zip(states[0].denoiser.parameters(), states[1].denoiser.parameters(), strict=True):
        # A fused step is not taken; another continues by its moments, 5 times by at most the learning rate.
        torch.testing.assert_close(after, before, rtol=0, atol=0 if fused else 5.1e-3)
    moments = [[s["exp_avg"] for s in state.optimizer.state.values()] for state in states]
    assert all(bool(m.isfinite().all()) for m in moments[1])
    assert not fused or all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


def everything(state: TrainingState) -> list[Tensor]:
    """Weights, their averages and moments, and how often each was moved."""
    models = [state.denoiser, *state.ema.models]
    moments = [value for each in state.optimizer.state.values() for value in each.values()]
    return [*(p for model in models for p in model.parameters()), *moments, torch.tensor(state.ema.updates)]


@pytest.mark.parametrize("bad", ["number", "norm", "explosion"])
def test_a_bad_step_moves_nothing(bad: str, tmp_path: Path) -> None:
    state, before, scale = new_state(), list[Tensor](), [1.0]
    loader = {
        "number": with_value(math.nan, 120, 3),
        "norm": batches((4,)),
        "explosion": with_jump(state, 120),
    }

    def followed() -> Iterator[Tensor]:
        for i, x in enumerate(loader[bad], start=1):
            if i == 120:
                before.extend(each.detach().clone() for each in everything(state))
                scale[0] = 1e25 if bad == "norm" else 1.0
            yield x

    def weight(sde: SDE, t: Tensor) -> Tensor:
        # A loss of 1e25 is finite, and so is every gradient; the squares in the gradient's norm are not.
        return torch.full_like(t, scale[0])

    options: dict[str, Any] = {"explosion": 0, "weight": weight} if bad == "norm" else {}
    _, message = watched(state, followed(), tmp_path, steps=130, **options)
    assert message.startswith("step 120 ")
    assert bad != "norm" or "the gradient's norm is inf at a loss of " in message
    after = everything(state)
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_training_can_continue_without_a_bad_step(tmp_path: Path) -> None:
    state = new_state()
    guard = LossGuard(VPSDE(), state.denoiser, folder=tmp_path)
    loader = with_value(math.nan, 9, 1)

    def steps() -> Iterator[Step]:
        return train(state.denoiser, VPSDE(), loader, images=BATCH * 19, state=state, accept=guard.accept)

    with pytest.raises(ValueError, match=r"^step 9 "):
        list(steps())
    assert (state.step, state.images) == (8, BATCH * 8)
    list(steps())
    assert math.isfinite(guard.state_dict()["mean"])
    assert state.ema.updates == 19
    assert {int(each["step"]) for each in state.optimizer.state.values()} == {19}


def test_a_bad_gradient_is_named_when_its_verdict_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By then the gradients in the weights are of a later step, and clipped by a norm that was none.
    as_on_cuda(monkeypatch)
    test_a_gradient_that_is_not_finite_is_named(tmp_path)


class Norms(TorchDispatchMode):
    """Counts the norms that are taken."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "foreach_norm" in str(func)
        return func(*args, **(kwargs or {}))


def test_a_step_takes_one_norm_of_its_gradient(tmp_path: Path) -> None:
    state = new_state()
    guard = LossGuard(VPSDE(), state.denoiser, folder=tmp_path)
    with Norms() as norms:
        list(train(state.denoiser, VPSDE(), batches((4,)), images=BATCH * 5, state=state, accept=guard.accept))
    assert norms.count == 5
