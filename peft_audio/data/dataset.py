"""Decode, crop, augment and normalise clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from peft_audio.audio.decoding import AudioError, load_audio
from peft_audio.config import DataConfig
from peft_audio.data.augment import Augment
from peft_audio.data.clip_table import recording_of
from peft_audio.data.collate import prepare_clip
from peft_audio.data.sampler import Draw
from peft_audio.encoders.base import EncoderFamily
from peft_audio.encoders.spec_augment import Masks
from peft_audio.errors import UserError


@dataclass(frozen=True)
class View:
    """Crop, augment and prepare clips.

    Attributes:
        family: Family of the encoder.
        extractor: Feature extractor of the encoder.
        cfg: Lengths of clips.
        seed: Seed of crops, augmentation and masks, together with epoch and clip.
        augment: Augmentation of training clips.
        masks: SpecAugment masks of training clips.
        views: Number of augmented versions per clip, used in turn; None for a new one in every epoch.
    """

    family: EncoderFamily
    extractor: Any
    cfg: DataConfig
    seed: int = 0
    augment: Augment | None = None
    masks: Masks | None = None
    views: int | None = None

    def seeds(self, draw: Draw) -> list[int]:
        """Return the seed of crop and augmentation of a training clip: run seed, view and row."""
        assert draw.epoch is not None
        return [self.seed, draw.epoch if self.views is None else (draw.epoch - 1) % self.views + 1, draw.index]

    def spec_masks(self, samples: int, draw: Draw) -> dict[str, np.ndarray]:
        """Draw the SpecAugment masks of a training clip, new ones in every epoch; empty if SpecAugment is off.

        Args:
            samples: Length of the clip in samples.
            draw: Row and epoch.
        """
        return self.masks(samples, [self.seed, draw.epoch or 0, draw.index]) if self.masks else {}

    def evaluation_clip(self, source: Path | bytes, start: float, seconds: float | None) -> dict[str, Any]:
        """Prepare a clip for evaluation, from its start; see `prepare_clip`.

        Args:
            source: Path or bytes of a file.
            start: Start of the clip in the file, in seconds.
            seconds: Length of the clip; None up to the end of the file.
        """
        limit = self.cfg.max_eval_seconds
        waveform = load_audio(source, self.extractor.sampling_rate, start, min(seconds or limit, limit))
        return prepare_clip(waveform, self.extractor, self.family)

    def training_clip(
        self, source: Path | bytes, start: float, seconds: float, seeds: list[int], to_end: bool = True
    ) -> dict[str, Any]:
        """Prepare a random crop of a clip for training, augmented; see `prepare_clip`.

        Args:
            source: Path or bytes of a file.
            start: Start of the clip in the file, in seconds.
            seconds: Length of the clip.
            seeds: Seed of the crop and the augmentation.
            to_end: The clip ends with the recording, even if its header gives a wrong length.
        """
        limit = self.cfg.max_seconds
        spare = seconds - limit
        offset = np.random.default_rng(seeds).uniform(0, spare) if spare > 0 else 0.0
        length = limit if to_end else min(limit, seconds)
        waveform = load_audio(source, self.extractor.sampling_rate, start + offset, length)
        waveform = self.augment(waveform, seeds) if self.augment else waveform
        return prepare_clip(waveform, self.extractor, self.family)


class Clips(torch.utils.data.Dataset):
    """Prepared clips of a split.

    An item depends only on its draw and the seed, so the number of worker processes changes nothing.

    Args:
        rows: Rows of a split, see `Splits`.
        stored: Recordings stored as bytes.
        view: Crop, augmentation and preparation of the clips.
    """

    def __init__(self, rows: Dataset, stored: Dataset | None, view: View):
        self.rows, self.stored, self.view = rows, stored, view
        # Number of the recording that each row is a part of, from 0.
        self.recordings = pd.factorize(rows.select_columns("recording").to_pandas()["recording"])[0]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Return the clip of a draw, ready for `collate`."""
        row = self.rows[draw.index]
        source, start = recording_of(row, self.stored), row["start_seconds"]
        to_end = row["end_seconds"] is None
        seconds = row["num_frames"] / row["sampling_rate"]
        try:
            if draw.epoch is None:
                item = self.view.evaluation_clip(source, start, None if to_end else seconds)
            else:
                item = self.view.training_clip(source, start, seconds, self.view.seeds(draw), to_end)
                item |= self.view.spec_masks(item["samples"], draw)
        except AudioError as error:
            raise UserError(f"{row['path'] or row['id']} {error}; repair or remove it.") from error
        item |= {"label": row["label"], "index": draw.index, "weight": draw.weight}
        return item | {"recording": int(self.recordings[draw.index])}
