"""Is one way of fine-tuning better than another, given few seeds and one test split? Intervals, p-values, sentences.

Scores are accuracies between 0 and 1; a point is 0.01. docs/statistics.md says what each interval promises, and how
often it kept that in simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

MIN_GROUPS = 8  # with fewer, the spread between groups is too badly known to speak of other groups
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its interval; both bounds are nan where there is one seed."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Accuracy of an arm minus accuracy of the reference, on average over seeds.

    Attributes:
        estimate: The difference measured; 0.01 is a point.
        low: Lower bound of the interval.
        high: Upper bound.
        p_value: Two-sided, of no difference; at most 1 - confidence where the interval leaves out 0.
        clips: Number of test clips.
        groups: Number of groups (speakers) among them; None if the group of any clip is unknown.
        conditional: The interval speaks of these groups only: clips were resampled, not groups.
        seeds: Number of seeds of the arm and of the reference. With 1, the interval speaks of that seed only.
        confidence: Of the interval.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    clips: int
    groups: int | None
    conditional: bool
    seeds: tuple[int, int]
    confidence: float = 0.95


@dataclass(frozen=True)
class _Spread:
    """Variance of the difference by where it comes from, and the degrees of freedom of their sum."""

    units: float
    shared: float  # the part of `units` that endless seeds would leave
    seeds: float  # of both arms, what chance does to single clips included
    freedom: float


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean score over seeds with Student's t interval, clipped to [0, 1].

    It says what more seeds would give on the same test clips, and nothing of other clips.

    Args:
        values: One score between 0 and 1 a seed. One seed has no spread: its bounds are nan.
        confidence: Of the interval, 0.95 for 95%.

    Raises:
        ValueError: No values, or values that are no scores.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"seed_interval needs one score a seed, got an array of shape {scores.shape}")
    if not np.all((scores >= 0) & (scores <= 1)):
        raise ValueError(f"Scores must be numbers between 0 and 1, got {list(values)}")
    _check_confidence(confidence)
    mean = float(scores.mean())
    if scores.size == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, scores.size - 1) * stats.sem(scores))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def paired_difference(
    correct: npt.ArrayLike,
    reference: npt.ArrayLike,
    groups: Sequence[str | None] | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Difference:
    """Difference in accuracy of an arm from the reference, with an interval that knows of clips, groups and seeds.

    A bootstrap over clips alone takes a bad seed, which loses many clips together, for a difference between methods.
    So each of `resamples` draws adds three things, as in Owen's pigeonhole bootstrap (Ann. Appl. Stat. 1, 2007): test
    clips drawn anew for both arms alike, or whole groups where there are MIN_GROUPS of them (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993); and for each arm what its seeds leave unsure. Three seeds are too few to be
    drawn anew: theirs is a normal with the variance that they show. What chance does to one clip of one seed is in both
    variances, and is taken out of one (McCullagh, Bernoulli 6, 2000). Last, each draw is divided by the root of a
    chi-square over its degrees of freedom (Satterthwaite, Biometrics Bulletin 2, 1946; Hillis, Stat. Med. 26, 2007, for
    readers and cases, which are seeds and clips here). That makes a t of a normal: few seeds or few groups widen the
    interval (Cameron, Gelbach and Miller, Rev. Econ. Stat. 90, 2008). Percentiles of the draws are the interval.

    Args:
        correct: Shape (seeds, clips), 1 where the arm's run with that seed has the clip right, else 0.
        reference: The same for the reference: the same clips in the same order; as many seeds as it has.
        groups: Group (speaker) of each clip. None, or a None among them: unknown.
        confidence: Of the interval.
        resamples: Number of draws.
        seed: Of the draws. The same arguments give the same numbers, whatever the order of the clips.

    Raises:
        ValueError: Shapes that do not fit, values other than 0 and 1, fewer than two clips.
    """
    arm, other = _correctness(correct, "correct"), _correctness(reference, "reference")
    clips = arm.shape[1]
    if other.shape[1] != clips:
        raise ValueError(f"The arm has {clips} clips and the reference {other.shape[1]}; they must be the same clips")
    _check_confidence(confidence)
    if resamples < 99:
        raise ValueError(f"resamples: got {resamples}, must be 99 or more. 9999 is the default")
    codes, count = _group_codes(groups, clips)
    grouped = count is not None and count >= MIN_GROUPS
    unit = codes if grouped else np.arange(clips)
    sizes = np.bincount(unit)
    arm_sums, other_sums = _sums(arm, unit), _sums(other, unit)
    estimate = float(arm.mean() - other.mean())
    spread = _spread(arm_sums, other_sums, sizes)
    draws = estimate + _deviations(arm_sums, other_sums, sizes, spread, resamples, np.random.default_rng(seed))
    # These quantiles are the ones by which the interval and the p-value always agree on 0.
    bounds = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], method="weibull")
    low, high = np.clip(bounds, -1, 1)
    beyond = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    p_value = min(1.0, 2 * (float(beyond) + 1) / (resamples + 1))
    seeds = (len(arm), len(other))
    return Difference(estimate, float(low), float(high), p_value, clips, count, not grouped, seeds, confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are, in the same order (Holm, Scand. J. Stat. 6, 1979).

    Raises:
        ValueError: A value is not between 0 and 1.
    """
    from statsmodels.stats.multitest import multipletests  # slow to import

    if not all(0 <= value <= 1 for value in p_values):
        raise ValueError(f"P-values must be between 0 and 1, got {list(p_values)}")
    return [float(value) for value in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def resolution(differences: Sequence[Difference]) -> float:
    """The smallest difference that this test split and these seeds tell from none: half of the widest interval.

    It is one clip at least: arms that agree on every clip have an interval without width.

    Raises:
        ValueError: No differences.
    """
    if not differences:
        raise ValueError("resolution needs one difference or more")
    return max(max((item.high - item.low) / 2, 1 / item.clips) for item in differences)


def claim(
    name: str, reference_name: str, difference: Difference, margin: float, corrected_p: float | None = None
) -> str:
    """What the bounds of the interval allow to say, in one sentence.

    Args:
        name: The arm, as the sentence should call it.
        reference_name: The reference, likewise.
        difference: Arm minus reference.
        margin: The difference that matters, in accuracy: 0.02 is two points.
        corrected_p: The p-value from `holm`, if there are several arms. Where it takes back what the interval says of
            better or worse, the sentence says so.

    Raises:
        ValueError: A margin that is not between 0 and 1.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin: got {margin}, must be between 0 and 1. Two points are 0.02")
    low, high = difference.low, difference.high
    span = " to ".join(f"{round(100 * bound, 2) + 0.0:+.2f}" for bound in (low, high))
    told = f"{100 * difference.confidence:.4g}% interval of the difference: {span} points"
    if corrected_p is not None and corrected_p > 1 - difference.confidence and not low <= 0 <= high:
        told += f"; not after Holm's correction, p = {corrected_p:.2g}"
    limits = []
    if difference.conditional:
        limits.append(f"these speakers{' (which are not known)' if difference.groups is None else ''}")
    if min(difference.seeds) == 1:
        limits.append("one seed")
    tail = f", conditional on {' and on '.join(limits)}" if limits else ""
    return f"{name} {_verdict(low, high, margin, reference_name)} ({told}){tail}."


def _verdict(low: float, high: float, margin: float, reference: str) -> str:
    points = f"{100 * margin:.4g} point{'' if margin == 0.01 else 's'}"
    within = -margin <= low and high <= margin
    verdicts = (
        (low >= margin, f"is at least {points} better than {reference}"),
        (high <= -margin, f"is at least {points} worse than {reference}"),
        (low > 0 and within, f"is better than {reference}, by at most {points}"),
        (high < 0 and within, f"is worse than {reference}, by at most {points}"),
        (low > 0, f"is better than {reference}"),
        (high < 0, f"is worse than {reference}"),
        (within, f"is within {points} of {reference}"),
        (low >= -margin, f"is at most {points} worse than {reference}, if worse at all"),
        (True, f"cannot be told from {reference}, nor shown to be within {points} of it"),
    )
    return next(words for holds, words in verdicts if holds)


def _correctness(values: npt.ArrayLike, name: str) -> Ints:
    array = np.asarray(values)
    if array.ndim != 2 or len(array) < 1 or array.shape[1] < 2:
        raise ValueError(f"{name} must have the shape (seeds, clips), with two clips or more; got {array.shape}")
    if not np.all((array == 0) | (array == 1)):
        raise ValueError(f"{name} must hold 0 (wrong) and 1 (right) only")
    return array.astype(np.int64)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, must be between 0 and 1. Try 0.95")


def _group_codes(groups: Sequence[str | None] | None, clips: int) -> tuple[Ints, int | None]:
    """Number of each clip's group, and how many groups there are; None if some are unknown."""
    unknown = np.zeros(clips, dtype=np.int64)
    if groups is None:
        return unknown, None
    if len(groups) != clips:
        raise ValueError(f"There are {clips} clips and {len(groups)} groups; each clip needs its own")
    if any(group is None for group in groups):
        return unknown, None
    names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return codes.astype(np.int64), len(names)


def _sums(correct: Ints, unit: Ints) -> Floats:
    """How many clips each seed has right in each unit, shape (seeds, units)."""
    return np.stack([np.bincount(unit, weights=row) for row in correct]).astype(np.float64)


def _spread(arm: Floats, reference: Floats, sizes: Ints) -> _Spread:
    """Variances of the difference from sums of correct clips, shape (seeds, units)."""
    units, clips = len(sizes), float(sizes.sum())
    scale = units / (units - 1) / clips**4
    # What each unit adds to a seed's accuracy beyond its share of the clips, times the clips squared: whole numbers,
    # so that what is equal has no variance, down to the last bit.
    adds = [sums * clips - sums.sum(1, keepdims=True) * sizes for sums in (arm, reference)]
    of_units = scale * float(((adds[0].mean(0) - adds[1].mean(0)) ** 2).sum())
    # Uneven groups count as fewer. One degree is the least, or there would be no interval.
    chance, of_seeds, bottom = 0.0, 0.0, of_units**2 / max(clips**2 / float((sizes**2).sum()) - 1, 1)
    for add, sums in zip(adds, (arm, reference), strict=True):
        seeds = len(sums)
        if seeds > 1:
            by_chance = scale * float(add.var(0, ddof=1).sum()) / seeds
            # Few seeds can agree by luck. Chance on single clips, better known, is the least by which they differ.
            of_seed = max(float(sums.sum(1).var(ddof=1)) / clips**2 / seeds, by_chance)
            chance, of_seeds, bottom = chance + by_chance, of_seeds + of_seed, bottom + of_seed**2 / (seeds - 1)
    shared = max(of_units - chance, 0.0)
    return _Spread(of_units, shared, of_seeds, (shared + of_seeds) ** 2 / bottom if bottom else math.inf)


def _deviations(
    arm: Floats, reference: Floats, sizes: Ints, spread: _Spread, resamples: int, rng: np.random.Generator
) -> Floats:
    """Draws of the difference less its estimate."""
    units, clips = len(sizes), sizes.sum()
    # Units alike in all that matters are drawn as one kind with its frequency: the same law, and far less to draw. They
    # are told by whole numbers, not by means, so that neither rounding nor the order of the clips matters.
    rows = np.stack([arm.sum(0), reference.sum(0), sizes], axis=1).round().astype(np.int64)
    kinds, frequency = np.unique(rows, axis=0, return_counts=True)
    counts: Any = rng.multinomial(units, frequency / units, size=resamples)
    gains = kinds[:, 0] / len(arm) - kinds[:, 1] / len(reference)
    drawn = counts @ gains / (counts @ kinds[:, 2]) - float(frequency @ gains) / clips
    scale = math.sqrt(units / (units - 1) * spread.shared / spread.units) if spread.units else 0.0
    noise = rng.standard_normal(resamples) * math.sqrt(spread.seeds)
    if math.isinf(spread.freedom):
        return scale * drawn + noise
    return (scale * drawn + noise) / np.sqrt(rng.chisquare(spread.freedom, resamples) / spread.freedom)
