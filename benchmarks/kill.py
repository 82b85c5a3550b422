"""Kill training with SIGKILL at random moments, restart it each time, and compare the result bit for bit.

    python -m scorefield.benchmarks.kill --kills=20

Half of the kills come while a checkpoint is written, as seen by its hidden folder. The last weights, averages,
optimiser, random states, snapshots and rows of metrics.jsonl must be those of a run without kills.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
# Fields of metrics.jsonl that depend on the machine.
TIMED = ("images_per_second", "seconds", "memory")
SETTINGS = {
    "images": 4800, "batch": 24, "log_every": 7, "checkpoint_every": 240, "sample_every": 1500, "keep": 2,
    "keep_every": 1000, "snapshot_every": 1200, "more_ema": (0.9,),
}  # fmt: skip


@dataclasses.dataclass
class Child:
    """A training process: its exit status, or None, and how to kill it."""

    poll: Callable[[], int | None]
    kill: Callable[[], None]


def command(workdir: Path, settings: dict[str, Any], processes: int) -> Child:
    """Run the command line, under torchrun for several processes."""
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    flags = [f"--config.training.{key}={value}" for key, value in settings.items()]
    arguments = [
        sys.executable, *launch, str(ROOT / "main.py"), "--mode=train", "--config=configs/digits.py:vp", "--device=cpu",
        f"--workdir={workdir}", "--config.net.width=8", "--config.net.dropout=0.1", "--config.sampling.steps=2", *flags,
    ]  # fmt: skip
    with (workdir.parent / "output.txt").open("a") as log:
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def kill() -> None:
        # torchrun starts its workers in other sessions.
        for pid in (process.pid, *_descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    return Child(process.poll, kill)


def _descendants(pid: int) -> list[int]:
    children = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            children += [child, *_descendants(child)]
    return children


def forked(workdir: Path, settings: dict[str, Any], processes: int) -> Child:
    """Fork this process instead, which saves the seconds that a new Python spends on imports."""
    assert processes == 1
    from scorefield.commands.train.command import train
    from scorefield.configs import digits
    from scorefield.training.data import digits as dataset

    importlib.import_module("torch._dynamo")  # as the first optimiser does
    dataset("train")  # which imports scikit-learn
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            log = os.open(workdir.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            config = digits.get_config("vp")
            config.net.update(width=8, dropout=0.1)
            config.sampling.steps = 2
            config.training.update(**settings)
            train(workdir, config, device="cpu")
            status = 0
        finally:
            os._exit(status)
    ended: list[int] = []

    def poll() -> int | None:
        if not ended:
            child, code = os.waitpid(pid, os.WNOHANG)
            ended.extend([os.waitstatus_to_exitcode(code)] if child else [])
        return ended[0] if ended else None

    def kill() -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    return Child(poll, kill)


def finished(child: Child) -> None:
    while (status := child.poll()) is None:
        time.sleep(0.01)
    if status:
        raise SystemExit(f"training ended with status {status}")


def writing(workdir: Path) -> bool:
    """Whether a checkpoint or a snapshot is being written."""
    return any(True for folder in ("checkpoints", "snapshots") for _ in (workdir / folder).glob(".*.part"))


@dataclasses.dataclass
class Ordeal:
    """The kills of a run, how many hit the writing of a checkpoint, and where it resumed from."""

    kills: int = 0
    writing: int = 0
    ended: int = 0
    resumed_from: list[int] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.writing} of them while a checkpoint or snapshot was written; resumed from "
            f"{', '.join(map(str, self.resumed_from))} images"
            + f"; {self.ended} times it ended before, and was started again"
            * bool(self.ended)
        )

    def starts(self, workdir: Path) -> None:
        """Record where it will resume from."""
        self.resumed_from.append(max(checkpoints(workdir), default=0))


def checkpoints(workdir: Path) -> list[int]:
    """The images of each."""
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


def ordeal(
    workdir: Path, start: Callable[[Path], Child], kills: int, startup: float, span: float, chance: random.Random
) -> Ordeal:
    """Train to the end with `kills` kills: a quarter before a process's first checkpoint, the others within `span`."""
    done = Ordeal()
    while done.kills < kills:
        done.starts(workdir)
        wait = startup * chance.random() if chance.random() < 0.25 else startup + span * chance.random()
        child, end = start(workdir), time.perf_counter() + wait
        while child.poll() is None and time.perf_counter() < end:
            time.sleep(0.001)
        if done.kills % 2 == 0:  # one in two waits for a checkpoint, and kills within 10 ms
            while child.poll() is None and not writing(workdir):
                time.sleep(0.0002)
            time.sleep(chance.uniform(0, 0.01))
        if child.poll() is not None:
            finished(child)
            shutil.rmtree(workdir)
            done.ended += 1
            startup, span = 0.7 * startup, 0.7 * span  # the machine was slower when these were measured
            done.resumed_from.clear()
            continue
        child.kill()
        done.kills += 1
        done.writing += writing(workdir)
    done.starts(workdir)
    finished(start(workdir))
    return done


def outcome(workdir: Path) -> dict[str, Any]:
    """The results that must not depend on the kills."""
    results: dict[str, Any] = {}
    # The older checkpoints may depend on where it was restarted; the last one and the snapshots may not.
    last = max((workdir / "checkpoints").iterdir())
    for file in (*last.glob("*.safetensors"), *workdir.glob("snapshots/*/*.safetensors")):
        results[str(file.relative_to(workdir))] = load_file(file)
    results["state.pt"] = torch.load(last / "state.pt", weights_only=True)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    results["metrics.jsonl"] = [{k: v for k, v in row.items() if not k.startswith(TIMED)} for row in rows]
    return results


def different(a: Any, b: Any, where: str = "") -> list[str]:
    """The places where two outcomes differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in different(a.get(key), b.get(key), f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in different(x, y, f"{where}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [where]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1, help="under torchrun, with gloo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=SETTINGS["images"])
    parser.add_argument("--forked", action="store_true", help="fork this process, rather than run the command line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    often = {"checkpoint_every": arguments.images // 20, "snapshot_every": arguments.images // 4}
    settings = {**SETTINGS, **often, "images": arguments.images}
    launch = forked if arguments.forked else command

    def start(workdir: Path) -> Child:
        return launch(workdir, settings, arguments.processes)

    with tempfile.TemporaryDirectory() as folder:
        undisturbed, killed = Path(folder) / "undisturbed", Path(folder) / "killed"
        began = time.perf_counter()
        child = start(undisturbed)
        while child.poll() is None and not checkpoints(undisturbed):
            time.sleep(0.001)
        startup = time.perf_counter() - began
        finished(child)
        each = (time.perf_counter() - began - startup) / arguments.kills
        chance = random.Random(arguments.seed)
        done = ordeal(killed, start, arguments.kills, startup, 1.5 * each, chance)
        first, second = outcome(undisturbed), outcome(killed)
        odd = different(first, second)
        verdict = f"{len(odd)} differences: {odd[:5]}" if odd else "bit-identical"
        rows, files = len(first["metrics.jsonl"]), len(first) - 1
        print(f"{arguments.processes} process(es): {done}; {rows} rows and {files} files compared: {verdict}")
    return int(bool(odd))


if __name__ == "__main__":
    sys.exit(main())
