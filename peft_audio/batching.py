"""Rows to batches: decoding, crops, normalisation, batches of similar length, padding and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from sklearn.utils.class_weight import compute_sample_weight
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from peft_audio.anatomy import minimum_samples
from peft_audio.audio import AudioError, load_audio
from peft_audio.augment import Augment, make_augment
from peft_audio.config import DataConfig, Recipe, UserError
from peft_audio.data import Splits
from peft_audio.sampler import Draw, TrainingBatches, evaluation_batches
from peft_audio.spec_augment import Masks, make_masks


@dataclass(frozen=True)
class Loaders:
    """This process's share of the batches of each split.

    Attributes:
        train: Crops, augmented, drawn anew each epoch.
        train_order: The order of those batches.
        train_whole: The training clips as evaluation sees clips.
        validation: Whole clips.
        test: Whole clips.
    """

    train: DataLoader
    train_order: TrainingBatches
    train_whole: DataLoader
    validation: DataLoader
    test: DataLoader


class Clips(torch.utils.data.Dataset):
    """A split's rows as normalised waveforms.

    What a draw gives depends on the draw and the seed alone, so worker processes and their number change nothing.
    """

    def __init__(
        self,
        rows: Dataset,
        extractor: Any,
        cfg: DataConfig,
        seed: int = 0,
        augment: Augment | None = None,
        masks: Masks | None = None,
    ):
        self.rows, self.extractor, self.cfg, self.seed = rows, extractor, cfg, seed
        self.augment, self.masks = augment, masks

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The clip of a draw, ready for `collate`."""
        row = self.rows[draw.index]
        if draw.epoch is None:
            waveform = self._load(row, 0.0, self.cfg.max_eval_seconds)
        else:
            waveform = self._training_view(row, draw.index, draw.epoch)
        values = normalise(waveform, self.extractor)
        item = {"input_values": values, "label": row["label"], "index": draw.index, "weight": draw.weight}
        if draw.epoch is not None and self.masks:
            item |= self.masks(len(values), [self.seed, draw.epoch, draw.index])
        return item

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
        minimum_samples: See `anatomy.minimum_samples`. Zeros up to it count as part of the clip, in any batch.

    Returns:
        `input_values`, float32 of shape (clips, samples); `attention_mask`, int64 of the same shape; of shape
        (clips,): `label`, `index`, `weight`; and with SpecAugment `time_mask`, bool of shape (clips, frames), and
        `feature_mask`, bool of shape (clips, channels).
    """
    lengths = [max(len(item["input_values"]), minimum_samples) for item in items]
    input_values = torch.zeros(len(items), max(lengths))
    for row, item in zip(input_values, items, strict=True):
        row[: len(item["input_values"])] = torch.from_numpy(item["input_values"])
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    hidden = {
        name: pad_sequence([torch.from_numpy(item[name]) for item in items], batch_first=True)
        for name in ("time_mask", "feature_mask")
        if name in items[0]
    }
    return hidden | {
        "input_values": input_values,
        "attention_mask": mask.long(),
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "weight": torch.tensor([item["weight"] for item in items], dtype=torch.float32),
    }


def make_loaders(splits: Splits, extractor: Any, encoder: Any, cfg: Recipe, accelerator: Accelerator) -> Loaders:
    """The batches of each split for this process.

    Args:
        splits: The rows.
        extractor: The encoder's feature extractor: rate and normalisation.
        encoder: The encoder's config: how many frames a clip gives.
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

    def loader(rows: Dataset, batches: Any, **training: Any) -> DataLoader:
        return DataLoader(
            Clips(rows, extractor, cfg.data, train.seed, **training),
            batch_sampler=batches,
            collate_fn=partial(collate, minimum_samples=minimum_samples(encoder)),
            num_workers=workers,
            pin_memory=on_gpu,
            persistent_workers=workers > 0,
        )

    def whole_clips(rows: Dataset) -> DataLoader:
        lengths = _seconds(rows, cfg.data.max_eval_seconds)
        return loader(rows, evaluation_batches(lengths, -(-train.batch_size // parts), **share))

    order = TrainingBatches(
        _seconds(splits.train, cfg.data.max_seconds),
        train.batch_size,
        train.seed,
        train.gradient_accumulation_steps,
        clip_weights=_balancing(splits.train["label"]) if train.class_weights == "balanced" else None,
        **share,
    )
    augment, masks = make_augment(cfg.augment, extractor.sampling_rate), make_masks(cfg.augment, encoder)
    return Loaders(
        train=loader(splits.train, order, augment=augment, masks=masks),
        train_order=order,
        train_whole=whole_clips(splits.train),
        validation=whole_clips(splits.validation),
        test=whole_clips(splits.test),
    )


def _seconds(rows: Dataset, limit: float) -> list[float]:
    return np.minimum(np.array(rows["num_frames"]) / np.array(rows["sampling_rate"]), limit).tolist()


def _balancing(labels: Sequence[int]) -> np.ndarray:
    """Each row's weight by the inverse frequency of its class; their mean is 1."""
    return compute_sample_weight("balanced", np.asarray(labels))
