"""One thread a worker, and figures that are rendered only where a test looks at them.

The tests are many small computations, and as many workers as cores share the machine.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

threads = os.environ.setdefault("SCOREFIELD_TEST_THREADS", "1")  # more for a study of rounding
os.environ["OMP_NUM_THREADS"] = threads  # for the processes that tests start
torch.set_num_threads(int(threads))
# Features of data sets are kept for all runs: tests keep theirs apart.
os.environ["SCOREFIELD_CACHE"] = tempfile.mkdtemp(prefix="scorefield-cache-")


@pytest.fixture(autouse=True, scope="module")
def _figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out the rendering of figures, half a second at the end of every training, in files without the marker."""
    if request.node.get_closest_marker("figures"):
        yield
        return

    def savefig(figure: Any, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"not rendered")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", savefig)
        yield
