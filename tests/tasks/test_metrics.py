from __future__ import annotations

from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
from sklearn.metrics import classification_report

from peft_audio.tasks.metrics import compute_metrics


@pytest.mark.parametrize(("seed", "classes", "clips"), [(0, 2, 7), (1, 10, 12), (2, 10, 400)])
def test_metrics_are_scikit_learns(seed: int, classes: int, clips: int) -> None:
    rng = np.random.default_rng(seed)
    # Two of ten labels never occur as references, two others never as predictions.
    references = rng.integers(0, max(2, classes - 2), clips)
    predictions = np.where(rng.random(clips) < 0.5, references, rng.integers(min(2, classes - 2), classes, clips))
    report = classification_report(references, predictions, output_dict=True, zero_division=0)
    metrics = compute_metrics(predictions, references)
    assert metrics["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"], abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(np.mean(references == predictions), abs=1e-12)


def test_metrics_by_hand() -> None:
    # F1 of label 0 is 1; of label 1 (precision 1/2, recall 1) 2/3; of label 2, never predicted, 0.
    metrics = compute_metrics(predictions=[0, 0, 1, 1], references=[0, 0, 1, 2])
    assert metrics == {"accuracy": 0.75, "macro_f1": pytest.approx((1 + 2 / 3 + 0) / 3)}


def test_metrics_need_no_cache_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (evaluate.config, datasets.config):
        for name in [name for name in vars(module) if name.startswith("HF_") and name.endswith("_CACHE")]:
            monkeypatch.setattr(module, name, str(tmp_path / "hf" / name))
    monkeypatch.setenv("HOME", str(tmp_path))
    compute_metrics([0, 1], [0, 1])
    assert not list(tmp_path.iterdir())
