"""Search for the setting of sampling that comes nearest to the flow with a number of network evaluations."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scorefield.commands.arguments import at_least
from scorefield.commands.budget import Fitting, fitting
from scorefield.commands.guidance import guidance_of
from scorefield.commands.outputs import write_json
from scorefield.commands.progress_bar import progress_bar, say
from scorefield.commands.run import Run
from scorefield.commands.sampling import TUNED, ends_of_path, flow_between, read_tuned
from scorefield.commands.trained import open_trained
from scorefield.commands.tune.candidates import defaults, grids, solvers
from scorefield.commands.tune.grid import DIRECTIONS, ROUNDS
from scorefield.commands.tune.measures import Distance, Measure, kid_of
from scorefield.commands.tune.search import KEPT, LAST, MOVED, Draws, Entry, Halving, named
from scorefield.evaluation import plot_curves

METRICS = ("distance", "kid")
SHARES = {"distance": (32, 8), "kid": (8, 2)}  # into which the noises of the last round are divided before it
NUM = {"distance": 128, "kid": 512}
SETTINGS = {"distance": 256, "kid": 368}  # about how many there are, for the progress
SOLUTION = 100  # least number of steps of the flow's solution


def tune(
    workdir: Path,
    *,
    budget: int = 10,
    metric: str = "distance",
    num: int | None = None,
    seed: int = 0,
    batch: int = 256,
    label: str | int | None = None,
    caption: str | None = None,
    guidance: float = 1.0,
    features: str | None = None,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Write to WORKDIR/tuned.json the setting of sampling that is best at a number of network evaluations.

    `--solver=tuned` samples with it. The search is over the solver with its order and variable, the grid with its
    settings, and the last denoising, by successive halving. The times of the best grids are then moved one by one. It
    counts evaluations of a sample, a last denoising and both halves of guidance among them.

    The metric `distance` is the root mean square distance, in the model's values, from the probability flow's solution
    with the configuration's own last denoising. `kid` is that of features from those of the training data; solvers that
    add noise are then searched too, and no grid is moved.

    The winner and the default are then measured on noise that the search did not see. The default is the
    configuration's solver on its grid. It is the package's where that adds noise, which has no distance from the flow.
    A default that is not worse is kept.

    Args:
        workdir: of the run.
        budget: network evaluations of a sample, at most.
        metric: distance or kid.
        num: noises of the last round, and of those that the search did not see; 128, or 512 for kid.
        seed: of the noise that the search does not see; its own is that of the next seed.
        batch: samples in one batch.
        label: number or name of the class to sample, by default each class in turn.
        caption: of all samples.
        guidance: scale of classifier-free guidance.
        features: of kid, see `open_features`.
        ema: use the averaged weights.
        checkpoint: see `find_checkpoint`.
        device: see `open_run`.

    Raises:
        ValueError: if there is no trained run, an option does not fit it, or the budget is too small.
    """
    num = NUM.get(metric, 3) if num is None else num
    at_least(1, budget=budget, batch=batch)
    at_least(3, num=num)
    at_least(0, seed=seed)
    if metric not in METRICS:
        raise ValueError(f"expected --metric of {' or '.join(METRICS)}, got {metric!r}")
    if features is not None and metric != "kid":
        raise ValueError("expected --features with --metric=kid only, got them for a distance: leave them out")
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("tune")
    run = trained.run
    read_tuned(workdir)  # refuses a damaged file before anything is computed
    guiding = guidance_of(trained, guidance=guidance)
    conditioning = guiding.conditioning(num, label, caption)
    fitted, stochastic = fitting(run, budget, guiding, conditioning.cond), metric == "kid"
    sizes = [max(1 if metric == "distance" else 3, num // share) for share in (*SHARES[metric], 1)]
    solution = flow_between(run, ends_of_path(run), run.config.sampling.denoise, max(SOLUTION, 5 * budget))

    kid, facts = kid_of(trained, features, batch) if stochastic else (None, {"target": _short(solution)})

    with progress_bar("tune", _work(budget, sizes, solution, metric), unit="evaluation") as bar:
        seen, unseen = (Draws(trained, conditioning.cond, guiding, each, batch, bar) for each in (seed + 1, seed))

        def measure_of(draws: Draws) -> Measure:
            return kid or Distance(draws(solution, 0, num)[0])

        search = Halving(measure_of(seen), seen, budget, sizes)
        settings = [
            {**one, "grid": grid} for one in _fitted(solvers(stochastic), fitted, search) for grid in grids(run)
        ]
        usual = _fitted(defaults(run, stochastic), fitted, search)
        if not settings or not usual:
            raise ValueError(f"expected --budget for one step or more, got {budget}: take a larger one")
        winner, default, measure = Entry(search.best(settings).sampling), Entry(usual[0]), measure_of(unseen)
        for entry in (winner, default):
            entry.extend(measure, unseen, num)
    gained = _gained(measure, winner, default)
    setting = {
        "metric": metric, **gained, "num": num, "seed": seed, **facts, **conditioning.described,
        "guidance": guidance, **trained.described, "rounds": search.rounds, "dropped": _dropped(search),
    }  # fmt: skip
    files = _write(run, {**read_tuned(workdir), budget: setting}, metric)
    for line in (*map(_dropped_line, setting["dropped"]), _line(budget, setting, num)):
        say(line)
    return {"files": [str(file) for file in files]}


def _fitted(settings: Iterable[dict[str, Any]], fitted: Fitting, search: Halving) -> list[dict[str, Any]]:
    """The settings with their steps, without those that fail on this path or take more than the budget."""
    within = []
    for sampling in settings:
        try:
            chosen = fitted(sampling)
        except ValueError as error:
            search.drop(sampling, str(error))
            continue
        if chosen is None:
            last = " and the last denoising" if sampling["denoise"] else ""
            search.drop(sampling, f"one step{last}: more than the budget")
        else:
            within.append(chosen)
    return within


def _gained(measure: Measure, winner: Entry, default: Entry) -> dict[str, Any]:
    """The setting to keep, and what both give on noise that the search did not see."""
    compared = measure.compared(winner.known_rows, default.known_rows)
    better = compared.value < measure.equal
    best, usual = (
        {**entry.sampling, "nfe": entry.nfe, "value": measure.estimate(entry.known_rows)._asdict()}
        for entry in (winner, default)
    )
    return {
        **(best if better else usual), "better": better, "winner": best, "default": usual,
        measure.gain: compared._asdict(),
    }  # fmt: skip


def _write(run: Run, budgets: dict[int, dict[str, Any]], metric: str) -> list[Path]:
    """The settings by budget, and of several budgets a picture."""
    files = [write_json(run.workdir / TUNED, {"budgets": {str(key): budgets[key] for key in sorted(budgets)}})]
    same = [budgets[key] for key in sorted(budgets) if budgets[key]["metric"] == metric]
    if len(same) > 1:
        curves = {
            name: ([each[key]["nfe"] for each in same], [each[key]["value"]["value"] for each in same])
            for name, key in (("default", "default"), ("tuned", "winner"))
        }
        y = "distance from the flow" if metric == "distance" else "KID"
        picture = files[0].with_suffix(".png")
        plot_curves(curves, picture, x="network evaluations", y=y, log="xy" if metric == "distance" else "x")
        files.append(picture)
    return files


def _dropped(search: Halving) -> list[dict[str, Any]]:
    return [
        {"solver": solver, "settings": count, "reason": reason} for (solver, reason), count in search.dropped.items()
    ]


def _dropped_line(dropped: dict[str, Any]) -> str:
    return f"left out {dropped['solver']} ({dropped['settings']} times): {dropped['reason']}"


def _line(budget: int, setting: dict[str, Any], num: int) -> str:
    """What was gained, in a line."""
    winner, default = (f"{named(setting[key])} {_shown(setting[key]['value'])}" for key in ("winner", "default"))
    gain = "ratio" if "ratio" in setting else "difference"
    end = "" if setting["better"] else ": no better, so that the default is kept"
    return (
        f"{budget} evaluations, {num} unseen noises: {winner}; the default, {default}; {gain} "
        f"{_shown(setting[gain])}{end}"
    )


def _shown(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4g} ± {estimate['standard_error']:.2g}"


def _short(solution: dict[str, Any]) -> dict[str, Any]:
    """The setting of the flow's solution, without the levels of its grid."""
    return {**solution, "grid": "log_snr"}


def _work(budget: int, sizes: Sequence[int], solution: dict[str, Any], metric: str) -> int:
    """About how many evaluations the search takes."""
    count, total, done = SETTINGS[metric], 0, 0
    for size in sizes[:-1]:
        total, done, count = total + count * (size - done) * budget, size, max(LAST, count // KEPT)
    moves = MOVED * ROUNDS * (min(budget, DIRECTIONS) + 2) * sizes[-2] * budget
    last = (LAST + MOVED + 2) * sizes[-1] * budget
    return total + last + (moves + 2 * sizes[-1] * solution["steps"] if metric == "distance" else 0)
