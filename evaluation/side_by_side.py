"""Named batches of samples side by side."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib import pyplot as plt
from torch import Tensor

from scorefield.evaluation.pictures import image_grid


def save_side_by_side(samples: Mapping[str, Tensor], path: Path, low: float = 0.0, high: float = 1.0) -> Path:
    """Named batches of samples (N, *D) with values in [low, high], each a panel under its name.

    Images (C, H, W) make a grid (of their first channel unless C is 3), enlarged by an integer factor. Points (2,) make
    scatter plots on common axes. Other samples are the rows of a matrix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    batches = {name: batch.detach().float().cpu() for name, batch in samples.items()}
    shape = next(iter(batches.values())).shape
    points, images = shape[1:] == (2,), len(shape) == 4
    grids = (
        {name: image_grid((x - low) / (high - low), math.ceil(math.sqrt(len(x)))) for name, x in batches.items()}
        if images
        else {}
    )
    height, width = next(iter(grids.values())).shape[-2:] if images else (400, 400)
    enlarge = max(1, round(400 / max(height, width)))
    height, width, gap, title = height * enlarge, width * enlarge, 10, 24  # in pixels of the file
    across, down = len(batches) * (width + gap) + gap, height + title + gap
    figure = plt.figure(figsize=(across / 100, down / 100), dpi=100)
    try:
        for i, (name, x) in enumerate(batches.items()):
            left = gap + i * (width + gap)
            ax = figure.add_axes((left / across, gap / down, width / across, height / down))
            ax.set_title(name, fontsize=9, pad=4)
            ax.set_xticks([])
            ax.set_yticks([])
            if images:
                ax.set_axis_off()
                grid = grids[name].permute(1, 2, 0)
                ax.imshow(grid.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            elif points:
                ax.scatter(x[:, 0], x[:, 1], s=4, linewidths=0)
                if i:
                    ax.sharex(figure.axes[0])
                    ax.sharey(figure.axes[0])
            else:
                ax.imshow(x.flatten(1), aspect="auto", vmin=low, vmax=high)
        figure.savefig(path)
    finally:
        plt.close(figure)
    return path
