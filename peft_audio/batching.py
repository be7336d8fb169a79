"""Rows to batches: decoding, crops, normalisation, batches of similar length, padding and masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

from peft_audio.audio import AudioError, load_audio
from peft_audio.augment import Augment, make_augment
from peft_audio.config import DataConfig, LoraRecipe, UserError
from peft_audio.data import Splits

# Batches are cut from shuffled windows of this many batches, sorted by length: long enough to save most of the
# padding, short enough that a clip does not meet the same neighbours in every epoch.
WINDOW_BATCHES = 8


@dataclass(frozen=True)
class Draw:
    """One clip of one micro-batch.

    Attributes:
        index: The row.
        epoch: Which training view of it (crop, augmentation); None for the clip as evaluation sees it.
        weight: What its loss counts in the optimizer step: one part in the step's clips, or 0 for a filler.
    """

    index: int
    epoch: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Loaders:
    """This process's share of the batches of each split, and the order of the training batches."""

    train: DataLoader
    train_order: TrainingBatches
    validation: DataLoader
    test: DataLoader


class Clips(torch.utils.data.Dataset):
    """A split's rows as normalised waveforms.

    What a draw gives depends on the draw and the seed alone, so worker processes and their number change nothing.
    """

    def __init__(self, rows: Dataset, extractor: Any, cfg: DataConfig, seed: int = 0, augment: Augment | None = None):
        self.rows, self.extractor, self.cfg, self.seed, self.augment = rows, extractor, cfg, seed, augment

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The clip of a draw, ready for `collate`."""
        row = self.rows[draw.index]
        if draw.epoch is None:
            waveform = self._load(row, 0.0, self.cfg.max_eval_seconds)
        else:
            waveform = self._training_view(row, draw.index, draw.epoch)
        values = normalise(waveform, self.extractor)
        return {"input_values": values, "label": row["label"], "index": draw.index, "weight": draw.weight}

    def _training_view(self, row: dict[str, Any], index: int, epoch: int) -> np.ndarray:
        spare = row["num_frames"] / row["sampling_rate"] - self.cfg.max_seconds
        start = np.random.default_rng([self.seed, epoch, index]).uniform(0, spare) if spare > 0 else 0.0
        waveform = self._load(row, start, self.cfg.max_seconds)
        return self.augment(waveform, [self.seed, epoch, index]) if self.augment else waveform

    def _load(self, row: dict[str, Any], start_seconds: float, seconds: float) -> np.ndarray:
        audio = row["audio"]
        source = Path(audio["path"]) if audio["bytes"] is None else audio["bytes"]
        try:
            return load_audio(source, self.extractor.sampling_rate, start_seconds, seconds)
        except AudioError as error:
            raise UserError(f"{audio['path'] or row['id']} {error}; mend or remove it.") from error


def normalise(waveform: np.ndarray, extractor: Any) -> np.ndarray:
    """Zero mean and unit variance if the encoder was pretrained so, of the clip alone: padding comes after.

    Args:
        waveform: float32 of shape (samples,) at the extractor's rate.
        extractor: The encoder's feature extractor.

    Returns:
        float32 of shape (samples,).
    """
    features = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="np")
    return features["input_values"][0].astype(np.float32, copy=False)


def collate(items: Sequence[dict[str, Any]], minimum_samples: int) -> dict[str, torch.Tensor]:
    """Pad clips with zeros to the longest, and any to the shortest input that the encoder takes.

    Args:
        items: What `Clips` gives.
        minimum_samples: See `models.minimum_samples`. Zeros up to it count as part of the clip, in any batch.

    Returns:
        `input_values`, float32 of shape (clips, samples); `attention_mask`, int64 of the same shape; and of shape
        (clips,): `label`, `index`, `weight`.
    """
    lengths = [max(len(item["input_values"]), minimum_samples) for item in items]
    input_values = torch.zeros(len(items), max(lengths))
    for row, item in zip(input_values, items, strict=True):
        row[: len(item["input_values"])] = torch.from_numpy(item["input_values"])
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {
        "input_values": input_values,
        "attention_mask": mask.long(),
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "weight": torch.tensor([item["weight"] for item in items], dtype=torch.float32),
    }


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
    """

    def __init__(
        self,
        lengths: Sequence[float],
        batch_size: int,
        seed: int,
        micro_batches: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
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
            for micro in range(self.micro_batches):
                mine = step[micro * self.num_processes + self.process_index :: parts]
                if mine:
                    yield [Draw(i, self.epoch, 1 / len(step)) for i in mine]
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


def make_loaders(
    splits: Splits, extractor: Any, minimum_samples: int, cfg: LoraRecipe, accelerator: Accelerator
) -> Loaders:
    """The batches of each split for this process.

    Args:
        splits: The rows.
        extractor: The encoder's feature extractor: rate and normalisation.
        minimum_samples: See `models.minimum_samples`.
        cfg: A recipe's settings; `data`, `augment` and `train` are read.
        accelerator: Says which process of how many this is.

    Raises:
        UserError: A step is to be split into more parts than it has clips.
    """
    train = cfg.train
    parts = train.gradient_accumulation_steps * accelerator.num_processes
    if train.batch_size < parts:
        raise UserError(
            f"--train.batch_size: got {train.batch_size}, must be at least {parts}: it is split over "
            f"{accelerator.num_processes} processes x {train.gradient_accumulation_steps} micro-batches. "
            "Raise it, or lower --train.gradient_accumulation_steps."
        )
    on_gpu = accelerator.device.type == "cuda"
    workers = (4 if on_gpu else 0) if cfg.data.num_workers is None else cfg.data.num_workers
    share = {"num_processes": accelerator.num_processes, "process_index": accelerator.process_index}
    augment = make_augment(cfg.augment, extractor.sampling_rate)

    def loader(rows: Dataset, batches: Any, augment: Augment | None = None) -> DataLoader:
        return DataLoader(
            Clips(rows, extractor, cfg.data, train.seed, augment),
            batch_sampler=batches,
            collate_fn=partial(collate, minimum_samples=minimum_samples),
            num_workers=workers,
            pin_memory=on_gpu,
            persistent_workers=workers > 0,
        )

    def seconds(rows: Dataset, limit: float) -> list[float]:
        return np.minimum(np.array(rows["num_frames"]) / np.array(rows["sampling_rate"]), limit).tolist()

    micro_batch = -(-train.batch_size // parts)
    held_out = {
        split: loader(
            splits[split],
            evaluation_batches(seconds(splits[split], cfg.data.max_eval_seconds), micro_batch, **share),
        )
        for split in ("validation", "test")
    }
    order = TrainingBatches(
        seconds(splits.train, cfg.data.max_seconds),
        train.batch_size,
        train.seed,
        train.gradient_accumulation_steps,
        **share,
    )
    return Loaders(train=loader(splits.train, order, augment), train_order=order, **held_out)
