"""Compare solvers and numbers of steps, starting from the same noise."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from scorefield.commands.arguments import at_least
from scorefield.commands.budget import check_budget, limits_of, within
from scorefield.commands.generate import generate
from scorefield.commands.guidance import guidance_of
from scorefield.commands.outputs import check_output, output_path, write_arrays, write_json
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.restore_compare import compare_methods
from scorefield.commands.run import Run
from scorefield.commands.sampling import (
    FINE,
    REFERENCE,
    check_alone,
    ends_of,
    ends_of_path,
    flow_between,
    is_tuned,
    sampling_of,
)
from scorefield.commands.trained import Trained, open_trained
from scorefield.configs import build
from scorefield.evaluation import plot_rows
from scorefield.models import CountCalls
from scorefield.sde_lib.denoiser import DenoiserLike
from scorefield.solvers import Solver

SOLVERS, STEPS = ("ddim", "heun", "dpm", "unipc", "adams", "ancestral"), (5, 10, 20, 50)


def compare(
    workdir: Path,
    *,
    solver: tuple[str, ...] = SOLVERS,
    steps: tuple[int, ...] = STEPS,
    budget: tuple[int, ...] = (),
    method: tuple[str, ...] = (),
    task: str | None = None,
    noise: float = 0.05,
    samples: int = 8,
    input: str | None = None,  # noqa: A002 - the flag's name
    mask: str | None = None,
    data: str | None = None,
    grid: str | None = None,
    num: int | None = None,
    denoise: bool | None = None,
    seed: int = 0,
    batch: int = 256,
    label: str | int | None = None,
    caption: str | None = None,
    guidance: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    guidance_rescale: float | None = None,
    guidance_parallel: float | None = None,
    guidance_norm: float | None = None,
    guide: str | None = None,
    classifier: float | None = None,
    tile: int = 0,
    ema: bool = True,
    checkpoint: str | None = None,
    compile: bool = False,  # noqa: A002 - the flag's name
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Every solver at every number of steps on one noise: a table, a picture with a row of samples each, and arrays.

    With --budget each solver takes the most steps within that number of network evaluations of a sample. It may be
    given several times, in place of --steps.

    The table has the network evaluations of one sample, and the seconds. For deterministic solvers it also has the root
    mean square distance, in the model's values, to the solution of the probability flow. UniPC in 250 steps computes
    that solution. An error of one pair is written in its row, and the other pairs are computed.

    The solver `tuned` (see `tune`) takes its own grid, steps and denoising: of the largest budget that is not above the
    number of steps, or of evaluations. It is compared with the flow of the configuration.

    Guidance, its noise levels and the tiles of a latent run are as in `sample`.

    With --task and one --method or more it compares methods that restore the same measurements: see
    `restore_compare`. There --steps is 50 by default, and --input, --mask and --data are as in `restore`.

    Raises:
        ValueError: if there is no trained run, or an option does not fit it.
    """
    if method or task is not None:
        if solver != SOLVERS:
            raise ValueError("expected no --solver beside --method, got one: each method has its own")
        if budget:
            raise ValueError("expected no --budget beside --method, got one: give --steps")
        return compare_methods(
            workdir, method=method, task=task, noise=noise, samples=samples, num=num, source=input, mask=mask,
            data=data, steps=None if steps == STEPS else steps, grid=grid, seed=seed, batch=batch, label=label,
            caption=caption, tile=tile, ema=ema, checkpoint=checkpoint, device=device, output=output,
        )  # fmt: skip
    if input or mask or data:
        raise ValueError("expected --input, --mask and --data with --method only, got them for solvers: leave them out")
    check_budget(budget, steps != STEPS)
    num = 16 if num is None else num
    at_least(1, num=num, batch=batch, steps=min(steps, default=0), budget=min(budget, default=None))
    at_least(0, seed=seed)
    for name in solver:
        if not is_tuned(name):
            build.build(build.SOLVERS, name)  # refuses a wrong name before anything is computed
        else:
            check_alone(grid, denoise)
    check_output(output, ".npz")
    trained = open_trained(workdir, device, ema, compile, checkpoint=checkpoint)
    trained.check_one_level("compare")
    run = trained.run.in_tiles_of(tile)
    guiding = guidance_of(
        trained, guidance=guidance, interval=guidance_interval, rescale=guidance_rescale, parallel=guidance_parallel,
        norm=guidance_norm, guide=guide, classifier=classifier,
    )  # fmt: skip
    conditioning = guiding.conditioning(num, label, caption)
    sampling = sampling_of(run, grid=grid, denoise=denoise)

    def made(model: DenoiserLike, chosen: dict[str, Any]) -> Tensor:
        with progress_bar(f"{build.unparse(chosen['solver'])}, {chosen['steps']} steps", num, leave=False) as bar:
            return generate(
                run, model, num, sampling=chosen, seed=seed, batch=batch, cond=conditioning.cond, guide=guiding, bar=bar
            )

    flows: dict[tuple[float, float], Tensor] = {}  # by the first and last time of a grid

    def flow(ends: tuple[float, float]) -> Tensor:
        if ends not in flows:
            flows[ends] = made(trained.denoiser, flow_between(run, ends, sampling["denoise"]))
        return flows[ends]

    def setting(name: str, limit: dict[str, Any]) -> dict[str, Any]:
        chosen = sampling_of(run, solver=name, grid=grid, denoise=denoise, trained=trained, **limit)
        return within(run, limit.get("budget"), chosen, guiding, conditioning.cond)

    table: list[dict[str, Any]] = []
    arrays: dict[str, Tensor] = {}
    for name in solver:
        for limit in limits_of(budget, steps):
            row, x = _row(trained, {"solver": name, **limit}, partial(setting, name, limit), made, flow)
            table.append(row)
            print(_line(row), flush=True)
            if x is not None:
                arrays[f"{name} {row['steps']}"] = x

    # The flow that is shown: along the grid of the first row that has the grid of the options.
    first = next((row["steps"] for row in table if "nfe" in row and "setting" not in row), None)
    shown = ends_of_path(run) if first is None else ends_of(run, {**sampling, "steps": first})
    arrays = {"flow": flow(shown), **arrays}
    settings = {
        "num": num, "solver": list(solver), **({"budget": list(budget)} if budget else {"steps": list(steps)}),
        "grid": build.unparse(sampling["grid"]), "denoise": sampling["denoise"], "seed": seed,
        **conditioning.described, "guidance": guidance, **trained.described,
    }  # fmt: skip
    settings |= guiding.described
    path = output_path(output, workdir / "compare.npz", settings)
    write_arrays(path, **{name: run.to_stored(x) for name, x in arrays.items()})
    picture = _picture(run, arrays, path.with_suffix(".png"))
    report = write_json(path.with_suffix(".json"), {**settings, "table": table})
    return {"files": [str(path), str(picture), str(report)]}


def _row(
    trained: Trained, row: dict[str, Any], setting: Callable[[], dict[str, Any]], made: Any, flow: Any
) -> tuple[dict[str, Any], Tensor | None]:
    """A row of the table, and its samples, unless there are none."""
    counted, run = CountCalls(trained.denoiser), trained.run
    try:
        chosen = setting()
        row["steps"] = chosen["steps"]
        if tuned := "tuned" in chosen:
            row["setting"] = {key: chosen[key] for key in ("solver", "grid", "steps", "denoise")}
        solver: Solver = build.build(build.SOLVERS, chosen["solver"])
        exact = None if solver.stochastic else flow(ends_of_path(run) if tuned else ends_of(run, chosen))
        began = time.perf_counter()
        x = made(counted, chosen)
    except ValueError as error:
        return row | {"failed": str(error)}, None
    row |= {"nfe": counted.samples / len(x), "seconds": time.perf_counter() - began}
    if exact is not None:
        row["distance"] = float((x - exact).square().mean().sqrt())
    return row, x


def _line(row: dict[str, Any]) -> str:
    start = f"{row['solver']:28} {row['steps']:4} steps " if "steps" in row else f"{row['solver']:28}"
    if "failed" in row:
        return f"{start} {row['failed']}"
    end = f"{row['distance']:.5f} from the flow" if "distance" in row else "stochastic"
    return f"{start} {row['nfe']:6g} evaluations {row['seconds']:7.2f} s   {end}"


def _picture(run: Run, arrays: dict[str, Tensor], path: Path) -> Path:
    """A picture with a named row of at most sixteen samples for each, or a scatter for points."""
    captions = {name: f"{name} steps" for name in arrays} | {"flow": f"the flow: {REFERENCE}, {FINE} steps"}
    plot_rows({captions[name]: run.viewable(run.to_stored(x[:16])) for name, x in arrays.items()}, path)
    return path
