"""Which clips form a batch, in which order, on which process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

# Batches are cut from shuffled windows of this many batches, sorted by length: the first of these that leaves little
# padding, so that a clip does not meet the same neighbours in every epoch where lengths allow. Little is this share, or
# so many seconds a clip, below which shuffling is worth more.
WINDOW_BATCHES = (8, 16, 32, 64)
LITTLE_PADDING = 0.09
LITTLE_PADDING_SECONDS = 0.1


@dataclass(frozen=True)
class Draw:
    """One clip of one micro-batch.

    Attributes:
        index: The row.
        epoch: Which training view of it (crop, augmentation); None for the clip as evaluation sees it.
        weight: What its loss counts in the optimizer step, its share of the step's clips; 0 for a filler.
    """

    index: int
    epoch: int | None = None
    weight: float = 1.0


class TrainingBatches(Sampler[list[Draw]]):
    """This process's micro-batches, `micro_batches` for each optimizer step, the same steps for any division.

    An optimizer step's clips depend on (seed, epoch) alone. Processes and micro-batches split them; where a ragged
    last step gives a part nothing, the part repeats a clip with weight 0, so that every process runs every step.

    Args:
        lengths: Of each row, in seconds.
        batch_size: Clips per optimizer step.
        seed: With the epoch, decides the order.
        micro_batches: Parts of a step that one process runs one after another.
        num_processes: Parts that run at once.
        process_index: Which of those is this one.
        clip_weights: What each row counts beside the others of its step; all the same when not given.
        batch_seconds: Steps hold as many clips as, padded to the longest, last so long, instead of `batch_size`.
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
            # One window for all would give the same batches in every epoch.
            if batches < 2 * self.window + 2 or padding_share(self.lengths, self.step_indices(0)) <= little:
                break
            self.window = min(window, int(batches // 2))

    def go_to(self, epoch: int, step: int = 0) -> None:
        """Begin an epoch, or go on in it behind so many of its steps."""
        self.epoch, self.first_step = epoch, step

    @property
    def steps(self) -> int:
        """Optimizer steps in this epoch."""
        return len(self.step_indices())

    def total_steps(self, epochs: int, limit: int | None = None) -> int:
        """Count the optimizer steps of N epochs, or up to `limit`: with `batch_seconds`, each epoch has to be drawn."""
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
        """Clips in the first steps of this epoch, over all processes."""
        return sum(len(indices) for indices in self.step_indices()[:steps])

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        parts = self.micro_batches * self.num_processes
        for step in self.step_indices()[self.first_step :]:
            whole = self.clip_weights[step].sum()
            for micro in range(self.micro_batches):
                mine = step[micro * self.num_processes + self.process_index :: parts]
                if mine:
                    yield [Draw(i, self.epoch, float(self.clip_weights[i] / whole)) for i in mine]
                else:
                    yield [Draw(step[0], self.epoch, 0.0)]

    def step_indices(self, epoch: int | None = None) -> list[list[int]]:
        """The rows of each optimizer step of an epoch, this one by default: like in length, steps in random order."""
        rng = np.random.default_rng([self.seed, self.epoch if epoch is None else epoch])
        order = rng.permutation(len(self.lengths))
        window: np.ndarray
        if self.batch_seconds is None:
            window = np.arange(len(order)) // (self.window * self.batch_size)
        else:
            window = np.cumsum(self.lengths[order]) // (self.window * self.batch_seconds)
        # Stable: by window, in it by length, and in the shuffled order where lengths are equal.
        by_length = order[np.lexsort((self.lengths[order], window))]
        steps = cut(by_length, self.lengths, self.batch_size, self.batch_seconds)
        return [steps[i] for i in rng.permutation(len(steps))]


def evaluation_batches(
    lengths: Sequence[float] | np.ndarray,
    batch_size: int,
    num_processes: int = 1,
    process_index: int = 0,
    batch_seconds: float | None = None,
) -> list[list[Draw]]:
    """This process's batches of a split, by length; over all processes every row exactly once."""
    known = np.asarray(lengths)
    order = np.argsort(known, kind="stable")[process_index::num_processes]
    return [[Draw(i) for i in rows] for rows in cut(order, known, batch_size, batch_seconds)]


def cut(order: np.ndarray, lengths: np.ndarray, batch_size: int, batch_seconds: float | None) -> list[list[int]]:
    """Rows in this order as batches, of a fixed count, or of as many as last `batch_seconds` once padded."""
    rows = order.tolist()
    if batch_seconds is None:
        return [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
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
    """How much of the batches' input is padding, 0 to 1."""
    longest = sum(len(rows) * lengths[rows].max() for rows in batches)
    return 1 - sum(lengths[rows].sum() for rows in batches) / longest if longest else 0.0
