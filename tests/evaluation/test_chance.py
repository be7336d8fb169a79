"""Runs that learned nothing, against simulated answers whose worth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from peft_audio.evaluation.chance import AgainstChance, compare_with_chance, learned_nothing_line
from peft_audio.tasks import task_of

Draw = Callable[[np.random.Generator], np.ndarray]


def judged(targets: np.ndarray, decided: np.ndarray, classes: int, groups: list[str] | None = None) -> AgainstChance:
    labels = [f"class {i}" for i in range(classes)]
    found = compare_with_chance(task_of(), np.eye(classes)[decided], targets, labels, groups or [""] * len(targets))
    assert found is not None
    return found


def share_of_nothing(targets: np.ndarray, draw: Draw, classes: int, groups: list[str] | None = None) -> float:
    rng = np.random.default_rng(0)
    found = [judged(targets, draw(rng), classes, groups).learned_nothing for _ in range(100)]
    return float(np.mean(found))


LONG_TAILED = np.repeat(np.arange(5), [420, 20, 20, 20, 20])
ONE_CLIP = np.repeat([0, 1], [84, 1])
EVEN = np.arange(200) % 2
GROUPS = [f"s{i % 12}" for i in range(200)]


@pytest.mark.parametrize(
    ("targets", "classes", "constant_share"),
    [(EVEN, 2, 0.0), (LONG_TAILED, 5, 0.9), (ONE_CLIP, 2, 0.0), (EVEN, 2, 0.8)],
)
def test_noise_with_varying_answers_learned_nothing(targets: np.ndarray, classes: int, constant_share: float) -> None:
    def noise(rng: np.random.Generator) -> np.ndarray:
        return np.where(rng.random(len(targets)) < constant_share, 0, rng.integers(0, classes, len(targets)))

    assert share_of_nothing(targets, noise, classes) >= 0.94


def test_noise_that_depends_on_the_speaker_learned_nothing() -> None:
    """Clips of one speaker get one answer, and have one label: as independent clips they would seem to be learned."""
    speaker = np.arange(200) % 12
    targets = speaker % 2

    def noise(rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 2, 12)[speaker]

    assert share_of_nothing(targets, noise, 2, GROUPS) >= 0.9
    assert share_of_nothing(targets, noise, 2) < 0.7


def test_a_weak_learner_is_not_accused() -> None:
    """Balanced accuracy of 0.675 in two classes, and of 0.28 in five with 84% in one."""

    def weak(targets: np.ndarray, share: float, classes: int) -> Draw:
        def draw(rng: np.random.Generator) -> np.ndarray:
            return np.where(rng.random(len(targets)) < share, targets, rng.integers(0, classes, len(targets)))

        return draw

    assert share_of_nothing(EVEN, weak(EVEN, 0.35, 2), 2) <= 0.02
    assert share_of_nothing(EVEN, weak(EVEN, 0.35, 2), 2, GROUPS) <= 0.05
    assert share_of_nothing(LONG_TAILED, weak(LONG_TAILED, 0.25, 5), 5) <= 0.05


def test_the_line_names_what_was_found() -> None:
    always = judged(EVEN, np.zeros(200, int), 2)
    assert always.balanced_accuracy == always.chance == 0.5 and always.as_json()["learned_nothing"]
    line = learned_nothing_line(always, "test")
    assert line.startswith("The classifier learned nothing: it predicts 'class 0' for each of the 200 test clips.")
    assert "--train.class_weights balanced" in line and "--train.learning_rate" in line and "check" in line
    noise = judged(EVEN, np.random.default_rng(1).integers(0, 2, 200), 2)
    assert "not shown to be better than guessing on 200 clips: balanced accuracy 0." in learned_nothing_line(noise, "")
    one_class = compare_with_chance(task_of(), np.eye(2), np.zeros(2, int), "ab", ["", ""])
    assert one_class is None


def test_labels_that_do_not_occur_make_no_accusation() -> None:
    """Half of the answers are known and the rest are guesses among 35 labels, of which two occur."""
    rng = np.random.default_rng(0)
    targets = np.arange(100) % 2
    logits = rng.normal(size=(100, 35))
    known = rng.random(100) < 0.5
    logits[known, targets[known]] += 10
    found = compare_with_chance(task_of(), logits, targets, [f"class {i}" for i in range(35)], [""] * 100)
    assert found is not None and not found.learned_nothing and found.chance == 0.5
