"""Assign clips to batches and processes, sorted by length and shuffled."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

# Number of batches per shuffled window; batches are cut from windows sorted by length. The smallest number that leaves
# little padding is used, because small windows mix clips more between epochs. Padding is little below LITTLE_PADDING of
# the input or LITTLE_PADDING_SECONDS per clip; these limits are this package's own choice.
WINDOW_BATCHES = (8, 16, 32, 64)
LITTLE_PADDING = 0.09
LITTLE_PADDING_SECONDS = 0.1


@dataclass(frozen=True)
class Draw:
    """One clip of one micro-batch.

    Attributes:
        index: Row of the clip.
        epoch: Epoch that decides crop and augmentation; None for the clip as in evaluation.
        weight: Weight of its loss in the optimizer step, the clip's share of the step; 0 for a filler.
    """

    index: int
    epoch: int | None = None
    weight: float = 1.0


class TrainingBatches(Sampler[list[Draw]]):
    """Sampler of this process's micro-batches, `micro_batches` per optimizer step.

    The clips of an optimizer step depend only on (seed, epoch). Processes and micro-batches split them. If the last
    step has fewer clips than parts, empty parts repeat a clip with weight 0, so that every process runs every step.

    Args:
        lengths: Length of each row in seconds, of shape (rows,).
        batch_size: Clips per optimizer step over all processes.
        seed: Seed of the order, together with the epoch.
        micro_batches: Parts of a step that one process runs one after another.
        num_processes: Number of processes.
        process_index: Index of this process.
        clip_weights: Relative weight of each row in its step, of shape (rows,); equal weights when not given.
        batch_seconds: Largest padded length of a step in seconds, instead of `batch_size`.
    """

    def __init__(
        self,
        lengths: Sequence[float] | np.ndarray,
        batch_size: int,
        seed: int,
        micro_batches: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
        clip_weights: np.ndarray | None = None,
        batch_seconds: float | None = None,
    ):
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.clip_weights = np.ones(len(self.lengths)) if clip_weights is None else clip_weights
        self.micro_batches, self.num_processes, self.process_index = micro_batches, num_processes, process_index
        self.batch_seconds, self.epoch, self.first_step = batch_seconds, 0, 0
        self.window = WINDOW_BATCHES[0]
        batches = len(self.lengths) / batch_size if batch_seconds is None else self.lengths.sum() / batch_seconds
        little = max(LITTLE_PADDING, LITTLE_PADDING_SECONDS / (LITTLE_PADDING_SECONDS + self.lengths.mean()))
        for window in WINDOW_BATCHES[1:]:
            # A single window would give the same batches in every epoch.
            if batches < 2 * self.window + 2 or padding_share(self.lengths, self.step_indices(0)) <= little:
                break
            self.window = min(window, int(batches // 2))

    def go_to(self, epoch: int, step: int = 0) -> None:
        """Set the epoch, and the number of its steps to skip."""
        self.epoch, self.first_step = epoch, step

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps in this epoch."""
        return len(self.step_indices())

    def total_steps(self, epochs: int, limit: int | None = None) -> int:
        """Count the optimizer steps of `epochs` epochs, at most `limit`.

        With `batch_seconds`, every epoch is drawn to count its steps.
        """
        most = sys.maxsize if limit is None else limit
        if self.batch_seconds is None:
            return min(most, epochs * self.steps)
        steps = 0
        for epoch in range(1, epochs + 1):
            steps += len(self.step_indices(epoch))
            if steps >= most:
                return most
        return steps

    def clips_in(self, steps: int) -> int:
        """Count the clips in the first `steps` steps of this epoch, over all processes."""
        return sum(len(indices) for indices in self.step_indices()[:steps])

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        parts = self.micro_batches * self.num_processes
        for step in self.step_indices()[self.first_step :]:
            total = self.clip_weights[step].sum()
            for micro in range(self.micro_batches):
                mine = step[micro * self.num_processes + self.process_index :: parts]
                if mine:
                    yield [Draw(i, self.epoch, float(self.clip_weights[i] / total)) for i in mine]
                else:
                    yield [Draw(step[0], self.epoch, 0.0)]

    def step_indices(self, epoch: int | None = None) -> list[list[int]]:
        """Return the rows of each optimizer step: of similar length, with steps in random order.

        Args:
            epoch: Epoch; the current one when not given.
        """
        rng = np.random.default_rng([self.seed, self.epoch if epoch is None else epoch])
        order = rng.permutation(len(self.lengths))
        window: np.ndarray
        if self.batch_seconds is None:
            window = np.arange(len(order)) // (self.window * self.batch_size)
        else:
            window = np.cumsum(self.lengths[order]) // (self.window * self.batch_seconds)
        # Sorted by window, then by length; lexsort is stable, so equal lengths stay in shuffled order.
        by_length = order[np.lexsort((self.lengths[order], window))]
        steps = cut_batches(by_length, self.lengths, self.batch_size, self.batch_seconds)
        return [steps[i] for i in rng.permutation(len(steps))]


def evaluation_batches(
    lengths: Sequence[float] | np.ndarray,
    batch_size: int,
    num_processes: int = 1,
    process_index: int = 0,
    batch_seconds: float | None = None,
) -> list[list[Draw]]:
    """Return this process's batches of a split, sorted by length; every row is in one batch of one process.

    Args:
        lengths: Length of each row in seconds, of shape (rows,).
        batch_size: Clips per batch.
        num_processes: Number of processes.
        process_index: Index of this process.
        batch_seconds: Largest padded length of a batch in seconds, instead of `batch_size`.
    """
    known = np.asarray(lengths)
    order = np.argsort(known, kind="stable")[process_index::num_processes]
    return [[Draw(i) for i in rows] for rows in cut_batches(order, known, batch_size, batch_seconds)]


def cut_batches(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, batch_seconds: float | None
) -> list[list[int]]:
    """Cut rows into batches of consecutive rows.

    Args:
        order: Row numbers in the order to cut, of shape (rows,).
        lengths: Length of each row in seconds.
        batch_size: Clips per batch.
        batch_seconds: Largest padded length of a batch in seconds, instead of `batch_size`.
    """
    rows = order.tolist()
    if batch_seconds is None:
        return [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    batches: list[list[int]] = []
    longest = 0.0
    for row in rows:
        longest = max(longest, float(lengths[row]))
        if batches and (len(batches[-1]) + 1) * longest <= batch_seconds:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = float(lengths[row])
    return batches


def padding_share(lengths: np.ndarray, batches: Sequence[Sequence[int]]) -> float:
    """Return the share of padding in the input of batches, 0 to 1."""
    longest = sum(len(rows) * lengths[rows].max() for rows in batches)
    return 1 - sum(lengths[rows].sum() for rows in batches) / longest if longest else 0.0
