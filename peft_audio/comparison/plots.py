"""Draw a comparison as one figure: the test score against costs, learning rates, learning curves."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import shorten
from typing import Literal

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from peft_audio.comparison.results import Arm, Comparison, Trial
from peft_audio.tasks.metrics import METRIC_NAMES

# Labels are placed by the search below instead of adjustText 1.4. With its best settings 4 of 27 labels of nine arms
# covered a mark (here none), and a figure took three times as long.
# Distances in pixels from a point to the edge of its label, in the order of the search.
DISTANCES = (9, 15, 23, 33, 46, 62, 82, 108, 140)
DIRECTIONS = 16
# From this distance in pixels on, a line connects a label with its point.
NEEDS_A_LINE = 16
NAME, OUTSIDE = 1000.0, 1e6


def place(
    points: np.ndarray, sizes: np.ndarray, taken: np.ndarray, weights: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
    """Place each label, in order, at the position near its point where it covers least.

    Args:
        points: What is named, of shape (names, 2), in pixels.
        sizes: Width and height of each name, of shape (names, 2).
        taken: Boxes that are better left free, of shape (boxes, 4): left, bottom, right, top.
        weights: How bad it is to cover each of them, of shape (boxes,); one pixel of distance counts 1.
        bounds: The box that names may not leave, of shape (4,).

    Returns:
        Boxes of the names, of shape (names, 4).
    """
    placed = np.empty((0, 4))
    for point, size in zip(points, sizes, strict=True):
        boxes, distances = _candidates(point, size)
        cost = distances + _overlap(boxes, taken) @ weights + NAME * _overlap(boxes, placed).sum(axis=1)
        cost += OUTSIDE * ((boxes[:, :2] < bounds[:2]) | (boxes[:, 2:] > bounds[2:])).any(axis=1)
        cost += NAME * _crossings(point, boxes, placed)
        placed = np.vstack([placed, boxes[cost.argmin()]])
    return placed


def nearest_corner(point: np.ndarray, box: np.ndarray) -> np.ndarray | None:
    """Return the end of the line from a point to its label, of shape (2,); None if the label is near enough."""
    end = np.clip(point, box[:2], box[2:])
    return end if np.hypot(*(end - point)) > NEEDS_A_LINE else None


def _candidates(point: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return candidate boxes around a point and their costs of distance."""
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = np.repeat(np.array(DISTANCES, dtype=float), DIRECTIONS)
    centres = point + np.tile(directions, (len(DISTANCES), 1)) * (distances[:, None] + size / 2)
    # Labels at the height of their points are easiest to read.
    tilt = np.tile(np.abs(directions[:, 1]), len(DISTANCES))
    return np.hstack([centres - size / 2, centres + size / 2]), distances + 2 * tilt


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which boxes overlap which others, of shape (boxes, others)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (low < high).all(axis=2)


def _crossings(point: np.ndarray, boxes: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Count the labels that the line from the point to each box would cross, of shape (boxes,)."""
    ends = np.clip(point, boxes[:, :2], boxes[:, 2:])
    steps = np.linspace(0, 1, 24)[None, :, None]
    path = point + (ends[:, None, :] - point) * steps
    inside = (path[:, :, None] > placed[:, :2]) & (path[:, :, None] < placed[:, 2:])
    return inside.all(axis=3).any(axis=1).sum(axis=1)


# The colours of Okabe and Ito (2008), which are safe for colour-blind readers, without yellow, which is too pale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"
Line = Literal["-", "--", ":"]
LINES: tuple[Line, ...] = ("-", "--", ":")
GREY, PALE, INK = "#5f5f5f", "#b8b8b8", "#222222"
LONGEST_NAME = 26
NAME_SIZE = 10
# If the names together have more letters, numbers replace them and the legend explains the numbers.
MOST_LETTERS = 120
# Cost, in pixels of distance, of a label that covers a mark, an interval or a line.
MARK, BAR, LINE = 300.0, 90.0, 25.0
COSTS = {
    "num_trainable_params": ("trained parameters", 1.0),
    "train_time": ("training time, seconds", 1.0),
    "accelerator_memory_max": ("peak memory, MiB", 2.0**20),
}


@dataclass(frozen=True)
class Look:
    """Style of an arm, equal in all panels."""

    colour: str
    marker: str
    line: Line


def looks_of(arms: Sequence[Arm]) -> dict[str, Look]:
    """Assign a style to each arm, by name; controls, and arms that are no better than the majority, are grey."""
    looks = {}
    for i, arm in enumerate(arm for arm in arms if not arm.control):
        line = LINES[i // len(COLOURS) % len(LINES)]
        looks[arm.name] = Look(GREY if arm.useless else COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], line)
    for i, arm in enumerate(arm for arm in arms if arm.control):
        looks[arm.name] = Look(GREY, "x", LINES[i % len(LINES)])
    return looks


def short(name: str) -> str:
    """Shorten a long name in its middle."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def marks_of(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the label of each arm, by name: its short name, or a number if there are too many names."""
    names = {arm.name: short(arm.name) for arm in arms if not arm.control}
    if sum(map(len, names.values())) <= MOST_LETTERS:
        return names
    return {name: str(i) for i, name in enumerate(names, start=1)}


def rate_text(rate: float) -> str:
    """Format a learning rate, for example 0.0003 as 3e-4."""
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def finite(*values: float | None) -> bool:
    """Return whether all values are finite numbers."""
    return all(value is not None and math.isfinite(value) for value in values)


def test_score(arm: Arm, metric: str) -> tuple[float, float, float] | None:
    """Return mean, low and high test score in percent; without an interval, the mean three times."""
    score = arm.score(metric)
    if score is None or not finite(score.interval.mean):
        return None
    found = score.interval
    low, high = (found.low, found.high) if finite(found.low, found.high) else (found.mean, found.mean)
    return 100 * found.mean, 100 * low, 100 * high


def score_limits(arms: Sequence[Arm], metric: str) -> tuple[float, float]:
    """Compute axis limits, in percent, that include all intervals, controls near them, and better controls."""
    scores = [found for arm in arms if not arm.control and (found := test_score(arm, metric))]
    controls = [found[0] for arm in arms if arm.control and (found := test_score(arm, metric))]
    if not scores:
        return 0.0, 100.0
    low, high = max(0.0, min(score[1] for score in scores)), min(100.0, max(score[2] for score in scores))
    near = low - max(2.0, high - low)
    low, high = min([low, *(value for value in controls if value >= near)]), max([high, *controls])
    spare = max(1.0, 0.1 * (high - low))
    return max(0.0, low - spare), min(100.0, high + spare)


def write_note(panel: Axes, text: str) -> None:
    """Write a sentence into a panel that has no data."""
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=GREY)
    panel.set_xticks([])
    panel.set_yticks([])


def draw_cost(panel: Axes, arms: Sequence[Arm], cost: str, limits: tuple[float, float], metric: str) -> None:
    """Draw the test score against one cost.

    Args:
        panel: Axes to draw on.
        arms: All arms of the comparison.
        cost: Key of `COSTS`.
        limits: Limits of the axis of the score, in percent.
        metric: Metric of the score.
    """
    words, unit = COSTS[cost]
    name = METRIC_NAMES[metric]
    panel.set_title(f"Test {name} against {words.split(',')[0]}")
    scored = [arm for arm in arms if not arm.control and test_score(arm, metric)]
    shown = [arm for arm in scored if finite(getattr(arm, cost)) and getattr(arm, cost) > 0]
    if not shown:
        unknown = "nothing was trained" if cost == "num_trainable_params" else "no run is known to have run alone"
        return write_note(panel, unknown if scored else "no arm has a test score")
    costs = np.array([getattr(arm, cost) / unit for arm in shown])
    scores = np.array([test_score(arm, metric) for arm in shown])
    missing = f" ({len(scored) - len(shown)} of {len(scored)} arms not measured)" if len(shown) < len(scored) else ""
    panel.set_xlabel(words + missing)
    panel.set_ylabel(f"test {name}, %")
    panel.set_ylim(*limits)
    panel.yaxis.set_major_locator(MaxNLocator(8))
    _cost_axis(panel, costs, cost == "num_trainable_params" or costs.max() > 10 * costs.min())
    lines = _draw_controls(panel, arms, metric)
    front = [i for i in np.argsort(costs, kind="stable") if cost in shown[i].front]
    lines += _draw_front(panel, cost, costs[front], scores[front, 0])
    looks = looks_of(arms)
    for i, (arm, x, (mean, low, high)) in enumerate(zip(shown, costs, scores, strict=True)):
        look = looks[arm.name]
        panel.plot([x, x], [low, high], color=look.colour, linewidth=1.4, alpha=0.7)
        fill = look.colour if i in front else "white"
        panel.plot(x, mean, look.marker, color=look.colour, markerfacecolor=fill, markersize=8.5, markeredgewidth=1.6)
        panel.lines[-1].set_clip_on(False)  # whole at 100%, where the axis ends
    points = np.column_stack([costs, scores[:, 0]])
    taken = [(_box(panel, point, point, 7), MARK) for point in points]
    taken += [
        (_box(panel, np.array([x, low]), np.array([x, high]), 3), BAR)
        for x, (_, low, high) in zip(costs, scores, strict=True)
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
    """Draw the Pareto front as steps, cheapest arm first, up to the right edge; return its segments."""
    if not len(costs):
        return []
    x = np.append(np.repeat(costs, 2)[1:], panel.get_xlim()[1])
    y = np.repeat(means, 2)
    panel.plot(x, y, color=PALE, linewidth=1.8, zorder=1, gid=f"pareto-front-{cost}")
    return list(pairwise(np.column_stack([x, y])))


def _draw_controls(panel: Axes, arms: Sequence[Arm], metric: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw controls as dashed lines with names, or as text if they are below the panel; return the segments."""
    left, right = panel.get_xlim()
    bottom, top = panel.get_ylim()
    controls = sorted((found[0], short(arm.name)) for arm in arms if arm.control and (found := test_score(arm, metric)))
    inside = [(mean, name) for mean, name in controls if mean >= bottom]
    above, height = -math.inf, 0.045 * (top - bottom)
    for mean, name in inside:
        panel.plot([left, right], [mean, mean], "--", color=GREY, linewidth=1, zorder=1)
        # If two controls are close, their names are at opposite ends.
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
    """Return the box in pixels around a line between two data points, of shape (4,)."""
    ends = panel.transData.transform([start, end])
    return np.concatenate([ends.min(axis=0) - around, ends.max(axis=0) + around])


def _write_names(
    panel: Axes,
    names: Sequence[str],
    colours: Sequence[str],
    points: np.ndarray,
    taken: Sequence[tuple[np.ndarray, float]],
) -> None:
    """Write labels where they cover least; a thin line connects a distant label with its point."""
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


STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8a8a",
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.size": 10.5,
    "grid.color": "#e8e8e8",
    "savefig.dpi": 100,
    "svg.hashsalt": "peft-audio",
    # Names can contain dollar signs.
    "text.parse_math": False,
}


def draw_comparison(comparison: Comparison) -> Figure:
    """Draw a comparison: the test score against three costs above; learning rates and learning curves below.

    Returns:
        The figure, 1600 pixels wide; pyplot does not know it.
    """
    with style.context(["default", STYLE]):
        arms, metric = comparison.arms, comparison.metric
        shown = _shown(arms)
        most = 7 if max((len(arm.name) for arm in shown), default=0) <= 16 else 5
        rows = math.ceil(len(shown) / most)
        legend = 0.35 + 0.25 * rows
        height = 10.6 + legend
        figure = Figure(figsize=(16, height))
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 3, left=0.055, right=0.985, hspace=0.3, wspace=0.19)
        grid.update(bottom=(legend + 0.6) / height, top=1 - 1.3 / height)
        panels = [figure.add_subplot(grid[row, column]) for row in range(2) for column in range(3)]
        _head(figure, comparison)
        for panel, cost in zip(panels, COSTS, strict=False):
            draw_cost(panel, arms, cost, score_limits(arms, metric), metric)
        _draw_rates(panels[3], comparison)
        _draw_curves(panels[4], arms, "validation_accuracy")
        _draw_curves(panels[5], arms, "train_loss")
        _legend(figure, arms, math.ceil(len(shown) / max(1, rows)))
    return figure


def to_bytes(figure: Figure, form: str) -> bytes:
    """Convert a figure to bytes of the form "png" or "svg"; equal figures give equal bytes."""
    # Leave out time and version, so that writing a comparison again does not change its files.
    nothing = ("Software",) if form == "png" else ("Creator", "Date", "Format", "Type")
    file = io.BytesIO()
    with style.context(["default", STYLE]):
        figure.savefig(file, format=form, metadata=dict.fromkeys(nothing))
    return file.getvalue()


def _head(figure: Figure, comparison: Comparison) -> None:
    height = figure.get_figheight()
    title = f"{_end(comparison.encoder)} on {_end(comparison.source)}"
    figure.text(0.055, 1 - 0.35 / height, title, fontsize=16, weight="bold", va="center")
    words = "Bars are 95% intervals over seeds."
    if comparison.broken_rules:
        more = len(comparison.broken_rules) - 1
        words += f" Broken: {shorten(comparison.broken_rules[0], 100)}" + (f" ({more} more)" if more else "")
    else:
        words += " No ranked rival of a filled mark is both cheaper and as good (Pareto front)."
    figure.text(0.055, 1 - 0.68 / height, words, color=GREY, va="center")
    if comparison.broken_rules:
        broken = "Not ranked: a rule is broken"
        figure.text(
            0.985, 1 - 0.35 / height, broken, color="#B03A00", fontsize=13, weight="bold", ha="right", va="center"
        )


def _end(name: str) -> str:
    """Shorten a long name to its end; the last folder is the most specific part."""
    return name if len(name) <= 50 else f"…{name[-49:]}"


def _draw_rates(panel: Axes, comparison: Comparison) -> None:
    """Draw the validation metric against the learning rate; with folds their mean, and each fold as a thin line."""
    panel.set_title("Choosing the learning rate, on validation")
    tried = [arm for arm in comparison.arms if any(finite(trial.validation) for trial in arm.trials)]
    if not tried:
        return write_note(panel, "no learning rates were tried")
    scale = 1 if comparison.best_metric == "loss" else 100
    looks = looks_of(comparison.arms)
    for arm in tried:
        look = looks[arm.name]
        folds = dict.fromkeys(trial.fold for trial in arm.trials)
        by_fold = [[trial for trial in arm.trials if trial.fold == fold] for fold in folds]
        for trials in by_fold if len(folds) > 1 else []:
            panel.plot(*_curve(trials, scale), color=look.colour, linewidth=0.7, alpha=0.45)
        rates, means = _means(by_fold, scale)
        panel.plot(rates, means, look.line, color=look.colour, linewidth=1.8)
        panel.plot(rates, means, look.marker, color=look.colour, markerfacecolor="white", markersize=5)
        chosen = [trial for trial in arm.trials if trial.chosen]
        panel.plot(*_curve(chosen, scale), look.marker, color=look.colour, markersize=9 if len(folds) == 1 else 6)
    _rate_axis(panel, [trial.learning_rate for arm in tried for trial in arm.trials])
    unit = "negated" if comparison.best_metric == "loss" else "%"
    panel.set_ylabel(f"validation {METRIC_NAMES[comparison.best_metric]}, {unit}")
    panel.set_xlabel("learning rate (filled: chosen)")


def _curve(trials: Sequence[Trial], scale: float) -> tuple[list[float], list[float]]:
    trials = sorted(trials, key=lambda trial: trial.learning_rate)
    return [trial.learning_rate for trial in trials], [scale * trial.validation for trial in trials]


def _means(by_fold: Sequence[Sequence[Trial]], scale: float) -> tuple[list[float], list[float]]:
    """Return the mean over folds at each rate that all folds tried."""
    found = [{trial.learning_rate: scale * trial.validation for trial in trials} for trials in by_fold]
    rates = sorted(set.intersection(*(set(of_fold) for of_fold in found)))
    return rates, [float(np.mean([of_fold[rate] for of_fold in found])) for rate in rates]


def _rate_axis(panel: Axes, rates: Sequence[float]) -> None:
    panel.set_xscale("log")
    panel.set_xlim(min(rates) / 1.5, max(rates) * 1.5)
    wide = max(rates) > 3e4 * min(rates)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 3.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: rate_text(rate)))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _draw_curves(panel: Axes, arms: Sequence[Arm], what: str) -> None:
    """Draw the mean over the final runs of each arm, for the epochs that all runs reached."""
    words = {"validation_accuracy": "validation accuracy, %", "train_loss": "training loss"}[what]
    scale = 100 if what == "validation_accuracy" else 1
    panel.set_title(f"{words.split(',')[0].capitalize()} by epoch")
    means = {arm.name: scale * _mean([getattr(curve, what) for curve in arm.curves]) for arm in arms if arm.curves}
    trained = [arm for arm in arms if arm.curves and np.isfinite(means[arm.name]).any()]
    if not trained:
        return write_note(panel, "no run has finished an epoch")
    looks, lowest, highest = looks_of(arms), math.inf, 0.0
    for arm in trained:
        look, mean = looks[arm.name], means[arm.name]
        epochs = np.arange(1, len(mean) + 1)
        panel.plot(epochs, mean, look.line, color=look.colour, linewidth=1.8)
        kept = round(float(np.median([curve.best_epoch for curve in arm.curves])))
        if kept in epochs:
            panel.plot(kept, mean[kept - 1], look.marker, color=look.colour, markersize=7)
        known = mean[np.isfinite(mean)]
        lowest, highest = min([lowest, *known]), max([highest, *known])
    if what == "train_loss" and 0 < lowest < highest / 20:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if highest < 1000 * lowest else (1.0,)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    panel.set_xlabel("epoch (mark: the one kept, median over runs)")
    panel.set_ylabel(words)


def _mean(runs: Sequence[Sequence[float]]) -> np.ndarray:
    return np.mean([run[: min(map(len, runs))] for run in runs], axis=0)


def _shown(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that the legend lists."""
    return [arm for arm in arms if arm.trials or arm.curves or (arm.test_accuracy and not arm.control)]


def _legend(figure: Figure, arms: Sequence[Arm], columns: int) -> None:
    looks, marks = looks_of(arms), marks_of(arms)
    handles, labels = [], []
    for arm in _shown(arms):
        look, name = looks[arm.name], short(arm.name)
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line))
        number = "" if arm.control or marks[arm.name] == name else f"{marks[arm.name]}  "
        labels.append(f"{number}{name}{' (control)' if arm.control else ''}")
    if handles:
        figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False, handlelength=2.6)
