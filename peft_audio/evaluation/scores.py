"""Score a classifier on labelled recordings: accuracy, scores by class, confusions and calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import HEAVY_HEAD, Box
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, confusion_matrix, precision_recall_fscore_support

from peft_audio.evaluation.significance import MIN_GROUPS, paired_difference
from peft_audio.tasks.task import Task
from peft_audio.text import printable

# Number of calibration bins, as in Guo et al. (ICML 2017).
BINS = 15
# With more labels, the most frequent confusions are listed instead of the confusion matrix.
MOST_LABELS_IN_MATRIX = 20
MOST_SHOWN = 10


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class, and the number of its recordings."""

    label: str
    precision: float
    recall: float
    f1: float
    recordings: int


@dataclass(frozen=True)
class Bin:
    """Recordings whose highest probability is above `low` and at most `high`.

    Attributes:
        low: lower bound of the probability.
        high: upper bound of the probability.
        recordings: number of recordings.
        confidence: mean of the highest probabilities; None without recordings.
        accuracy: share of correct recordings; None without recordings.
    """

    low: float
    high: float
    recordings: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Scores:
    """Scores of a classifier on labelled recordings.

    Attributes:
        recordings: number of recordings.
        groups: number of groups (speakers); None if the group of a recording is unknown.
        accuracy: share of correct recordings.
        accuracy_low: lower bound of the 95% interval of the accuracy, see `accuracy_interval`.
        accuracy_high: upper bound of that interval.
        interval: units that the interval assumes to be independent, "recordings" or "groups".
        macro_f1: mean of F1 over the labels that occur as true or as predicted label, as in a report.
        negative_log_likelihood: mean of -ln of the probability of the true label; reports call it loss.
        brier_score: mean over recordings of the squared differences to 1 for the true label and to 0 for the others,
            summed over labels: 0 to 2 (Brier, Monthly Weather Review 78, 1950).
        expected_calibration_error: mean of |accuracy - confidence| over the bins, weighted by their recordings (Guo et
            al., ICML 2017).
        labels: label names in the order of the confusion matrix.
        classes: scores of each label.
        confusion: number of recordings by true label (row) and predicted label (column).
        bins: bins of equal width over the highest probability.
    """

    recordings: int
    groups: int | None
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    interval: str
    macro_f1: float
    negative_log_likelihood: float
    brier_score: float
    expected_calibration_error: float
    labels: tuple[str, ...]
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    bins: tuple[Bin, ...]


def score(
    task: Task,
    logits: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    metrics: Mapping[str, float],
    groups: Sequence[str | None] | None = None,
) -> Scores:
    """Compute the scores of a classifier that gives each recording one label.

    Args:
        task: one label per clip.
        logits: of shape (recordings, labels).
        targets: number of the true label, int of shape (recordings,).
        labels: label names in the order of the logits.
        metrics: `loss`, `accuracy` and `macro_f1` of an `Evaluation`.
        groups: group (speaker) of each recording; "" or None if it is unknown.
    """
    decisions, numbers = task.decide(logits), np.arange(len(labels))
    probabilities = task.probabilities(logits.astype(np.float64))
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, decisions, labels=numbers, zero_division=0.0
    )
    known = [group or None for group in groups or [None] * len(targets)]
    low, high, unit = accuracy_interval(decisions == targets, known)
    table = calibration_bins(task.confidence(probabilities), decisions == targets)
    gaps = [one.recordings * abs((one.accuracy or 0.0) - (one.confidence or 0.0)) for one in table]
    return Scores(
        recordings=len(targets),
        groups=None if None in known else len(set(known)),
        accuracy=metrics["accuracy"],
        accuracy_low=low,
        accuracy_high=high,
        interval=unit,
        macro_f1=metrics["macro_f1"],
        negative_log_likelihood=metrics["loss"],
        brier_score=float(brier_score_loss(targets, probabilities, labels=numbers, scale_by_half=False)),
        expected_calibration_error=float(sum(gaps) / len(targets)),
        labels=tuple(labels),
        classes=tuple(
            ClassScore(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, label in enumerate(labels)
        ),
        confusion=tuple(map(tuple, confusion_matrix(targets, decisions, labels=numbers).tolist())),
        bins=table,
    )


def confusions(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[tuple[str, str, int]]:
    """List true label, wrong label and count of each confusion, the most frequent first.

    Args:
        labels: label names in the order of the matrix.
        matrix: number of recordings by true label (row) and predicted label (column).
    """
    pairs = [
        (label, predicted, count)
        for label, row in zip(labels, matrix, strict=True)
        for predicted, count in zip(labels, row, strict=True)
        if count and predicted != label
    ]
    return sorted(pairs, key=lambda item: -item[2])


def accuracy_interval(correct: np.ndarray, groups: Sequence[str | None]) -> tuple[float, float, str]:
    """Compute a 95% interval of the accuracy on other recordings of this kind.

    Recordings of one speaker tend to be correct or wrong together. With MIN_GROUPS groups or more, a bootstrap draws
    groups (`paired_difference` against a reference that is never correct). With fewer or unknown groups, Wilson's
    interval assumes that recordings are independent, and is too narrow if they are not. If all groups have the same
    accuracy, a bootstrap has no spread, and Wilson's interval counts each group once.

    Args:
        correct: bool of shape (recordings,).
        groups: group of each recording; None if it is unknown.

    Returns:
        Lower bound, upper bound, and the units that the interval assumes to be independent: "recordings" or "groups".
    """
    names = set(groups)
    grouped = None not in names and len(names) >= MIN_GROUPS
    count = len(names) if grouped else len(correct)
    if grouped:
        difference = paired_difference(correct[None].astype(int), np.zeros((1, len(correct)), dtype=int), groups)
        if not math.isnan(difference.low):
            return max(0.0, difference.low), min(1.0, difference.high), "groups"
    wilson = binomtest(round(float(correct.mean()) * count), count).proportion_ci(method="wilson")
    return float(wilson.low), float(wilson.high), "groups" if grouped else "recordings"


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, count: int = BINS) -> tuple[Bin, ...]:
    """Sort recordings into bins of equal width by their highest probability.

    Args:
        confidence: highest probability of each recording, of shape (recordings,).
        correct: bool of shape (recordings,).
        count: number of bins.
    """
    edges = np.linspace(0, 1, count + 1)
    bins_of = np.clip(np.searchsorted(edges, confidence) - 1, 0, count - 1)
    bins = []
    for i in range(count):
        own = bins_of == i
        means = (float(confidence[own].mean()), float(correct[own].mean())) if own.any() else (None, None)
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), int(own.sum()), *means))
    return tuple(bins)


def print_scores(
    scores: Scores,
    notes: Sequence[str],
    unseen: Sequence[str],
    skipped: Sequence[tuple[str, str]],
    console: Console,
    parts: Mapping[str, Scores],
) -> None:
    """Print scores as tables.

    Args:
        scores: scores to show.
        notes: lines printed first.
        unseen: labels that do not occur.
        skipped: skipped clips with the reasons.
        console: console that prints.
        parts: scores of parts of the recordings by the name of the part, such as the recordings of the training.
    """

    def show(line: str) -> None:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    for note in notes:
        show(note)
    if unseen:
        show(absent_line(unseen))
    console.print(_summary(scores))
    if parts:
        console.print(_parts(parts))
    console.print(_classes(scores, unseen))
    matrix, legend = _matrix(scores, console)
    console.print(matrix or _confusions(scores))
    for line in legend:
        show(line)
    console.print(_bins(scores))
    for name, reason in skipped:
        show(f"skipped: {name} {reason}")


def summary_rows(scores: Scores) -> list[tuple[str, str]]:
    """List the figures of all recordings, each with its name."""
    of = f"{scores.recordings:,} recordings" + (f" of {scores.groups} groups" if scores.groups else "")
    kind = f"{scores.interval} assumed independent"
    if scores.groups and scores.interval == "recordings":
        kind += f"; for these {scores.groups} groups only"
    return [
        ("accuracy", f"{scores.accuracy:.3f} of {of}"),
        ("95% interval", f"{scores.accuracy_low:.3f} to {scores.accuracy_high:.3f}, {kind}"),
        ("macro-F1", f"{scores.macro_f1:.3f}"),
        ("negative log-likelihood", f"{scores.negative_log_likelihood:.3f}"),
        ("Brier score", f"{scores.brier_score:.3f} (0 is best, 2 worst)"),
        ("expected calibration error", f"{scores.expected_calibration_error:.3f}"),
    ]


def _summary(scores: Scores) -> Table:
    """Tabulate the scores over all recordings."""
    table = Table(show_header=False)
    for row in summary_rows(scores):
        table.add_row(*row)
    return table


def absent_line(absent: Sequence[str]) -> str:
    """Name the labels of the adapter that do not occur; empty if all do."""
    return f"labels of the adapter that do not occur: {', '.join(absent)}" if absent else ""


PART_COLUMNS = ("clips", "recordings", "accuracy", "95% interval", "macro-F1")


def part_rows(parts: Mapping[str, Scores]) -> list[tuple[str, ...]]:
    """List the scores of parts of the recordings, as in `PART_COLUMNS`."""
    return [
        (
            name,
            f"{part.recordings:,}",
            f"{part.accuracy:.3f}",
            f"{part.accuracy_low:.3f} to {part.accuracy_high:.3f}",
            f"{part.macro_f1:.3f}",
        )
        for name, part in parts.items()
    ]


def _parts(parts: Mapping[str, Scores]) -> Table:
    """Tabulate the scores of parts of the recordings."""
    table = Table()
    for name in PART_COLUMNS:
        table.add_column(name, justify="left" if name == "clips" else "right")
    for row in part_rows(parts):
        table.add_row(*row)
    return table


CLASS_COLUMNS = ("class", "precision", "recall", "F1", "recordings")


def class_rows(scores: Scores, unseen: Sequence[str]) -> list[tuple[str, ...]]:
    """List the scores of each class, as in `CLASS_COLUMNS`; a label that neither occurs nor was answered has none."""
    return [
        (one.label, *(f"{value:.3f}" for value in (one.precision, one.recall, one.f1)), f"{one.recordings:,}")
        for one, column in zip(scores.classes, zip(*scores.confusion, strict=True), strict=True)
        if one.label not in unseen or sum(column)
    ]


def _classes(scores: Scores, unseen: Sequence[str]) -> Table:
    """Tabulate the scores of each class."""
    table = Table()
    for name in CLASS_COLUMNS:
        justify: JustifyMethod = "left" if name == "class" else "right"
        table.add_column(name, justify=justify, no_wrap=name != "class", overflow="fold")
    for label, *figures in class_rows(scores, unseen):
        table.add_row(escape(printable(label)), *figures)
    return table


def _matrix(scores: Scores, console: Console) -> tuple[Table | None, list[str]]:
    """Tabulate the confusion matrix, with numbers for labels that are too wide.

    Returns:
        The table, None if no form fits the width of the console; and lines that explain its numbers.
    """
    labels = [printable(label) for label in scores.labels]
    numbers = list(map(str, range(1, len(labels) + 1)))
    legend = [f"{number:>{len(numbers[-1])}} = {label}" for number, label in zip(numbers, labels, strict=True)]
    forms: list[tuple[list[str], list[str], Box | None, list[str]]]
    forms = [(labels, labels, HEAVY_HEAD, []), (legend, numbers, HEAVY_HEAD, []), (legend, numbers, None, [])]
    forms += [(numbers, numbers, HEAVY_HEAD, legend), (numbers, numbers, None, legend)]
    for rows, columns, box, below in forms if len(labels) <= MOST_LABELS_IN_MATRIX else ():
        title = "true label (rows) and predicted label (columns)"
        table = Table(title=title, title_justify="left", box=box, padding=(0, 1) if box else (0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for column in columns:
            table.add_column(escape(column), justify="right", no_wrap=True)
        for i, (label, row) in enumerate(zip(rows, scores.confusion, strict=True)):
            cells = ["·" if not count else f"[bold]{count}[/]" if i == j else str(count) for j, count in enumerate(row)]
            table.add_row(escape(label), *cells)
        if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
            return table, below
    return None, []


def _confusions(scores: Scores) -> Table:
    """Tabulate the most frequent confusions."""
    pairs = confusions(scores.labels, scores.confusion)
    table = Table(title=f"the most frequent confusions, of {len(pairs)}", title_justify="left")
    for name in ("true label", "predicted label", "recordings"):
        right = name == "recordings"
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for label, predicted, count in pairs[:MOST_SHOWN]:
        table.add_row(escape(printable(label)), escape(printable(predicted)), str(count))
    return table


def _bins(scores: Scores) -> Table:
    """Tabulate the calibration bins."""
    table = Table(title="calibration: predicted probability and accuracy", title_justify="left")
    for name in ("probability", "recordings", "mean probability", "accuracy"):
        table.add_column(name, justify="left" if name == "probability" else "right")
    for one in scores.bins:
        if one.confidence is not None:
            means = (f"{one.confidence:.3f}", f"{one.accuracy:.3f}")
            table.add_row(f"{one.low:.3f} to {one.high:.3f}", f"{one.recordings:,}", *means)
    return table
