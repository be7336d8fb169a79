"""Compare predictions with guessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from peft_audio.evaluation.significance import MIN_GROUPS
from peft_audio.tasks.task import Task

RESAMPLES = 1999
ADVICE = "Try --train.class_weights balanced or another --train.learning_rate, and run peft-audio check on the data."


@dataclass(frozen=True)
class AgainstChance:
    """Balanced accuracy of predictions and of guessing.

    Attributes:
        recordings: number of recordings.
        balanced_accuracy: mean recall of the classes that occur, with predictions restricted to these classes.
        low: lower bound of its 95% interval.
        chance: balanced accuracy of guessing, 1 / number of the classes that occur.
        interval: units that the interval assumes to be independent, "recordings" or "groups".
        only_label: label of all predictions; None if they vary.
    """

    recordings: int
    balanced_accuracy: float
    low: float
    chance: float
    interval: str
    only_label: str | None

    @property
    def learned_nothing(self) -> bool:
        """Return whether predictions are constant or not shown to be better than guessing."""
        return self.only_label is not None or self.low <= self.chance

    def as_json(self) -> dict[str, Any]:
        """Return the fields and `learned_nothing` as plain values."""
        return asdict(self) | {"learned_nothing": self.learned_nothing}


def compare_with_chance(
    task: Task,
    logits: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    groups: Sequence[str | None],
    seed: int = 0,
) -> AgainstChance | None:
    """Compare the balanced accuracy of predictions with that of guessing.

    The lower bound is the smaller of two. A bootstrap draws recordings, or groups if MIN_GROUPS or more are known. It
    has no spread in classes of one or two recordings, so the second bound is normal, with the binomial
    variance of each class's recall after one more hit and one more miss (Agresti and Coull, Am. Stat. 52, 1998).

    Args:
        task: one label per clip.
        logits: of shape (recordings, labels).
        targets: number of the true label, int of shape (recordings,).
        labels: label names in the order of the logits.
        groups: group (speaker) of each recording; "" or None if it is unknown.
        seed: seed of the draws.

    Returns:
        The comparison; None if fewer than two classes occur, because guessing is not defined then.
    """
    classes, codes = np.unique(targets, return_inverse=True)
    if len(classes) < 2:
        return None
    decided = task.decide(logits)
    # Only classes that occur compete, because guessing among all labels would be far below 1 / classes.
    hits = task.decide(logits[:, classes]) == codes
    # The number of recordings and of correct recordings, by unit and class.
    grouped = all(groups) and len(set(groups)) >= MIN_GROUPS
    unit = np.unique(list(map(str, groups)), return_inverse=True)[1] if grouped else np.arange(len(targets))
    cell, cells = unit * len(classes) + codes, (int(unit.max()) + 1) * len(classes)
    tables = [np.bincount(cell, minlength=cells), np.bincount(cell[hits], minlength=cells)]
    counts = np.stack([table.reshape(-1, len(classes)) for table in tables], axis=1)
    total, right = counts.sum(axis=0)
    estimate = float((right / total).mean())
    draws = _draws(counts, np.random.default_rng(seed))
    share = (right + 1) / (total + 2)
    spread = np.sqrt((share * (1 - share) / total).sum()) / len(classes)
    low = min(float(np.quantile(draws, 0.025)), estimate - 1.96 * float(spread))
    return AgainstChance(
        recordings=len(targets),
        balanced_accuracy=estimate,
        low=max(0.0, low),
        chance=1 / len(classes),
        interval="groups" if grouped else "recordings",
        only_label=labels[decided[0]] if (decided == decided[0]).all() else None,
    )


def _draws(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw balanced accuracies from units of recordings, of shape (draws,)."""
    # Equal units are drawn as one kind with its frequency, which has the same distribution and needs fewer draws.
    kinds, frequency = np.unique(counts.reshape(len(counts), -1), axis=0, return_counts=True)
    drawn = rng.multinomial(len(counts), frequency / len(counts), size=RESAMPLES) @ kinds
    total, right = np.split(drawn, 2, axis=1)
    recall = np.divide(right, total, out=np.zeros(right.shape), where=total > 0)
    occurring = np.count_nonzero(total, axis=1)
    return recall.sum(axis=1) / occurring


def learned_nothing_line(comparison: AgainstChance, split: str) -> str:
    """Write a message that the classifier learned nothing, with advice.

    Args:
        comparison: comparison with guessing.
        split: name of the recordings, such as "test".
    """
    clips = f"{comparison.recordings} {split} clips".replace("  ", " ")
    if comparison.only_label is not None:
        label = repr(comparison.only_label)
        return f"The classifier learned nothing: it predicts {label} for each of the {clips}. {ADVICE}"
    figures = f"balanced accuracy {comparison.balanced_accuracy:.3f}, 95% interval from {comparison.low:.3f}"
    figures += f"; guessing gives {comparison.chance:.3f}"
    return f"The classifier is not shown to be better than guessing on {clips}: {figures}. {ADVICE}"


def reported_line(chance: Mapping[str, Any] | None) -> str | None:
    """Write the message for `chance` of a report; None if the classifier learned something, or this is unknown."""
    if chance is None or not chance["learned_nothing"]:
        return None
    known = {field.name: chance[field.name] for field in fields(AgainstChance)}
    return learned_nothing_line(AgainstChance(**known), chance["split"])
