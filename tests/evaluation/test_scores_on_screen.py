"""Scores in a terminal of 80 columns and in a pipe."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from peft_audio.evaluation.run_split import evaluate_logits
from peft_audio.evaluation.scores import Scores, print_scores, score
from peft_audio.tasks import task_of


def scores_of(labels: list[str], recordings: int = 3_000) -> Scores:
    rng = np.random.default_rng(0)
    right = rng.integers(0, len(labels), recordings)
    logits = rng.normal(size=(recordings, len(labels)))
    logits[np.arange(recordings), right] += 1.5
    task, numbers = task_of(), torch.from_numpy(right)
    found = evaluate_logits(torch.from_numpy(logits), numbers, torch.arange(recordings), task, 0.0)
    return score(task, logits, right, labels, found.metrics)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["cat", "dog", "emu"], "labels"),
        ([f"a class with quite a long name {i}" for i in range(3)], "numbers"),
        ([f"instrument {i}" for i in range(10)], "numbers"),
        (list(map(str, range(16))), "numbers"),
        ([f"s{i}" for i in range(20)], "numbers"),
        ([f"species {i}" for i in range(60)], "list"),
        (["x" * 100, "y" * 100], "legend"),
        ([f"Genus species subspecies {i}" for i in range(18)], "legend"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}x{len(value[0])}",
)
@pytest.mark.parametrize("terminal", [True, False])
def test_scores_fit_80_columns(labels: list[str], shown: str, terminal: bool) -> None:
    scores, file = scores_of(labels), io.StringIO()
    print_scores(scores, [], [], [], Console(file=file, width=80 if terminal else None, _environ={}), {})
    lines = file.getvalue().splitlines()
    assert max(len(line) for line in lines if " = " not in line) <= 80 and "…" not in file.getvalue()
    assert ("most frequent confusions" in file.getvalue()) == (shown == "list")
    for i, (label, row) in enumerate(zip(labels, scores.confusion, strict=True)):
        if shown != "list":
            number = f"{i + 1:>{len(str(len(labels)))}}"
            start = {"labels": label, "numbers": f"{number} = {label}", "legend": number}[shown]
            assert shown != "legend" or f"{number} = {label}" in lines
            words = [line.replace("│", " ").replace("┃", " ").split() for line in lines]
            assert [*start.split(), *(str(count) if count else "·" for count in row)] in words
    figures = f"{scores.classes[0].precision:.3f} {scores.classes[0].recall:.3f} {scores.classes[0].f1:.3f}"
    assert any(figures in " ".join(line.replace("│", " ").split()) for line in lines)
