"""One label per clip: every metric against scikit-learn, without weights to the last bit."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from torch.nn.functional import cross_entropy

from peft_audio.tasks import TASKS, task_of
from peft_audio.tasks.single_label import SingleLabel

TASK = SingleLabel()
NAMES = ("accuracy", "macro_f1", "balanced_accuracy", "loss")


def draw(seed: int, classes: int, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets: of many classes, two never occur as targets."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, max(2, classes - 2), clips)
    logits = rng.normal(size=(clips, classes)).astype(np.float32)
    logits[np.arange(clips), targets] += 2 * rng.random(clips).astype(np.float32)
    return logits, targets


def by_scikit_learn(name: str, logits: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
    probabilities = TASK.probabilities(logits.astype(float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is never a target
        if name == "loss":
            return log_loss(targets, probabilities, labels=range(logits.shape[1]), sample_weight=weights)
        functions = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score}
        if name in functions:
            return functions[name](targets, logits.argmax(1), sample_weight=weights)
        return f1_score(targets, logits.argmax(1), average="macro", zero_division=0.0, sample_weight=weights)


@pytest.mark.parametrize(("seed", "classes", "clips"), [(0, 2, 7), (1, 10, 12), (2, 10, 400), (3, 40, 90)])
def test_metrics_are_scikit_learns(seed: int, classes: int, clips: int) -> None:
    logits, targets = draw(seed, classes, clips)
    for name in ("accuracy", "macro_f1"):
        assert TASK.metric(name, logits, targets) == by_scikit_learn(name, logits, targets), "a report's bits"
    mean = cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets))
    assert TASK.metric("loss", logits, targets) == mean.item(), "a report's bits"
    weights = np.random.default_rng(seed).uniform(0.1, 3.0, (3, clips))
    for name in NAMES:
        assert TASK.metric(name, logits, targets) == pytest.approx(by_scikit_learn(name, logits, targets), rel=1e-6)
        found = TASK.metric(name, logits, targets, weights)
        expected = [by_scikit_learn(name, logits, targets, row) for row in weights]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_how_often_a_clip_is_drawn(name: str) -> None:
    logits, targets = draw(0, 6, 15)
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, len(targets), (2, 9, len(targets)))
    drawn[0, 0] = np.flatnonzero(targets == targets[0])[0]  # one class alone
    counts = np.apply_along_axis(np.bincount, -1, drawn, minlength=len(targets))
    found = TASK.metric(name, logits, targets, counts)
    assert found.shape == (2, 9)
    expected = [[by_scikit_learn(name, logits[rows], targets[rows]) for rows in part] for part in drawn]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_macro_f1_by_hand() -> None:
    # F1 of label 0 is 1; of label 1 (precision 1/2, recall 1) 2/3; of label 2, never predicted, 0.
    logits = np.eye(3)[[0, 0, 1, 1]]
    found = {name: TASK.metric(name, logits, np.array([0, 0, 1, 2])) for name in ("accuracy", "macro_f1")}
    assert found == {"accuracy": 0.75, "macro_f1": pytest.approx((1 + 2 / 3 + 0) / 3)}


def test_a_tie_goes_to_the_first_label() -> None:
    tied = np.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]], np.float32)
    assert TASK.decide(tied).tolist() == [1, 0] == torch.from_numpy(tied).argmax(-1).tolist()
    assert TASK.correct(tied, np.array([1, 1])).tolist() == [True, False]


def test_encoding_and_its_inverse() -> None:
    labels = TASK.label_names(["dog", "cat", "dog"])
    targets = TASK.encode(["dog", "cat"], labels)
    assert labels == ("cat", "dog") and targets.tolist() == [1, 0] and TASK.decode(targets, labels) == ["dog", "cat"]
    assert TASK.no_targets(2).dtype == torch.from_numpy(targets).dtype


def test_tables_of_tasks_load_no_torch() -> None:
    code = "import sys, peft_audio.tasks; print(*sorted({'torch', 'evaluate', 'sklearn', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not done.stdout.split()
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    assert task_of() is TASKS["single_label"]
