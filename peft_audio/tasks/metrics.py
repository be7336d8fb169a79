"""Metrics as `evaluate.Metric` subclasses, computed by scikit-learn; nothing is downloaded."""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score

_FEATURES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})


class Accuracy(evaluate.Metric):
    """Share of clips whose most probable label is the right one."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of correct labels.", citation="", inputs_description="", features=_FEATURES
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(evaluate.Metric):
    """Mean over the labels of F1; every label counts the same, however few clips it has.

    The labels are those that occur among references or predictions, as in scikit-learn.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Unweighted mean of F1.", citation="", inputs_description="", features=_FEATURES
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0.0))}


def compute_metrics(predictions: Any, references: Any) -> dict[str, float]:
    """Accuracy and macro-F1 of label numbers.

    Args:
        predictions: Shape (clips,), int.
        references: The right ones, likewise.

    Returns:
        `{"accuracy": ..., "macro_f1": ...}`, both between 0 and 1.
    """
    # evaluate makes a cache folder even for what it keeps in memory; the user's home need not be writable.
    with tempfile.TemporaryDirectory() as folder:
        metrics = [kind(keep_in_memory=True, cache_dir=folder) for kind in (Accuracy, MacroF1)]
        return evaluate.combine(metrics).compute(predictions=predictions, references=references)
