"""Bits/dim beside other metrics: of test images, and of training images, which tell memorisation."""

import json
from pathlib import Path
from typing import Any

from scorefield.commands.evaluate.store import digest
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.trained import Trained

NUM = 1000  # images of a split
SPLITS = ("test", "train")


def bits_of(trained: Trained, folder: Path) -> dict[str, dict[str, Any]]:
    """Bits/dim (nats/dim of continuous data) by the run's own bound on up to 1,000 images of each split of its data.

    Computed once for each weights, and kept in the folder. The bound is the one on levels (elbo), or dsm where the run
    was trained on dequantised data.
    """
    name = "dsm" if trained.run.dequantised else "elbo"
    run = trained.run
    autoencoder = None if run.autoencoder is None else run.autoencoder.sha256
    key = digest([trained.described["checkpoint_sha256"], run.data.fingerprint, autoencoder, NUM])[:16]
    found = {}
    for split in SPLITS:
        path = folder / f"likelihood-{name}-{split}-{key}.json"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            likelihood(
                run.workdir, split=split, num=NUM, estimators=(name,), ema=trained.ema,
                checkpoint=str(trained.checkpoint), device=str(run.device), output=str(path),
            )  # fmt: skip
        report = json.loads(path.read_text())
        unit = next(key for key in ("bits_per_dim", "nats_per_dim") if key in report)
        found[split] = {
            "value": report[unit], "standard_error": report["standard_error"], "n": report["n"], "estimator": name,
            "unit": unit.replace("_per_", "/"),
        }  # fmt: skip
    return found
