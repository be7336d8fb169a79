"""Accuracy against a cost, in one panel: marks with their names, the Pareto front, controls as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from peft_audio.comparison.label_places import nearest_corner, place
from peft_audio.comparison.results import Arm

# Okabe and Ito (2008), told apart by the colour-blind too; without their yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"
Line = Literal["-", "--", ":"]
LINES: tuple[Line, ...] = ("-", "--", ":")
GREY, PALE, INK = "#5f5f5f", "#b8b8b8", "#222222"
LONGEST_NAME = 26
NAME_SIZE = 10
# Names of more letters than this do not all fit next to their marks: numbers do, and the legend explains them.
MOST_LETTERS = 120
# What it costs a name, in pixels of distance, to cover a mark, its interval, or a line.
MARK, BAR, LINE = 300.0, 90.0, 25.0
COSTS = {
    "num_trainable_params": ("trained parameters", 1.0),
    "train_time": ("training time, seconds", 1.0),
    "accelerator_memory_max": ("peak memory, MiB", 2.0**20),
}


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, the same in every panel."""

    colour: str
    marker: str
    line: Line


def looks_of(arms: Sequence[Arm]) -> dict[str, Look]:
    """A look for each arm, by name; controls are grey."""
    looks = {}
    for i, arm in enumerate(arm for arm in arms if not arm.control):
        line = LINES[i // len(COLOURS) % len(LINES)]
        looks[arm.name] = Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], line)
    for i, arm in enumerate(arm for arm in arms if arm.control):
        looks[arm.name] = Look(GREY, "x", LINES[i % len(LINES)])
    return looks


def short(name: str) -> str:
    """A name that fits into the figure: what is left out of a long one is its middle."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def marks_of(arms: Sequence[Arm]) -> dict[str, str]:
    """What stands next to an arm's mark, by the arm's name: its name, or a number where there are too many names."""
    names = {arm.name: short(arm.name) for arm in arms if not arm.control}
    if sum(map(len, names.values())) <= MOST_LETTERS:
        return names
    return {name: str(i) for i, name in enumerate(names, start=1)}


def finite(*values: float | None) -> bool:
    """Whether all of them are numbers."""
    return all(value is not None and math.isfinite(value) for value in values)


def accuracy(arm: Arm) -> tuple[float, float, float] | None:
    """Mean, low and high on the test clips in percent; the mean three times where there is no interval."""
    if arm.test_accuracy is None or not finite(arm.test_accuracy.interval.mean):
        return None
    found = arm.test_accuracy.interval
    low, high = (found.low, found.high) if finite(found.low, found.high) else (found.mean, found.mean)
    return 100 * found.mean, 100 * low, 100 * high


def accuracy_limits(arms: Sequence[Arm]) -> tuple[float, float]:
    """Room for all arms' intervals, for controls that are near them, and for controls that are better."""
    scores = [found for arm in arms if not arm.control and (found := accuracy(arm))]
    controls = [found[0] for arm in arms if arm.control and (found := accuracy(arm))]
    if not scores:
        return 0.0, 100.0
    low, high = max(0.0, min(score[1] for score in scores)), min(100.0, max(score[2] for score in scores))
    near = low - max(2.0, high - low)
    low, high = min([low, *(value for value in controls if value >= near)]), max([high, *controls])
    spare = max(1.0, 0.1 * (high - low))
    return low - spare, high + spare


def say(panel: Axes, text: str) -> None:
    """A sentence instead of data."""
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=GREY)
    panel.set_xticks([])
    panel.set_yticks([])


def draw_cost(panel: Axes, arms: Sequence[Arm], cost: str, limits: tuple[float, float]) -> None:
    """Draw test accuracy against one cost.

    Args:
        panel: Where.
        arms: All of the comparison.
        cost: A key of `COSTS`.
        limits: Of the accuracy, in percent.
    """
    words, unit = COSTS[cost]
    panel.set_title(f"Test accuracy against {words.split(',')[0]}")
    scored = [arm for arm in arms if not arm.control and accuracy(arm)]
    shown = [arm for arm in scored if finite(getattr(arm, cost)) and getattr(arm, cost) > 0]
    if not shown:
        unknown = "nothing was trained" if cost == "num_trainable_params" else "of no run is it known that it was alone"
        return say(panel, unknown if scored else "no arm has a test accuracy")
    costs = np.array([getattr(arm, cost) / unit for arm in shown])
    accuracies = np.array([accuracy(arm) for arm in shown])
    missing = f" ({len(scored) - len(shown)} of {len(scored)} arms not measured)" if len(shown) < len(scored) else ""
    panel.set_xlabel(words + missing)
    panel.set_ylabel("test accuracy, %")
    panel.set_ylim(*limits)
    panel.yaxis.set_major_locator(MaxNLocator(8))
    _cost_axis(panel, costs, cost == "num_trainable_params" or costs.max() > 10 * costs.min())
    lines = _draw_controls(panel, arms)
    front = [i for i in np.argsort(costs, kind="stable") if cost in shown[i].front]
    lines += _draw_front(panel, cost, costs[front], accuracies[front, 0])
    looks = looks_of(arms)
    for i, (arm, x, (mean, low, high)) in enumerate(zip(shown, costs, accuracies, strict=True)):
        look = looks[arm.name]
        panel.plot([x, x], [low, high], color=look.colour, linewidth=1.4, alpha=0.7)
        fill = look.colour if i in front else "white"
        panel.plot(x, mean, look.marker, color=look.colour, markerfacecolor=fill, markersize=8.5, markeredgewidth=1.6)
    points = np.column_stack([costs, accuracies[:, 0]])
    taken = [(_box(panel, point, point, 7), MARK) for point in points]
    taken += [
        (_box(panel, np.array([x, low]), np.array([x, high]), 3), BAR)
        for x, (_, low, high) in zip(costs, accuracies, strict=True)
    ]
    taken += [(_box(panel, start, end, 2), LINE) for start, end in lines]
    taken += [(np.array(text.get_window_extent().extents), MARK) for text in panel.texts]
    marks = marks_of(arms)
    _write_names(panel, [marks[arm.name] for arm in shown], [looks[arm.name].colour for arm in shown], points, taken)


def _cost_axis(panel: Axes, costs: np.ndarray, logarithmic: bool) -> None:
    low, high = costs.min(), costs.max()
    if not logarithmic:
        spare = max(0.15 * (high - low), 0.08 * high)
        panel.set_xlim(max(0, low - spare), high + spare)
        return
    spare = max(2.2, (high / low) ** 0.14)
    decades = math.log10(high / low * spare**2)
    panel.set_xscale("log")
    panel.set_xlim(low / spare, high * spare)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _draw_front(panel: Axes, cost: str, costs: np.ndarray, means: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps from each arm of the front, cheapest first, to the next one, then on to the right edge; as segments."""
    if not len(costs):
        return []
    x = np.append(np.repeat(costs, 2)[1:], panel.get_xlim()[1])
    y = np.repeat(means, 2)
    panel.plot(x, y, color=PALE, linewidth=1.8, zorder=1, gid=f"pareto-front-{cost}")
    return list(pairwise(np.column_stack([x, y])))


def _draw_controls(panel: Axes, arms: Sequence[Arm]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Controls as dashed lines with their names at the right; those below the panel in words; the lines as segments."""
    left, right = panel.get_xlim()
    bottom, top = panel.get_ylim()
    controls = sorted((found[0], short(arm.name)) for arm in arms if arm.control and (found := accuracy(arm)))
    inside = [(mean, name) for mean, name in controls if mean >= bottom]
    above, height = -math.inf, 0.045 * (top - bottom)
    for mean, name in inside:
        panel.plot([left, right], [mean, mean], "--", color=GREY, linewidth=1, zorder=1)
        # Two that are close have their names at either end.
        at_left = mean - above < height
        panel.text(
            0.01 if at_left else 0.99,
            mean,
            f"{name} {mean:.1f}",
            transform=panel.get_yaxis_transform(),
            ha="left" if at_left else "right",
            va="bottom",
            color=GREY,
            fontsize=NAME_SIZE,
        )
        above = -math.inf if at_left else mean
    below = "\n".join(f"↓ {name} {mean:.1f}" for mean, name in reversed(controls) if mean < bottom)
    panel.text(0.01, 0.01, below, transform=panel.transAxes, va="bottom", color=GREY, fontsize=NAME_SIZE)
    return [(np.array([left, mean]), np.array([right, mean])) for mean, _ in inside]


def _box(panel: Axes, start: np.ndarray, end: np.ndarray, around: float) -> np.ndarray:
    """The box in pixels that holds a straight line between two points of the data, of shape (4,)."""
    ends = panel.transData.transform([start, end])
    return np.concatenate([ends.min(axis=0) - around, ends.max(axis=0) + around])


def _write_names(
    panel: Axes,
    names: Sequence[str],
    colours: Sequence[str],
    points: np.ndarray,
    taken: Sequence[tuple[np.ndarray, float]],
) -> None:
    """Write names where they cover least; a thin line leads to one that is far from its point."""
    pixels = panel.transData.transform(points)
    sizes = np.array([_size(panel, name) for name in names])
    boxes, weights = (np.array(column) for column in zip(*taken, strict=True))
    bounds = np.array(panel.get_window_extent().extents)
    places = place(pixels, sizes, boxes, weights, bounds)
    back = panel.transData.inverted().transform
    for name, colour, point, pixel, box in zip(names, colours, points, pixels, places, strict=True):
        end = nearest_corner(pixel, box)
        if end is not None:
            there = back(end)
            panel.plot([point[0], there[0]], [point[1], there[1]], color=colour, linewidth=0.7, alpha=0.8, zorder=1)
        x, y = back(box[:2])
        panel.text(x, y, name, color=INK, fontsize=NAME_SIZE, ha="left", va="bottom")


def _size(panel: Axes, name: str) -> tuple[float, float]:
    text = panel.text(0, 0, name, fontsize=NAME_SIZE)
    found = text.get_window_extent()
    text.remove()
    return found.width, found.height
