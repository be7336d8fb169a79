from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from scipy.special import expit
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from peft_audio.evaluation.significance import (
    Difference,
    Resampled,
    claim,
    holm,
    paired_difference,
    resample,
    resampled_difference,
    resolution,
    seed_interval,
)
from peft_audio.tasks import task_of

Z = stats.norm.ppf(0.975)


def runs(rng: np.random.Generator, seeds: int, of_clip: Any, of_seed: float = 0.2) -> Any:
    """Correctness of runs whose chance on a clip is a logistic of the clip's effect and the seed's."""
    chances = expit(of_clip + rng.normal(0, of_seed, (seeds, 1)))
    return rng.random(chances.shape) < chances


@pytest.mark.parametrize("values", [[0.7, 0.72, 0.71], [0.5, 0.61, 0.55, 0.52, 0.58, 0.49, 0.6, 0.57]])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_seed_interval_is_students(values: list[float], confidence: float) -> None:
    interval = seed_interval(values, confidence)
    expected = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((np.mean(values), *expected))


def test_seed_interval_at_its_edges() -> None:
    assert seed_interval([0.99, 1.0, 0.98]).high == 1.0
    for values in ([0.5], [0.5, 0.5, 0.5]):  # an interval without width is no interval
        found = seed_interval(values)
        assert found.mean == 0.5
        assert math.isnan(found.low) and math.isnan(found.high)


def test_one_seed_without_groups_is_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    clips = rng.normal(2.5, 1, 400)
    arm, reference = runs(rng, 1, clips), runs(rng, 1, clips + 0.5)
    found = paired_difference(arm, reference)
    pair = (arm[0].astype(float), reference[0].astype(float))
    theirs = stats.bootstrap(
        pair,
        lambda a, b, axis: (a - b).mean(axis=axis),
        paired=True,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    assert found.estimate == pytest.approx(arm.mean() - reference.mean())
    # A 2.5% quantile of 9999 draws has a standard error of 1.3% of the width; the t of 399 degrees adds 0.3% to it.
    assert (found.low, found.high) == pytest.approx(theirs, abs=0.05 * (theirs.high - theirs.low))


@pytest.mark.parametrize("groups", [8, 40])
def test_groups_are_the_cluster_robust_variance(groups: int) -> None:
    rng = np.random.default_rng(groups)
    of_group = np.repeat(rng.normal(0, 1, groups), 20)
    arm, reference = runs(rng, 1, 1 + of_group), runs(rng, 1, np.full(groups * 20, 1.5))
    names = np.repeat(np.arange(groups), 20)
    found = paired_difference(arm, reference, [str(name) for name in names], resamples=99_999)
    change = arm[0].astype(float) - reference[0]
    fit = sm.OLS(change, np.ones((len(change), 1))).fit(cov_type="cluster", cov_kwds={"groups": names}, use_t=True)
    theirs = fit.conf_int()[0]
    assert found.high - found.low == pytest.approx(theirs[1] - theirs[0], rel=0.015)
    assert (found.groups, found.conditional) == (groups, False)


@pytest.mark.parametrize(
    "right", [([8, 7, 9], [7, 6, 6]), ([9, 5, 7, 8, 6], [6, 4, 5]), ([5, 4, 5, 6, 5], [4, 4, 5, 4, 3, 4, 5, 4])]
)
def test_seeds_alone_are_welchs_t(right: tuple[list[int], list[int]]) -> None:
    # Each seed has as many of ten clips right in every one of ten groups: groups add no spread, only seeds do.
    arms = [np.array([np.tile(np.arange(10) < count, 10) for count in counts]) for counts in right]
    found = paired_difference(*arms, [str(clip // 10) for clip in range(100)], resamples=99_999)
    test = stats.ttest_ind(*(arm.mean(1) for arm in arms), equal_var=False)
    theirs = np.clip(test.confidence_interval(0.95), -1, 1)
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.04 * (theirs[1] - theirs[0]))
    assert found.p_value == pytest.approx(test.pvalue, rel=0.05, abs=0.003)


def test_seeds_that_agree_by_luck_are_still_seeds() -> None:
    # Three runs with 40 of 80 right, but not the same ones: more seeds would not all get 40.
    rng = np.random.default_rng(3)
    arms = [np.stack([rng.permutation(np.arange(80) < 40) for _ in range(3)]) for _ in range(2)]
    found = paired_difference(*arms)
    assert found.high - found.low > 2 * Z * math.sqrt(2 * 0.25 / 80 / 3)


def test_chance_on_single_clips_is_counted_once() -> None:
    # Nothing but chance: both the spread of the clips and the spread of the seeds hold all of it.
    rng = np.random.default_rng(0)
    found = [paired_difference(*(rng.random((2, 20, 300)) < 0.5), resamples=999) for _ in range(30)]
    width = np.mean([item.high - item.low for item in found])
    assert 1 < width / (2 * Z * math.sqrt(2 * 0.25 / 300 / 20)) < 1.2


def test_same_method_under_two_names_is_seldom_called_different() -> None:
    """The rigged case: 200 comparisons of two names, in each of two test splits."""
    rng = np.random.default_rng(0)
    bound = stats.binom.isf(0.001, 200, 0.05)
    for groups, seeds in ((0, 3), (20, 5)):
        names = [str(clip % groups) for clip in range(400)] if groups else None
        called = naive = 0
        for _ in range(200):
            clips = rng.normal(1.5, 1, 400) + (np.resize(rng.normal(0, 0.5, groups), 400) if groups else 0)
            arm, reference = runs(rng, seeds, clips), runs(rng, seeds, clips)
            called += paired_difference(arm, reference, names, resamples=999).p_value <= 0.05
            change = arm.mean(0) - reference.mean(0)
            naive += abs(change.mean()) > Z * stats.sem(change)
        assert called <= bound
        assert naive > bound  # or the case is too easy to say anything


def test_interval_holds_the_difference_on_other_speakers() -> None:
    rng = np.random.default_rng(1)
    held, speakers = 0, 12
    for _ in range(200):
        # The arms differ from speaker to speaker, by nothing on average.
        clips = rng.normal(1, 1, 240) + np.resize(rng.normal(0, 0.5, speakers), 240)
        arms = [runs(rng, 4, clips + np.resize(rng.normal(0, 0.4, speakers), 240)) for _ in range(2)]
        found = paired_difference(*arms, [str(clip % speakers) for clip in range(240)], resamples=999)
        held += found.low <= 0 <= found.high
    assert held >= stats.binom.ppf(0.001, 200, 0.95)


def counts_of(decided: Any, true: Any, labels: int) -> Any:
    """Counts of each run, of shape (seeds, clips, 3, labels)."""
    task = task_of()
    return np.stack([task.label_counts(np.eye(labels)[row], true) for row in decided])


def drawn(decided: Any, true: Any, labels: int, metric: str, groups: Any = None, resamples: int = 9999) -> Resampled:
    score = partial(task_of().metric_of_counts, metric)
    return resample(counts_of(decided, true, labels), score, groups, resamples)


def by_scikit_learn(metric: str, true: Any, decided: Any, weights: Any = None) -> float:
    if metric == "macro_f1":
        return float(f1_score(true, decided, average="macro", sample_weight=weights))
    if metric == "accuracy":
        return float(accuracy_score(true, decided, sample_weight=weights))
    return float(balanced_accuracy_score(true, decided, sample_weight=weights))


def unbalanced(rng: np.random.Generator, clips: int = 300) -> tuple[Any, Any, Any]:
    """True classes of 70, 25 and 5 in a hundred, and decisions of one run of each of two arms."""
    true = rng.choice(3, clips, p=[0.7, 0.25, 0.05])
    decided = [np.where(rng.random(clips) < share, true, rng.integers(3, size=clips)) for share in (0.8, 0.6)]
    return true, decided[0][None], decided[1][None]


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "balanced_accuracy"])
def test_one_seed_is_the_paired_bootstrap_of_any_metric(metric: str) -> None:
    true, *arms = unbalanced(np.random.default_rng(0))
    found = resampled_difference(*(drawn(arm, true, 3, metric) for arm in arms))

    def statistic(true: Any, arm: Any, reference: Any) -> float:
        return by_scikit_learn(metric, true, arm) - by_scikit_learn(metric, true, reference)

    data = (true, arms[0][0], arms[1][0])
    theirs = stats.bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=299,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.estimate == pytest.approx(statistic(*data))
    assert (found.low, found.high) == pytest.approx(theirs, abs=0.2 * (theirs.high - theirs.low))


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy"])
def test_influence_is_the_derivative_by_the_weight_of_a_group(metric: str) -> None:
    true, arm, _ = unbalanced(np.random.default_rng(3), 120)
    group = np.arange(120) % 10
    found = drawn(arm, true, 3, metric, [str(number) for number in group], resamples=99)
    for unit in range(10):
        weights = [np.where(group == unit, 1 + step, 1.0) for step in (1e-4, -1e-4)]
        more, less = (by_scikit_learn(metric, true, arm[0], weight) for weight in weights)
        assert found.influence[0, unit] == pytest.approx((more - less) / 2e-4, abs=1e-7)
    assert found.scores == pytest.approx([by_scikit_learn(metric, true, arm[0])])


@pytest.mark.parametrize("groups", [0, 12])
def test_resampled_accuracy_is_that_of_paired_difference(groups: int) -> None:
    rng = np.random.default_rng(groups)
    true = rng.integers(2, size=240)
    arms = [np.where(runs(rng, seeds, 1 + rng.normal(0, 1, 240)), true, 1 - true) for seeds in (5, 3)]
    names = [str(clip % groups) for clip in range(240)] if groups else None
    found = resampled_difference(*(drawn(arm, true, 2, "accuracy", names) for arm in arms))
    theirs = paired_difference(*(arm == true for arm in arms), names)
    width = theirs.high - theirs.low
    assert found.estimate == pytest.approx(theirs.estimate)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)
    assert (found.groups, found.conditional, found.seeds, found.clips) == (
        theirs.groups,
        theirs.conditional,
        (5, 3),
        240,
    )


def test_macro_f1_of_one_method_under_two_names_is_seldom_called_different() -> None:
    """Classes of 84 and 16 in a hundred; a quick version of benchmarks/validity/metric_coverage.py."""
    rng = np.random.default_rng(0)
    called, held = 0, 0
    true = np.repeat([0, 1], [84, 16])
    for _ in range(100):
        effect = rng.normal(1, 1, 100)
        arms = [np.where(runs(rng, 4, effect), true, 1 - true) for _ in range(2)]
        found = resampled_difference(*(drawn(arm, true, 2, "macro_f1", resamples=499) for arm in arms))
        called += found.p_value <= 0.05
        held += found.low <= 0 <= found.high
    assert called <= stats.binom.isf(0.001, 100, 0.05) and held >= stats.binom.ppf(0.001, 100, 0.95)


def test_order_of_clips_and_seeds_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    arm, reference = rng.random((5, 200)) < 0.8, rng.random((3, 200)) < 0.7
    groups = [f"speaker{clip % 9}" for clip in range(200)]
    order = rng.permutation(200)
    shuffled = [groups[clip] for clip in order]
    for first, second in ((groups, shuffled), (None, None)):
        found = paired_difference(arm, reference, first)
        again = paired_difference(arm[::-1][:, order], reference[:, order], second)
        assert (again.low, again.high, again.p_value) == pytest.approx(
            (found.low, found.high, found.p_value), abs=1e-12
        )
        assert found == paired_difference(arm, reference, first)
        assert found.low != paired_difference(arm, reference, first, seed=1).low


def test_identical_arms_do_not_differ() -> None:
    same = np.tile(np.random.default_rng(0).random(50) < 0.8, (3, 1))
    found = paired_difference(same, same)
    assert (found.estimate, found.p_value) == (0, 1) and math.isnan(found.low) and math.isnan(found.high)
    assert claim("a", "b", found, 0.02) == "a and b show no difference in any draw of clips, so it has no interval."
    assert resolution([found]) == 1 / 50
    # The same runs under two names are still runs of two methods with few seeds.
    varied = np.random.default_rng(0).random((3, 50)) < 0.8
    found = paired_difference(varied, varied)
    assert found.estimate == 0 and found.low < 0 < found.high and found.p_value > 0.95


def test_a_difference_that_is_the_same_in_every_draw_is_a_difference() -> None:
    right, wrong = np.ones((5, 50)), np.zeros((5, 50))
    found = paired_difference(right, wrong)
    assert math.isnan(found.low) and found.estimate == 1 and found.p_value < 0.001
    same = "points in every draw of clips, so it has no interval), conditional on these speakers (which are not known)."
    assert claim("a", "b", found, 0.02) == f"a is better than b (the difference is +100.00 {same}"
    assert claim("b", "a", paired_difference(wrong, right), 0.02) == (
        f"b is worse than a (the difference is -100.00 {same}"
    )


def test_eight_groups_are_resampled_and_seven_are_not() -> None:
    rng = np.random.default_rng(0)
    arms = rng.random((2, 3, 210)) < 0.8
    alone = paired_difference(*arms)
    assert (alone.groups, alone.conditional, alone.clips, alone.seeds) == (None, True, 210, (3, 3))
    seven = paired_difference(*arms, [str(clip % 7) for clip in range(210)])
    assert (seven.groups, seven.conditional, seven.low, seven.high) == (7, True, alone.low, alone.high)
    eight = paired_difference(*arms, [str(clip % 8) for clip in range(210)])
    assert (eight.groups, eight.conditional) == (8, False)
    assert paired_difference(*arms, [None, *"abcdefghij" * 20, *"abcdefghi"]) == alone


def test_holm_by_hand() -> None:
    # Smallest first: 4 x 0.005, 3 x 0.01, 2 x 0.03, then 1 x 0.04, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def difference(low: float, high: float, **more: Any) -> Difference:
    facts = {"clips": 300, "groups": 20, "conditional": False, "seeds": (5, 5), **more}
    return Difference((low + high) / 2, low, high, 0.01, **facts)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.02, "is within 2 points of"),
        (-0.0201, 0.01, "cannot be distinguished from"),
        (-0.02, 0.0201, "is at most 2 points worse than full, if worse at all"),
        (-0.05, 0.05, "cannot be distinguished from full, nor shown to be within 2 points"),
        (0.0, 0.01, "is within 2 points of"),
        (0.0001, 0.01, "is better than full, by at most 2 points"),
        (0.0001, 0.03, "is better than full ("),
        (0.02, 0.03, "is at least 2 points better than"),
        (-0.01, -0.0001, "is worse than full, by at most 2 points"),
        (-0.03, -0.0199, "is worse than full ("),
        (-0.03, -0.02, "is at least 2 points worse than"),
    ],
)
def test_claims_at_the_bounds(low: float, high: float, verdict: str) -> None:
    said = claim("LoRA", "full", difference(low, high), margin=0.02)
    assert said.startswith(f"LoRA {verdict}")
    assert said.endswith(f"(95% interval of the difference: {100 * low:+.2f} to {100 * high:+.2f} points).")


def test_claims_say_what_limits_them() -> None:
    said = claim("LoRA", "full", difference(-0.00001, 0.01, conditional=True), 0.01)
    assert said == (
        "LoRA is within 1 point of full (95% interval of the difference: +0.00 to +1.00 points), "
        "conditional on these speakers."
    )
    unknown = difference(-0.01, 0.01, conditional=True, groups=None)
    assert claim("a", "b", unknown, 0.02).endswith("conditional on these speakers (which are not known).")
    assert claim("a", "b", difference(0, 0.01, seeds=(5, 1)), 0.02).endswith("conditional on one seed.")
    clear = difference(0.03, 0.05)
    assert "; not after Holm's correction, p = 0.08)" in claim("a", "b", clear, 0.02, corrected_p=0.08)
    assert "Holm" not in claim("a", "b", clear, 0.02, corrected_p=0.04)
    assert "Holm" not in claim("a", "b", difference(-0.01, 0.01), 0.02, corrected_p=0.9)


def test_resolution_is_half_of_the_widest() -> None:
    assert resolution([difference(-0.01, 0.03), difference(0.0, 0.06)]) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: paired_difference([[1, 0, 1]], [[1, 0]]), "3 clips and the reference 2"),
        (lambda: paired_difference([1, 0, 1], [[1, 0, 1]]), r"correct must have the shape \(seeds, clips\)"),
        (lambda: paired_difference([[1, 0]], np.empty((0, 2))), "reference must have the shape"),
        (lambda: paired_difference([[1]], [[1]]), "two clips or more"),
        (lambda: paired_difference([[1, math.nan]], [[1, 0]]), "correct must hold 0"),
        (lambda: paired_difference([[1, 0]], [[1, 0.5]]), "reference must hold 0"),
        (lambda: paired_difference([[1, 0]], [[1, 0]], ["a"]), "2 clips and 1 groups"),
        (lambda: paired_difference([[1, 0]], [[1, 0]], confidence=95), "Try 0.95"),
        (lambda: paired_difference([[1, 0]], [[1, 0]], resamples=10), "must be 99 or more"),
        (lambda: drawn([[1]], np.array([1]), 2, "accuracy"), "two clips or more"),
        (lambda: drawn([[1, 1]], np.array([1, 0]), 2, "accuracy", resamples=10), "must be 99 or more"),
        (
            lambda: resampled_difference(*(drawn([[1] * n], np.ones(n, int), 2, "accuracy") for n in (2, 3))),
            "resampled with the same clips",
        ),
        (lambda: seed_interval([]), "one score per seed"),
        (lambda: seed_interval([0.5, math.nan]), "between 0 and 1"),
        (lambda: seed_interval([50.0]), "between 0 and 1"),
        (lambda: holm([0.1, math.nan]), "between 0 and 1"),
        (lambda: claim("a", "b", difference(0, 0.1), margin=2), "Two points are 0.02"),
        (lambda: resolution([]), "one difference or more"),
    ],
)
def test_mistakes_are_told(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
