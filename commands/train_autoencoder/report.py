"""autoencoder_report.json: what was trained on what, how good it is, and what was taken for granted."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from scorefield.commands.autoencoder_files import stored_sha256
from scorefield.commands.outputs import write_json
from scorefield.commands.train_autoencoder.log import Log, autoencoder_of
from scorefield.commands.train_autoencoder.losses import Losses
from scorefield.commands.train_autoencoder.session import AutoencoderSession

FILE = "autoencoder_report.json"


def write_report(session: AutoencoderSession, losses: Losses, log: Log, seconds: float) -> Path:
    """Write the report of a training that has ended."""
    run, state = session.run, session.state
    split = log.held_out.dataset
    content: dict[str, Any] = {
        "images": state.images,
        "steps": state.step,
        "seconds_this_time": round(seconds, 1),
        "net": json.loads(run.config.net.to_json()),
        "parameters": sum(p.numel() for p in autoencoder_of(state.model).parameters()),
        "data": run.data.name,
        "data_sha256": run.data.fingerprint,
        "loss": json.loads(run.config.loss.to_json()),
        "perceptual": losses.distance_name or "none",
        "held_out": {"images": len(split), "split": split.split, "weights": f"EMA {state.ema.decay:g}", **log.measured},
        "codes": None if session.statistics is None else dataclasses.asdict(session.statistics),
        "autoencoder_sha256": stored_sha256(run.workdir),
        "taken_for_granted": taken_for_granted(session, losses),
        "torch": torch.__version__,
    }
    return write_json(run.workdir / FILE, content)


def taken_for_granted(session: AutoencoderSession, losses: Losses) -> list[str]:
    """What the numbers rest on, in sentences."""
    run = session.run
    lines = [
        "Images are reconstructed from the means of their codes, by the averaged weights.",
        "Values outside the range of the images are cut off before PSNR, SSIM and the perceptual distance.",
    ]
    if losses.distance_name == "laplacian":
        lines.append(
            "No weights of LPIPS were given: the perceptual distance is that of Laplacian pyramids, which no study of "
            "human judgement stands behind."
        )
    if run.data.levels is not None and not run.config.transform.dequantise:
        lines.append("Integers are at the centres of their cells.")
    if losses.adversarial and run.config.loss.start == 0:
        lines.append("The adversarial loss starts once the losses of reconstructions in training cease to fall.")
    if session.statistics is None:
        lines.append("Shift and scale of the codes were not measured: they are 0 and 1.")
    return lines
