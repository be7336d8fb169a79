"""Measure the coverage of the intervals of peft_audio.evaluation.significance in simulated comparisons.

    python benchmarks/validity/interval_coverage.py --simulations 200 --jobs 2

The probability that a run labels a clip correctly is the logistic function of a sum: the level of the method, effects
of the clip and its speaker, their interactions with the method, and an effect of the seed. Each scenario is simulated
twice. For coverage, the arm is two points below the reference (half a point at accuracy 0.97). For false positives, the
arm and the reference are the same method with different seeds. Coverage is measured for three true differences, each an
average over infinitely many seeds: on these test clips, on infinitely many clips of these speakers, and on other
speakers.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

from peft_audio.evaluation.significance import paired_difference

# Standard deviations of the random effects, in logits. That of a seed is about two points of accuracy at 0.75.
CLIP, CLIP_BY_METHOD, SPEAKER, SPEAKER_BY_METHOD, SEED = 1.5, 0.7, 0.6, 0.35, 0.15
COLLAPSE = 1.5  # loss of a failed seed, in logits
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scenario:
    """Test split and the runs on it."""

    groups: int  # number of speakers; 0 for independent clips
    seeds: int
    accuracy: float = 0.75
    clips: int = 600
    uneven: bool = False  # the largest speaker has nine times the clips of the smallest
    collapses: float = 0.0  # share of failed seeds of the arm, and of the reference if it is the same method


SCENARIOS = (
    *(Scenario(groups, seeds) for groups in (0, 2, 3, 5, 8, 20) for seeds in (3, 5, 8)),
    *(Scenario(groups, seeds, accuracy=0.97) for groups in (0, 3, 8, 20) for seeds in (3, 5)),
    *(Scenario(0, 5, accuracy=accuracy, clips=100) for accuracy in (0.75, 0.97)),
    Scenario(20, 5, clips=3000),
    *(Scenario(groups, 5, uneven=True) for groups in (8, 20)),
    *(Scenario(groups, 5, collapses=0.1) for groups in (0, 20)),
)


def main() -> None:
    """Print one Markdown row per scenario."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=200, help="comparisons per scenario (default: 200)")
    parser.add_argument("--resamples", type=int, default=999, help="draws per comparison (default: 999)")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: 1)")
    options = parser.parse_args()
    print("| accuracy | clips | speakers | seeds | resampled | very clips | these | others | width | same method |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(options.jobs) as pool:
        for row in pool.map(partial(table_row, options.simulations, options.resamples), SCENARIOS):
            print(row, flush=True)


def table_row(simulations: int, resamples: int, at: Scenario) -> str:
    """Simulate a scenario and format its row of the table."""
    rng = np.random.default_rng(0)
    covered, widths = np.zeros(3), []
    called = naive = 0
    for _ in range(simulations):
        (arm, reference), groups, truths = simulate(at, False, rng)
        found = paired_difference(arm, reference, groups, resamples=resamples)
        covered += (found.low <= truths) & (truths <= found.high)
        widths.append(found.high - found.low)
        (arm, reference), groups, _ = simulate(at, True, rng)
        called += paired_difference(arm, reference, groups, resamples=resamples).p_value <= 0.05
        naive += clips_alone(arm, reference, resamples, rng)
    speakers = f"{at.groups or 'none'}{', uneven' * at.uneven}{', bad seeds' * (at.collapses > 0)}"
    shares = [f"{share / simulations:.1%}" for share in covered]
    columns = [f"{at.accuracy}", f"{at.clips}", speakers, f"{at.seeds}", "clips" if found.conditional else "speakers"]
    columns += [*shares, f"{100 * np.mean(widths):.1f}", f"{called / simulations:.1%} ({naive / simulations:.0%})"]
    return f"| {' | '.join(columns)} |"


def simulate(at: Scenario, same: bool, rng: np.random.Generator) -> tuple[list[Floats], list[str] | None, Floats]:
    """Draw the correctness of an arm and of the reference, the speakers, and the three true differences."""
    speaker, speaker_by_method = (SPEAKER, SPEAKER_BY_METHOD) if at.groups else (0.0, 0.0)
    shares = np.linspace(1, 9 if at.uneven else 1, max(at.groups, 1))
    group = rng.choice(len(shares), at.clips, p=shares / shares.sum())
    clip_effect, group_effect = rng.normal(0, CLIP, at.clips), rng.normal(0, speaker, len(shares))
    within = float(np.hypot(np.hypot(CLIP, CLIP_BY_METHOD), SEED))
    everything = float(np.hypot(within, np.hypot(speaker, speaker_by_method)))
    step = 0.02 if at.accuracy < 0.9 else 0.005
    arms: list[Floats] = []
    truths = []
    for accuracy in (at.accuracy, at.accuracy) if same else (at.accuracy - step, at.accuracy):
        if not (same and arms):
            mean = level(accuracy, everything)
            of_group = mean + group_effect + rng.normal(0, speaker_by_method, len(shares))
            of_clip = of_group[group] + clip_effect + rng.normal(0, CLIP_BY_METHOD, at.clips)
        collapses = at.collapses if same or not arms else 0.0
        of_seed = rng.normal(0, SEED, (at.seeds, 1)) - COLLAPSE * (rng.random((at.seeds, 1)) < collapses)
        arms.append((rng.random((at.seeds, at.clips)) < expit(of_clip + of_seed)).astype(np.float64))
        known = ((of_clip, SEED), (of_group[group], within), (mean, everything))
        truths.append([float(expected(part, spread, collapses).mean()) for part, spread in known])
    return arms, [str(number) for number in group] if at.groups else None, truths[0] - np.asarray(truths[1])


def expected(mean: npt.ArrayLike, deviation: float, collapses: float = 0.0) -> Floats:
    """Compute the accuracy for normally distributed logits with this mean, by Gauss-Hermite quadrature."""
    logits = np.asarray(mean)[..., None] + deviation * NODES
    chances: Floats = (1 - collapses) * expit(logits) + collapses * expit(logits - COLLAPSE)
    return np.asarray(chances @ WEIGHTS / WEIGHTS.sum())


def level(accuracy: float, deviation: float) -> float:
    """Return the mean logit that gives an accuracy."""
    return float(brentq(lambda mean: float(expected(mean, deviation)) - accuracy, -20, 20))


def clips_alone(arm: Floats, reference: Floats, resamples: int, rng: np.random.Generator) -> bool:
    """Return whether a plain paired bootstrap over clips calls the arms different, as a flawed baseline."""
    values, counts = np.unique(arm.mean(0) - reference.mean(0), return_counts=True)
    drawn = rng.multinomial(arm.shape[1], counts / arm.shape[1], size=resamples) @ values
    low, high = np.quantile(drawn, [0.025, 0.975])
    return not low <= 0 <= high


if __name__ == "__main__":
    main()
