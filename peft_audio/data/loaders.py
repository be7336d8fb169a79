"""Make the loaders of a run, with clips of similar length in padded batches."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import Dataset
from sklearn.utils.class_weight import compute_sample_weight
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker

from peft_audio.config import DataConfig, Recipe
from peft_audio.data.augment import make_augment
from peft_audio.data.collate import collate
from peft_audio.data.dataset import Clips, View
from peft_audio.data.sampler import TrainingBatches, evaluation_batches
from peft_audio.data.splits import Splits
from peft_audio.data.streaming import StreamedClips, StreamedSteps, StreamLoader
from peft_audio.data.windows import cut_rows, fit_lengths
from peft_audio.encoders.family import family_of
from peft_audio.encoders.spec_augment import make_masks
from peft_audio.errors import UserError
from peft_audio.tasks import task_of
from peft_audio.tasks.task import Task


@dataclass(frozen=True)
class Prefix:
    """Report of the feature cache; see `cache_frozen_prefix`.

    Attributes:
        cached: Description of the cached part of the encoder; empty if nothing was cached.
        reason: Reason why nothing, or only a part, was cached.
        clips: Number of cached clips; each view of a clip counts.
        bytes: Size of the cache.
        seconds: Time that filling it took, in this or an earlier run.
        reused: Whether an earlier run had cached all clips.
    """

    cached: str = ""
    reason: str = ""
    clips: int = 0
    bytes: int = 0
    seconds: float = 0.0
    reused: bool = False


@dataclass(frozen=True)
class Loaders:
    """This process's share of the batches of each split.

    Attributes:
        train: Augmented random crops of the training clips, drawn anew each epoch.
        train_order: Steps of an epoch and their order.
        train_whole: Training clips prepared as in evaluation.
        validation: Whole validation clips.
        test: Whole test clips.
        prefix: Report of the feature cache.
        task: Task that the labels are targets of.
    """

    train: Iterable[dict[str, torch.Tensor]]
    train_order: TrainingBatches | StreamedSteps
    train_whole: DataLoader
    validation: DataLoader
    test: DataLoader
    prefix: Prefix = Prefix()
    task: Task = field(default_factory=task_of)


def make_loaders(splits: Splits, extractor: Any, encoder: Any, cfg: Recipe, accelerator: Accelerator) -> Loaders:
    """Make the batches of each split for this process.

    Args:
        splits: Rows of each split.
        extractor: Feature extractor of the encoder.
        encoder: Config of the encoder.
        cfg: Settings of a recipe; `data`, `augment`, `train` and `prefix_cache` are used.
        accelerator: Processes of the run.

    Raises:
        UserError: A step has fewer clips than processes times micro-batches.
    """
    train = cfg.train
    parts = train.gradient_accumulation_steps * accelerator.num_processes
    if train.batch_size < parts:
        raise UserError(
            f"--train.batch_size: got {train.batch_size}, must be at least {parts}: it is split over "
            f"{accelerator.num_processes} processes x {train.gradient_accumulation_steps} micro-batches. "
            "Raise it, or lower --train.gradient_accumulation_steps."
        )
    share = {"num_processes": accelerator.num_processes, "process_index": accelerator.process_index}
    family = family_of(encoder)
    window = family.window(encoder)
    data = fit_lengths(cfg.data, window)
    plain_view = View(family, extractor, data, train.seed)
    augment, masks = make_augment(cfg.augment, extractor.sampling_rate), make_masks(cfg.augment, encoder)
    training_view = View(family, extractor, data, train.seed, augment, masks, cfg.prefix_cache.views)
    padded = partial(collate, config=encoder)
    workers = _workers(cfg, accelerator)

    def whole_clips(rows: Dataset) -> DataLoader:
        rows = rows if window is None or cfg.data.window_seconds else _in_windows(rows, data, cfg.data.max_eval_seconds)
        lengths = input_seconds(rows, data.max_eval_seconds, window)
        batches = evaluation_batches(lengths, -(-train.batch_size // parts), batch_seconds=limit, **share)
        return DataLoader(Clips(rows, splits.stored, plain_view), batch_sampler=batches, collate_fn=padded, **workers)

    limit = None if train.batch_seconds is None else train.batch_seconds / parts
    train_order: TrainingBatches | StreamedSteps
    batches: DataLoader | StreamLoader
    if splits.stream is not None:
        train_order = StreamedSteps(train.max_steps or 1, train.epochs, train.batch_size)
        batches = _streamed(splits, training_view, padded, cfg, accelerator)
    else:
        train_order = TrainingBatches(
            input_seconds(splits.train, data.max_seconds, window),
            train.batch_size,
            train.seed,
            train.gradient_accumulation_steps,
            clip_weights=_balancing(splits.train["label"]) if train.class_weights == "balanced" else None,
            batch_seconds=train.batch_seconds,
            **share,
        )
        rows = Clips(splits.train, splits.stored, training_view)
        batches = DataLoader(rows, batch_sampler=train_order, collate_fn=padded, **workers)
    return Loaders(
        train=batches,
        train_order=train_order,
        train_whole=whole_clips(splits.train),
        validation=whole_clips(splits.validation),
        test=whole_clips(splits.test),
        task=splits.task,
    )


def _workers(cfg: Recipe, accelerator: Accelerator) -> dict[str, Any]:
    on_gpu = accelerator.device.type == "cuda"
    count = (4 if on_gpu else 0) if cfg.data.num_workers is None else cfg.data.num_workers
    # A separate generator, because starting an iterator would otherwise draw from the generator of dropout.
    own = torch.Generator()
    loading = {"num_workers": count, "pin_memory": on_gpu, "persistent_workers": count > 0, "generator": own}
    return loading | {"worker_init_fn": keep_worker_errors}


def _streamed(splits: Splits, view: View, padded: Any, cfg: Recipe, accelerator: Accelerator) -> StreamLoader:
    assert splits.stream is not None
    clips = StreamedClips(
        splits.stream, splits.labels, view, cfg.train, accelerator.num_processes, accelerator.process_index
    )
    workers = _workers(cfg, accelerator)
    # At most one worker per file of the stream, because a worker reads whole files.
    workers["num_workers"] = min(workers["num_workers"], clips.rows.num_shards)
    workers["persistent_workers"] = workers["num_workers"] > 0
    loader = DataLoader(clips, batch_size=None, collate_fn=partial(_collate_streamed, padded), **workers)
    return StreamLoader(loader, splits.stream)


def _collate_streamed(padded: Any, batch: tuple[list[dict[str, Any]], Any]) -> tuple[dict[str, torch.Tensor], Any]:
    return padded(batch[0]), batch[1]


def used_seconds(rows: Dataset, limit: float = np.inf) -> np.ndarray:
    """Return the seconds of each row that are used, of shape (rows,).

    Args:
        rows: Rows of a split, see `Splits`.
        limit: Largest number of seconds per row.
    """
    known = rows.select_columns(["num_frames", "sampling_rate"]).to_pandas()
    return np.minimum(known["num_frames"] / known["sampling_rate"], limit).to_numpy()


def input_seconds(rows: Dataset, limit: float, window: float | None) -> np.ndarray:
    """Return the seconds of each row's model input, of shape (rows,).

    Args:
        rows: Rows of a split, see `Splits`.
        limit: Largest number of seconds per row.
        window: Fixed window of the encoder in seconds; None if its input has the length of the clip.
    """
    return used_seconds(rows, limit) if window is None else np.full(len(rows), window)


def _in_windows(rows: Dataset, cfg: DataConfig, limit: float) -> Dataset:
    """Cut the first `limit` seconds of the rows of a split into windows, in the same order of recordings."""
    assert cfg.window_seconds is not None
    if (used_seconds(rows, limit) <= cfg.window_seconds).all():
        return rows
    cut = cut_rows(rows.to_pandas(), cfg.window_seconds, cfg.hop_seconds, limit)
    return Dataset(pa.Table.from_pandas(cut, rows.data.table.schema, preserve_index=False), fingerprint="windows")


def _balancing(labels: Sequence[int]) -> np.ndarray:
    """Return the weight of each row by the inverse frequency of its class, with mean 1."""
    return compute_sample_weight("balanced", np.asarray(labels))


def keep_worker_errors(worker_id: int) -> None:
    """Make a worker process send its exceptions pickled; a `worker_init_fn` of a DataLoader.

    By default torch sends only the class and the traceback as text, so that attributes and the message are lost.
    """
    worker.ExceptionWrapper = WorkerError  # type: ignore[misc]


class WorkerError(ExceptionWrapper):
    """Exception of a worker process with its attributes; its traceback is added as a note."""

    def __init__(self, exc_info: Any = None, where: str = "in background") -> None:
        super().__init__(exc_info, where)
        error = sys.exc_info()[1] if exc_info is None else exc_info[1]
        assert error is not None
        error.add_note(f"Raised {where}:\n{self.exc_msg}")
        try:
            self.pickled = pickle.dumps(error)
            pickle.loads(self.pickled)
        except Exception:  # the exception has a constructor or an attribute that pickle cannot handle
            self.pickled = b""

    def reraise(self) -> NoReturn:
        """Raise the exception in this process."""
        if not self.pickled:
            super().reraise()
        raise pickle.loads(self.pickled)
