"""Which learning rate to try next, so that every arm has as many trials, and none stops at the edge of its grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from peft_audio.tasks import task_of

# A rate's score on validation and the negative loss that settles ties; higher is better.
Trials = Mapping[float, tuple[float, float]]
# Of a rate at which a run did not end with a report: tried, and worse than all others.
DIVERGED_SCORE = (-math.inf, -math.inf)


def mean_score(reports: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float]:
    """The score of a rate: the mean over its runs of a metric on validation, and of the negative loss.

    Args:
        reports: Of the runs.
        metric: "accuracy", "macro_f1" or "loss".
    """
    task = task_of()
    loss = -mean(report["validation_loss"] for report in reports)
    return mean(task.selection_score(report, metric, "validation_") for report in reports), loss


def half_decade(rate: float, steps: int) -> float:
    """The rate so many half decades away, on 1, 3, 10, 30 and so on: 3e-4 is followed by 1e-3.

    Half decades are as fine as validation splits of a few hundred clips can tell apart.
    """
    return float(f"{10 ** ((round(2 * math.log10(rate)) + steps) / 2):.0e}")


def first_rates(default: float, count: int) -> list[float]:
    """So many rates around a default: it, half a decade below, half a decade above, and so on, rising."""
    return sorted(half_decade(default, (-1) ** i * ((i + 1) // 2)) for i in range(count))


def best_rate(trials: Trials) -> float:
    """The rate with the highest score; the lower loss wins a tie, then the lower rate."""
    return max(sorted(trials), key=lambda rate: trials[rate])


def at_edge(trials: Trials) -> bool:
    """Whether the best rate is the lowest or the highest of several, so that a better one may lie further out."""
    return len(trials) > 1 and best_rate(trials) in (min(trials), max(trials))


def next_rate(trials: Trials) -> float:
    """Half a decade beyond the edge that the best rate is at; inside, halfway from it to its better neighbour."""
    tried, best = sorted(trials), best_rate(trials)
    if at_edge(trials) or len(tried) == 1:
        return half_decade(best, -1 if best == tried[0] and len(tried) > 1 else 1)
    place = tried.index(best)
    neighbour = best_rate({rate: trials[rate] for rate in (tried[place - 1], tried[place + 1])})
    return float(f"{math.sqrt(best * neighbour):.2e}")
