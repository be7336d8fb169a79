"""A comparison as one figure: accuracy against costs, learning rates, learning curves."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from textwrap import shorten

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from peft_audio.comparison.results import Arm, Comparison, Trial
from peft_audio.comparison.scatter import (
    COSTS,
    GREY,
    accuracy,
    accuracy_limits,
    draw_cost,
    finite,
    looks_of,
    marks_of,
    say,
    short,
)
from peft_audio.comparison.sections import rate_text

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
    # A name may hold a dollar.
    "text.parse_math": False,
}


def draw_comparison(comparison: Comparison) -> Figure:
    """Draw a comparison: accuracy against three costs above; learning rates and learning curves below.

    Returns:
        The figure, 1600 pixels wide; pyplot does not know it.
    """
    with style.context(["default", STYLE]):
        arms = comparison.arms
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
            draw_cost(panel, arms, cost, accuracy_limits(arms))
        _draw_rates(panels[3], comparison)
        _draw_curves(panels[4], arms, "validation_accuracy")
        _draw_curves(panels[5], arms, "train_loss")
        _legend(figure, arms, math.ceil(len(shown) / max(1, rows)))
    return figure


def to_bytes(figure: Figure, form: str) -> bytes:
    """A figure as a file of the form "png" or "svg"; the same figure gives the same bytes."""
    # Nothing of the moment or of matplotlib's version: a comparison that is written again has not changed.
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
        words += " No rival of a filled mark is both cheaper and as accurate (Pareto front)."
    figure.text(0.055, 1 - 0.68 / height, words, color=GREY, va="center")
    if comparison.broken_rules:
        broken = "Not ranked: a rule is broken"
        figure.text(
            0.985, 1 - 0.35 / height, broken, color="#B03A00", fontsize=13, weight="bold", ha="right", va="center"
        )


def _end(name: str) -> str:
    """The end of a long name: that of a folder says most."""
    return name if len(name) <= 50 else f"…{name[-49:]}"


def _draw_rates(panel: Axes, comparison: Comparison) -> None:
    """Validation against the learning rate; with folds their mean, and each as a thin line."""
    panel.set_title("Choosing the learning rate, on validation")
    tried = [arm for arm in comparison.arms if any(finite(trial.validation) for trial in arm.trials)]
    if not tried:
        return say(panel, "no learning rates were tried")
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
    metric = {"accuracy": "accuracy, %", "macro_f1": "macro-F1, %", "loss": "loss, negated"}[comparison.best_metric]
    panel.set_ylabel(f"validation {metric}")
    panel.set_xlabel("learning rate (filled: chosen)")


def _curve(trials: Sequence[Trial], scale: float) -> tuple[list[float], list[float]]:
    trials = sorted(trials, key=lambda trial: trial.learning_rate)
    return [trial.learning_rate for trial in trials], [scale * trial.validation for trial in trials]


def _means(by_fold: Sequence[Sequence[Trial]], scale: float) -> tuple[list[float], list[float]]:
    """The mean over folds at each rate that all of them tried."""
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
    """Mean over the final runs of each arm, over the epochs that all of them reached."""
    words = {"validation_accuracy": "validation accuracy, %", "train_loss": "training loss"}[what]
    scale = 100 if what == "validation_accuracy" else 1
    panel.set_title(f"{words.split(',')[0].capitalize()} by epoch")
    means = {arm.name: scale * _mean([getattr(curve, what) for curve in arm.curves]) for arm in arms if arm.curves}
    trained = [arm for arm in arms if arm.curves and np.isfinite(means[arm.name]).any()]
    if not trained:
        return say(panel, "no run has finished an epoch")
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
    """Arms whose look the legend must explain."""
    return [arm for arm in arms if arm.trials or arm.curves or (accuracy(arm) and not arm.control)]


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
