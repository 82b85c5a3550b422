"""Training and sampling by several processes, and in parts, against one process that does it plainly."""

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
import warm
from learned_path import LearnedPath
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scorefield.likelihood import GaussianDecoder
from scorefield.models import MLP, Denoiser, UNet
from scorefield.models.precondition import eps
from scorefield.sde_lib import SDE, VPSDE, LearnedVP
from scorefield.training import EMA, LossGuard, Model, Objective, TrainingState, engine, train
from scorefield.training import run as run_objectives
from scorefield.training.adam import adam
from scorefield.training.distributed.blocks import blocks_of
from scorefield.training.distributed.ranks import Agreement, Ranks
from scorefield.training.distributed.sharding import shard
from scorefield.training.muon import muon
from scorefield.training.objectives import dsm, elbo
from scorefield.training.times import Measured

ROOT = Path(__file__).parents[2]
BATCH, STEPS = 16, 6
# The results differ by rounding: sums of 16 gradients in another order, 6e-8 of their size. Adam scales that to its
# steps of 1e-3, and up to twenty of them add up. (Measured: 1e-6. Another batch, or noise, gives 1e-2.)
CLOSE = 1e-5


def data(step: int) -> Iterator[dict[str, Tensor]]:
    while True:
        generator = torch.Generator().manual_seed(step)
        x0 = torch.randn(BATCH, 2, 4, 4, generator=generator)
        yield {"x0": x0, "label": torch.randint(3, (BATCH,), generator=generator)}
        step += 1


def small_state(dropout: float = 0.0, width: int = 8) -> TrainingState:
    torch.manual_seed(0)
    # Without attention, whose keys' bias has no gradient but rounding, which Adam would scale up.
    net = UNet(
        2, width=width, multipliers=(1, 2), blocks=1, middle_attention=False, attention=(), num_classes=3,
        dropout=dropout,
    )  # fmt: skip
    for parameter in net.parameters():  # nothing at zero: every gradient counts from the first step
        nn.init.normal_(parameter, std=0.1)
    model = Model(Denoiser(net, eps), LearnedPath())
    return TrainingState(model, adam(model, 1e-3), EMA(model, 0.9))


def muon_state() -> TrainingState:
    state = small_state(width=16)  # no narrower layer is a matrix to it
    state.optimizer = muon(state.model, adam(state.model, 1e-3))
    assert any(group["matrices"] for group in state.optimizer.param_groups)
    return state


def trained_by_muon() -> dict[str, Any]:
    state = muon_state()
    trained(state)
    return {"weights": flat(state.model), "ema": flat(state.ema.model)}


def pair() -> tuple[TrainingState, list[Objective]]:
    """Two objectives with an optimiser each, on two linear layers."""
    torch.manual_seed(0)
    model = Model(nn.Linear(4, 4), discriminator=nn.Linear(4, 1))
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.denoiser, model.discriminator))

    def images(model: Model, batch: dict[str, Tensor]) -> Tensor:
        return model.denoiser(batch["x0"].flatten(1)[:, :4] + batch["noise"])

    def draw(model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        return {"noise": torch.randn(len(batch["x0"]), 4, generator=generator)}

    def judge(model: Model, batch: dict[str, Tensor]) -> Tensor:
        return (model.discriminator(images(model, batch)) - 1).square()[:, 0]

    def fool(model: Model, batch: dict[str, Tensor]) -> Tensor:
        return model.discriminator(images(model, batch))[:, 0]

    objectives = [Objective(second, judge, draw), Objective(first, fool, draw, every=2)]
    return TrainingState(model, second, EMA(model, 0.5), more_optimizers=(first,)), objectives


def trained_pair() -> dict[str, Any]:
    state, objectives = pair()
    list(run_objectives(state, objectives, data(0), images=10 * BATCH))
    return {"weights": flat(state.model), "ema": flat(state.ema.model)}


def trained_twice_differentiated() -> dict[str, Any]:
    """A few steps with the second-order loss."""
    torch.manual_seed(0)
    model = Model(Denoiser(MLP((2, 4, 4), width=8, blocks=1, num_classes=3), eps))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)
    state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.1), EMA(model, 0.5))
    objective = dsm.objective(VPSDE(), state.optimizer, second_order=0.1)
    *_, (last,) = run_objectives(state, [objective], data(0), images=3 * BATCH, accumulate=2)
    return {"weights": flat(state.model), "second_order": Ranks.current().all_gather(last.numbers["second_order"])}


def trained_on_the_bound() -> dict[str, Any]:
    """Some steps on the bound with learned ends and measured times, which are moved by the errors of all processes."""
    torch.manual_seed(0)
    path, measured = LearnedVP("linear", -5.0, 5.0), Measured(bins=4)
    model = Model(Denoiser(MLP((2, 4, 4), width=8, blocks=1, num_classes=3), eps), path)
    for weight in model.denoiser.parameters():
        nn.init.normal_(weight, std=0.1)
    state = TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.01), EMA(model, 0.5), times=measured)
    objective = elbo.objective(path, state.optimizer, decoder=GaussianDecoder(), times=measured)
    list(run_objectives(state, [objective], data(0), images=6 * BATCH, accumulate=2))
    assert not torch.equal(measured.density.probability, Measured(bins=4).density.probability)
    return {"weights": flat(state.model), "ema": flat(state.ema.model), "sums": measured.sums}


def path_of(state: TrainingState) -> SDE:
    assert state.model.sde is not None
    return state.model.sde


def trained(state: TrainingState, steps: int = STEPS, **settings: Any) -> dict[str, Any]:
    """The records to compare after training up to step `steps`."""
    *_, last = train(state.denoiser, path_of(state), data(state.step), images=steps * BATCH, state=state, **settings)
    ranks = Ranks.current()
    records = {"losses": ranks.all_gather(last.losses), "times": ranks.all_gather(last.times)}
    return records | {"loss": ranks.mean(last.loss), "grad_norm": last.grad_norm, "images": torch.tensor(last.images)}


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def outcome(state: TrainingState, records: dict[str, Any]) -> dict[str, Any]:
    moments = torch.cat([state.optimizer.state[p]["exp_avg"].flatten() for p in state.model.parameters()])
    return {"weights": flat(state.model), "ema": flat(state.ema.model), "moments": moments, **records}


def assert_alike(result: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def explode_in_the_second(rank: int, folder: Path) -> tuple[Tensor, float]:
    """A loss that explodes at the last step, on rank 1 alone; the weights, and how often they were moved."""
    denoiser = Denoiser(MLP((2,), width=8, blocks=1), eps)
    guard, calls = LossGuard(VPSDE(), denoiser, folder=folder), 0

    def weight(sde: SDE, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(t, 1e6 if rank == 1 and calls == 110 else 1.0)

    state, loader = TrainingState(denoiser), [torch.randn(4, 2)]
    with pytest.raises(ValueError, match="step 110") if rank == 1 else contextlib.nullcontext():
        list(train(denoiser, VPSDE(), loader, weight=weight, images=4 * 110, state=state, accept=guard.accept))
    return flat(denoiser), float(next(iter(state.optimizer.state.values()))["step"])


def work(rank: int, world: int, folder: Path) -> None:
    """What each of the processes does; the first leaves what came of it in a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    ranks = Ranks.current()
    result: dict[str, Any] = {"errors": {}}
    for name, settings in {"plain": {}, "accumulated": {"accumulate": 2}}.items() if world == 2 else [("plain", {})]:
        state = small_state()
        result[name] = outcome(state, trained(state, **settings))
    result["pair"] = trained_pair()
    result["twice_differentiated"] = trained_twice_differentiated()
    result["bound"] = trained_on_the_bound()
    result["muon"] = trained_by_muon()
    if world == 2:
        state = small_state()
        trained(state, STEPS // 2)  # so that there are moments to shard
        shards, all_weights = shard(state), flat(state.denoiser).numel()
        result["share"] = sum(p.to_local().numel() for p in state.denoiser.parameters()) / all_weights
        records = trained(state, accumulate=2, recompute=True)
        complete = shards.gather(state)
        result["sharded"] = outcome(complete, records) if rank == 0 else None
        state = muon_state()
        trained(state, STEPS // 2)
        shards = shard(state)
        trained(state)
        complete = shards.gather(state)
        result["muon_sharded"] = {"weights": flat(complete.model), "ema": flat(complete.ema.model)} if rank == 0 else {}
        result["exploded"] = ranks.all_gather_object(explode_in_the_second(rank, folder))
    agreed, requests = Agreement(ranks), [15 if rank == 1 and step == 3 else 0 for step in range(8)]
    result["agreed"] = ranks.gather({rank: [agreed(each) for each in requests]})
    result["collected"] = ranks.gather({i: torch.full((2,), i) for i in ranks.shard(range(5))})
    if rank == 0:
        torch.save(result, folder / "result.pt")
    ranks.shutdown()


def of_processes(world: int, folder: Path) -> dict[str, Any]:
    torch.multiprocessing.start_processes(work, (world, folder), nprocs=world, start_method="fork")
    result: dict[str, Any] = torch.load(folder / "result.pt", weights_only=False)
    return result


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    state = small_state()
    return outcome(state, trained(state))


def test_two_processes_learn_what_one_does(one: dict[str, Any], tmp_path: Path) -> None:
    result = of_processes(2, tmp_path)
    assert_alike(result["plain"], one)
    assert_alike(result["accumulated"], one)
    assert_alike(result["sharded"], one)
    assert_alike(result["pair"], trained_pair())
    assert_alike(result["twice_differentiated"], trained_twice_differentiated())
    assert_alike(result["bound"], trained_on_the_bound())
    by_muon = trained_by_muon()
    assert_alike(result["muon"], by_muon)
    assert_alike(result["muon_sharded"], by_muon)
    # No process takes a step that explodes in another.
    (first, count), (second, other) = result["exploded"]
    assert count == other == 109 and torch.equal(first, second)
    assert result["share"] == 0.5
    # A request of the second in the fourth call is known to both in the fifth.
    assert result["agreed"] == {rank: [0, 0, 0, 0, 15, 0, 0, 0] for rank in range(2)}
    assert {i: result["collected"][i].tolist() for i in range(5)} == {i: [i, i] for i in range(5)}


@pytest.mark.slow
def test_four_processes_learn_what_one_does(one: dict[str, Any], tmp_path: Path) -> None:
    result = of_processes(4, tmp_path)
    assert_alike(result["plain"], one)
    assert result["agreed"] == {rank: [0, 0, 0, 0, 15, 0, 0, 0] for rank in range(4)}


def test_a_batch_in_parts_is_the_batch(one: dict[str, Any]) -> None:
    state = small_state()
    assert_alike(outcome(state, trained(state, accumulate=4)), one)


def test_what_is_computed_again_is_the_same_to_the_bit() -> None:
    plain, recomputed = small_state(dropout=0.2), small_state(dropout=0.2)
    torch.manual_seed(5)
    expected = outcome(plain, trained(plain, 5))
    torch.manual_seed(5)
    calls = []
    blocks_of(recomputed.denoiser)[0].register_forward_hook(lambda *_: calls.append(1))
    inner = next(blocks_of(recomputed.denoiser)[0].children())
    inner.register_forward_pre_hook(lambda *_: calls.append(2))
    result = outcome(recomputed, trained(recomputed, 5, recompute=True))
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    assert (calls.count(1), calls.count(2)) == (5, 10)
    # Nothing is left behind.
    assert all("forward" not in vars(module) for module in recomputed.denoiser.modules())


def test_a_copy_of_a_network_in_training_is_its_own() -> None:
    state = small_state()
    steps = train(state.denoiser, path_of(state), data(0), images=9 * BATCH, state=state, recompute=True)
    next(steps)
    other = copy.deepcopy(state.denoiser)
    for parameter in other.parameters():
        parameter.data.zero_()
    x = torch.ones(1, 2, 4, 4)
    assert torch.equal(other.net(x, torch.zeros(1)), torch.zeros_like(x))


@pytest.mark.parametrize(("ranks", "accumulate"), [(Ranks(0, 3), 1), (Ranks(0, 2), 3), (Ranks(), 5)])
def test_a_batch_that_does_not_divide_is_refused(ranks: Ranks, accumulate: int) -> None:
    with pytest.raises(ValueError, match=f"set training.batch to a multiple of {ranks.world * accumulate}"):
        ranks.rows(16, accumulate)


def test_the_rows_of_all_ranks_are_the_batch() -> None:
    rows = [row for rank in range(4) for row in range(16)[Ranks(rank, 4).rows(16, 2)]]
    assert rows == list(range(16))


def test_one_kernels_adam_is_adam_and_resumes_to_the_bit() -> None:
    fused, by_hand = small_state(), small_state()
    assert fused.optimizer.defaults["fused"]
    by_hand.optimizer = torch.optim.Adam(by_hand.model.parameters(), lr=1e-3, foreach=False)
    assert_alike(outcome(fused, trained(fused)), outcome(by_hand, trained(by_hand)))
    first, resumed = small_state(), small_state()
    trained(first, STEPS // 2)
    resumed.model.load_state_dict(first.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    resumed.generator.set_state(first.generator.get_state())
    resumed.step, resumed.images = first.step, first.images
    trained(resumed)
    assert torch.equal(flat(resumed.model), flat(fused.model))


def test_bfloat16_learns_as_float32_does() -> None:
    curves = []
    for precision in (torch.float32, torch.bfloat16):
        state = small_state()
        steps = train(state.denoiser, path_of(state), data(0), images=STEPS * BATCH, state=state, precision=precision)
        curves.append(torch.stack([step.loss for step in steps]))
    # The same data and noise: what differs is rounding to 8 bits, 0.4% of a value and less of a mean of many.
    torch.testing.assert_close(curves[1], curves[0], rtol=0.02, atol=0)


class Waits(TorchDispatchMode):
    """Counts what makes a CUDA device's host wait: numbers read, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.result: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(op) for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.")):
            self.result.append(str(op))
        return op(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "HOST_DEVICES", ())  # as if this were a device that works on its own
    state = small_state()
    steps = train(state.denoiser, path_of(state), data(0), images=9 * BATCH, state=state, accumulate=2, recompute=True)
    next(steps)
    with Waits() as waits:
        next(steps)
        assert waits.result == []
        float(next(steps).loss)
        assert len(waits.result) == 1


# Processes as torchrun starts them


def fail() -> None:
    """The second rank fails in its third batch."""
    ranks = Ranks.of_environment()

    def loader() -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(data(0)):
            if ranks.rank == 1 and step == 2:
                raise ValueError("the third batch is broken")
            yield batch

    state = small_state()
    with ranks.failing_together():
        for _ in train(state.denoiser, path_of(state), loader(), images=STEPS * BATCH, state=state):
            pass


@pytest.mark.slow
def test_where_one_rank_fails_torchrun_ends_with_its_error() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--", __file__]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode != 0
    assert "the third batch is broken" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "error", [torch.distributed.DistError("lost"), RuntimeError("[gloo] Connection reset by peer")]
)
def test_a_lost_neighbour_is_one_line(error: RuntimeError) -> None:
    with pytest.raises(ValueError, match="process 1 of 2 lost the others"), Ranks(1, 2).failing_together():
        raise error
    for other, ranks in ((RuntimeError("a bug"), Ranks(1, 2)), (error, Ranks())):
        with pytest.raises(type(other)), ranks.failing_together():
            raise other


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scorefield.commands.train.command import train as train_run
    from scorefield.configs import digits

    workdir = tmp_path_factory.mktemp("runs") / "digits"
    config = digits.get_config("vp")
    config.net.update(width=8, multipliers=(1, 2), blocks=1)
    config.training.update(images=64, batch=32, sample_every=0)
    train_run(workdir, config)
    return workdir


def test_ranks_share_samples_to_the_bit(run: Path, tmp_path: Path) -> None:
    from scorefield.commands.sample import sample

    options = {"num": 20, "batch": 8, "solver": "euler_maruyama", "steps": 5, "seed": 3}
    sample(run, **options, output=str(tmp_path / "one.npz"), trajectory=2)
    flags = [f"--{name}={value}" for name, value in options.items()]
    jobs = warm.ranks("--mode=sample", f"--workdir={run}", *flags, f"--output={tmp_path}/two.npz", "--trajectory=2")
    outputs = ["".join(job.communicate()) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert [output.count("wrote") for output in outputs] == [4 + 1, 0]  # files, by the first rank alone
    for name in (".npz", "_trajectory.npz"):
        with np.load(tmp_path / f"one{name}") as one, np.load(tmp_path / f"two{name}") as two:
            assert all(np.array_equal(one[key], two[key]) for key in one.files)
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    assert reports[0] | {"seconds": 0} == reports[1] | {"seconds": 0}


def test_a_signal_ends_all_ranks_at_one_checkpoint(tmp_path: Path) -> None:
    from scorefield.commands.trained import open_trained

    flags = ["--config.net.width=8", "--config.net.blocks=1", "--config.sampling.steps=2", "--config.training.batch=16"]
    flags += ["--config.training.log_every=2", "--config.training.sharding=fsdp"]
    jobs = warm.ranks("--mode=train", "--config=configs/digits.py:vp", f"--workdir={tmp_path}/run", *flags)
    metrics, began = tmp_path / "run" / "metrics.jsonl", time.monotonic()
    while not (metrics.exists() and metrics.read_text()):
        assert all(job.poll() is None for job in jobs)
        assert time.monotonic() - began < 90
        time.sleep(0.01)
    jobs[1].send_signal(signal.SIGTERM)
    outputs = ["".join(job.communicate()) for job in jobs]
    assert [job.returncode for job in jobs] == [143, 143], outputs
    assert outputs[0].count("interrupted: saved") == 1
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    # Complete tensors, which one process opens.
    assert open_trained(tmp_path / "run").checkpoint == checkpoint


if __name__ == "__main__":
    fail()
