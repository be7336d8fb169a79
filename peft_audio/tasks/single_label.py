"""Classify clips with one label each, by softmax and cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_audio.tasks.metrics import class_metric, class_weights, weighted_mean
from peft_audio.tasks.task import Task

if TYPE_CHECKING:
    import torch


class SingleLabel(Task):
    """One label per clip. A target is the label's number.

    In addition to the metrics of a report, `metric` computes "balanced_accuracy".
    """

    name = "single_label"
    metrics = ("loss", "accuracy", "macro_f1")

    def label_names(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Collect the distinct texts, sorted."""
        return tuple(sorted(set(texts)))

    def encode(self, texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Convert label names to numbers, int64 of shape (clips,)."""
        numbers = {label: i for i, label in enumerate(labels)}
        return np.array([numbers[text] for text in texts], dtype=np.int64)

    def decode(self, targets: np.ndarray, labels: Sequence[str]) -> list[str]:
        """Convert label numbers to names."""
        return [labels[number] for number in targets]

    def target_type(self) -> Any:
        """Return int64."""
        import pyarrow as pa

        return pa.int64()

    def no_targets(self, labels: int) -> torch.Tensor:
        """Return an empty int64 tensor of shape (0,)."""
        import torch

        return torch.zeros(0, dtype=torch.int64)

    def clip_losses(self, logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Compute the cross-entropy of each clip, of shape (clips,)."""
        from torch.nn import functional as F

        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Compute the softmax over the labels."""
        from scipy.special import softmax

        return softmax(logits, axis=-1)

    def mean_probabilities(self, total: np.ndarray, windows: int) -> np.ndarray:
        """Scale the sum of the windows' probabilities to a sum of 1."""
        return total / np.sum(total)

    def confidence(self, probabilities: np.ndarray) -> np.ndarray:
        """Return each clip's highest probability."""
        return probabilities.max(axis=-1)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Return the number of the label with the highest logit, or of the first if several are equal."""
        return np.argmax(logits, axis=-1)

    def decide_by_probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the number of the label with the highest probability, or of the first if several are equal."""
        return np.argmax(probabilities, axis=-1)

    def decision_code(self, logits: str, name: str) -> str:
        """Write the expression for the name of the label with the highest logit."""
        return name.format(f"{logits}.argmax()")

    def average_code(self) -> str:
        """Write the logarithm of the mean softmax."""
        return ".softmax(-1).mean(0).log()"

    def average_windows(self, logits: torch.Tensor, recordings: torch.Tensor) -> torch.Tensor:
        """Average the probabilities of a recording's windows; the logits are the logarithms of the means."""
        import torch

        total = torch.zeros(int(recordings.max()) + 1, logits.shape[1], dtype=torch.float64)
        total.index_add_(0, recordings, logits.double().softmax(-1))
        return (total / recordings.bincount()[:, None]).log().float()

    def correct(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Compare the decided labels with the true ones."""
        return self.decide(logits) == targets

    def metric(self, name: str, logits: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> Any:
        """Compute "accuracy", "macro_f1", "balanced_accuracy" or "loss" (mean cross-entropy), see `Task.metric`."""
        if weights is None and name == "loss":
            return self._mean_loss(logits, targets)
        given = np.ones(len(targets)) if weights is None else np.asarray(weights, dtype=np.float64)
        if name == "loss":
            value = weighted_mean(self._losses(logits, targets), given)
        else:
            value = self.metric_of_counts(name, class_weights(self.decide(logits), targets, given))
        return float(value) if weights is None else value

    def label_counts(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Count the labels of each clip, see `Task.label_counts`."""
        classes = np.eye(logits.shape[1], dtype=np.uint8)
        true, decided = classes[targets], classes[self.decide(logits)]
        return np.stack([true, decided, true & decided], axis=1)

    def metric_of_counts(self, name: str, counts: np.ndarray) -> np.ndarray:
        """Compute "accuracy", "macro_f1" or "balanced_accuracy", see `Task.metric_of_counts`."""
        return class_metric(name, counts)

    def _mean_loss(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Compute the mean loss in the precision of the logits, as in earlier reports."""
        import torch
        from torch.nn import functional as F

        return float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)))

    def _losses(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Compute the cross-entropy of each clip, float64 of shape (clips,)."""
        from scipy.special import log_softmax

        return -log_softmax(np.asarray(logits, dtype=np.float64), axis=1)[np.arange(len(targets)), targets]
