"""The command line as a user meets it: in its own process, by exit status, last line, and what it left on disk."""

import hashlib
import inspect
import json
import math
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from warm import begin, run

from scorefield.commands.interpolate import spherical
from scorefield.commands.sample import sample
from scorefield.commands.train.command import train
from scorefield.commands.trained import open_trained
from scorefield.configs import build, digits, own

ROOT = Path(__file__).parents[2]
TINY = ("--config.training.batch=32", "--config.training.sample_every=0", "--config.net=mlp:width=8,blocks=1")


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, with classes."""
    folder = tmp_path_factory.mktemp("runs") / "vp"
    done = run(
        "--mode=train", "--config=configs/digits.py:vp", f"--workdir={folder}", *TINY,
        "--config.training.images=320", "--config.training.labels=true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_mode_runs_writes_what_it_says_and_needs_only_the_workdir(workdir: Path, tmp_path: Path) -> None:
    for arguments in (
        ("--mode=sample", "--num=5", "--steps=3", "--label=3", "--guidance=2.0"),
        ("--mode=encode", "--num=5", "--steps=3"),
        ("--mode=decode", "--steps=3"),
        ("--mode=interpolate", "--num=4", "--steps=3", "--pair=2,7"),
        ("--mode=likelihood", "--num=5", "--steps=3", "--divergence=hutchinson:probes=2"),
        ("--mode=compare", "--num=4", "--solver=ddim", "--solver=heun", "--solver=ancestral", "--steps=2", "--steps=3"),
    ):
        done = run(*arguments, f"--workdir={workdir}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        wrote = [Path(line.removeprefix("wrote ")) for line in done.stdout.splitlines() if line.startswith("wrote ")]
        assert {path.suffix for path in wrote} >= {".npz", ".png"}
        assert all(path.stat().st_size > 0 for path in wrote)
    (tmp_path / "plain").write_text("")
    rights = (tmp_path / "plain").stat().st_mode
    assert [path for path in workdir.rglob("*.*") if path.is_file() and path.stat().st_mode != rights] == []
    report = json.loads((workdir / "likelihood_test.json").read_text())
    ode = report["estimates"]["ode"]
    assert report["n"] == ode["n"] == 5
    assert ode["nfe"] == ode["nfe_max"] == 6
    assert report["levels"] == 17
    assert math.isfinite(ode["change_from_half_the_steps"])
    assert ode["error_of_a_value"] > 0
    with np.load(workdir / "samples.npz") as samples:
        assert samples["x"].shape == (5, 1, 8, 8)
        assert samples["x"].max() <= 16
        assert samples["label"].tolist() == [3] * 5


def test_compare_tells_evaluations_and_distances_of_every_pair(workdir: Path, tmp_path: Path) -> None:
    done = run(
        "--mode=compare", f"--workdir={workdir}", "--num=3", "--solver=unipc", "--solver=heun:variable=log_snr",
        "--solver=ancestral", "--solver=consistent:eta=0.001", "--steps=2", "--steps=250", "--grid=log_snr",
        "--denoise=false", f"--output={tmp_path / 'c.npz'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = {(row["solver"], row["steps"]): row for row in json.loads((tmp_path / "c.json").read_text())["table"]}
    assert len(table) == 8
    assert [table[name, 2]["nfe"] for name in ("unipc", "heun:variable=log_snr", "ancestral")] == [2, 4, 2]
    # The reference is the same solver on the same grid, whose times come by another way.
    assert table["unipc", 250]["distance"] < 1e-4
    assert 0 < table["heun:variable=log_snr", 250]["distance"] < table["heun:variable=log_snr", 2]["distance"]
    assert "distance" not in table["ancestral", 2]
    assert "take more steps" in table["consistent:eta=0.001", 2]["failed"]
    with np.load(tmp_path / "c.npz") as file:
        assert {"flow", "unipc 2", "ancestral 250"} <= set(file.files)
        assert np.abs(file["flow"].astype(int) - file["unipc 250"]).max() <= 1


def test_compare_follows_each_grid_from_its_own_beginning_to_its_own_end(workdir: Path, tmp_path: Path) -> None:
    # DDPM's trailing timesteps end the sooner the fewer they are: the flow that 5 of them follow is not that of 200.
    done = run(
        "--mode=compare", f"--workdir={workdir}", "--num=3", "--solver=unipc:order=2", "--steps=5", "--steps=200",
        "--grid=trailing", "--denoise=false", f"--output={tmp_path / 'c.npz'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    few, many = json.loads((tmp_path / "c.json").read_text())["table"]
    assert many["distance"] < 0.01
    assert few["distance"] < 0.2


@pytest.mark.parametrize(
    "solver",
    ['pc:predictor="dpm:order=1",snr=0.1', 'churn:solver="dpm:multistep=False",amount=5.0', "churn:solver=ddim"],
)
def test_a_solver_within_a_solver_takes_settings(workdir: Path, tmp_path: Path, solver: str) -> None:
    sample(workdir, num=2, steps=3, solver=solver, output=str(tmp_path / "s.npz"), device="cpu")


def test_a_measured_grid_and_a_trajectory_are_written_and_used(workdir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(workdir, tmp_path / "vp", ignore=shutil.ignore_patterns("samples*"))
    done = run("--mode=grid", f"--workdir={copy}", "--num=4", "--steps=20", "--order=1")
    assert done.returncode == 0, done.stderr
    measured = json.loads((copy / "grid.json").read_text())
    assert len(measured["density"]) == len(measured["log_snr"]) == 19
    assert measured["checkpoint"]
    done = run(
        "--mode=sample", f"--workdir={copy}", "--grid=optimal", "--steps=6", "--num=5", "--trajectory=3", "--seed=4",
        "--solver=unipc:order=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nfe: 7" in done.stdout
    with np.load(copy / "samples_trajectory.npz") as kept:
        assert kept["x"].shape == kept["x0"].shape == (6, 3, 1, 8, 8)
        assert kept["t"][-1] == pytest.approx(1e-3)
    assert (copy / "samples_trajectory.png").stat().st_size > 0


def test_belm_comes_back_to_the_image_it_encoded(workdir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(workdir, tmp_path / "vp", ignore=shutil.ignore_patterns("latents*", "decoded*"))
    grid = ("--solver=belm", "--steps=5")
    assert run("--mode=encode", f"--workdir={copy}", "--num=6", "--batch=4", *grid).returncode == 0
    done = run("--mode=decode", f"--workdir={copy}", "--batch=5")  # by the solver and the steps of the encoding
    assert done.returncode == 0, done.stderr
    assert "solver: belm" in done.stdout and "steps: 5" in done.stdout
    assert json.loads((copy / "decoded.json").read_text())["round_trip_rms"] < 1e-4
    done = run("--mode=decode", f"--workdir={copy}", "--solver=belm", "--steps=6")
    assert done.returncode == 0, done.stderr
    assert "these latents were encoded by steps 5, not 6: they do not come back exactly" in done.stderr
    assert json.loads((copy / "decoded_2.json").read_text())["round_trip_rms"] > 1e-4


def test_weights_of_another_checkpoint_are_read_by_its_name_or_its_path(workdir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(workdir, tmp_path / "vp")
    newest = copy / "checkpoints" / "0000000320"
    early = shutil.copytree(newest, newest.with_name("0000000160"), ignore=shutil.ignore_patterns("SHA256SUMS"))
    weights = {name: torch.full_like(weight, 0.1) for name, weight in load_file(early / "ema.safetensors").items()}
    save_file(weights, early / "ema.safetensors")
    (early / "state.pt").unlink()  # a folder of weights alone needs no checksums
    elsewhere = shutil.copytree(early, tmp_path / "kept")
    given = {"160": "0000000160", str(early): "0000000160", str(elsewhere): str(elsewhere), "latest": "0000000320"}
    for checkpoint, reported in given.items():
        trained = open_trained(copy, checkpoint=checkpoint)
        assert trained.described["checkpoint"] == reported
        value = float(trained.denoiser.net.head.weight.flatten()[0])
        assert (value == pytest.approx(0.1)) == (checkpoint != "latest")
    config = json.loads((copy / "config.json").read_text())
    config["config"]["sde"]["beta_max"] = 15.0
    other = shutil.copytree(copy, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"another sde than {copy}: use --workdir={other}"):
        open_trained(copy, checkpoint=str(other / "checkpoints" / "0000000160"))


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_samples(workdir: Path, tmp_path: Path) -> None:
    arrays = []
    for compiled in ("false", "true"):
        file = tmp_path / f"{compiled}.npz"
        done = run(
            "--mode=sample", f"--workdir={workdir}", "--num=2", "--steps=2", f"--compile={compiled}", f"--output={file}"
        )
        assert done.returncode == 0, done.stderr
        with np.load(file) as results:
            arrays.append(results["x"].astype(int))
    assert np.abs(arrays[0] - arrays[1]).max() <= 1  # rounding may move a value across the edge of its cell


def test_the_solvers_table_of_the_docs_names_every_solver_and_setting() -> None:
    text = (ROOT / "docs" / "solvers.md").read_text()
    for name, constructor in build.SOLVERS.items():
        settings = inspect.signature(constructor).parameters
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") == 3]
        assert re.findall(r"`(\w+)=", row) == list(settings)
    for line in text.splitlines():  # and every row of the matrix builds
        if line.startswith("| `") and line.count("|") > 4:
            build.build(build.SOLVERS, build.parse(line.split("`")[1]))


@pytest.mark.parametrize(
    "mistake",
    ["training.precision=float7", "training.batch=0", "training.log_every=0", "net.heads=3", "sde.t_max=0.0"],
)
def test_a_first_training_that_is_refused_leaves_nothing(mistake: str, tmp_path: Path) -> None:
    done = run("--mode=train", "--config=configs/digits.py:vp", f"--workdir={tmp_path / 'run'}", f"--config.{mistake}")
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "run").exists()


def test_training_goes_on_for_longer_past_a_torn_line_of_metrics(tmp_path: Path) -> None:
    config = digits.get_config("vp")
    config.net.width = 8
    config.training.update(images=64, batch=32, decay=False, log_every=1, sample_every=0)
    train(tmp_path / "run", config)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "ima')
    config.training.update(images=128, log_every=2)
    assert train(tmp_path / "run", config)["images"] == 128
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [32, 64, 128]
    config.sde.beta_max = 15.0
    with pytest.raises(ValueError, match=r"config\.sde\.beta_max is 20\.0 there and 15\.0 here"):
        train(tmp_path / "run", config)


def test_a_truncated_data_file_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(bytes.fromhex("00000803 0000ea60 0000001c 0000001c") + bytes(100))
    (raw / "train-labels-idx1-ubyte").write_bytes(bytes.fromhex("00000801 0000ea60") + bytes(60000))
    done = run("--mode=train", "--config=configs/mnist.py", f"--workdir={tmp_path / 'run'}", DATA_ROOT=str(tmp_path))
    assert done.returncode == 2
    assert "train-images-idx3-ubyte" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_architecture_is_refused(workdir: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(workdir, copied)
    config = json.loads((copied / "config.json").read_text())
    config["config"]["net"]["width"] = 16
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another architecture"):
        open_trained(copied)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no config\.json"):
        open_trained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read"):
        open_trained(tmp_path)


def test_samples_are_the_same_whatever_the_batch(workdir: Path, tmp_path: Path) -> None:
    # A convolution's rounding may depend on the batch; what is stored, after quantising, does not (in 640 pixels).
    for solver in ("ddim", "pc", "langevin:steps=2,snr=0.1", "adaptive:rtol=0.01,atol=0.01"):
        results = []
        for batch in (10, 3):
            output = str(tmp_path / f"{batch}.npz")
            sample(workdir, num=10, solver=solver, steps=4, batch=batch, output=output)
            with np.load(output) as file:
                results.append(file["x"])
        assert np.array_equal(*results), solver


def test_ctrl_c_saves_and_the_same_command_ends_at_the_same_bits(tmp_path: Path) -> None:
    def arguments(name: str) -> list[str]:
        return [
            "--mode=train", "--config=configs/digits.py:vp", f"--workdir={tmp_path / name}", *TINY,
            "--config.training.images=6400", "--config.training.log_every=5",
        ]  # fmt: skip

    process = begin(*arguments("broken"))
    metrics = tmp_path / "broken" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "the same command resumes from there" in out + err

    for name in ("broken", "whole"):
        done = run(*arguments(name))
        assert done.returncode == 0, done.stderr
    ends = [contents(tmp_path / name / "checkpoints" / "0000006400") for name in ("broken", "whole")]
    for file in ("model.safetensors", "ema.safetensors"):
        assert ends[0][file] == ends[1][file]
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    images = [row["images"] for row in rows]
    assert images == sorted(set(images))


@pytest.mark.parametrize("shape", [(5, 6, 4), pytest.param((1, 28, 20), marks=pytest.mark.slow), (6,), (4, 10)])
def test_data_of_any_shape_trains_samples_and_scores(shape: tuple[int, ...], tmp_path: Path) -> None:
    file = tmp_path / "data.npy"
    np.save(file, np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32))
    config = own.get_config("array")
    config.data.path = str(file)
    if len(shape) == 3:
        config.net = build.spec(build.NETWORKS, "unet", width=8, multipliers=(1, 2), blocks=1)
    config.training.update(images=64, batch=32)
    train(tmp_path / "run", config)
    assert sample(tmp_path / "run", num=1, steps=2)["files"]
    with np.load(tmp_path / "run" / "samples.npz") as file_:
        assert file_["x"].shape == (1, *shape)
    from scorefield.commands.encode import decode, encode
    from scorefield.commands.likelihood.command import likelihood

    encode(tmp_path / "run", steps=2)
    decoded = decode(tmp_path / "run", solver="heun")
    assert math.isfinite(decoded["round_trip_rms"]) and (decoded["solver"], decoded["steps"]) == ("heun", 2)
    divergence = "exact" if len(shape) < 3 else "hutchinson"
    assert "ode, nats_per_dim" in likelihood(tmp_path / "run", steps=2, divergence=divergence, num=2)


def test_a_loss_that_is_not_a_number_stops_training_with_a_reason(tmp_path: Path) -> None:
    config = digits.get_config("vp")
    config.training.update(images=640, batch=32, learning_rate=1e9, clip=0.0, log_every=2, warmup=0, sample_every=0)
    config.net.width = 8
    config.training.checkpoint_every = 64
    with pytest.raises(ValueError, match=r"the loss is|not finite|norm is (inf|nan)"):
        train(tmp_path / "run", config)
    for file in (tmp_path / "run" / "checkpoints").glob("*/*.safetensors"):
        assert all(bool(weight.isfinite().all()) for weight in load_file(file).values())


def test_spherical_interpolation_keeps_the_norm_and_meets_its_ends() -> None:
    a, b = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = b * (a.norm() / b.norm())
    path = spherical(a, b, torch.linspace(0, 1, 7, dtype=torch.float64))
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)
    torch.testing.assert_close(path.flatten(1).norm(dim=1), a.norm().expand(7))
    torch.testing.assert_close(spherical(a, a, torch.tensor([0.3])), a[None], check_dtype=False)
