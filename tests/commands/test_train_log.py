"""What training shows: rows, bins of noise levels, pictures; and a log that stops with its run."""

import itertools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from training_runs import (
    BATCH,
    TOTAL,
    batches,
    configuration,
    new_run,
    new_state,
    rows_of,
    trained,
    watched,
    with_value,
)

from scorefield.commands.data_facts import DataFacts
from scorefield.commands.generate import generate
from scorefield.commands.run import Run
from scorefield.commands.train.log import Log
from scorefield.commands.train.pictures import sampling_of
from scorefield.commands.training.json_lines import JsonLines
from scorefield.configs import cifar10
from scorefield.evaluation import plot_samples
from scorefield.models import MLP, Denoiser
from scorefield.models.precondition import eps
from scorefield.sde_lib import EDMSDE, SDE, VPSDE, RectifiedSDE
from scorefield.training import Step, dsm_loss, latest, save, times, train, weighting
from scorefield.training.monitor.step_metrics import StepMetrics, level_edges
from scorefield.training.objectives.dsm import batch_loss

pytestmark = pytest.mark.figures

# Rows


def test_rows_are_the_means_of_the_steps_between_them(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    steps = trained(run)
    rows = rows_of(run.workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [7, 14, 21, 28, 30]
    begun = 0
    for row in rows:
        window = steps[begun : row["step"]]
        begun = row["step"]
        assert row["images"] == BATCH * row["step"]
        # Sums of 7 in float64, added in another order: some 1e-16 each.
        assert row["loss"] == pytest.approx(np.mean([float(step.loss) for step in window]), rel=1e-12)
        assert row["grad_norm"] == pytest.approx(np.mean([float(step.grad_norm) for step in window]), rel=1e-12)
        assert row["grad_norm_max"] == max(float(step.grad_norm) for step in window)
        assert row["learning_rate"] == 1e-3
        levels = row["levels"]
        log_snr = np.concatenate([run.sde.log_snr(step.times).numpy() for step in window])
        losses = np.concatenate([step.losses.double().numpy() for step in window])
        for i, (low, high) in enumerate(itertools.pairwise(levels["edges"])):
            inside = (log_snr >= low) & (log_snr < high)
            assert levels["count"][i] == inside.sum()
            if inside.any():
                assert levels["loss"][i] == pytest.approx(losses[inside].mean(), rel=1e-12)
        assert sum(levels["count"]) == BATCH * len(window)
    timing = rows_of(run.workdir / "timing.jsonl")
    assert [row["step"] for row in timing] == [7, 14, 21, 28, 30]
    assert all(row["images_per_second"] > 0 and row["memory_mib"] > 10 for row in timing)
    assert (run.workdir / "loss.png").is_file()
    assert (run.workdir / "loss_by_log_snr.png").is_file()
    assert list((run.workdir / "tensorboard").iterdir())


@pytest.mark.parametrize(("sde", "weight"), [(VPSDE(), weighting.likelihood), (EDMSDE(), weighting.edm(0.5))])
def test_the_error_in_the_noise_does_not_know_the_weight(sde: SDE, weight: weighting.Weighting) -> None:
    denoiser = Denoiser(MLP((4,), width=16), eps)
    nn.init.normal_(denoiser.net.head.weight)
    generator = Generator().manual_seed(0)
    x0, noise = torch.randn(64, 4, generator=generator), torch.randn(64, 4, generator=generator)
    t = times.log_snr(sde, 64, generator)
    batch = {"x0": x0, "times": t, "eps": noise}
    losses, numbers = batch_loss(denoiser, sde, batch, weight)
    torch.testing.assert_close(losses, dsm_loss(denoiser, sde, x0, t, noise, weight=weight), rtol=0, atol=0)
    window = StepMetrics(sde)
    window.add(Step(1, 64, losses.mean().detach(), torch.ones(()), 0.0, losses.detach(), batch, numbers))
    levels = window.means()["levels"]
    alpha, sigma = sde.scales(t)
    with torch.no_grad():
        predicted = denoiser.noise(sde.perturb(x0, t, noise), alpha, sigma)
    errors, log_snr = (predicted - noise).square().mean(1), sde.log_snr(t)
    for i, (low, high) in enumerate(itertools.pairwise(levels["edges"])):
        inside = (log_snr >= low) & (log_snr < high)
        if inside.any():
            # D carries float32's 6e-8, which the largest alpha / sigma here (e^7) makes 1e-4 of the noise.
            assert levels["eps_error"][i] == pytest.approx(float(errors[inside].mean()), rel=1e-3)


def test_bins_reach_from_one_end_of_a_path_to_the_other() -> None:
    assert level_edges(VPSDE()) == [-12.0 + 2 * i for i in range(14)]  # from -10.05 to 13.8
    assert level_edges(EDMSDE(t_min=0.0))[-1] == 20  # no noise at all
    assert level_edges(RectifiedSDE(t_min=0.0, t_max=1.0)) == [-20.0 + 2 * i for i in range(21)]


def test_the_rows_of_a_run_that_was_killed_are_those_of_one_that_was_not(tmp_path: Path) -> None:
    saves = tuple(BATCH * i for i in (3, 11, 12, 18, 25))  # windows end at 7, 14, ...
    unbroken, broken = new_run(tmp_path / "unbroken"), new_run(tmp_path / "broken")
    trained(unbroken, saves)
    for until in (64, 17 * BATCH, 18 * BATCH, 29 * BATCH):
        trained(broken, saves, until)
    trained(broken, saves)
    bytes_ = [(run.workdir / "metrics.jsonl").read_bytes() for run in (unbroken, broken)]
    assert bytes_[0] == bytes_[1]
    assert [r["step"] for r in rows_of(broken.workdir / "timing.jsonl")] == [7, 14, 21, 28, 30]


def test_a_row_without_room_is_written_with_the_next_and_a_cut_one_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"images": 1}\n{"images": 3}\n{"images": 2}\n{"ima')
    rows = JsonLines(path, 2)

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, text: bytes) -> int:
            if len(text) > 5:
                return int(self.file.write(text[:5]))
            raise OSError(28, "No space left on device")

    room = rows._file
    rows._file = Full(room)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        rows.write({"images": 4})
    assert rows_of(path) == [{"images": 1}, {"images": 2}]
    rows._file = room
    rows.write({"images": 5})
    rows.close()
    assert [row["images"] for row in rows_of(path)] == [1, 2, 4, 5]


# Pictures


def test_pictures_have_the_raw_and_the_averaged_weights_side_by_side(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    state = new_state(run)
    with torch.no_grad():
        state.ema.model.net.head.weight.zero_()
    files = []
    with Log(run, 0, state) as log:
        for state.images in (1, 2):
            log.pictures(state)
            files.append(run.workdir / "samples" / f"{state.images:010d}.png")
    assert state.denoiser.training
    assert not state.ema.model.training
    first, second = (np.asarray(Image.open(file).convert("L")) for file in files)
    assert np.array_equal(first, second)  # the same noise
    side_by_side = {}
    for name, denoiser in {"raw": state.denoiser.eval(), "EMA 0.9": state.ema.model}.items():
        x = generate(run, denoiser, 36, sampling=run.config.sampling, seed=run.config.seed, show=False)
        side_by_side[name] = run.viewable(run.to_stored(x))
    assert not torch.equal(*side_by_side.values())
    plot_samples(side_by_side, tmp_path / "expected.png")
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / "expected.png").convert("L")))


def test_sampling_that_fails_costs_its_panel_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = new_run(tmp_path / "run")
    state = new_state(run)
    with torch.no_grad():
        state.denoiser.net.head.bias.fill_(math.nan)
    with Log(run, 0, state) as log:
        log.pictures(state)
    assert "without" in capsys.readouterr().out
    assert (run.workdir / "samples" / "0000000000.png").is_file()


def of_each_sampling() -> list[str]:
    """A variant for each way of sampling, and for each way of it in `test_pictures_cost_a_few_dozen_evaluations`."""
    first = dict[str, str]()
    for variant in cifar10.VARIANTS:
        config = cifar10.get_config(variant)
        first.setdefault(config.sampling.to_json() + config.sde.name, variant)
    return [*first.values()]


@pytest.mark.parametrize("variant", of_each_sampling())
def test_pictures_cost_a_few_dozen_evaluations(variant: str, tmp_path: Path) -> None:
    config, calls = cifar10.get_config(variant), 0
    run = Run(tmp_path, config, DataFacts("", (3, 4, 4), 256, None, ""), torch.device("cpu"))

    def counted(x: Tensor, alpha: Tensor, sigma: Tensor, code: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return 0 * x

    generate(run, counted, 2, sampling=sampling_of(run), seed=0, show=False)
    assert calls == {"edm": 35, "adm": 35, "mulan": 41}.get(variant.split("_")[0], 21)
    with config.training.unlocked():
        config.training.sample_evaluations = 2000  # of 1999 for a predictor and a corrector
    assert sampling_of(run) is config.sampling


# Runs that stop


def test_the_log_stops_a_run_and_its_last_checkpoint_stays(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    state = new_state(run)
    loader = batches(run.data.shape)

    def bad() -> Iterator[Tensor]:
        for i, x in enumerate(loader, start=1):
            yield x if i != 10 else x.index_fill(0, torch.tensor([3]), math.nan)

    def follow() -> None:
        with Log(run, 0, state) as log:
            steps = train(state.denoiser, run.sde, bad(), images=TOTAL, state=state, accept=log.guard.accept)
            for step in log.following(steps):
                if step.step == 9:
                    save(run.workdir / "checkpoints", state, extra={"log": log.state()})

    with pytest.raises(ValueError, match=r"^step 10 .* example 3 at .* the batch is in "):
        follow()
    place = run.workdir / "checkpoints" / f"{9 * BATCH:010d}"
    assert latest(run.workdir / "checkpoints") == place
    assert (run.workdir / "bad_batch.pt").is_file()
    assert [row["step"] for row in rows_of(run.workdir / "metrics.jsonl")] == [7]
    # With good data it resumes.
    (run.workdir / "bad_batch.pt").unlink()
    shutil.rmtree(run.workdir / "samples", ignore_errors=True)
    assert trained(run)[-1].images == TOTAL


def test_a_full_disk_stops_the_log_in_one_line_or_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(rows: JsonLines, row: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JsonLines, "write", full)
    config = configuration()
    config.training.on_full_disk = "stop"
    with pytest.raises(ValueError, match=r"^No space left on device: .*; make room, and run the same command again$"):
        trained(new_run(tmp_path / "stop", config))
    config.training.on_full_disk = "continue"
    assert trained(new_run(tmp_path / "continue", config))[-1].images == TOTAL
    assert not (tmp_path / "continue" / "metrics.jsonl").read_text()
    assert "No space left on device: part of the log is not written" in capsys.readouterr().err


# Several processes


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    run = new_run(folder / "run")
    trained(run, (BATCH * 11,), until=BATCH * 16)
    trained(run)
    _, message = watched(new_state(), with_value(math.nan, 3, 11), folder)
    (folder / f"said.{rank}").write_text(message)
    torch.distributed.destroy_process_group()


def test_two_processes_write_one_log_and_the_one_with_the_bad_example_names_it(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(one_of_two, (tmp_path,), nprocs=2, start_method="fork")
    single = new_run(tmp_path / "alone")
    trained(single)
    ours, one = (rows_of(tmp_path / name / "metrics.jsonl") for name in ("run", "alone"))
    assert [row["step"] for row in ours] == [7, 14, 21, 28, 30]
    for row, other in zip(ours, one, strict=True):
        assert row["levels"]["count"] == other["levels"]["count"]
        # Gradients are added in another order: float32's rounding, through 30 steps of Adam.
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    first, second = ((tmp_path / f"said.{rank}").read_text() for rank in (0, 1))
    assert "step 3 (48 images): of process 0 of 2, whose own examples have a finite loss, the gradient's" in first
    assert "x0 of example 3 is not finite" in second  # the 12th of 16 is its 4th of 8
    assert f"the batch is in {tmp_path / 'bad_batch.1.pt'}" in second
