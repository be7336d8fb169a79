"""Measure how often answers are called no better than guessing, in simulated test splits.

    python benchmarks/validity/chance.py --simulations 400

Labels are balanced. Answers are random, random with 80% in one class, or correct for a share of the recordings and
random for the rest. The last two rows are one recording against 84, and answers that depend only on the speaker.
Prints the table of docs/statistics.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from peft_audio.evaluation.chance import compare_with_chance
from peft_audio.tasks import task_of

SIZES = ((2, 20), (2, 60), (2, 200), (5, 200), (10, 1_000))  # classes, recordings
DRAWS = {  # share of answers in one class, share of correct answers
    "uniform noise": (0.0, 0.0),
    "noise with 80% of the answers in one class": (0.8, 0.0),
    "20% known, else noise": (0.0, 0.2),
    "35% known, else noise": (0.0, 0.35),
}
SPEAKERS = 12


def main() -> None:
    """Print one row per size of the test split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=400, help="test splits per cell (default: 400)")
    simulations = parser.parse_args().simulations
    print(f"| classes and recordings | {' | '.join(DRAWS)} |\n|---|{'---:|' * len(DRAWS)}")
    for classes, recordings in SIZES:
        targets = np.arange(recordings) % classes
        cells = [share(targets, classes, simulations, *shares) for shares in DRAWS.values()]
        print(f"| {classes}, {recordings} | {' | '.join(f'{cell:.1%}' for cell in cells)} |")
    unequal = share(np.repeat([0, 1], [84, 1]), 2, simulations, 0.0, 0.0)
    print(f"\n84 recordings in one class and 1 in the other, uniform noise: {unequal:.1%}")
    print(f"answers that depend only on the speaker ({SPEAKERS} speakers): {share_by_speaker(simulations):.1%}")


def share(targets: np.ndarray, classes: int, simulations: int, constant: float, known: float) -> float:
    """Return the share of simulated splits whose answers are called no better than guessing.

    Args:
        targets: Class of each recording, of shape (recordings,).
        classes: Number of classes.
        simulations: Number of splits.
        constant: Share of the answers that are the first class.
        known: Share of the answers that are correct; the rest is random.
    """
    rng = np.random.default_rng(0)
    judged = []
    for _ in range(simulations):
        answers = rng.integers(0, classes, len(targets))
        answers[rng.random(len(targets)) < constant] = 0
        right = rng.random(len(targets)) < known
        judged.append(no_better(targets, np.where(right, targets, answers), classes, [""] * len(targets)))
    return float(np.mean(judged))


def share_by_speaker(simulations: int) -> float:
    """Return the same share for 200 recordings of speakers who have one label and get one answer each."""
    rng = np.random.default_rng(0)
    speaker = np.arange(200) % SPEAKERS
    groups = [f"speaker {i}" for i in speaker]
    judged = [no_better(speaker % 2, rng.integers(0, 2, SPEAKERS)[speaker], 2, groups) for _ in range(simulations)]
    return float(np.mean(judged))


def no_better(targets: np.ndarray, answers: np.ndarray, classes: int, groups: Sequence[str]) -> bool:
    """Return whether a report would call answers no better than guessing."""
    labels = [f"class {i}" for i in range(classes)]
    verdict = compare_with_chance(task_of(), np.eye(classes)[answers], targets, labels, groups)
    return verdict is not None and verdict.learned_nothing


if __name__ == "__main__":
    main()
