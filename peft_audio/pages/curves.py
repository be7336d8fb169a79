"""Draw line charts as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 28, 34
# Colours that colour-blind readers can distinguish (Okabe and Ito, 2008), with a dash pattern each.
STYLES = (("#0072B2", ""), ("#D55E00", "5 3"), ("#009E73", "2 2"))


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: Text of the legend.
        points: Points of an SVG polyline, in pixels.
        colour: Colour of the line.
        dash: Dash pattern; empty for a solid line.
    """

    name: str
    points: str
    colour: str
    dash: str


@dataclass(frozen=True)
class Curves:
    """A chart of lines over epochs, with positions in pixels of an area of WIDTH x HEIGHT.

    Attributes:
        title: Heading.
        description: Text for screen readers.
        lines: Lines, at most as many as `STYLES`.
        y_ticks: Position and text of the marks of the vertical axis.
        x_ticks: Position and text of the marks of the horizontal axis.
        mark: Position of a vertical line, such as the best epoch; None without.
    """

    title: str
    description: str
    lines: tuple[Line, ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    mark: float | None


def draw_curves(
    title: str, epochs: Sequence[int], series: Mapping[str, Sequence[float | None]], mark: int | None = None
) -> Curves | None:
    """Place lines over epochs in a chart.

    Args:
        title: Heading.
        epochs: Numbers of the epochs, ascending.
        series: Value at each epoch by the name of the line; None and values that are not finite have no point.
        mark: Epoch that a vertical line marks.

    Returns:
        The chart; None if no value is finite.
    """
    known = {
        name: [(x, float(y)) for x, y in zip(epochs, values, strict=True) if y is not None and math.isfinite(y)]
        for name, values in series.items()
    }
    every = [y for points in known.values() for _, y in points]
    if not every:
        return None
    low, high = min(every), max(every)
    if low == high:
        low, high = low - 0.5, high + 0.5
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)

    def across(epoch: float) -> float:
        return round(LEFT + (epoch - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = tuple(
        Line(name, " ".join(f"{across(x)},{down(y)}" for x, y in points), colour, dash)
        for (name, points), (colour, dash) in zip(known.items(), STYLES, strict=False)
    )
    ends = ", ".join(f"{name} {line[0][1]:.3f} to {line[-1][1]:.3f}" for name, line in known.items() if line)
    return Curves(
        title=title,
        description=f"{title} over epochs {first} to {epochs[-1]}: {ends}",
        lines=lines,
        y_ticks=tuple((down(value), f"{value:.3f}") for value in (low, (low + high) / 2, high)),
        x_ticks=tuple((across(epoch), f"epoch {epoch}") for epoch in sorted({epochs[0], epochs[-1]})),
        mark=None if mark is None else across(mark),
    )
