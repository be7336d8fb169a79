"""Compute metrics of predicted classes, vectorised over clip weights, and make them for the evaluate library."""

from __future__ import annotations

from typing import Any

import numpy as np

# Names of metrics in tables and sentences.
METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "loss": "loss",
}


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average one value per clip.

    Args:
        values: of shape (clips,).
        weights: of shape (..., clips).

    Returns:
        float64 of shape (...); nan if all weights are 0.
    """
    return _ratio(weights @ values.astype(np.float64), weights.sum(axis=-1), empty=np.nan)


def class_metric(name: str, weights: np.ndarray) -> np.ndarray:
    """Compute a metric from class weights, as scikit-learn computes it from predictions.

    Args:
        name: "accuracy", "macro_f1" or "balanced_accuracy".
        weights: of shape (..., 3, classes), see `class_weights`.

    Returns:
        float64 of shape (...); nan if all weights are 0.
    """
    true, decided, both = (weights[..., row, :] for row in range(3))
    if name == "macro_f1":
        return mean_f1(true, decided, both)
    return {"accuracy": share_correct, "balanced_accuracy": mean_recall}[name](true, both)


def mean_f1(true: np.ndarray, decided: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Average F1 over the classes that occur.

    Args:
        true: weight of the clips of each class, of shape (..., classes).
        decided: weight of the clips that are predicted as each class.
        both: weight of the clips that are both.
    """
    f1 = _ratio(2 * both, true + decided)
    return _ratio(f1.sum(axis=-1), np.count_nonzero(true + decided, axis=-1), empty=np.nan)


def mean_recall(true: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Average recall over the classes that occur, see `mean_f1`."""
    return _ratio(_ratio(both, true).sum(axis=-1), np.count_nonzero(true, axis=-1), empty=np.nan)


def share_correct(true: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Compute the accuracy from class weights, see `mean_f1`."""
    return _ratio(both.sum(axis=-1), true.sum(axis=-1), empty=np.nan)


def class_weights(decisions: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum the weights of the clips of each class, of those predicted as the class, and of those that are both.

    Args:
        decisions: class number of each clip, of shape (clips,).
        targets: true class number of each clip.
        weights: of shape (..., clips).

    Returns:
        float64 of shape (..., 3, classes), for the classes that occur among targets or decisions.
    """
    from scipy.sparse import csr_array

    classes, codes = np.unique(np.concatenate([targets, decisions]), return_inverse=True)
    true, decided = codes[: len(targets)], codes[len(targets) :]
    starts = np.arange(len(targets) + 1)
    rows = weights.reshape(-1, len(targets))

    def sums(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        by_class = rows @ csr_array((values, numbers, starts), shape=(len(targets), len(classes)))
        return by_class.reshape(*weights.shape[:-1], len(classes))

    ones = np.ones(len(targets))
    correct = (true == decided).astype(np.float64)
    return np.stack([sums(ones, true), sums(ones, decided), sums(correct, true)], axis=-2)


def _ratio(above: np.ndarray, below: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Divide arrays; the result is `empty` for divisors of 0."""
    return np.divide(above, below, out=np.full(np.shape(above), empty), where=np.asarray(below) != 0)


def evaluate_metric(name: str) -> Any:
    """Build an `evaluate.Metric` that needs no download, for `evaluate.combine` or a Trainer's `compute_metrics`.

    Args:
        name: "accuracy", "macro_f1" or "balanced_accuracy".

    Returns:
        A metric with `compute(predictions=..., references=...)`, both int of shape (clips,).
    """
    import datasets
    import evaluate

    numbers = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    class ClassMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(description=name, citation="", inputs_description="", features=numbers)

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            decisions, targets = np.asarray(predictions), np.asarray(references)
            return {name: float(class_metric(name, class_weights(decisions, targets, np.ones(len(targets)))))}

    return ClassMetric(keep_in_memory=True)
