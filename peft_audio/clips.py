"""Clips as the encoder is fed them: decoded, cropped, augmented, normalised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from peft_audio.audio import AudioError, load_audio
from peft_audio.augment import Augment
from peft_audio.collating import normalise
from peft_audio.collection import recording_of
from peft_audio.config import DataConfig, UserError
from peft_audio.sampler import Draw
from peft_audio.spec_augment import Masks


@dataclass(frozen=True)
class View:
    """How clips are heard.

    Attributes:
        extractor: The encoder's feature extractor: rate and normalisation.
        cfg: How much of a clip.
        seed: With epoch and clip, decides crop, augmentation and masks.
        augment: Of training clips.
        masks: SpecAugment, of training clips.
    """

    extractor: Any
    cfg: DataConfig
    seed: int = 0
    augment: Augment | None = None
    masks: Masks | None = None

    def whole(self, source: Path | bytes, start: float, seconds: float | None) -> np.ndarray:
        """A clip as evaluation hears it: from its start.

        Args:
            source: A file, or the bytes of one.
            start: Where the clip begins in it, in seconds.
            seconds: Its length; None for all that follows.
        """
        limit = self.cfg.max_eval_seconds
        waveform = load_audio(source, self.extractor.sampling_rate, start, min(seconds or limit, limit))
        return normalise(waveform, self.extractor)

    def training(
        self, source: Path | bytes, start: float, seconds: float, seeds: list[int], to_end: bool = True
    ) -> dict[str, np.ndarray]:
        """A clip as training hears it: a random crop, augmented, with SpecAugment's masks.

        Args:
            source: A file, or the bytes of one.
            start: Where the clip begins in it, in seconds.
            seconds: Its length.
            seeds: What the draws depend on.
            to_end: The clip ends where the recording does, wherever the header thinks that is.
        """
        limit = self.cfg.max_seconds
        spare = seconds - limit
        offset = np.random.default_rng(seeds).uniform(0, spare) if spare > 0 else 0.0
        length = limit if to_end else min(limit, seconds)
        waveform = load_audio(source, self.extractor.sampling_rate, start + offset, length)
        values = normalise(self.augment(waveform, seeds) if self.augment else waveform, self.extractor)
        return {"input_values": values} | (self.masks(len(values), seeds) if self.masks else {})


class Clips(torch.utils.data.Dataset):
    """A split's rows as normalised waveforms.

    What a draw gives depends on the draw and the seed alone, so worker processes and their number change nothing.

    Args:
        rows: See `data.Splits`.
        stored: Recordings that are bytes in a table.
        view: How they are heard.
    """

    def __init__(self, rows: Dataset, stored: Dataset | None, view: View):
        self.rows, self.stored, self.view = rows, stored, view
        # Which recording of the split each row is a part of, from 0.
        self.recordings = pd.factorize(rows.select_columns("recording").to_pandas()["recording"])[0]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The clip of a draw, ready for `collate`."""
        row = self.rows[draw.index]
        source, start = recording_of(row, self.stored), row["start_seconds"]
        to_end = row["end_seconds"] is None
        seconds = row["num_frames"] / row["sampling_rate"]
        try:
            if draw.epoch is None:
                item: dict[str, Any] = {"input_values": self.view.whole(source, start, None if to_end else seconds)}
            else:
                seeds = [self.view.seed, draw.epoch, draw.index]
                item = dict(self.view.training(source, start, seconds, seeds, to_end))
        except AudioError as error:
            raise UserError(f"{row['path'] or row['id']} {error}; mend or remove it.") from error
        item |= {"label": row["label"], "index": draw.index, "weight": draw.weight}
        return item | {"recording": int(self.recordings[draw.index])}
