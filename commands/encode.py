"""Images to latents along the probability flow, and back."""

import hashlib
import time
from pathlib import Path
from typing import Any

from scorefield.commands.conditioning import data_conditioning, stored_conditioning
from scorefield.commands.flow import (
    GRID,
    SOLVER,
    STEPS,
    Options,
    along_flow,
    checked_times,
    flow_solver,
    rms,
    round_trip,
)
from scorefield.commands.images import chosen_images
from scorefield.commands.latents import Latents
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.outputs import check_output, newest, output_path, write_arrays, write_json
from scorefield.commands.run import open_run
from scorefield.commands.trained import Trained, open_trained
from scorefield.evaluation import plot_rows

FAR = 0.05  # round trip, in the model's values, from which a line says so


def encode(
    workdir: Path,
    *,
    input: str | None = None,  # noqa: A002 - the flag's name
    data: str | None = None,
    split: str | None = None,
    num: int | None = None,
    seed: int = 0,
    label: str | int | None = None,
    solver: str = SOLVER,
    grid: str = GRID,
    steps: int = STEPS,
    batch: int = 256,
    ema: bool = True,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Encode images to an .npz of `latent` (N, *D) float32, the images `x` and, with classes, their `label`.

    The images are those of `input` (see `read_input`), or a split of the run's data set, or of `data`. `num` of them
    are drawn at random by the seed, by default 64 of a split; `index` has their places in it. The file also has what
    `decode` needs to come back: solver, times and weights, and for the solver belm the state `before` the latent. The
    picture shows images over latents. A line on stderr says if the round trip of 16 images is above 0.05.

    Raises:
        ValueError: if there is no trained run, the images do not fit it, or the solver cannot encode.
    """
    check_output(output, ".npz")
    trained = open_trained(workdir, device, ema, checkpoint=checkpoint)
    trained.check_one_level("encode")
    run = trained.run.on(data)
    options = {"solver": solver, "grid": grid, "steps": steps}
    ts = checked_times(run, options, batch)
    images = chosen_images(run, input, split, num, seed, default=64)
    stored = images.stored
    given = data_conditioning(run, images.data, label)
    made_by = {**options, **trained.described}
    settings = {
        "num": len(stored), "images": images.described, "data": images.data.name,
        "data_sha256": images.data.fingerprint, **given.described, **made_by,
    }  # fmt: skip
    x0 = run.centred(stored).to(run.device)

    began = time.perf_counter()
    latent, before = along_flow(run, trained.denoiser, x0, options, up=True, batch=batch, cond=given.cond, ts=ts)
    seconds = time.perf_counter() - began
    distance = round_trip(run, trained.denoiser, x0, latent, options, cond=given.cond, before=before, ts=ts)
    if distance > FAR * (1.0 if run.levels is not None else float(x0.std(correction=0))):
        on_stderr(
            f"the images come back from these latents with an error of {distance:.2g} (rms): take more --steps, or "
            "--solver=belm, which comes back exactly"
        )

    path = output_path(output, workdir / "latents.npz", settings)
    known = images.label if run.num_classes is None else given.label
    others = {key: value for key, value in given.cond.items() if key != "label"}
    Latents(latent, made_by, ts, before, stored, known, images.index, others).write(path)
    shown = min(len(stored), 16)
    scaled = (latent[:shown] / float(run.sde.scales(run.sde.t_max)[1]) / 6 + 0.5).clamp(0, 1)  # three deviations
    picture = path.with_suffix(".png")
    plot_rows({"images": run.viewable(stored[:shown]), "their latents": scaled}, picture)
    spread = float(latent.std()) / float(run.sde.scales(run.sde.t_max)[1])
    measured = {"latent_std_over_prior": spread, "round_trip_rms": distance}
    report = write_json(path.with_suffix(".json"), {**settings, **measured, "seconds": round(seconds, 2)})
    said = {name: float(f"{value:.4g}") for name, value in measured.items()}
    return {**said, "files": [str(path), str(picture), str(report)]}


def decode(
    workdir: Path,
    *,
    input: str | None = None,  # noqa: A002 - the flag's name
    label: str | int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    steps: int | None = None,
    tile: int = 0,
    batch: int = 256,
    ema: bool | None = None,
    checkpoint: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Decode a file of latents to an .npz of `x`, with a picture and the distance from the encoded images.

    The file is `input`, or the newest of the run. Solver, grid, steps, weights and classes are by default those
    of the encoding. A line on stderr says if others are taken. A latent run decodes in tiles of `tile` codes.

    Raises:
        ValueError: if there is no trained run, the file does not read, or the latents do not fit the run.
    """
    check_output(output, ".npz")
    source = Path(input) if input else newest(workdir, "latents")
    latents = Latents.read(source, open_run(workdir, device).shape)
    made_by = latents.made_by if latents.made_by.keys() >= {"solver", "grid", "steps"} else _of_old(source, latents)
    trained = _trained(workdir, made_by, device, ema, checkpoint)
    trained.check_one_level("decode")
    run = trained.run.in_tiles_of(tile)
    others = {"solver": solver, "grid": grid, "steps": steps}
    options = {key: made_by[key] if value is None else value for key, value in others.items()}
    ts = checked_times(run, options, batch)
    if latents.t is not None and grid is None and steps is None:
        ts = latents.t
    given = stored_conditioning(run, latents.conditioning, len(latents.latent), label, str(source))
    differing = _differing(made_by, {**options, **trained.described})
    if given.label is not None and (latents.label is None or bool((given.label != latents.label.flatten()).any())):
        differing.append(f"{'no class' if latents.label is None else 'their own classes'}, not {label}")
    settings = {
        "num": len(latents.latent), "latents_sha256": _digest(source), **given.described, **options,
        **trained.described,
    }  # fmt: skip

    before = None if differing else latents.before
    x0, _ = along_flow(
        run, trained.denoiser, latents.latent, options, up=False, batch=batch, cond=given.cond, before=before, ts=ts
    )
    if differing:
        on_stderr(f"these latents were encoded by {', '.join(differing)}: they do not come back exactly")
    back, stored = run.to_stored(x0), latents.x

    path = output_path(output, workdir / "decoded.npz", settings)
    write_arrays(path, x=back, label=latents.label if run.num_classes is None else given.label)
    rows = {**({} if stored is None else {"images": stored}), "decoded": back}
    plot_rows({name: run.viewable(x[:16]) for name, x in rows.items()}, picture := path.with_suffix(".png"))
    measured = {} if stored is None else {"round_trip_rms": rms(x0, run.centred(stored))}
    report = write_json(path.with_suffix(".json"), {**settings, "latents": str(source), **measured})
    said = {name: float(f"{value:.4g}") for name, value in measured.items()}
    return {"latents": str(source), **options, **said, "files": [str(path), str(picture), str(report)]}


def _trained(workdir: Path, made_by: Options, device: str | None, ema: bool | None, checkpoint: str | None) -> Trained:
    """The run with the weights of the encoding, if it still has them, or with others that the options name."""
    if checkpoint is None and (workdir / "checkpoints" / str(made_by.get("checkpoint"))).is_dir():
        checkpoint = str(made_by["checkpoint"])
    return open_trained(workdir, device, made_by.get("weights") != "raw" if ema is None else ema, checkpoint=checkpoint)


def _of_old(source: Path, latents: Latents) -> Options:
    """What an older version encoded by, where no report says it."""
    made_by = {"solver": "ddim" if latents.before is None else "belm", "grid": "log_snr", "steps": 100}
    on_stderr(f"{source} does not say what encoded it: takes {made_by['solver']} in 100 steps")
    return made_by


def _differing(made_by: Options, here: Options) -> list[str]:
    """What encoded, with what decodes, where that is something else."""
    same = {"solver": str(flow_solver(made_by)) == str(flow_solver(here))}
    return [
        f"{key} {str(made_by[key])[:40]}, not {str(here[key])[:40]}"
        for key in ("solver", "grid", "steps", "weights", "checkpoint_sha256")
        if key in made_by and not same.get(key, made_by[key] == here[key])
    ]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
