"""Measure the coverage of intervals of macro-F1 and balanced accuracy in simulated comparisons on unbalanced classes.

    python benchmarks/validity/metric_coverage.py --simulations 300 --jobs 2

The probability that a run labels a clip correctly is the logistic function of a sum: the level of the class, effects of
the clip and its speaker, their interactions with the method, and effects of the seed, in general and for this class. A
wrong label is the usual mistake of the method on this clip (7 of 10 times), or another class in proportion to its size.
Rare classes are harder. Each scenario is simulated twice. For coverage, the arm is three points worse in every class.
For false positives, the arm and the reference are the same method with different seeds. The true difference is an
average over many seeds on infinitely many clips of other speakers, or of the same speakers if there are fewer than 8.
The last three columns are for accuracy, macro-F1 and balanced accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from interval_coverage import CLIP, CLIP_BY_METHOD, SEED, SPEAKER, SPEAKER_BY_METHOD, Floats, Ints, expected, level
from scipy.special import expit

from peft_audio.evaluation.significance import MIN_GROUPS, Difference, resample, resampled_difference
from peft_audio.tasks import task_of
from peft_audio.tasks.metrics import mean_f1

STEP = 0.03  # loss of the arm in each class
USUAL = 0.7
TRUE_SEEDS = 400  # number of seeds of a true value

METRICS = ("accuracy", "macro_f1", "balanced_accuracy")
TASK = task_of()


@dataclass(frozen=True)
class Scenario:
    """Test split and the runs on it."""

    name: str
    shares: tuple[float, ...]  # shares of the classes
    clips: int
    groups: int  # number of speakers; 0 for independent clips
    seeds: int
    accuracies: tuple[float, float] = (0.9, 0.6)  # accuracies of the largest and of the smallest class


def long_tail(classes: int, ratio: float) -> tuple[float, ...]:
    """Return shares that fall geometrically; the largest class has `ratio` times the clips of the smallest."""
    sizes = np.geomspace(ratio, 1, classes)
    return tuple(sizes / sizes.sum())


TWO, TAIL = (0.84, 0.16), long_tail(10, 20)
SCENARIOS = (
    Scenario("10 equal", (0.1,) * 10, 300, 0, 5),
    Scenario("84/16", TWO, 90, 0, 5),
    Scenario("84/16", TWO, 300, 0, 5),
    Scenario("84/16", TWO, 300, 0, 3),
    Scenario("97/3", (0.97, 0.03), 200, 0, 5),
    Scenario("10 long-tailed", TAIL, 150, 0, 5),
    Scenario("10 long-tailed", TAIL, 300, 0, 5),
    Scenario("10 equal", (0.1,) * 10, 300, 20, 5),
    Scenario("84/16", TWO, 300, 4, 5),
    Scenario("84/16", TWO, 300, 10, 5),
    Scenario("84/16", TWO, 300, 20, 5),
    Scenario("10 long-tailed", TAIL, 300, 10, 5),
)


def main() -> None:
    """Print one Markdown row per scenario."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=300, help="comparisons per scenario (default: 300)")
    parser.add_argument("--resamples", type=int, default=999, help="draws per comparison (default: 999)")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: 1)")
    parser.add_argument("--only", default="", help="part of a scenario's name")
    options = parser.parse_args()
    scenarios = [at for at in SCENARIOS if options.only in at.name]
    header = ("classes", "clips", "smallest class", "speakers", "seeds", "holds the truth", "width", "same method")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    with ProcessPoolExecutor(options.jobs) as pool:
        for row in pool.map(partial(table_row, options.simulations, options.resamples), scenarios):
            print(row, flush=True)


def table_row(simulations: int, resamples: int, at: Scenario) -> str:
    """Simulate a scenario and format its row of the table."""
    rng = np.random.default_rng(0)
    held, called, widths = (np.zeros(len(METRICS)) for _ in range(3))
    smallest = []
    for _ in range(simulations):
        arms, true, groups, truths = simulate(at, False, rng)
        smallest.append(np.bincount(true, minlength=len(at.shares)).min())
        same = simulate(at, True, rng)
        for i, metric in enumerate(METRICS):
            found = difference(arms, true, len(at.shares), groups, metric, resamples)
            held[i] += found.low <= truths[i] <= found.high
            widths[i] += 100 * (found.high - found.low)
            found = difference(same[0], same[1], len(at.shares), same[2], metric, resamples)
            called[i] += found.p_value <= 0.05
    columns = [at.name, f"{at.clips}", f"{np.mean(smallest):.0f}", f"{at.groups or 'none'}", f"{at.seeds}"]
    columns += [" / ".join(f"{share / simulations:.1%}" for share in held)]
    columns += [" / ".join(f"{width / simulations:.1f}" for width in widths)]
    columns += [" / ".join(f"{share / simulations:.1%}" for share in called)]
    return f"| {' | '.join(columns)} |"


def difference(
    arms: Sequence[Ints], true: Ints, classes: int, groups: list[str] | None, metric: str, resamples: int
) -> Difference:
    """Compute the difference of two arms as a comparison does."""
    drawn = []
    for decided in arms:
        counts = [TASK.label_counts(np.eye(classes)[row], true) for row in decided]
        drawn.append(resample(counts, partial(TASK.metric_of_counts, metric), groups, resamples, classes=true))
    return resampled_difference(drawn[0], drawn[1])


def simulate(
    at: Scenario, same: bool, rng: np.random.Generator
) -> tuple[list[Ints], Ints, list[str] | None, list[float]]:
    """Draw decisions of an arm and of the reference, of shape (seeds, clips), and compute the true differences.

    Returns:
        The decisions, the true classes, the clips' speakers, and one true difference per metric.
    """
    shares = np.asarray(at.shares)
    classes, count = len(shares), max(at.groups, 1)
    if at.groups:
        true, group = rng.choice(classes, at.clips, p=shares), rng.integers(count, size=at.clips)
    else:  # a split that holds every class in its share
        sizes = np.maximum(2, np.round(shares * at.clips)).astype(int)
        true = np.repeat(np.arange(classes), sizes)
        group = np.zeros(len(true), dtype=int)
    speaker, by_method = (SPEAKER, SPEAKER_BY_METHOD) if at.groups else (0.0, 0.0)
    of_clip, of_group = rng.normal(0, CLIP, len(true)), rng.normal(0, speaker, (count, classes))
    within = float(np.hypot(CLIP, CLIP_BY_METHOD))
    outside = float(np.hypot(speaker, by_method))
    everything = float(np.hypot(np.hypot(within, outside), SEED * np.sqrt(2)))
    place = np.log(shares / shares.min()) / max(np.log(shares.max() / shares.min()), 1e-9)
    base = at.accuracies[1] + (at.accuracies[0] - at.accuracies[1]) * place
    # Probabilities of the wrong labels: in proportion to the sizes of the other classes.
    wrong = shares * (1 - np.eye(classes))
    wrong /= wrong.sum(1, keepdims=True)
    arms: list[Ints] = []
    truths = []
    levels = groups_of_method = clips_of_method = np.zeros(0)
    usual: Ints = np.zeros(0, dtype=np.int64)
    for loss in (0.0, 0.0) if same else (STEP, 0.0):
        if not (same and arms):
            levels = np.array([level(accuracy - loss, everything) for accuracy in base])
            groups_of_method = of_group + rng.normal(0, by_method, (count, classes))
            clips_of_method = of_clip + rng.normal(0, CLIP_BY_METHOD, len(true))
            usual = mistakes(true, wrong, rng)
        of_seed = rng.normal(0, SEED, (at.seeds, 1)) + rng.normal(0, SEED, (at.seeds, classes))
        logits = levels[true] + groups_of_method[group, true] + clips_of_method
        right = rng.random((at.seeds, len(true))) < expit(logits + of_seed[:, true])
        instead = np.stack([mistakes(true, wrong, rng) for _ in range(at.seeds)])
        instead = np.where(rng.random(instead.shape) < USUAL, usual, instead)
        arms.append(np.where(right, true, instead))
        seeds = rng.normal(0, SEED, (TRUE_SEEDS, 1)) + rng.normal(0, SEED, (TRUE_SEEDS, classes))
        if at.groups >= MIN_GROUPS or not at.groups:
            accuracies = expected(levels + seeds, float(np.hypot(within, outside)))
        else:
            accuracies = expected(levels + groups_of_method[None] + seeds[:, None], within).mean(1)
        truths.append(true_scores(accuracies, shares, wrong))
    groups = [str(number) for number in group] if at.groups else None
    return arms, true, groups, [arm - reference for arm, reference in zip(*truths, strict=True)]


def mistakes(true: Ints, wrong: Floats, rng: np.random.Generator) -> Ints:
    """Draw a wrong class for each clip."""
    return np.array((rng.random((len(true), 1)) > wrong.cumsum(1)[true]).sum(1).clip(max=wrong.shape[1] - 1))


def true_scores(accuracies: Floats, shares: Floats, wrong: Floats) -> list[float]:
    """Average each metric over many seeds.

    Args:
        accuracies: of each class, of shape (seeds, classes).
        shares: of the classes.
        wrong: share of each class in the wrong decisions on clips of a class, of shape (classes, classes).
    """
    both = shares * accuracies
    decided = both + (shares * (1 - accuracies)) @ wrong
    f1 = mean_f1(np.broadcast_to(shares, both.shape), decided, both)
    return [float(both.sum(1).mean()), float(f1.mean()), float(accuracies.mean())]


if __name__ == "__main__":
    main()
