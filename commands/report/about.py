"""The head of the page, and what was trained: data, path, network, loss, optimiser, and the nearest recipe."""

import math
from typing import Any

from scorefield.commands.evaluate.report import best_of
from scorefield.commands.progress_bar import duration
from scorefield.commands.report.blocks import Block, Number, Section, Table, said
from scorefield.commands.report.found import WEIGHTS, Found, Report
from scorefield.commands.report.numbers import is_number, number, plain
from scorefield.commands.report.recipe import nearest_recipe
from scorefield.commands.report.specs import short_spec
from scorefield.configs import build

CLASSES = 12  # whose counts are listed


def summary(found: Found) -> list[Block]:
    """A paragraph of numbers."""
    run = found.run
    config, count = run.config, number(_parameters(found))
    sized = [] if count is None else [" of ", count, " parameters"]
    how = f", with the parameterisation {config.precondition.name} on the path {config.sde.name}"
    origin = "imported" if found.imported else f"trained on {run.data.name}"
    parts: list[Any] = [
        f"A network ({config.net.name})",
        *sized,
        f"{how}, {origin}.",
    ]
    if found.checkpoint is None:
        return [said(*parts, " It has no checkpoint yet.")]
    if found.images:
        parts += [" It has seen ", number(found.images), " images"]
        if seconds := sum(row.get("seconds", 0.0) for row in found.timing):
            parts.append(f" in {duration(seconds)}")
        parts.append(".")
    if (best := best_likelihood(found)) is not None:
        unit, value, report = best
        of = "bound" if report.content.get("estimators") != ["ode"] else "value of the flow"
        parts += [f" Its best {of} on the test split is ", value, f" {unit}."]
    parts += best_metric(found)
    if (speed := samples_a_second(found)) is not None:
        parts += [" It draws ", speed[0], " samples a second with ", speed[1], " evaluations of the network each."]
    return [said(*parts)]


def best_likelihood(found: Found) -> tuple[str, Number, Report] | None:
    """The least bits/dim (or nats/dim) of the test split by the newest checkpoint, and its report.

    Of several reports of one estimator the one with the smallest error counts, not the one that came out least.
    """
    known: dict[tuple[Any, ...], tuple[float, str, Number, Report]] = {}
    for report in found.of_mode("likelihood", "estimates"):
        content = report.content
        if report.mark or content.get("split") != "test" or content.get("data") not in found.data_names:
            continue
        for unit in ("bits_per_dim", "nats_per_dim"):
            for name, each in content["estimates"].items():
                error = each.get("standard_error")
                value, size = number(each.get(unit), error), float(error) if is_number(error) else math.inf
                key = unit, name, each.get("kind"), content.get("dequantisation"), content.get("prior")
                if value is None or not math.isfinite(value.value):
                    continue
                if key not in known or size < known[key][0]:
                    known[key] = size, unit.replace("_per_", "/"), value, report
    if not known:
        return None
    _, unit, value, report = min(known.values(), key=lambda each: each[2].value)
    return unit, value, report


def best_metric(found: Found) -> list[Any]:
    """The best of the first metric of the newest checkpoint, over all reports with the recipe of most rows.

    Numbers of different recipes are not compared, so that the words name the features.
    """
    reports = evaluations_of_run(found)
    if not reports:
        return []
    recipe_key = _recipe(reports[0])
    alike = [each for each in reports if _recipe(each) == recipe_key]
    rows = [row for report in alike for row in _own_rows(found, report)]
    best = best_of(rows)
    if best is None:
        return []
    name, each = next(iter(rows[0]["numbers"])), best["numbers"]
    value = number(each.get(name, {}).get("value"), each.get(name, {}).get("standard_error"))
    if value is None:
        return []
    recipe = reports[0].content["recipe"]
    first = f" In the features {recipe['features']}, its {'best ' if len(rows) > 1 else ''}{name} is "
    of = f" ({best['name']}, {best['n']} samples against {recipe['reference']['count']} of the reference)."
    others = " It is not compared with reports of other features, references or numbers of samples."
    return [first, value, of, others if len(alike) < len(reports) else ""]


def evaluations_of_run(found: Found) -> list[Report]:
    """The evaluations of samples of the newest checkpoint, those with most rows first, then the newest."""
    reports = [each for each in found.of_mode("evaluate", "rows", "recipe") if _own_rows(found, each)]
    return sorted(reports, key=lambda each: -len(_own_rows(found, each)))


def _own_rows(found: Found, report: Report) -> list[dict[str, Any]]:
    """The rows with numbers that are of samples of the newest checkpoint, and not of a file."""
    rows = (row for row in report.content["rows"] if isinstance(row, dict) and isinstance(row.get("numbers"), dict))
    return [row for row in rows if row["numbers"] and row.get("checkpoint_sha256") in found.sha256.values()]


def _recipe(report: Report) -> list[Any]:
    """What numbers must have in common to be compared."""
    return [report.content["recipe"].get(key) for key in ("features_sha256", "reference", "samples")]


def samples_a_second(found: Found) -> tuple[Number, Number] | None:
    """By the newest samples of the newest checkpoint, with their evaluations of the network."""
    for report in found.of_mode("sample", "seconds", "num", "nfe"):
        content = report.content
        if not report.mark and is_number(content["seconds"]) and content["seconds"] > 0:
            speed, nfe = number(content["num"] / content["seconds"], digits=3), number(content["nfe"])
            if speed is not None and nfe is not None:
                return speed, nfe
    return None


def what_was_trained(found: Found) -> Section:
    """The data, the model and its training, and the differences from the nearest recipe."""
    return Section("trained", "What was trained", [_facts(found), *_differences(found)])


def _facts(found: Found) -> Table:
    run, config = found.run, found.run.config
    data, training = run.data, config.training
    values = "continuous values" if data.levels is None else f"{data.levels} levels"
    rows: list[tuple[str, Any]] = [
        ("data", f"{data.name}: {'x'.join(map(str, data.shape))}, {values}"),
        ("classes", _classes(found)),
        ("SHA-256 of the data", data.fingerprint or None),
        ("path", _spec(config, "sde")),
        ("network", _spec(config, "net")),
        ("parameters", number(_parameters(found))),
        ("parameterisation", _spec(config, "precondition")),
        ("conditioner", None if config.get("conditioner") is None else _spec(config, "conditioner")),
        ("autoencoder", config.get("autoencoder") or None),
        ("transform", _transform(config.transform)),
        ("sampler", _sampler(config)),
    ]
    if found.imported:
        rows.append(("imported from", str(found.imported.get("file", "a checkpoint"))))
    else:
        rows += [
            ("loss", _loss(config)),
            ("times", _spec(config, "training.times")),
            ("optimiser", _optimiser(training)),
            ("averaged weights", f"EMA {training.ema:g}"),
            ("images", _images(found)),
            ("seed", str(config.get("seed"))),
        ]
    caption = "Settings of a part that are left out have the default of their kind."
    return Table(("", ""), [row for row in rows if row[1] is not None], caption, keyed=True)


def _transform(transform: Any) -> str:
    parts = [f"values in [{transform.low:g}, {transform.high:g}]"]
    parts += ["dequantised"] if transform.get("dequantise") else []
    return ", ".join(parts + (["half of them mirrored"] if transform.get("flip") else []))


def _classes(found: Found) -> str | None:
    data = found.run.data
    if data.num_classes is None:
        return None
    used = "used" if found.run.config.training.get("labels") else "not used"
    counts = [
        f"{data.class_names[i] if data.class_names else i}: {count:,}" for i, count in enumerate(data.class_counts)
    ]
    named = f" ({', '.join(counts)})" if 0 < len(counts) <= CLASSES else ""
    return f"{data.num_classes}, {used} in training{named}"


def _images(found: Found) -> str:
    of = found.run.config.training.images
    seen = "none" if found.images is None else plain(found.images)
    ended = found.images is not None and of is not None and found.images >= of
    return f"{seen} of {plain(of) if of is not None else 'a number that the data chooses'}" + (
        "" if ended else ": training has not ended"
    )


def _sampler(config: Any) -> str:
    solver, grid = (_spec(config, f"sampling.{key}") for key in ("solver", "grid"))
    denoised = "" if config.sampling.get("denoise") else " without a last denoising"
    return f"{solver} on the grid {grid}, {config.sampling.steps} steps{denoised}"


def _loss(config: Any) -> str:
    training = config.training
    if training.get("loss") == "elbo":
        steps = training.get("elbo_steps", 0)
        return f"the variational bound, {f'{steps} steps' if steps else 'in continuous time'}"
    second = training.get("second_order", 0.0)
    more = f", with the second-order loss times {second:g}" if second else ""
    return (
        f"denoising score matching ({training.get('norm', 'l2')}), weighted by {_spec(config, 'training.weight')}{more}"
    )


def _optimiser(training: Any) -> str:
    said_of = "AdamW" if training.weight_decay else "Adam"
    if training.get("optimizer") == "muon":
        said_of = f"Muon with momentum {training.momentum:g} for matrices, {said_of} for the rest"
    said_of += f", learning rate {training.learning_rate:g}"
    said_of += f", batches of {training.batch}, betas {', '.join(f'{beta:g}' for beta in training.betas)}"
    more = {
        f", weight decay {training.weight_decay:g}": training.weight_decay,
        f", warm-up over {plain(training.warmup or 0)} images": training.warmup,
        ", cosine decay": training.decay,
        f", gradients clipped to {training.clip:g}": training.clip,
        f", {training.precision}": training.precision != "float32",
    }
    return said_of + "".join(text for text, holds in more.items() if holds)


def _parameters(found: Found) -> int | None:
    """Of the network and its path; None where they cannot be made, as without a user's package."""
    try:
        return found.parameters
    except ValueError as error:
        if (note := f"The network could not be made: {error}") not in found.notes:
            found.notes.append(note)
        return None


def _spec(config: Any, key: str) -> str:
    """The part at a key such as training.weight, as it is written on a command line."""
    group, _, name = key.rpartition(".")
    return short_spec(build.PARTS[key], (config[group] if group else config)[name])


def _differences(found: Found) -> list[Block]:
    ignored = ("training.", "sampling.", "transform.") if found.imported else ()
    recipe = nearest_recipe(found.run.config, ignored)
    of = f"{recipe.name} ({recipe.about.rstrip('.')})" if recipe.name else "the default settings of all configurations"
    first = f"The nearest of our configurations is {of}. " if recipe.name else f"It is compared with {of}. "
    if found.imported:
        first += "Of imported weights the network, the path and the parameterisation are compared. "
    if not recipe.rows:
        return [said(first + "No setting that changes the result differs from it.")]
    count = len(recipe.rows)
    sentence = f"{count} setting{'s differ' if count > 1 else ' differs'} from it."
    return [said(first + sentence), Table(("setting", "here", "recipe"), recipe.rows, code=frozenset({0, 1, 2}))]


def weights_of(report: Report) -> str:
    """Whose weights a report is of, in words."""
    rows = [report.content, *(row for row in report.content.get("of") or () if isinstance(row, dict))]
    kinds = dict.fromkeys(WEIGHTS[row["weights"]] for row in rows if row.get("weights") in WEIGHTS)
    words = [f"{' and '.join(kinds)} weights"] if kinds else []
    return ", ".join([*words, *([report.mark] if report.mark else [])])
