"""Runs that are killed, stopped, changed, forked and short of room, as a user meets them."""

import json
import math
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import warm
from ml_collections import ConfigDict
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scorefield import training
from scorefield.commands.posthoc_ema import posthoc_ema
from scorefield.commands.train.command import train
from scorefield.commands.trained import open_trained
from scorefield.commands.training.lock import WorkdirLock
from scorefield.configs import build, digits
from scorefield.training.monitor import loss_guard

ROOT = Path(__file__).parents[2]


def small(images: int = 128, **settings: object) -> ConfigDict:
    config = digits.get_config("vp").copy_and_resolve_references()
    config.net = build.spec(build.NETWORKS, "mlp", width=8, blocks=1)
    config.sampling.steps = 2
    config.training.update(images=images, batch=32, sample_every=0, log_every=3, decay=False, **settings)
    return config


def weights(workdir: Path, images: int, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(workdir / "checkpoints" / f"{images:010d}" / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_kills_change_no_bit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    # Weights, averages, optimiser, random states, snapshots and the log; benchmarks/kill.py says what is compared.
    monkeypatch.setattr(sys, "argv", ["kill", "--kills=2", "--images=360", "--forked"])
    status = runpy.run_path(str(ROOT / "benchmarks" / "kill.py"))["main"]()
    out, err = capfd.readouterr()
    assert status == 0, out + err
    assert "2 kills" in out and "bit-identical" in out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143)])  # Ctrl-C: tests/test_commands.py
def test_a_polite_kill_saves_and_ends_with_its_status(number: int, status: int, tmp_path: Path) -> None:
    config = small(10_000_000)
    keys = ("images", "batch", "sample_every", "log_every", "decay")
    flags = [f"--config.training.{key}={config.training[key]}" for key in keys]
    process = warm.begin(
        "--mode=train", "--config=configs/digits.py:vp", f"--workdir={tmp_path / 'run'}",
        "--config.net={'name': 'mlp', 'width': 8, 'blocks': 1}", "--config.sampling.steps=2", "--device=cpu", *flags,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == status, out + err
    assert "Traceback" not in err
    assert (out + err).count("interrupted") == 1
    (place,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert training.latest_valid(place.parent) == (place, [])
    config.training.images = images = int(place.name) + 3 * 32
    train(tmp_path / "run", config, device="cpu")
    train(tmp_path / "unbroken", config, device="cpu")
    assert same(*(weights(tmp_path / name, images) for name in ("run", "unbroken")))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "unbroken" / "metrics.jsonl").read_text()


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_it_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    for folder in (run, unbroken):
        train(folder, small(128, checkpoint_every=64), device="cpu")
    file = run / "checkpoints" / "0000000128" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    assert open_trained(run, "cpu").checkpoint.name == "0000000064"
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line and "passed over" in line
    for folder in (run, unbroken):
        train(folder, small(256, checkpoint_every=64), device="cpu")
    assert same(weights(run, 256), weights(unbroken, 256))
    for place in (run / "checkpoints").iterdir():
        (place / "ema.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is valid"):
        open_trained(run, "cpu")
    with pytest.raises(ValueError, match="is valid"):
        train(run, small(512), device="cpu")


def test_a_configuration_with_part_of_the_keywords_resumes(tmp_path: Path) -> None:
    for images in (32, 64):
        config = small(images)
        config.sde = ConfigDict({"name": "vp", "beta_max": 15.0})
        config.sampling.solver = ConfigDict({"name": "heun", "clock": "sigma"})  # an old spelling
        assert train(tmp_path, config, device="cpu")["images_this_time"] == 32


def test_what_would_make_resuming_wrong_is_refused_with_the_differences(tmp_path: Path) -> None:
    train(tmp_path, small(64), device="cpu")
    other = small(64, learning_rate=1e-3, clip=0.5, ema=0.9, keep=7)
    other.seed, other.training.betas, other.training.warmup, other.sde.beta_max = 3, (0.9, 0.99), 7, 15.0
    with pytest.raises(ValueError, match="another configuration") as caught:
        train(tmp_path, other, device="cpu")
    message = str(caught.value)
    assert (
        "config.seed is 0 there and 3 here" in message and "config.sde.beta_max is 20.0 there and 15.0 here" in message
    )
    assert "2 more" in message and "keep" not in message and "clip" not in message and "learning_rate" not in message
    # Settings that the run was made without are at their defaults, not different.
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    for key in ("snapshot_every", "more_ema", "keep", "on_full_disk"):
        del saved["config"]["training"][key]
    file.write_text(json.dumps(saved))
    assert train(tmp_path, small(96, keep=1), device="cpu")["images"] == 96


def test_the_learning_rate_may_change(tmp_path: Path) -> None:
    for images, rate in ((64, 2e-4), (96, 1e-5)):
        train(tmp_path, small(images, learning_rate=rate, warmup=0), device="cpu")
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [row["learning_rate"] for row in rows if "learning_rate" in row][-1] == rate


def test_tensorboard_keeps_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for images in (64, 96, 96):
        train(tmp_path, small(images), device="cpu")
    assert "trained to its end" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [row["images"] for row in rows if "loss" in row]
    text = board.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert json.loads(text.removeprefix("```json").removesuffix("```"))["training"]["images"] == 96
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= board.PluginTagToContent("hparams").keys()


def test_a_session_tells_of_its_own_images_alone(tmp_path: Path) -> None:
    for images, seen in ((64, 64), (96, 32), (96, 0)):
        began = time.perf_counter()
        summary = train(tmp_path, small(images), device="cpu")
        assert (summary["images"], summary["images_this_time"]) == (images, seen)
        assert summary["seconds"] <= time.perf_counter() - began + 0.05  # as rounded
        assert math.isfinite(summary["loss"])


def test_nothing_is_saved_of_a_bad_step_however_late_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = loss_guard.LossGuard.accept

    def poisoned(self: loss_guard.LossGuard, step: training.Step) -> torch.Tensor:
        bad = self.state_dict()["seen"] == 4
        return accept(self, step._replace(loss=step.loss * math.nan) if bad else step)

    class Late:
        query, synchronize = (lambda self: False), (lambda self: None)

    monkeypatch.setattr(loss_guard.LossGuard, "accept", poisoned)
    monkeypatch.setattr(loss_guard, "_to_host", lambda flag: (flag, Late()))
    for saved, settings in (("snapshots", {"snapshot_every": 32}), ("checkpoints", {"checkpoint_every": 32})):
        with pytest.raises(ValueError, match=r"^step 5 "):
            train(tmp_path / saved, small(512, **settings), device="cpu")
        assert max(path.name for path in (tmp_path / saved / saved).iterdir()) == "0000000128"


def test_checkpoints_of_nobody_knows_what_are_not_gone_on_from(tmp_path: Path) -> None:
    train(tmp_path, small(64), device="cpu")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"0000000064 has no .*config.json: restore it"):
        train(tmp_path, small(96, ema=0.5), device="cpu")


def test_two_trainings_do_not_share_a_directory(tmp_path: Path) -> None:
    with WorkdirLock(tmp_path):
        with pytest.raises(ValueError, match="another process trains"):
            train(tmp_path, small(64), device="cpu")
        assert not any(tmp_path.iterdir())
    assert train(tmp_path, small(64), device="cpu")["images"] == 64


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip", -1.0),
        ("warmup", -100),
        ("label_dropout", 2.0),
        ("images", -5),
        ("accumulate", 0),
        ("learning_rate", -1.0),
        ("betas", (0.9,)),
        ("keep_every", -1),
        ("snapshot_every", -64),
        ("precision", "float64"),
        ("sharding", "none"),
        ("on_full_disk", "shrink"),
    ],
)
def test_settings_without_sense_are_refused(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected training.{key}"):
        train(tmp_path / "run", small(**{"images": 64, key: value}), device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for group, changed, says in (
        ("training", {"snapshot_every": 32, "snapshot_lengths": (0.1, 0.1)}, "snapshot_lengths to be one or more"),
        ("transform", {"low": 1.0}, "transform.low to be less"),
        ("net", {"name": "unet", "width": 0}, "a network that takes"),
    ):
        config = small(64)
        config[group].update(changed)
        with pytest.raises(ValueError, match=f"expected {says}|expected training.{says}"):
            train(tmp_path / "run", config, device="cpu")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ema", [True, False, None])
def test_a_fork_begins_with_the_weights_of_another_run(ema: bool | None, tmp_path: Path) -> None:
    train(tmp_path / "old", small(128), device="cpu")
    config = small(96, checkpoint_every=32, keep=9, more_ema=(0.5,))
    config.sde.beta_max = 15.0
    train(tmp_path / "new", config, device="cpu", fork_from=str(tmp_path / "old"), ema=ema)
    begun = weights(tmp_path / "old", 128, "model" if ema is False else "ema")
    for name in ("model", "ema", "ema_1"):
        assert same(weights(tmp_path / "new", 0, name), begun)
    assert not same(weights(tmp_path / "new", 96), begun)
    record = json.loads((tmp_path / "new" / "fork.json").read_text())
    assert record["from"] == str(tmp_path / "old") and record["checkpoint"] == "0000000128"
    assert record["weights"] == ("raw" if ema is False else "ema")
    assert record["other_than_there"] == {"sde.beta_max": [20.0, 15.0]}

    # The same command resumes, also without the flag, but not from another run.
    config.training.images = 128
    train(tmp_path / "new", config, device="cpu", fork_from=str(tmp_path / "old"), ema=ema)
    config.training.images = 160
    train(tmp_path / "new", config, device="cpu")
    for source, says in (("new", "not from"), ("elsewhere", "not from")):
        with pytest.raises(ValueError, match=says):
            train(tmp_path / "new", config, device="cpu", fork_from=str(tmp_path / source))


def test_a_fork_that_cannot_be_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    train(tmp_path / "old", small(32), device="cpu")
    config = small(64)
    config.net.width = 16
    for changed, source, says in (
        (config, "old", r"net\.width is 8 there and 16 here"),
        (small(64), "nowhere", "found no config.json"),
        (small(64), "new", "another run than"),
    ):
        with pytest.raises(ValueError, match=says):
            train(tmp_path / "new", changed, device="cpu", fork_from=str(tmp_path / source))
        assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="only with --fork_from"):
        train(tmp_path / "new", small(64), device="cpu", ema=True)
    with pytest.raises(ValueError, match="not from"):
        train(tmp_path / "old", small(64), device="cpu", fork_from=str(tmp_path / "nowhere"))


def test_weights_without_an_optimiser_are_forked_from_not_gone_on_with(tmp_path: Path) -> None:
    # What --mode=import leaves: no state.pt, no checksums.
    train(tmp_path / "old", small(32), device="cpu")
    place = tmp_path / "old" / "checkpoints" / "0000000032"
    for file in ("state.pt", "SHA256SUMS"):
        (place / file).unlink()
    (tmp_path / "old" / "import.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"without an optimiser .* --fork_from={tmp_path / 'old'}"):
        train(tmp_path / "old", small(64), device="cpu")
    train(tmp_path / "new", small(32, keep=3), device="cpu", fork_from=str(tmp_path / "old"))
    assert json.loads((tmp_path / "new" / "fork.json").read_text())["imported"] is True
    assert same(weights(tmp_path / "new", 0), load_file(place / "ema.safetensors"))


def test_an_average_made_afterwards_is_a_run_of_its_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, small(640, snapshot_every=64, snapshot_dtype="float32"), device="cpu")
    assert len(list((run / "snapshots").iterdir())) == 10
    report = posthoc_ema(run, sigma_rel=0.1, device="cpu")
    assert report["images"] == 640 and report["profile_error"] < 1e-6
    made = open_trained(run / "posthoc_0.1", "cpu").denoiser.state_dict()
    tracked = load_file(run / "snapshots" / "0000000640" / "power_0.1.safetensors")
    for name, weight in tracked.items():
        torch.testing.assert_close(made[name.removeprefix("denoiser.")], weight, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="--fork_from"):
        train(run / "posthoc_0.1", small(704, snapshot_every=64, snapshot_dtype="float32"), device="cpu")
    for settings, says in (({}, "--sigma_rel"), ({"sigma_rel": 0.1}, "new folder"), ({"sigma_rel": 0.5}, "within")):
        with pytest.raises(ValueError, match=says):
            posthoc_ema(run, device="cpu", **settings)


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk_stops_or_not_as_configured_and_loses_nothing(policy: str, tmp_path: Path) -> None:
    def unet(images: int) -> ConfigDict:
        config = small(images, checkpoint_every=32, on_full_disk=policy)
        config.net = digits.get_config("vp").net
        config.net.width = 8
        return config

    run = tmp_path / "run"
    train(run, unet(32), device="cpu")
    # From here on files may have some 300 kB: less than weights and state take, and more than the log.
    limit = (run / "checkpoints" / "0000000032" / "state.pt").stat().st_size - 1
    keys = ("images", "batch", "sample_every", "log_every", "decay", "checkpoint_every", "on_full_disk")
    flags = [f"--config.training.{key}={unet(96).training[key]}" for key in keys]
    flags += ["--config.net.width=8", "--config.sampling.steps=2", "--device=cpu"]
    done = warm.run(
        "--mode=train", "--config=configs/digits.py:vp", f"--workdir={run}", *flags, LARGEST_FILE=str(limit)
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert "Traceback" not in done.stderr
    assert lines[-1].startswith("error: no room for") and "0000000032" in lines[-1]
    # Stopped at the first; or continued past it to the end, where the last could not be written.
    assert len(lines) == {"stop": 1, "continue": 2}[policy], done.stderr
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["0000000032"]
    # With room again, the same command ends where it would have.
    train(run, unet(96), device="cpu")
    train(tmp_path / "unbroken", unet(96), device="cpu")
    assert same(weights(run, 96), weights(tmp_path / "unbroken", 96))
