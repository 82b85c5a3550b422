"""Charts as coordinates, which the template draws as SVG: sharp in print, and with the page's own colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 46  # margins
TICKS = 5  # of a linear axis, about
POINTS = 800  # of a curve, at most
ROOM = 0.04  # beyond the outermost points, as a share of the axis


@dataclass(frozen=True)
class Curve:
    """Points of a chart, as a line, as dots, or as both.

    Args:
        name: in the legend.
        xs: of the points.
        ys: of the points.
        line: whether they are joined.
        dots: whether each is a dot.
        colour: 0 .. 7 of the page's colours; None for that of the text, dashed.
        labels: of the dots, shown when the pointer is on them.
        across: whether its one value is a line from one side of the chart to the other.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    line: bool = True
    dots: bool = False
    colour: int | None = 0
    labels: Sequence[str] = ()
    across: bool = False


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: where, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """A curve in the coordinates of the picture."""

    name: str
    line: str
    dots: list[tuple[float, float, str]]
    colour: int | None


@dataclass(frozen=True)
class Chart:
    """A chart to draw, and what stands beneath it."""

    title: str
    x: str
    y: str
    curves: list[Drawn]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    caption: str
    width: int = field(default=WIDTH, init=False)
    height: int = field(default=HEIGHT, init=False)
    box: tuple[int, int, int, int] = field(default=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), init=False)


def chart(title: str, curves: Sequence[Curve], *, x: str, y: str, log: str = "", caption: str = "") -> Chart | None:
    """A chart of curves; None if they have no point that can be drawn.

    Args:
        title: what it shows, also for readers who do not see it.
        curves: to draw.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        log: the axes that are logarithmic, as in "xy".
        caption: beneath it.
    """
    kept = [_kept(curve, log) for curve in curves]
    xs, ys = ([value for curve in kept for value in each(curve)] for each in (_xs, _ys))
    if not xs:
        return None
    across, up = _Axis.over(xs, "x" in log), _Axis.over(ys, "y" in log)

    def place(px: float, py: float) -> tuple[float, float]:
        inside_x, inside_y = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + across.share(px) * inside_x, 1), round(TOP + (1 - up.share(py)) * inside_y, 1)

    drawn = []
    for curve in kept:
        points = [place(px, py) for px, py in zip(curve.xs, curve.ys, strict=True)]
        if points:
            if curve.across:
                points = [(float(end), points[0][1]) for end in (LEFT, WIDTH - RIGHT)]
            joined = " ".join(f"{px},{py}" for px, py in points) if curve.line and len(points) > 1 else ""
            labels = list(curve.labels if not curve.across else ()) or [""] * len(points)
            dots = [(*point, label) for point, label in zip(points, labels, strict=True)]
            drawn.append(Drawn(curve.name, joined, dots if curve.dots or not joined else [], curve.colour))
    x_ticks = [Tick(place(value, ys[0])[0], text) for value, text in across.ticks()]
    y_ticks = [Tick(place(xs[0], value)[1], text) for value, text in up.ticks()]
    return Chart(title, x, y, drawn, x_ticks, y_ticks, caption)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], log: bool) -> "_Axis":
        low, high = (math.log10(end) if log else end for end in (min(values), max(values)))
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - 0.5, high + 0.5
        room = ROOM * (high - low)
        return cls(low - room, high + room, log)

    def share(self, value: float) -> float:
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.log and self.high - self.low > 0.7:
            every = range(math.floor(self.low), math.ceil(self.high) + 1)
            decades = self.high - self.low
            stops = (1, 2, 3, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 2.5 else (1,)
            step = max(1, math.ceil(decades / 8))
            values = [stop * 10.0**power for power in every if power % step == 0 for stop in stops]
        else:
            low, high = (10**end if self.log else end for end in (self.low, self.high))
            raw = (high - low) / TICKS
            unit = 10.0 ** math.floor(math.log10(raw))
            step_size = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw)
            first = math.ceil(low / step_size)
            values = [round(i * step_size, 12) for i in range(first, math.floor(high / step_size) + 1)]
        return [(value, _short(value)) for value in values if 0 <= self.share(value) <= 1]


def _short(value: float) -> str:
    """A tick's number: 12k, 3M, 0.05, 1e-4."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}".replace("-", "\N{MINUS SIGN}", 1) if value < 0 else f"{value:g}"


def _kept(curve: Curve, log: str) -> Curve:
    """The points that can be drawn, and not more of a line than can be seen."""
    labels = list(curve.labels) or [""] * len(curve.xs)
    points = [
        (x, y, label)
        for x, y, label in zip(curve.xs, curve.ys, labels, strict=True)
        if math.isfinite(x) and math.isfinite(y) and not ("x" in log and x <= 0) and not ("y" in log and y <= 0)
    ]
    points = points[:: max(1, math.ceil(len(points) / POINTS))]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return replace(curve, xs=xs, ys=ys, labels=[point[2] for point in points])


def _xs(curve: Curve) -> Sequence[float]:
    return curve.xs


def _ys(curve: Curve) -> Sequence[float]:
    return curve.ys
