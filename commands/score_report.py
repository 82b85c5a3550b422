"""What `--mode=score` writes: a table of the scores, the arrays, pictures of images with maps, and histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.commands.images import Images
from scorefield.commands.outputs import write_arrays, write_json
from scorefield.commands.run import Run
from scorefield.evaluation import plot_histograms, plot_rows
from scorefield.evaluation.anomaly import auroc
from scorefield.likelihood import DatasetScorer
from scorefield.sde_lib.level_density import log_snr_ends

BANDS = 8  # of noise levels, equally wide in the log-SNR.
RARE = 0.99  # Share of the training images that are not flagged.
SHOWN = 10  # Images in a row of the picture.
ENDS = 0.005, 0.995  # The points of the shown maps' values that are black and white.
MEANINGS = {
    "bits": "the negative of the bound of the log-likelihood",
    "typicality": "the distance of `bits` from its mean over training images (Nalisnick et al. 2019)",
    "errors": "squared Mahalanobis distance of the network's log-errors by noise level from a Gaussian fitted to those "
    f"of training images (after Mahmood et al. 2021), of which each is left out for its own; the mean of it is {BANDS}",
    "codec": "`bits` less those of the shorter of PNG and xz (Serra et al. 2020)",
    "ode": "the negative log-likelihood of the probability flow",
    "ode_typicality": "the distance of `ode` from its mean over training images",
    "ode_codec": "`ode` less the bits of the shorter of PNG and xz",
}


@dataclass
class Scored:
    """The images of a data set, with what the model says of each.

    Args:
        name: "training", "data" or "against".
        images: the images.
        scorer: of these.
        described: their conditioning, for a report.
        columns: of the estimators, with a row for each image.
        log_errors: of the network in bands of noise levels, (N, BANDS).
        scores: of each image, by their names in `MEANINGS`.
    """

    name: str
    images: Images
    scorer: DatasetScorer
    described: dict[str, Any]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    log_errors: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, BANDS)))
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For a picture."""
        return f"{self.images.data.name} ({self.images.data.split})"

    @property
    def unit(self) -> str:
        """Of the scores that are lengths."""
        return "nats/dim" if self.scorer.levels is None else "bits/dim"

    @property
    def maps(self) -> NDArray[np.float32]:
        """Bits or nats of each value, (N, *D)."""
        each = next(value for key, value in self.columns.items() if key.endswith("_each"))
        maps: NDArray[np.float32] = -each / np.float32(self.scorer.unit / self.scorer.dims)
        return maps

    @property
    def errors(self) -> dict[str, NDArray[np.float64]]:
        """Of the values "bits" and "ode", from the estimators' random draws, (N,)."""
        own = {key.removesuffix("_error"): value for key, value in self.columns.items() if key.endswith("_error")}
        return {"ode" if name == "ode" else "bits": value / self.scorer.unit for name, value in own.items()}

    def facts(self) -> dict[str, Any]:
        """What the images are, for a report."""
        data = self.images.data
        return {
            "name": data.name, "split": data.split, "num": len(data), "images": self.images.described,
            "sha256": data.fingerprint, **self.described,
        }  # fmt: skip


def table_of(sets: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """For each score its meaning, its mean over each set, and with a set "against" its AUROC.

    "flagged" is the share of each set above `RARE` of the training images.
    """
    by_set = {each.name: each.scores for each in sets}
    errors, table = sets[1].errors, dict[str, dict[str, Any]]()
    for key in by_set["data"]:
        table[key] = {"kind": MEANINGS[key], "mean": {name: float(each[key].mean()) for name, each in by_set.items()}}
        bar = np.quantile(by_set["training"][key], RARE)
        table[key]["flagged"] = {name: float((each[key] > bar).mean()) for name, each in by_set.items()}
        if key in errors:
            table[key]["error_of_a_value"] = float(np.sqrt(np.square(errors[key]).mean()))
        if "against" in by_set:
            area = auroc(by_set["data"][key], by_set["against"][key])
            known = np.isfinite(area.standard_error)
            table[key] |= {"auroc": area.value, "auroc_standard_error": area.standard_error if known else None}
    return table


def lines_of(table: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """The lines to print."""
    lines = {}
    for name, row in table.items():
        said = ["mean of " + ", ".join(f"{which} {mean:.4g}" for which, mean in row["mean"].items())]
        flagged = [f"{share:.1%} of {which}" for which, share in row["flagged"].items() if which != "training"]
        said.append(f"above {RARE:.0%} of training: {', '.join(flagged)}")
        if "auroc" in row:
            error = row["auroc_standard_error"]
            said.insert(0, f"AUROC {row['auroc']:.4f}" + ("" if error is None else f" +- {error:.4f}"))
        lines[name] = "; ".join(said)
    return lines


def bands_of(run: Run, sets: Sequence[Scored]) -> dict[str, Any]:
    """The log-SNR of the bands' ends, and for each set the geometric mean of the error in each band."""
    high, low = log_snr_ends(run.sde)
    means = {each.name: np.exp(each.log_errors.mean(0)).tolist() for each in sets}
    return {"log_snr": np.linspace(high, low, BANDS + 1).tolist(), "error": means}


def write(path: Path, report: dict[str, Any], run: Run, sets: Sequence[Scored]) -> list[str]:
    """Write the report, the arrays and the pictures; `sets` are those of training, of data, and of the others."""
    write_json(path, report)
    arrays = dict[str, Any]()
    for each in sets:
        before = "" if each.name == "data" else f"{each.name}_"
        arrays |= {f"{before}{key}": values for key, values in each.scores.items()}
        levels = next(value for key, value in each.columns.items() if key.endswith("_errors"))
        arrays |= {f"{before}error_by_level": levels, f"{before}index": each.images.index}
        arrays |= {f"{before}{key}_error": values for key, values in each.errors.items()}
        arrays |= {} if each.name == "training" else {f"{before}map": each.maps}
    files = [path, write_arrays(path.with_suffix(".npz"), **arrays), path.with_suffix(".png")]
    _plot_images(files[-1], run, sets[1:])
    panels = {key: {each.title: torch.as_tensor(each.scores[key]) for each in sets} for key in sets[1].scores}
    files.append(path.with_name(f"{path.stem}_histograms.png"))
    plot_histograms(panels, files[-1], title=f"{sets[1].unit}; a larger score is more anomalous")
    return [str(file) for file in files]


def _plot_images(path: Path, run: Run, sets: Sequence[Scored]) -> None:
    """The least and the most anomalous images by `errors`, over their maps in a common scale of grey."""
    stored, maps = dict[str, Tensor](), dict[str, Tensor]()
    for each in sets:
        order = torch.as_tensor(np.argsort(each.scores["errors"], kind="stable"))
        for which, rows in (("least", order[:SHOWN]), ("most", order.flip(0)[:SHOWN])):
            stored[f"{which} anomalous of {each.title}"] = each.images.stored[rows]
            maps[f"{which} anomalous of {each.title}"] = torch.as_tensor(each.maps)[rows]
    counts = [len(part) for part in stored.values()]
    images = dict(zip(stored, torch.split(run.viewable(torch.cat(list(stored.values()))), counts), strict=True))
    if len(run.data.shape) != 3 or len(run.shape) != 3:
        plot_rows(images, path)  # points, series and volumes have no maps to see
        return
    grey = {name: _enlarged(each.mean(1, keepdim=True), run.data.shape[1:]) for name, each in maps.items()}
    black, white = np.quantile(torch.cat(list(grey.values())), ENDS).tolist()
    scale = f"{sets[0].unit.split('/')[0]} of each pixel, {black:.2g} (black) to {white:.2g} (white)"
    rows_of = dict[str, Tensor]()
    for name, own in grey.items():
        rows_of |= {name: images[name], f"{scale}: {name}": (own - black) / max(white - black, 1e-12)}
    plot_rows(rows_of, path)


def _enlarged(maps: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Maps (N, 1, h, w) with the sides of the images, multiples of theirs."""
    factors = [side // own for side, own in zip(sides, maps.shape[2:], strict=True)]
    return maps.repeat_interleave(factors[0], 2).repeat_interleave(factors[1], 3)
