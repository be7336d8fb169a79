"""Define the interface of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


class Task(ABC):
    """Kind of labels of a clip, with its targets, loss, probabilities, decisions and metrics.

    A *target* is a clip's label as a number or an array. A *decision* is a predicted label in the form of a target.
    Logits have the shape (clips, labels).

    Attributes:
        name: Key in `TASKS`.
        metrics: Names of the metrics of a report in its order, including `loss`.
    """

    name: str
    metrics: tuple[str, ...]

    @abstractmethod
    def label_names(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Collect the label names that occur in the label texts of clips, sorted."""

    @abstractmethod
    def encode(self, texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Convert label texts of clips to targets.

        Args:
            texts: label text of each clip in the form of the data source.
            labels: label names in the order of the logits.

        Returns:
            Targets, one per clip along the first axis.
        """

    @abstractmethod
    def decode(self, targets: np.ndarray, labels: Sequence[str]) -> list[str]:
        """Convert targets or decisions to label texts, the inverse of `encode`."""

    @abstractmethod
    def target_type(self) -> Any:
        """Return the pyarrow type of a target."""

    @abstractmethod
    def no_targets(self, labels: int) -> torch.Tensor:
        """Return the targets of zero clips, in the shape and type of a batch's targets.

        Args:
            labels: number of labels.
        """

    @abstractmethod
    def clip_losses(self, logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Compute the loss of each clip, of shape (clips,)."""

    @abstractmethod
    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Convert logits to probabilities of the same shape and type."""

    @abstractmethod
    def mean_probabilities(self, total: np.ndarray, windows: int) -> np.ndarray:
        """Average probabilities of windows.

        Args:
            total: sum over the windows, of shape (labels,).
            windows: number of windows.
        """

    @abstractmethod
    def confidence(self, probabilities: np.ndarray) -> np.ndarray:
        """Compute the probability of each clip's decision, of shape (clips,)."""

    @abstractmethod
    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Decide on the label of each clip.

        Args:
            logits: of shape (clips, labels).

        Returns:
            Decisions, one per clip along the first axis.
        """

    @abstractmethod
    def decide_by_probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Decide on the label of each clip from probabilities, such as means over windows."""

    @abstractmethod
    def decision_code(self, logits: str, name: str) -> str:
        """Write a Python expression for the label text of one clip, for READMEs.

        Args:
            logits: expression for the clip's logits, of shape (labels,).
            name: expression for a label's name, with `{}` in place of its number.
        """

    def average_code(self) -> str:
        """Write Python code that follows the logits of windows and averages their probabilities, as logits."""
        raise NotImplementedError

    @abstractmethod
    def average_windows(self, logits: torch.Tensor, recordings: torch.Tensor) -> torch.Tensor:
        """Average the probabilities of a recording's windows.

        Args:
            logits: of shape (windows, labels).
            recordings: number of each window's recording, from 0, of shape (windows,).

        Returns:
            Logits of those averages, float32 of shape (recordings, labels).
        """

    @abstractmethod
    def correct(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Compare decisions with targets; bool of shape (clips,)."""

    @abstractmethod
    def metric(self, name: str, logits: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> Any:
        """Compute a metric.

        A clip of weight 2 counts as two equal clips, and a clip of weight 0 as none. So a draw of clips, groups or
        seeds with replacement is a row of weights.

        Args:
            name: one of `metrics`, or another metric of the task.
            logits: of shape (clips, labels).
            targets: one per clip.
            weights: of shape (..., clips), not negative; 1 for every clip by default.

        Returns:
            float64 of shape (...); a float without weights.
        """

    @abstractmethod
    def label_counts(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Count the labels of each clip, so that sums over clips give metrics.

        Args:
            logits: of shape (clips, labels).
            targets: one per clip.

        Returns:
            uint8 of shape (clips, 3, labels), with 1 if the label is true, if it is predicted, and if it is both.
        """

    @abstractmethod
    def metric_of_counts(self, name: str, counts: np.ndarray) -> np.ndarray:
        """Compute a metric, other than the loss, from sums of `label_counts`.

        Args:
            name: see `metric`.
            counts: of shape (..., 3, labels).

        Returns:
            float64 of shape (...).
        """

    def measure(self, logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Compute the metrics of a report."""
        return {name: self.metric(name, logits, targets) for name in self.metrics}

    def selection_score(self, metrics: Mapping[str, float], name: str, prefix: str = "") -> float:
        """Return the score that selects the best epoch or learning rate; higher is better.

        Args:
            metrics: metrics by name, with `prefix` before each name.
            name: one of `metrics`, see `train.best_metric`.
            prefix: prefix of the names in `metrics`, such as "validation_".
        """
        value = metrics[prefix + name]
        return -value if name == "loss" else value
