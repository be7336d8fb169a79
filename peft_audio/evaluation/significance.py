"""Compute intervals, p-values and claims for comparisons with few seeds and one test split.

Scores are accuracies between 0 and 1; a point is 0.01. docs/statistics.md states the coverage of each interval in
simulations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.sparse import csr_array

MIN_GROUPS = 8  # with fewer groups, the estimate of the spread between groups is too uncertain
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Metric = Callable[[Floats], Floats]
ROUNDING = 1e-12  # error of a score
STEP = 1e-3  # change of a weight in numeric derivatives
MAX_NUMBERS = 2_000_000  # in one array, 16 MB


@dataclass(frozen=True)
class Interval:
    """Mean over seeds with its interval; both bounds are nan with one seed, or if all seeds have the same score."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean score of an arm minus mean score of the reference.

    Attributes:
        estimate: measured difference; 0.01 is a point.
        low: lower bound of the interval; nan if the difference is the same in every draw.
        high: upper bound of the interval; nan in the same case.
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
    shared: float  # part of `units` that would remain with infinitely many seeds
    seeds: float  # of both arms, including chance on single clips
    freedom: float


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Compute the mean score over seeds with Student's t interval, clipped to [0, 1].

    The interval covers other seeds on the same test clips. It does not cover other clips. Seeds with equal scores have
    no interval, because their lack of spread is luck, not certainty.

    Args:
        values: one score between 0 and 1 per seed. The bounds of one seed, and of equal seeds, are nan.
        confidence: confidence of the interval, 0.95 for 95%.

    Raises:
        ValueError: There are no values, or a value is not between 0 and 1.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"seed_interval needs one score per seed, got an array of shape {scores.shape}")
    if not np.all((scores >= 0) & (scores <= 1)):
        raise ValueError(f"Scores must be numbers between 0 and 1, got {list(values)}")
    _check_confidence(confidence)
    mean = float(scores.mean())
    if np.all(scores == scores[0]):
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

    A bootstrap over clips alone mistakes a bad seed, which loses many clips at once, for a difference between methods.
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
        correct: 1 if the arm's run with a seed predicts a clip correctly, else 0; of shape (seeds, clips).
        reference: the same for the reference, with the same clips in the same order and its own seeds.
        groups: group (speaker) of each clip; None if all are unknown, or a None for each unknown group.
        confidence: confidence of the interval.
        resamples: number of draws.
        seed: seed of the draws. The result does not depend on the order of the clips.

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
    unit, count = _units(groups, clips)
    sizes = np.bincount(unit)
    arm_sums, other_sums = _sums(arm, unit), _sums(other, unit)
    # Deviation of each unit's correct clips from its share of them, times the number of clips squared. These are whole
    # numbers, so that the variance of equal values is exactly 0.
    adds = [sums * clips - sums.sum(1, keepdims=True) * sizes for sums in (arm_sums, other_sums)]
    spread = _spread(adds, [sums.sum(1) for sums in (arm_sums, other_sums)], float(clips), _freedom(sizes))
    rng = np.random.default_rng(seed)
    drawn = _drawn_accuracies(arm_sums, other_sums, sizes, resamples, rng)
    estimate = float(arm.mean() - other.mean())
    seeds = (len(arm), len(other))
    return _difference(estimate, drawn, spread, len(sizes), rng, (clips, count, seeds, confidence))


@dataclass(frozen=True)
class Resampled:
    """Scores of an arm's runs on resampled test clips.

    Attributes:
        scores: score of each seed on the test clips, of shape (seeds,).
        drawn: score of each seed on each draw of test clips, of shape (resamples, seeds).
        influence: derivative of each seed's score with respect to the weight of each unit, of shape (seeds, units).
        unit: number of each clip's unit, of shape (clips,). A unit is a clip, or a whole group.
        groups: number of groups; None if the group of a clip is unknown.
        seed: seed of the draws.
    """

    scores: Floats
    drawn: Floats
    influence: Floats
    unit: Ints
    groups: int | None
    seed: int


def resample(
    counts: npt.ArrayLike,
    metric: Metric,
    groups: Sequence[str | None] | None = None,
    resamples: int = 9999,
    seed: int = 0,
    classes: npt.ArrayLike | None = None,
) -> Resampled:
    """Compute the scores of an arm on draws of test clips, for any metric of sums over clips.

    Clips are drawn with replacement, or whole groups with MIN_GROUPS groups or more. The same clips, groups and seed
    give the same draws, so that the scores of two arms are paired.

    A metric that averages over the classes of a draw omits a class without drawn clips. Without a rare class, even a
    constant prediction scores 100%. With `classes`, each draw keeps every class: a draw without a class gets one of its
    clips (or groups), chosen at random. Other draws do not change.

    Args:
        counts: counts that are summed over clips, of shape (seeds, clips, ...), such as `Task.label_counts` of runs.
        metric: function that computes scores of shape (...) from sums of shape (..., ...).
        groups: group (speaker) of each clip; None if all are unknown, or a None for each unknown group.
        resamples: number of draws.
        seed: seed of the draws.
        classes: true class of each clip; None if a draw can lose a class.

    Raises:
        ValueError: There are fewer than two clips or no runs.
    """
    values = np.asarray(counts)
    if values.ndim < 3 or len(values) < 1 or values.shape[1] < 2:
        raise ValueError(f"counts must have the shape (seeds, clips, ...), with two clips or more; got {values.shape}")
    if resamples < 99:
        raise ValueError(f"resamples: got {resamples}, must be 99 or more. 9999 is the default")
    seeds, clips, *parts = values.shape
    unit, count = _units(groups, clips)
    units = int(unit.max()) + 1
    # Sums of each unit, of shape (units, seeds * parts). Most of them are 0, so they are never held as an array.
    of_unit = csr_array((np.ones(clips), (unit, np.arange(clips))), shape=(units, clips))
    flat = csr_array(of_unit @ csr_array(values.swapaxes(0, 1).reshape(clips, -1)))
    size = flat.shape[1]
    rng = np.random.default_rng(seed)
    # Each class has its own generator, so that draws do not depend on the size of the blocks below.
    members = [] if classes is None else [np.unique(unit[of_class]) for of_class in _each_class(classes)]
    generators = [np.random.default_rng([seed, 2, number]) for number in range(len(members))]
    drawn = []
    rows = max(1, MAX_NUMBERS // max(units, size))
    for start in range(0, resamples, rows):
        chosen = rng.integers(units, size=(min(rows, resamples - start), units))
        chosen += np.arange(len(chosen))[:, None] * units
        weights = np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)
        for of_class, generator in zip(members, generators, strict=True):
            lost = np.flatnonzero(weights[:, of_class].sum(1) == 0)
            weights[lost, generator.choice(of_class, len(lost))] += 1
        drawn.append(metric((weights @ flat).reshape(-1, seeds, *parts)))
    whole = flat.sum(axis=0).reshape(seeds, *parts)
    blocks = (
        flat[block].toarray().reshape(-1, seeds, *parts)
        for block in np.array_split(np.arange(units), -(-units // rows))
    )
    slopes = [(metric(whole + STEP * part) - metric(whole - STEP * part)) / (2 * STEP) for part in blocks]
    return Resampled(metric(whole), np.concatenate(drawn), np.concatenate(slopes).T, unit, count, seed)


def resampled_difference(arm: Resampled, reference: Resampled, confidence: float = 0.95) -> Difference:
    """Compute the difference in a metric between an arm and the reference, with an interval over clips and seeds.

    The method is that of `paired_difference`. The influence of a clip on the metric is that of the infinitesimal
    jackknife (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 21).

    Args:
        arm: scores of the arm.
        reference: scores of the reference on the same draws.
        confidence: confidence of the interval.

    Raises:
        ValueError: The two were not resampled in the same way.
    """
    _check_confidence(confidence)
    alike = np.array_equal(arm.unit, reference.unit) and len(arm.drawn) == len(reference.drawn)
    if not alike or arm.seed != reference.seed:
        raise ValueError("The arm and the reference must be resampled with the same clips, groups, resamples and seed")
    sizes = np.bincount(arm.unit)
    spread = _spread([arm.influence, reference.influence], [arm.scores, reference.scores], 1.0, _freedom(sizes))
    estimate = float(arm.scores.mean() - reference.scores.mean())
    drawn = arm.drawn.mean(1) - reference.drawn.mean(1) - estimate
    rng = np.random.default_rng([arm.seed, 1])
    seeds = (len(arm.scores), len(reference.scores))
    return _difference(estimate, drawn, spread, len(sizes), rng, (len(arm.unit), arm.groups, seeds, confidence))


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
    """Return the smallest difference that a test split and seeds can resolve, half of the widest interval.

    It is at least one clip, because arms with equal predictions have no interval.

    Raises:
        ValueError: There are no differences.
    """
    if not differences:
        raise ValueError("resolution needs one difference or more")
    return max(max(1 / item.clips, (item.high - item.low) / 2) for item in differences)


def claim(
    name: str,
    reference_name: str,
    difference: Difference,
    margin: float,
    corrected_p: float | None = None,
    metric: str = "",
) -> str:
    """Write one sentence on a difference that its interval supports.

    Args:
        name: name of the arm in the sentence.
        reference_name: name of the reference in the sentence.
        difference: arm minus reference.
        margin: smallest difference that matters; 0.02 is two points.
        corrected_p: p-value from `holm`, if there are several arms. The sentence mentions it if it contradicts the
            interval.
        metric: name of the metric in the sentence; "" leaves it out.

    Raises:
        ValueError: The margin is not between 0 and 1.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin: got {margin}, must be between 0 and 1. Two points are 0.02")
    low, high = difference.low, difference.high
    if math.isnan(low) and difference.estimate == 0:
        return f"{name} and {reference_name} show no difference in any draw of clips, so it has no interval."
    details = (f"{metric}; " if metric else "") + interval_text(difference)
    if corrected_p is not None and corrected_p > 1 - difference.confidence and not low <= 0 <= high:
        details += f"; not after Holm's correction, p = {corrected_p:.2g}"
    limits = []
    if difference.conditional:
        limits.append(f"these speakers{' (which are not known)' if difference.groups is None else ''}")
    if min(difference.seeds) == 1:
        limits.append("one seed")
    tail = f", conditional on {' and on '.join(limits)}" if limits else ""
    if math.isnan(low):
        verdict = f"is {'better' if difference.estimate > 0 else 'worse'} than {reference_name}"
    else:
        verdict = _verdict(low, high, margin, reference_name)
    return f"{name} {verdict} ({details}){tail}."


def points(difference: float) -> str:
    """Format a difference of scores in points, with a sign."""
    return f"{round(100 * difference, 2) + 0.0:+.2f} points"


def interval_text(difference: Difference) -> str:
    """Format the interval of a difference for sentences."""
    if math.isnan(difference.low):
        return f"the difference is {points(difference.estimate)} in every draw of clips, so it has no interval"
    bounds = f"{points(difference.low).removesuffix(' points')} to {points(difference.high)}"
    return f"{100 * difference.confidence:.4g}% interval of the difference: {bounds}"


def _verdict(low: float, high: float, margin: float, reference: str) -> str:
    """Write the predicate of a claim from the bounds of an interval."""
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
        (True, f"cannot be distinguished from {reference}, nor shown to be within {points}"),
    )
    return next(words for holds, words in verdicts if holds)


def _correctness(values: npt.ArrayLike, name: str) -> Ints:
    """Check an array of 0 and 1 of shape (seeds, clips), and convert it to int64."""
    array = np.asarray(values)
    if array.ndim != 2 or len(array) < 1 or array.shape[1] < 2:
        raise ValueError(f"{name} must have the shape (seeds, clips), with two clips or more; got {array.shape}")
    if not np.all((array == 0) | (array == 1)):
        raise ValueError(f"{name} must hold 0 (wrong) and 1 (right) only")
    return array.astype(np.int64)


def _check_confidence(confidence: float) -> None:
    """Check that a confidence is between 0 and 1."""
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


def _each_class(classes: npt.ArrayLike) -> list[npt.NDArray[np.bool_]]:
    """Return a mask of the clips for each class, bool of shape (clips,)."""
    names, codes = np.unique(np.asarray(classes), return_inverse=True)
    return [codes == number for number in range(len(names))]


def units_of_classes(classes: npt.ArrayLike, groups: Sequence[str | None] | None = None) -> dict[str, int]:
    """Count the units with clips of each class; units are groups if `resample` draws groups, otherwise clips."""
    labels = np.asarray(classes)
    unit, _ = _units(groups, len(labels))
    return {str(label): len(np.unique(unit[labels == label])) for label in np.unique(labels)}


def _sums(correct: Ints, unit: Ints) -> Floats:
    """Count the correct clips of each seed in each unit; float64 of shape (seeds, units)."""
    return np.stack([np.bincount(unit, weights=row) for row in correct]).astype(np.float64)


def _units(groups: Sequence[str | None] | None, clips: int) -> tuple[Ints, int | None]:
    """Return the number of each clip's unit of resampling, and the number of groups; None if a group is unknown."""
    codes, count = _group_codes(groups, clips)
    return codes if count is not None and count >= MIN_GROUPS else np.arange(clips), count


def _freedom(sizes: Ints) -> float:
    """Compute the degrees of freedom of the spread between units. Uneven groups count as fewer groups."""
    # At least one degree, because otherwise there is no interval.
    return max(float(sizes.sum()) ** 2 / float((sizes**2).sum()) - 1, 1)


def _spread(adds: Sequence[Floats], totals: Sequence[Floats], clips: float, freedom: float) -> _Spread:
    """Compute the variances of the difference.

    Args:
        adds: influence of each unit on each seed's score, times `clips` squared; of shape (seeds, units) for each arm.
        totals: score of each seed times `clips`; of shape (seeds,) for each arm.
        clips: scale of `adds` and `totals`.
        freedom: degrees of freedom of the spread between units.
    """
    units = adds[0].shape[1]
    scale = units / (units - 1) / clips**4
    of_units = scale * float(((adds[0].mean(0) - adds[1].mean(0)) ** 2).sum())
    chance, of_seeds, bottom = 0.0, 0.0, of_units**2 / freedom
    for add, total in zip(adds, totals, strict=True):
        seeds = len(total)
        if seeds > 1:
            by_chance = scale * float(add.var(0, ddof=1).sum()) / seeds
            # Few seeds can agree by luck, so their variance is at least that of chance on single clips.
            of_seed = max(float(total.var(ddof=1)) / clips**2 / seeds, by_chance)
            chance, of_seeds, bottom = chance + by_chance, of_seeds + of_seed, bottom + of_seed**2 / (seeds - 1)
    shared = max(of_units - chance, 0.0)
    return _Spread(of_units, shared, of_seeds, (shared + of_seeds) ** 2 / bottom if bottom else math.inf)


def _drawn_accuracies(arm: Floats, reference: Floats, sizes: Ints, resamples: int, rng: np.random.Generator) -> Floats:
    """Draw units and compute the deviations of the difference in accuracy from its estimate."""
    units, clips = len(sizes), sizes.sum()
    # Equal units are drawn as one kind with its frequency, which has the same distribution and needs fewer draws. Whole
    # numbers identify kinds, so that rounding and the order of clips have no effect.
    rows = np.stack([arm.sum(0), reference.sum(0), sizes], axis=1).round().astype(np.int64)
    kinds, frequency = np.unique(rows, axis=0, return_counts=True)
    counts: Any = rng.multinomial(units, frequency / units, size=resamples)
    gains = kinds[:, 0] / len(arm) - kinds[:, 1] / len(reference)
    drawn: Floats = counts @ gains / (counts @ kinds[:, 2]) - float(frequency @ gains) / clips
    return drawn


def _difference(
    estimate: float,
    drawn: Floats,
    spread: _Spread,
    units: int,
    rng: np.random.Generator,
    facts: tuple[int, int | None, tuple[int, int], float],
) -> Difference:
    """Compute the interval and the p-value.

    Args:
        estimate: difference on the test clips.
        drawn: deviations from the estimate in draws of the units, of shape (resamples,).
        spread: variances of the difference.
        units: number of units.
        rng: source of the noise of the seeds.
        facts: `clips`, `groups`, `seeds` and `confidence` of the result.
    """
    clips, groups, seeds, confidence = facts
    scale = math.sqrt(units / (units - 1) * spread.shared / spread.units) if spread.units else 0.0
    noise = rng.standard_normal(len(drawn)) * math.sqrt(spread.seeds)
    moved = scale * drawn + noise
    if not math.isinf(spread.freedom):
        moved = moved / np.sqrt(rng.chisquare(spread.freedom, len(drawn)) / spread.freedom)
    draws = estimate + moved
    # Differences of the size of rounding errors are 0.
    draws[np.abs(draws) < ROUNDING] = 0
    estimate = 0.0 if abs(estimate) < ROUNDING else estimate
    # With these quantiles, the interval excludes 0 exactly if the p-value is small.
    bounds = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], method="weibull")
    low, high = np.clip(bounds, -1, 1)
    beyond = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    p_value = min(1.0, 2 * (float(beyond) + 1) / (len(drawn) + 1))
    if high - low < ROUNDING:
        low = high = math.nan
    conditional = groups is None or groups < MIN_GROUPS
    return Difference(estimate, float(low), float(high), p_value, clips, groups, conditional, seeds, confidence)
