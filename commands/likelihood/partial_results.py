"""Results that are saved part by part: an interrupted command resumes from them, and ranks share the others."""

import glob
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.outputs import write_json
from scorefield.commands.parts import Parts

DAYS = 7  # for which the parts of other settings are kept


class PartialResults(Parts):
    """A hidden folder beside the output, named by a hash of everything that decides the results.

    Another run of the command finds the results only if its settings are the same.

    Args:
        output: the file to be made of the parts.
        settings: options, weights, data.
    """

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        super().__init__(output.with_name(f".{output.stem}.{digest}.parts"))
        self._stem = output.stem

    def save_plan(self, plan: dict[str, Any]) -> None:
        """Save how the parts are made."""
        write_json(self.folder / "plan.json", plan)

    def load_plan(self) -> dict[str, Any] | None:
        """How the parts are made, or None."""
        file = self.folder / "plan.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def delete(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def delete_old_others(self) -> None:
        """Remove parts of the same output by other settings, once nothing was added for a week.

        Younger ones may belong to a command that runs now, or that somebody interrupted. A line names each.
        """
        names = f".{glob.escape(self._stem)}.{'[0-9a-f]' * 12}.parts"
        for folder in sorted(set(self.folder.parent.glob(names)) - {self.folder}):
            newest = max((path.stat().st_mtime for path in [folder, *folder.iterdir()]), default=0.0)
            if time.time() - newest > DAYS * 86_400:
                shutil.rmtree(folder, ignore_errors=True)
                on_stderr(f"removes {folder}, which an interrupted command of other settings left over {DAYS} days ago")
            else:
                on_stderr(
                    f"keeps {folder}, parts by a command of other settings: that command continues from them, and "
                    f"after {DAYS} days they are removed"
                )
