"""Which clips form a batch, in which order, on which process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

# Batches are cut from shuffled windows of this many batches, sorted by length: long enough to save most of the
# padding, short enough that a clip does not meet the same neighbours in every epoch.
WINDOW_BATCHES = 8


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
    """

    def __init__(
        self,
        lengths: Sequence[float],
        batch_size: int,
        seed: int,
        micro_batches: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
        clip_weights: np.ndarray | None = None,
    ):
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.clip_weights = np.ones(len(self.lengths)) if clip_weights is None else clip_weights
        self.micro_batches, self.num_processes, self.process_index = micro_batches, num_processes, process_index
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def __len__(self) -> int:
        return self.steps * self.micro_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        parts = self.micro_batches * self.num_processes
        for step in self.step_indices():
            whole = self.clip_weights[step].sum()
            for micro in range(self.micro_batches):
                mine = step[micro * self.num_processes + self.process_index :: parts]
                if mine:
                    yield [Draw(i, self.epoch, float(self.clip_weights[i] / whole)) for i in mine]
                else:
                    yield [Draw(step[0], self.epoch, 0.0)]

    def step_indices(self) -> list[list[int]]:
        """The rows of each optimizer step of this epoch: neighbours in length, steps in random order."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths))
        window = WINDOW_BATCHES * self.batch_size
        windows = [order[i : i + window] for i in range(0, len(order), window)]
        by_length = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in windows])
        steps = [by_length[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]
        return [steps[i] for i in rng.permutation(len(steps))]


def evaluation_batches(
    lengths: Sequence[float], batch_size: int, num_processes: int = 1, process_index: int = 0
) -> list[list[Draw]]:
    """This process's batches of a split, by length; over all processes every row exactly once."""
    order = np.argsort(np.asarray(lengths), kind="stable")[process_index::num_processes].tolist()
    return [[Draw(i) for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
