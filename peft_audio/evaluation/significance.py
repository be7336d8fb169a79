"""Intervals, p-values and claims for comparisons with few seeds and one test split.

Scores are accuracies between 0 and 1; a point is 0.01. docs/statistics.md states the coverage of each interval in
simulations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

MIN_GROUPS = 8  # with fewer groups, the estimate of the spread between groups is too uncertain
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """Mean over seeds with its interval; both bounds are nan with one seed."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean accuracy of an arm minus mean accuracy of the reference.

    Attributes:
        estimate: measured difference; 0.01 is a point.
        low: lower bound of the interval.
        high: upper bound of the interval.
        p_value: two-sided p-value of no difference; at most 1 - confidence if the interval excludes 0.
        clips: number of test clips.
        groups: number of groups (speakers) among them; None if the group of a clip is unknown.
        conditional: true if clips were resampled, not groups; the interval then covers these groups only.
        seeds: number of seeds of the arm and of the reference. With 1, the interval covers that seed only.
        confidence: confidence of the interval.
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
    """Variance of the difference by source, and the degrees of freedom of the sum."""

    units: float
    shared: float  # the part of `units` that endless seeds would leave
    seeds: float  # of both arms, what chance does to single clips included
    freedom: float


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Compute the mean score over seeds with Student's t interval, clipped to [0, 1].

    The interval covers other seeds on the same test clips. It does not cover other clips.

    Args:
        values: one score between 0 and 1 per seed. The bounds of one seed are nan.
        confidence: confidence of the interval, 0.95 for 95%.

    Raises:
        ValueError: There are no values, or a value is not between 0 and 1.
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
    """Compute the difference in accuracy between an arm and the reference, with an interval over clips and seeds.

    A bootstrap over clips alone takes a bad seed, which loses many clips at once, for a difference between methods.
    Each of `resamples` draws combines three steps, as in Owen's pigeonhole bootstrap (Ann. Appl. Stat. 1, 2007):

    1. Test clips are drawn with replacement, the same for both arms; with MIN_GROUPS groups or more, whole groups are
       drawn (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
    2. For each arm, the uncertainty of its seeds is added. Three seeds are too few to draw from, so it is a normal
       variable with the variance between seeds. The chance on a single clip of a single seed is in both variances, and
       is subtracted from one of them (McCullagh, Bernoulli 6, 2000).
    3. Each draw is divided by the root of a chi-square variable over its degrees of freedom (Satterthwaite, Biometrics
       Bulletin 2, 1946; Hillis, Stat. Med. 26, 2007, for readers and cases, here seeds and clips). This turns a normal
       into a t variable: few seeds or few groups widen the interval (Cameron, Gelbach and Miller, Rev. Econ. Stat. 90,
       2008).

    The interval is made of percentiles of the draws.

    Args:
        correct: 1 where the arm's run with a seed has a clip correct, else 0; of shape (seeds, clips).
        reference: the same for the reference: the same clips in the same order, with its own seeds.
        groups: group (speaker) of each clip. None, or a None among them: unknown.
        confidence: confidence of the interval.
        resamples: number of draws.
        seed: seed of the draws. The same arguments give the same numbers, in any order of the clips.

    Raises:
        ValueError: Shapes do not fit, a value is neither 0 nor 1, or there are fewer than two clips.
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
    """Correct p-values for their number, in the same order (Holm, Scand. J. Stat. 6, 1979).

    Raises:
        ValueError: A value is not between 0 and 1.
    """
    from statsmodels.stats.multitest import multipletests  # slow to import

    if not all(0 <= value <= 1 for value in p_values):
        raise ValueError(f"P-values must be between 0 and 1, got {list(p_values)}")
    return [float(value) for value in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def resolution(differences: Sequence[Difference]) -> float:
    """Return the smallest difference that this test split and these seeds resolve: half of the widest interval.

    It is at least one clip, because arms that agree on every clip have an interval of width 0.

    Raises:
        ValueError: There are no differences.
    """
    if not differences:
        raise ValueError("resolution needs one difference or more")
    return max(max((item.high - item.low) / 2, 1 / item.clips) for item in differences)


def claim(
    name: str, reference_name: str, difference: Difference, margin: float, corrected_p: float | None = None
) -> str:
    """Write one sentence on the difference that the bounds of its interval support.

    Args:
        name: name of the arm in the sentence.
        reference_name: name of the reference in the sentence.
        difference: arm minus reference.
        margin: smallest difference in accuracy that matters; 0.02 is two points.
        corrected_p: p-value from `holm`, if there are several arms. The sentence states where it contradicts the
            interval.

    Raises:
        ValueError: The margin is not between 0 and 1.
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
    """Return the number of each clip's group, and the number of groups; None if the group of a clip is unknown."""
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
    """Count the correct clips of each seed in each unit; float64 of shape (seeds, units)."""
    return np.stack([np.bincount(unit, weights=row) for row in correct]).astype(np.float64)


def _spread(arm: Floats, reference: Floats, sizes: Ints) -> _Spread:
    """Compute the variances of the difference from the sums of correct clips, of shape (seeds, units)."""
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
    """Draw deviations of the difference from its estimate."""
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
