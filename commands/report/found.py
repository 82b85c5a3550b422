"""What a run's directory holds: its facts, the reports of other modes, and what training wrote."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from scorefield.commands.outputs import report_beside
from scorefield.commands.run import Run, open_run
from scorefield.commands.training.json_lines import rows_of
from scorefield.training import latest_valid

# The modes whose reports the page shows, by the names of their files.
FILES = {
    "samples": "sample",
    "compare": "compare",
    "compare_methods": "compare",
    "restored": "restore",
    "likelihood_test": "likelihood",
    "likelihood_train": "likelihood",
    "evaluate": "evaluate",
    "tuned": "tune",
    "edited": "edit",
    "latents": "encode",
    "decoded": "decode",
    "interpolation": "interpolate",
    "score_test": "score",
    "score_train": "score",
    "compressed": "compress",
    "grid": "grid",
    "data": "check_data",
    "import": "import",
    "fork": "train",
    "classifier": "train_classifier",
    "dequantiser": "train_dequantiser",
}
WEIGHTS = {"ema": "averaged", "raw": "raw"}


@dataclass(frozen=True)
class Report:
    """A JSON report in a run's directory.

    Args:
        mode: that made it.
        path: of the file.
        content: of the file.
        mark: what sets it off, as another checkpoint than the newest; or "".
    """

    mode: str
    path: Path
    content: dict[str, Any]
    mark: str = ""

    @property
    def picture(self) -> Path:
        """The picture beside it, which may not be there."""
        return self.path.with_suffix(".png")


@dataclass
class Found:
    """A run, its newest checkpoint, and the reports beside it.

    Args:
        run: the run.
        checkpoint: the newest one that is valid; None before the first.
        notes: on what could not be read.
    """

    run: Run
    checkpoint: Path | None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, workdir: Path, device: str | None = None) -> "Found":
        """What is in a directory.

        Raises:
            ValueError: if it holds no run of a denoiser.
        """
        run = open_run(workdir, device)
        checkpoint, notes = latest_valid(workdir / "checkpoints")
        return cls(run, checkpoint, list(notes))

    @property
    def workdir(self) -> Path:
        return self.run.workdir

    @property
    def data_names(self) -> tuple[str, ...]:
        """What reports call the run's own data. Imported weights have the name of their file beside it."""
        return self.run.data.name, str(self.run.config.data.name)

    @property
    def images(self) -> int | None:
        """Images that the newest checkpoint has seen."""
        return int(self.checkpoint.name) if self.checkpoint and self.checkpoint.name.isdecimal() else None

    @cached_property
    def parameters(self) -> int:
        """Of the network, with the path's where it is learned.

        Raises:
            ValueError: if it cannot be made.
        """
        return sum(each.numel() for each in self.run.new_model().parameters())

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Of the newest checkpoint's weights, "ema" and "raw"."""
        files = {"ema": "ema.safetensors", "raw": "model.safetensors"}
        places = {key: self.checkpoint / name for key, name in files.items()} if self.checkpoint else {}
        return {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in places.items() if path.is_file()}

    @cached_property
    def imported(self) -> dict[str, Any]:
        """The record of --mode=import; {} for a run that was trained here."""
        return report_beside(self.workdir / "import.json")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Those of metrics.jsonl, up to the newest checkpoint or beyond it."""
        return rows_of(self.workdir / "metrics.jsonl")

    @cached_property
    def timing(self) -> list[dict[str, Any]]:
        """Those of timing.jsonl."""
        return rows_of(self.workdir / "timing.jsonl")

    @cached_property
    def reports(self) -> list[Report]:
        """The reports of other modes, those of the newest checkpoint first, then the newest."""
        found = list(self._reports())
        return sorted(found, key=lambda each: (bool(each.mark), -each.path.stat().st_mtime_ns))

    def of_mode(self, mode: str, *with_keys: str) -> list[Report]:
        """The reports of a mode that have these keys."""
        return [each for each in self.reports if each.mode == mode and each.content.keys() >= set(with_keys)]

    def refresh(self) -> None:
        """Look again, after other modes have written."""
        self.__dict__.pop("reports", None)

    def _reports(self) -> Iterator[Report]:
        for path in sorted(self.workdir.glob("*.json")):
            stem = re.sub(r"_\d+$", "", path.stem)
            stem = "evaluate" if stem.startswith("evaluate_") else stem  # of other samples
            if stem not in FILES:
                continue
            if content := report_beside(path):
                yield from (Report(FILES[stem], path, each, self._mark(each)) for each in _parts(content))
            elif (note := f"{path.name} could not be read as JSON, and is left out.") not in self.notes:
                self.notes.append(note)

    def _mark(self, content: dict[str, Any]) -> str:
        """What tells a report from one of the newest checkpoint."""
        rows = content.get("of")  # of an evaluation
        if isinstance(rows, list):
            marks = [self._mark(row) for row in rows if isinstance(row, dict)]
            return marks[0] if marks and all(marks) else ""
        made_with = content.get("checkpoint_sha256")
        if made_with is None or made_with in self.sha256.values():
            return ""
        name = content.get("checkpoint")
        newest = self.checkpoint.name if self.checkpoint else "none"
        if name == newest:
            return f"of other weights than checkpoint {newest} now has"
        return f"of checkpoint {name}, not of the newest, {newest}"


def _parts(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A report, or each of its budgets."""
    budgets = content.get("budgets")
    if not isinstance(budgets, dict):
        return [content]
    numbered = ((key, each) for key, each in budgets.items() if isinstance(each, dict) and key.isdecimal())
    return [{**each, "budget": int(key)} for key, each in numbered]
