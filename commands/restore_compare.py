"""Compare methods that restore the same measurements."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scorefield.commands.arguments import at_least
from scorefield.commands.outputs import check_output, output_path, write_arrays, write_json
from scorefield.commands.restore import GRID, METHOD, STEPS
from scorefield.commands.restore_draws import draw, measured_variance
from scorefield.commands.restore_problem import measured
from scorefield.commands.restore_report import Restored, picture, restored
from scorefield.commands.trained import open_trained
from scorefield.configs import build
from scorefield.configs.methods import Method

NUMBERS = ("residual", "spread", "error", "psnr", "coverage", "log_evidence", "forwards", "seconds")  # of a row
WIDTH = 12


def compare_methods(
    workdir: Path,
    *,
    method: Sequence[str] = (),
    task: str | None = None,
    noise: float = 0.05,
    samples: int = 8,
    num: int | None = None,
    source: str | None = None,
    mask: str | None = None,
    data: str | None = None,
    steps: Sequence[int] | None = None,
    grid: str | None = None,
    seed: int = 0,
    batch: int = 64,
    label: str | int | None = None,
    caption: str | None = None,
    tile: int = 0,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Every method at every number of steps on the same measurements: a table, a picture and arrays.

    A row of the picture has one sample of each image. An error of one method is written in its row, and the others are
    computed. Options are as in `restore`.

    Raises:
        ValueError: if there is no trained run, or an option does not fit it.
    """
    at_least(1, num=num, samples=samples, batch=batch, steps=min(steps, default=0) if steps is not None else None)
    at_least(0, seed=seed)
    check_output(output, ".npz")
    methods: dict[str, Method] = {name: build.build(build.METHODS, name) for name in method or (METHOD,)}
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("compare")
    run, counts = trained.run.on(data).in_tiles_of(tile), tuple(steps or (STEPS,))
    problem = measured(
        run, task=task, noise=noise, source=source, mask=mask, num=num, seed=seed, label=label, caption=caption
    )
    uses = any(one.uses_variance for one in methods.values())
    variance = measured_variance(run, trained.denoiser) if uses else None

    table, found = list[dict[str, Any]](), dict[str, Restored]()
    print("  ".join([f"{'method':28}", f"{'steps':>5}", *(f"{name:>{WIDTH}}" for name in NUMBERS)]), flush=True)
    for name, one in methods.items():
        for count in counts:
            row: dict[str, Any] = {"method": name, "steps": count}
            try:
                draws = draw(
                    trained.denoiser, problem, one, grid=grid or GRID, steps=count, samples=samples, seed=seed,
                    batch=batch, variance=variance, name=f"{name}, {count} steps",
                )  # fmt: skip
                found[name if len(counts) == 1 else f"{name} {count}"] = one_found = restored(problem, draws, seed)
                row |= one_found.numbers
            except ValueError as error:
                row["failed"] = str(error)
            table.append(row)
            print(_line(row), flush=True)

    settings = {
        **problem.described, "method": list(methods), "samples": samples, "steps": list(counts), "grid": grid or GRID,
        "seed": seed, **trained.described,
    }  # fmt: skip
    path = output_path(output, workdir / "compare_methods.npz", settings)
    arrays: dict[str, Tensor | None] = {name: each.stored for name, each in found.items()}
    write_arrays(path, **arrays, y=problem.y, truth=problem.truth, index=problem.index)
    rows = {name: each.stored[:, 0] for name, each in found.items()}
    drawn = picture(problem, rows, path.with_suffix(".png"))
    report = write_json(path.with_suffix(".json"), {**settings, "table": table})
    return {"files": [str(path), str(drawn), str(report)]}


def _line(row: dict[str, Any]) -> str:
    start = f"{row['method']:28}  {row['steps']:5}"
    if "failed" in row:
        return f"{start}  {row['failed']}"
    return "  ".join([start, *(f"{row[name]:{WIDTH}.4g}" if name in row else " " * WIDTH for name in NUMBERS)])
