"""Train two models on the embedded digits, and use one of them in all four ways."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from scorefield.commands.flow import along_flow, rms
from scorefield.commands.generate import generate
from scorefield.commands.interpolate import interpolate
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.outputs import write_json
from scorefield.commands.run import stored_tensor
from scorefield.commands.train.command import train
from scorefield.commands.trained import Trained, open_trained
from scorefield.configs import build, digits
from scorefield.evaluation import DigitProbe, plot_curves, plot_overview, plot_rows, plot_samples
from scorefield.training.data import digits as digits_data

# Each as (solver, grid, steps).
FIVE = {
    "ddim": ("ddim", "log_snr", 50),
    "dpm": ("dpm", "log_snr", 20),
    "heun": ("heun", "log_snr", 25),
    "ancestral": ("ddim:eta=1.0", "uniform", 50),
    "predictor_corrector": ("pc", "uniform", 50),
}
CHECKED = "ancestral"
ROUND_TRIP_STEPS = (5, 10, 20, 50, 100)


def demo(workdir: Path, *, device: str | None = None, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Train the VP and the NCSN model, sample, encode, interpolate and score, and print a table of the results.

    The models train side by side, each on half of the cores. Existing runs are resumed. Finished runs are used as they
    are.

    Args:
        workdir: for all files. The models train in its folders vp/ and ncsn/.
        device: see `open_run`.
        seed: seed of the noise.
        quick: train on 512 images and draw few samples, as a test.

    Raises:
        ValueError: if the training of NCSN fails.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    count = 20 if quick else 1000
    five = {
        name: {"solver": solver, "grid": grid, "steps": 2 if quick else steps, "denoise": True}
        for name, (solver, grid, steps) in FIVE.items()
    }
    with _beside("ncsn", workdir, device, quick) as finished:
        _say(f"training vp, and ncsn beside it ({workdir / 'ncsn.log'})")
        config = digits.get_config("vp")
        if quick:
            config.training.images, config.net.width, config.sampling.steps = 512, 8, 4
        train(workdir / "vp", config, device=device)
        vp = open_trained(workdir / "vp", device)
        _say(f"sampling vp from the same noise with {', '.join(FIVE)}")
        files = [*_five_solvers(vp, workdir, seed, five)]
        _say("encoding test images and decoding them")
        table, pictures = _round_trip(vp, workdir, ROUND_TRIP_STEPS[:2] if quick else ROUND_TRIP_STEPS)
        _say("interpolating between two of them")
        between = interpolate(
            workdir / "vp", steps=4 if quick else 50, device=device, output=str(workdir / "interpolation.npz")
        )
        _say("scoring the test split")
        score = likelihood(
            workdir / "vp", steps=4 if quick else None, num=20 if quick else None, device=device,
            output=str(workdir / "likelihood.json"),
        )  # fmt: skip
        _say("waiting for ncsn")
        finished()
    ncsn = open_trained(workdir / "ncsn", device)
    _say(f"classifying {count} samples of each model by a classifier of the real digits")
    probed = _probe(vp, ncsn, workdir, seed, count, five[CHECKED])
    shown = {f"vp, {name}": workdir / f"samples_{name}.png" for name in FIVE}
    shown |= {"ncsn": workdir / "ncsn.png", "encoded and decoded": workdir / "round_trip.png"}
    shown |= {"interpolation": workdir / "interpolation.png"}
    plot_overview(shown, workdir / "overview.png")
    files += [*pictures, *map(Path, between["files"]), *map(Path, score["files"])]
    files += [workdir / "ncsn.png", workdir / "overview.png"]

    summary = {"round_trip_rms": table, "bits_per_dim": score["ode, bits_per_dim"], **probed}
    _print_table(summary)
    report = write_json(workdir / "demo.json", summary)
    return {"files": [str(path) for path in [*files, report]]}


@contextmanager
def _beside(variant: str, workdir: Path, device: str | None, quick: bool) -> Iterator[Callable[[], None]]:
    """Train a variant in a process of its own, with half of the threads; the function that is given waits for it.

    Small batches gain little from a second thread, so that two trainings side by side take hardly longer than one.
    """
    threads, log = torch.get_num_threads(), workdir / f"{variant}.log"
    half = max(1, threads // 2)
    command = [sys.executable, "-m", "scorefield.main", "--mode=train", f"--workdir={workdir / variant}"]
    command += [f"--config=digits:{variant}", *([f"--device={device}"] if device else [])]
    tiny = ("training.images=512", "net.width=8", "sampling.steps=4", "sampling.solver.steps=2")
    command += [f"--config.{key}" for key in tiny if quick]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": str(half)}
        )

    def finished() -> None:
        if process.wait() != 0:
            last = log.read_text().strip().splitlines()[-1:]
            raise ValueError(f"the training of {variant} failed ({' '.join(last)}): see {log}")

    torch.set_num_threads(half)
    try:
        yield finished
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it saves a checkpoint
            process.wait()
        torch.set_num_threads(threads)


def _say(what: str) -> None:
    print(f"\n== {what}", flush=True)


def _five_solvers(trained: Trained, workdir: Path, seed: int, five: dict[str, dict[str, Any]]) -> Iterator[Path]:
    run = trained.run
    for name, sampling in five.items():
        x = generate(run, trained.denoiser, 64, sampling=sampling, seed=seed)
        plot_samples(run.viewable(run.to_stored(x)), picture := workdir / f"samples_{name}.png")
        yield picture


def _round_trip(
    trained: Trained, workdir: Path, steps: tuple[int, ...]
) -> tuple[dict[str, dict[int, float]], list[Path]]:
    """Root mean square errors of encoding and decoding, by solver and number of steps, with curves and a picture."""
    run = trained.run
    stored = stored_tensor(run.dataset("test"))[::18]
    x0 = run.centred(stored).to(run.device)
    table: dict[str, dict[int, float]] = {}
    rows = {"test images": run.viewable(stored[:16])}
    for solver in ("ddim", "heun"):
        table[solver] = {}
        for n in steps:
            options = {"solver": solver, "grid": "log_snr", "steps": n}
            latent, _ = along_flow(run, trained.denoiser, x0, options, up=True, show=False)
            back, _ = along_flow(run, trained.denoiser, latent, options, up=False, show=False)
            table[solver][n] = rms(back, x0.cpu())
            if solver == "ddim":
                rows[f"{solver}, {n} steps"] = run.viewable(run.to_stored(back[:16]))
    curves = {solver: (list(errors), list(errors.values())) for solver, errors in table.items()}
    pictures = [workdir / "round_trip_error.png", workdir / "round_trip.png"]
    plot_curves(curves, pictures[0], x="steps", y="round-trip error (rms)", log="xy")
    plot_rows(rows, pictures[1])
    return table, pictures


def _probe(vp: Trained, ncsn: Trained, workdir: Path, seed: int, count: int, checked: dict[str, Any]) -> dict[str, Any]:
    """Confidence and class shares of each model's samples, by a classifier of the real digits."""
    real, held_out = digits_data("train"), digits_data("test")
    assert real.label is not None
    assert held_out.label is not None
    probe = DigitProbe(real.x, real.label)
    reference = probe.confidence(held_out.x)
    results: dict[str, Any] = {
        "probe_accuracy": probe.accuracy(held_out.x, held_out.label),
        "probe_confidence": reference,
    }
    for name, trained in (("vp", vp), ("ncsn", ncsn)):
        run = trained.run
        sampling = checked if name == "vp" else {**run.config.sampling}
        x = run.to_stored(generate(run, trained.denoiser, count, sampling=sampling, seed=seed, batch=500))
        shares = probe.shares(x.numpy())
        results[name] = {
            "solver": str(build.build(build.SOLVERS, sampling["solver"])),
            "samples": count,
            "confidence_over_real": probe.confidence(x.numpy()) / reference,
            "least_share": float(shares.min()),
            "largest_share": float(shares.max()),
        }
        if name == "ncsn":
            plot_samples(run.viewable(x[:64]), workdir / "ncsn.png")
    return results


def _print_table(summary: dict[str, Any]) -> None:
    print("\nround trip of test images, rms error by steps")
    for solver, errors in summary["round_trip_rms"].items():
        print(f"  {solver:6}" + "".join(f"{n:>6}: {error:.5f}" for n, error in errors.items()))
    print(f"likelihood of the test split, bits/dim\n  {summary['bits_per_dim']}")
    print(f"classifier of real digits: {summary['probe_accuracy']:.1%} right on the test split")
    for name in ("vp", "ncsn"):
        row = summary[name]
        print(
            f"  {name:6}{row['samples']} samples: confidence {row['confidence_over_real']:.3f} of that on real digits, "
            f"classes from {row['least_share']:.1%} to {row['largest_share']:.1%}   {row['solver']}"
        )
    print()
