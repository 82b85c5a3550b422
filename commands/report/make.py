"""Reports of other modes that a page lacks, made by those modes with little work."""

import time
from collections.abc import Callable
from typing import Any

from scorefield.commands.compare import compare
from scorefield.commands.conditioning import sampled_conditioning
from scorefield.commands.generate import generate
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.progress_bar import duration
from scorefield.commands.report.command_of import command_line, flags_of
from scorefield.commands.report.found import Found
from scorefield.commands.sample import sample
from scorefield.commands.train.pictures import IN_TIME, QUICK, sampling_of
from scorefield.commands.trained import open_trained
from scorefield.configs import build
from scorefield.models import CountCalls

NUM, TRAJECTORIES, SCORED, DRAWS = 64, 6, 256, 32
SOLVERS, STEPS, COMPARED = ("ddim", "heun", "unipc", "adams"), (5, 10, 20), 16
EVALUATIONS = 450  # of the network for one sample of all of them, about, with the reference
LONGEST = 600.0  # seconds that one of them may take


def make_missing(found: Found, device: str | None) -> None:
    """Run the modes whose reports of the newest checkpoint are missing, and say which would take too long.

    An error of one is a note of the page, and the others go on.
    """
    if found.checkpoint is None:
        return
    seconds = seconds_an_evaluation(found, device)
    for name, evaluations, make, command in _missing(found, device):
        if seconds * evaluations > LONGEST:
            found.notes.append(
                f"{name}: left out, because it would take about {duration(seconds * evaluations)} here. "
                f"This makes it: {command}"
            )
            continue
        try:
            make()
        except (ValueError, OSError) as error:
            on_stderr(f"no {name}: {error}")
            found.notes.append(f"{name}: could not be made: {error}")
        found.refresh()


def seconds_an_evaluation(found: Found, device: str | None) -> float:
    """Of the network for one of 16 samples at once."""
    trained = open_trained(found.workdir, device, ema="ema" in found.sha256)
    run, counted = trained.run, CountCalls(trained.denoiser)
    sampling = {**(IN_TIME if run.sde.needs_code else QUICK), "steps": 2}
    cond = sampled_conditioning(run, COMPARED, few=True).cond
    took = []
    for _ in range(2):  # the first is slower
        counted.samples, began = 0, time.perf_counter()
        generate(run, counted, COMPARED, sampling=sampling, seed=0, cond=cond, show=False)
        took.append((time.perf_counter() - began) / counted.samples)
    return min(took)


def own_bound(found: Found) -> str:
    """The estimator of the likelihood that the run was trained by, or that is nearest to it."""
    run = found.run
    by_bound = run.config.training.get("loss") == "elbo" or (run.levels is not None and not run.dequantised)
    return "elbo" if by_bound else "dsm"


def _missing(found: Found, device: str | None) -> list[tuple[str, float, Callable[[], Any], str]]:
    """What is missing: its name, its evaluations of the network, the call that makes it, and its command."""
    missing = list[tuple[str, float, Callable[[], Any], str]]()
    run, workdir = found.run, found.workdir

    def add(name: str, mode: str, evaluations: float, call: Callable[..., Any], **options: Any) -> None:
        flags = [flag for key, value in options.items() for flag in flags_of(key, value)]
        line = command_line(mode, workdir, *flags)
        missing.append((name, evaluations, lambda: call(workdir, **options, device=device), line))

    chosen, own = sampling_of(run), run.config.sampling
    quick = {key: chosen[key] for key in ("solver", "grid", "steps") if chosen[key] != own[key]}
    quick = {key: build.unparse(value) if key != "steps" else value for key, value in quick.items()}
    evaluations = NUM * 2 * int(chosen["steps"])
    there = {each.content.get("weights") for each in found.of_mode("sample") if not each.mark}
    trajectory = {} if run.sde.needs_code else {"trajectory": TRAJECTORIES}
    if "ema" not in there and "ema" in found.sha256:
        add("samples of the averaged weights", "sample", evaluations, sample, **quick, **trajectory)
    if "raw" not in there and "raw" in found.sha256:
        add("samples of the raw weights", "sample", evaluations, sample, **quick, ema=False)
    if not run.sde.needs_code and not any(not each.mark for each in found.of_mode("compare", "solver")):
        add("solvers", "compare", COMPARED * EVALUATIONS, compare, solver=SOLVERS, steps=STEPS)
    bounds = {each.content.get("split") for each in found.of_mode("likelihood") if not each.mark}
    for split in ("test", "train"):
        if split not in bounds:
            add(
                f"likelihood of the {split} split", "likelihood", SCORED * DRAWS, likelihood, split=split, num=SCORED,
                estimators=[own_bound(found)],
            )  # fmt: skip
    return missing
