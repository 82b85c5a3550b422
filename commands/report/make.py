"""Reports of other modes that a page lacks, made by those modes with little work."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scorefield.commands.compare import compare
from scorefield.commands.conditioning import sampled_conditioning
from scorefield.commands.evaluate.command import evaluate
from scorefield.commands.generate import generate
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.progress_bar import duration
from scorefield.commands.report.command_of import command_line, flags_of
from scorefield.commands.report.found import WEIGHTS, Found, Report
from scorefield.commands.report.sampling import pair_of
from scorefield.commands.report.trajectories import trajectory_beside
from scorefield.commands.sample import sample
from scorefield.commands.sampling import described
from scorefield.commands.train.pictures import IN_TIME, QUICK, sampling_of
from scorefield.commands.trained import open_trained
from scorefield.configs import build
from scorefield.models import CountCalls

NUM, TRAJECTORIES, SCORED, DRAWS, MEASURED = 64, 6, 256, 32, 1000
INCEPTION = 0.2  # seconds of an image
SOLVERS, STEPS, COMPARED = ("ddim", "heun", "unipc", "adams"), (5, 10, 20), 16
EVALUATIONS = 450  # of the network for one sample of all of them, about, with the reference
LONGEST = 600.0  # seconds that one of them may take


@dataclass(frozen=True)
class Task:
    """A report that is missing.

    Args:
        name: of what it holds.
        seconds: that it takes, about.
        call: makes it.
        command: the command line that makes it.
    """

    name: str
    seconds: float
    call: Callable[[], Any]
    command: str


def make_missing(found: Found, device: str | None) -> None:
    """Run the modes whose reports of the newest checkpoint are missing, and say which would take too long.

    An error of one is a note of the page, and the others go on.
    """
    if found.checkpoint is None:
        return
    for task in missing(found, device):
        if task.seconds > LONGEST:
            found.notes.append(
                f"The {task.name} would take about {duration(task.seconds)} here, and were left out: {task.command}"
            )
            continue
        try:
            task.call()
        except (ValueError, OSError) as error:
            on_stderr(f"no {task.name}: {error}")
            found.notes.append(f"The {task.name} could not be made: {error}")
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


def missing(found: Found, device: str | None) -> list[Task]:
    """The reports of the newest checkpoint that are missing, in the order of the page."""
    run, workdir, several = found.run, found.workdir, not found.run.sde.needs_code
    tasks, each = list[Task](), seconds_an_evaluation(found, device)

    def add(name: str, mode: str, evaluations: float, call: Callable[..., Any], more: float = 0.0, **of: Any) -> None:
        line = command_line(mode, workdir, *(flag for key, value in of.items() for flag in flags_of(key, value)))
        tasks.append(Task(name, each * evaluations + more, lambda: call(workdir, **of, device=device), line))

    quick, steps = _quick(found)
    sampled = [each for each in found.of_mode("sample", "weights") if not each.mark]
    followed = not several or any(trajectory_beside(each.path).is_file() for each in sampled)
    compared = pair_of(sampled) or [each for each in sampled if _is_usual(found, each)]
    for weights in (each for each in ("ema", "raw") if each in found.sha256):
        name = f"samples of the {WEIGHTS[weights]} weights"
        of = {**quick, "num": NUM} | ({} if weights == "ema" else {"ema": False})
        if not followed:
            name, of, followed = f"trajectories and {name}", {**of, "trajectory": TRAJECTORIES}, True
        elif any(each.content["weights"] == weights for each in compared):
            continue
        add(name, "sample", 2 * NUM * steps, sample, **of)
    if several and not _of_newest(found, "compare", "solver"):
        add("solvers", "compare", COMPARED * EVALUATIONS, compare, solver=SOLVERS, steps=STEPS)
    if not any(_is_of_run(each) for each in found.of_mode("evaluate", "of")):
        photographs = len(run.data.shape) == 3 and run.data.shape[0] == 3
        swept = {key: (value,) if key in ("solver", "steps") else value for key, value in quick.items()}
        evaluations = MEASURED * (2 * steps + 3)  # with features of samples, reference and held-out data
        more = 3 * MEASURED * INCEPTION if photographs else 0.0
        add("metrics", "evaluate", evaluations, evaluate, more, num=MEASURED, **swept)
    scored = _of_newest(found, "likelihood", "split")
    for split in (each for each in ("test", "train") if each not in scored):
        bound = [own_bound(found)]
        name = f"likelihoods of the {split} split"
        add(name, "likelihood", SCORED * DRAWS, likelihood, split=split, num=SCORED, estimators=bound)
    return tasks


def _quick(found: Found) -> tuple[dict[str, Any], int]:
    """Options of sampling where the configuration's sampler takes too many evaluations, and the number of steps."""
    chosen, own = sampling_of(found.run), found.run.config.sampling
    options = {key: chosen[key] for key in ("solver", "grid", "steps") if chosen[key] != own[key]}
    written = {key: value if key == "steps" else build.unparse(value) for key, value in options.items()}
    return written, int(chosen["steps"])


def _is_usual(found: Found, report: Report) -> bool:
    """Whether samples have the settings of those that are made here, which can stand beside them."""
    usual = described(sampling_of(found.run)) | {"num": NUM, "seed": 0, "guidance": 1.0}
    return all(report.content.get(key) == value for key, value in usual.items())


def _is_of_run(report: Report) -> bool:
    """Whether an evaluation is of samples of the newest checkpoint, and not of a file."""
    return not report.mark and any("checkpoint" in row for row in report.content["of"])


def _of_newest(found: Found, mode: str, key: str) -> set[str]:
    """The values of a key in the reports of a mode by the newest checkpoint."""
    return {str(each.content[key]) for each in found.of_mode(mode, key) if not each.mark}
