"""Figures: every pixel of an image where it belongs, names beside rows, and files only where a path is given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from scorefield.evaluation import plot_curves, plot_histogram, plot_overview, plot_rows, plot_samples
from scorefield.evaluation.pictures import GAP, LINE, SIDE, enlargement

pytestmark = pytest.mark.figures


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_enlarged_and_every_pixel_is_in_its_place(channels: int, tmp_path: Path) -> None:
    x = torch.randint(0, 256, (4, channels, 8, 8), generator=torch.Generator().manual_seed(0))
    plot_samples(x.float(), tmp_path / "new" / "x.png", columns=2, high=255.0)
    picture, factor = pixels(tmp_path / "new" / "x.png"), enlargement(8, 16, 400)
    assert factor * 8 >= SIDE
    side = 2 * (8 * factor + LINE) + LINE
    assert picture.shape == (side + 2 * GAP, side + 2 * GAP, 3)
    for i in range(4):
        for row, column in ((0, 0), (3, 5), (7, 7)):
            top, left = (GAP + LINE + place * (8 * factor + LINE) for place in divmod(i, 2))
            found = picture[top + row * factor : top + (row + 1) * factor, left + column * factor :][:, :factor]
            assert np.abs(found - x[i, :, row, column].numpy()).max() <= 1  # of 255, by rounding


def test_enlargement_is_to_64_pixels_and_within_4096() -> None:
    assert enlargement(8, 8 * 16) == 8 and enlargement(28, 28 * 4) == 3 and enlargement(64, 640) == 1
    assert enlargement(8, 8 * 100) == 5 and enlargement(8, 8 * 1000) == 1
    assert enlargement(8, 48, 400) == 8 and enlargement(64, 64, 400) == 6


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 10), (2,), (7,), (1,), (64,), (7, 3), (2, 32), (1, 4, 6, 6)])
def test_panels_of_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    dark, light = torch.zeros(9, *shape), torch.ones(9, *shape)
    figure = plot_samples({"a": dark, "b": light}, tmp_path / "p.png")
    assert titles(figure) == ["a", "b"]
    picture = Image.open(tmp_path / "p.png").convert("L")
    if len(shape) > 2:
        left, right = (
            picture.crop((x, 40, x + picture.width // 2 - 20, picture.height - 20))
            for x in (15, picture.width // 2 + 10)
        )
        assert np.median(np.asarray(left)) == 0 and np.median(np.asarray(right)) == 255
    else:
        assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
        assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_points_and_longer_vectors_are_scattered_and_series_are_curves() -> None:
    for width in (2, 5):
        (axes,) = plot_samples(x := torch.randn(50, width)).axes
        assert torch.equal(torch.tensor(np.asarray(axes.collections[0].get_offsets())).float(), x[:, :2])
    (axes,) = plot_samples(x := torch.randn(50, 2, 40)).axes
    assert len(axes.lines) == 32
    assert torch.equal(torch.tensor(axes.lines[3].get_ydata()), x[3, 0])


def test_rows_have_their_names_and_columns_their_heads(tmp_path: Path) -> None:
    names = ["test images", "ddim, 5 steps", "predictor and corrector with a name that is far too long for a line"]
    figure = plot_rows({name: torch.rand(3, 1, 8, 8) for name in names}, tmp_path / "r.png", heads=["0", "0.5", "1"])
    texts = [" ".join(text.get_text().split()) for text in figure.texts]
    assert texts == ["0", "0.5", "1", *names]
    renderer = FigureCanvasAgg(figure).get_renderer()
    left = min(axes.get_window_extent(renderer).x0 for axes in figure.axes)
    for text in figure.texts[3:]:
        box = text.get_window_extent(renderer)
        assert box.x0 > 0 and box.x1 < left
    points = plot_rows({name: torch.randn(9, 2) for name in names})
    assert titles(points) == names


def test_an_overview_has_every_picture_under_its_caption(tmp_path: Path) -> None:
    plot_samples(torch.rand(4, 1, 8, 8), tmp_path / "grid.png")
    plot_rows({"row": torch.rand(16, 1, 8, 8)}, tmp_path / "row.png")
    figure = plot_overview({"wide": tmp_path / "row.png", "one": tmp_path / "grid.png", "two": tmp_path / "grid.png"})
    assert titles(figure) == ["one", "two", "wide"]
    bottoms = [axes.get_position().y0 for axes in figure.axes]
    assert bottoms[0] == bottoms[1] > bottoms[2] > 0


def test_figures_are_returned_and_written_only_to_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = [
        plot_samples(torch.rand(4, 1, 8, 8)), plot_rows({"a": torch.rand(4, 1, 8, 8)}),
        plot_curves({"a": ([1, 2], [3, 4]), "b": ([1, 2], [4, 3])}, x="steps", y="error", log="y"),
        plot_histogram(torch.tensor([0.0, 1.0, 2.0]), x="bits/dim", mark={"uniform": 4.09}),
    ]  # fmt: skip
    assert all(isinstance(figure, Figure) for figure in figures)
    assert list(tmp_path.iterdir()) == []
    assert figures[2].axes[0].get_yscale() == "log"
    assert [text.get_text() for text in figures[3].axes[0].get_legend().get_texts()] == ["uniform 4.09"]
    for histogram in (figures[3], plot_samples(torch.randn(3, 1))):
        ticks = histogram.axes[0].get_yticks()
        assert len(ticks) > 1 and all(tick == round(tick) for tick in ticks)
    plot_curves({"a": ([1], [1])}, tmp_path / "folder" / "c.png")
    assert pixels(tmp_path / "folder" / "c.png").shape == (480, 720, 3)
