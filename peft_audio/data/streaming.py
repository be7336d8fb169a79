"""Stream training clips over the network, in steps of a fixed number of clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from peft_audio.audio.decoding import AudioError, read_info
from peft_audio.config import TrainConfig
from peft_audio.data.dataset import View
from peft_audio.data.hub_dataset import Stream
from peft_audio.data.sampler import Draw
from peft_audio.data.scan import scan_clip
from peft_audio.errors import UserError

# Number of clips before which the share of unusable ones is not judged.
FIRST_CLIPS = 50


@dataclass
class StreamedSteps:
    """Division of a stream into parts that count as epochs.

    Attributes:
        max_steps: Optimizer steps of the run, `train.max_steps`.
        epochs: Number of parts, `train.epochs`.
        batch_size: Clips per optimizer step over all processes.
        epoch: Current part.
    """

    max_steps: int
    epochs: int
    batch_size: int
    epoch: int = 0

    def go_to(self, epoch: int, step: int = 0) -> None:
        """Set the current part; the stream itself continues at its position."""
        self.epoch = epoch

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps between two validations."""
        return -(-self.max_steps // self.epochs)

    def total_steps(self, epochs: int, limit: int | None = None) -> int:
        """Count the optimizer steps of `epochs` parts, at most `limit`."""
        steps = self.steps * epochs
        return steps if limit is None else min(steps, limit)

    def clips_in(self, steps: int) -> int:
        """Count the clips in `steps` steps, over all processes."""
        return steps * self.batch_size


class StreamedClips(torch.utils.data.IterableDataset):
    """Endless stream of this process's micro-batches; each pass over the source is shuffled differently.

    Args:
        stream: Training clips.
        labels: Label names, in the order of the label numbers.
        view: Crop, augmentation and preparation of the clips.
        train: Settings of the steps and micro-batches.
        num_processes: Number of processes.
        process_index: Index of this process.
    """

    def __init__(
        self,
        stream: Stream,
        labels: tuple[str, ...],
        view: View,
        train: TrainConfig,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.labels, self.view, self.train = labels, view, train
        self.num_processes, self.process_index = num_processes, process_index
        self.names = stream.label_names
        shuffled = stream.rows.shuffle(seed=train.seed, buffer_size=view.cfg.shuffle_buffer)
        # Divided by files if they divide evenly; otherwise each process reads all rows and keeps its share.
        self.rows = split_dataset_by_node(shuffled, process_index, num_processes)

    def __iter__(self) -> Iterator[tuple[list[dict[str, Any]], list[tuple[str, str]]]]:
        """Yield micro-batches, each with the name and error of clips skipped since the last one."""
        skipped: list[tuple[str, str]] = []
        clips = self._clips(skipped)
        micro_batches = self.train.gradient_accumulation_steps
        parts = micro_batches * self.num_processes
        worker = torch.utils.data.get_worker_info()
        # The loader takes micro-batches from its workers in turn.
        for micro in count() if worker is None else count(worker.id, worker.num_workers):
            first = micro % micro_batches * self.num_processes + self.process_index
            size = len(range(first, self.train.batch_size, parts))
            items = [next(clips) | {"weight": 1 / self.train.batch_size} for _ in range(size)]
            yield items, skipped.copy()
            skipped.clear()

    def _clips(self, skipped: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        seen, bad = 0, 0
        worker = torch.utils.data.get_worker_info()
        others, me = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for epoch in count():
            self.rows.set_epoch(epoch)
            before = seen
            for row in self.rows:
                seen += 1
                # Unique over all processes and workers, because it seeds the augmentation.
                index = (seen * others + me) * self.num_processes + self.process_index
                try:
                    yield self._item(row, index)
                except AudioError as error:
                    bad += 1
                    name = row["audio"]["path"] or f"clip {seen}"
                    self._check_bad(name, str(error), bad, seen)
                    skipped.append((name, str(error)))
            if seen == before:
                raise UserError(f"process {self.process_index} gets no clips of the stream; use fewer processes.")

    def _item(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        if row["label"] is None or (self.names is not None and row["label"] < 0):
            raise UserError(
                f"--data.source: {row['audio']['path']} has no label. Use another column, or another revision."
            )
        name = str(row["label"]) if self.names is None else self.names[row["label"]]
        if name not in self.labels:
            raise UserError(f"--data.source: the stream has the label {name!r}, which validation and test lack.")
        source = row["audio"]["bytes"] or b""  # missing audio is reported like an empty file
        facts = scan_clip(source)
        if facts["fault"]:
            raise AudioError(facts["error"], facts["fault"])
        info = read_info(source)
        draw = Draw(index, epoch=0)
        item = self.view.training_clip(source, 0.0, info.num_frames / info.sampling_rate, self.view.seeds(draw))
        item |= {"label": self.labels.index(name), "index": index}
        return item | self.view.spec_masks(item["samples"], draw)

    def _check_bad(self, name: str, reason: str, bad: int, seen: int) -> None:
        cfg = self.view.cfg
        if cfg.on_bad_clip == "error":
            raise UserError(
                f"--data.source: {name} {reason}; repair it, or skip such clips with --data.on_bad_clip skip."
            )
        if seen >= FIRST_CLIPS and bad > cfg.max_bad_share * seen:
            raise UserError(
                f"--data.max_bad_share: {bad} of the first {seen} clips cannot be used, more than the share of "
                f"{cfg.max_bad_share:g} that may be skipped; repair them, or raise it. The last one: {name} {reason}"
            )


class StreamLoader:
    """Loader that continues at its position each time it is iterated over, and records skipped clips.

    Args:
        loader: Loader of `StreamedClips`.
        stream: Stream whose `skipped` is filled.
    """

    def __init__(self, loader: DataLoader, stream: Stream):
        self.loader, self.stream = loader, stream
        self.batches: Iterator[Any] | None = None

    def skip(self, count: int) -> None:
        """Read and drop `count` micro-batches that an earlier process has trained on."""
        for _ in zip(range(count), self, strict=False):
            pass

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield micro-batches."""
        self.batches = iter(self.loader) if self.batches is None else self.batches
        for batch, skipped in self.batches:
            self.stream.skipped.update(skipped)
            yield batch
