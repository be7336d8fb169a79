"""How good a classifier is: each class, what is confused with what, and whether it knows when it errs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from peft_audio.evaluation.significance import MIN_GROUPS, paired_difference
from peft_audio.tasks.task import Task

# As in Guo et al. (ICML 2017).
BINS = 15


@dataclass(frozen=True)
class ClassScore:
    """One class: how much of what was called so is so, how much of what is so was called so, their harmonic mean."""

    label: str
    precision: float
    recall: float
    f1: float
    recordings: int


@dataclass(frozen=True)
class Bin:
    """Recordings whose highest probability lies above `low` and at `high` or below.

    Attributes:
        low: Lower bound.
        high: Upper bound.
        recordings: How many.
        confidence: Mean of their highest probabilities; None where there are none.
        accuracy: Share of them that is right; None likewise.
    """

    low: float
    high: float
    recordings: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Scores:
    """What a classifier is worth on some recordings.

    Attributes:
        recordings: How many.
        groups: How many groups (speakers) they are of; None if that of any is unknown.
        accuracy: Share that is right.
        accuracy_low: Lower bound of its 95% interval, see `accuracy_interval`.
        accuracy_high: Upper bound.
        interval: What that interval takes as independent: recordings or groups.
        macro_f1: Mean of F1 over the labels that occur, in truth or in what was said, as in a run's report.
        negative_log_likelihood: Mean of -ln of the probability of the right label; a run's report calls it loss.
        brier_score: Mean over recordings of the squared differences to 1 for the right label and 0 for the others,
            summed over labels: 0 to 2, as Brier had it (Monthly Weather Review 78, 1950).
        expected_calibration_error: Mean of |accuracy - confidence| over the bins, weighted by their recordings (Guo et
            al., ICML 2017).
        labels: In the order of the confusion matrix.
        classes: Score of each label.
        confusion: How many recordings of each label (row) were called what (column).
        bins: Of equal width, over the highest probability.
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
    right: np.ndarray,
    labels: Sequence[str],
    metrics: Mapping[str, float],
    groups: Sequence[str | None] | None = None,
) -> Scores:
    """Compute the scores of a classifier that gives each recording one label.

    Args:
        task: one label per clip.
        logits: of shape (recordings, labels).
        right: Number of the right label, int of shape (recordings,).
        labels: In the order of the numbers.
        metrics: `loss`, `accuracy` and `macro_f1`, as an `Evaluation` has them.
        groups: Group (speaker) of each recording; "" or None where it is unknown.
    """
    said, numbers = task.decide(logits), np.arange(len(labels))
    probabilities = task.probabilities(logits.astype(np.float64))
    precision, recall, f1, support = precision_recall_fscore_support(right, said, labels=numbers, zero_division=0.0)
    known = [group or None for group in groups or [None] * len(right)]
    low, high, unit = accuracy_interval(said == right, known)
    truth = np.eye(len(labels))[right]
    table = calibration_bins(task.confidence(probabilities), said == right)
    gaps = [one.recordings * abs((one.accuracy or 0.0) - (one.confidence or 0.0)) for one in table]
    return Scores(
        recordings=len(right),
        groups=None if None in known else len(set(known)),
        accuracy=metrics["accuracy"],
        accuracy_low=low,
        accuracy_high=high,
        interval=unit,
        macro_f1=metrics["macro_f1"],
        negative_log_likelihood=metrics["loss"],
        brier_score=float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        expected_calibration_error=float(sum(gaps) / len(right)),
        labels=tuple(labels),
        classes=tuple(
            ClassScore(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, label in enumerate(labels)
        ),
        confusion=tuple(map(tuple, confusion_matrix(right, said, labels=numbers).tolist())),
        bins=table,
    )


def confusions(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[tuple[str, str, int]]:
    """What was called something else, what, and how often, the most frequent first.

    Args:
        labels: In the order of the matrix.
        matrix: How many of each label (row) were called what (column).
    """
    found = [
        (label, said, count)
        for label, row in zip(labels, matrix, strict=True)
        for said, count in zip(labels, row, strict=True)
        if count and said != label
    ]
    return sorted(found, key=lambda item: -item[2])


def accuracy_interval(correct: np.ndarray, groups: Sequence[str | None]) -> tuple[float, float, str]:
    """Where the accuracy on other recordings of this kind may lie: a 95% interval.

    Recordings of one speaker are right or wrong together. With MIN_GROUPS groups or more, groups are what is drawn (by
    the bootstrap of `statistics.paired_difference`, against never being right). With fewer, or unknown ones, it is
    Wilson's interval, which takes every recording as independent and so is too narrow where they are not; where all are
    right, or none, no bootstrap knows a spread, and it is Wilson's with each group counted once.

    Args:
        correct: Of shape (recordings,), whether each is right.
        groups: Group of each; None where it is unknown.

    Returns:
        Both bounds, and what was taken as independent: "recordings" or "groups".
    """
    names = set(groups)
    grouped = None not in names and len(names) >= MIN_GROUPS
    count = len(names) if grouped else len(correct)
    if grouped and 0 < correct.sum() < len(correct):
        found = paired_difference(correct[None].astype(int), np.zeros((1, len(correct)), dtype=int), groups)
        return max(0.0, found.low), min(1.0, found.high), "groups"
    # With groups, all are right or none is.
    wilson = binomtest(round(float(correct.mean()) * count), count).proportion_ci(method="wilson")
    return float(wilson.low), float(wilson.high), "groups" if grouped else "recordings"


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, count: int = BINS) -> tuple[Bin, ...]:
    """Recordings by their highest probability, in bins of equal width.

    Args:
        confidence: The highest probability of each, of shape (recordings,).
        correct: Whether each is right.
        count: Of the bins.
    """
    edges = np.linspace(0, 1, count + 1)
    whose = np.clip(np.searchsorted(edges, confidence) - 1, 0, count - 1)
    found = []
    for i in range(count):
        own = whose == i
        means = (float(confidence[own].mean()), float(correct[own].mean())) if own.any() else (None, None)
        found.append(Bin(float(edges[i]), float(edges[i + 1]), int(own.sum()), *means))
    return tuple(found)
