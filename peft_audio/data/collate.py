"""Prepare and pad clips into batches.

Prediction imports only this module of the training data path, so that it starts quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from peft_audio.encoders.base import EncoderFamily
from peft_audio.encoders.family import family_of


def prepare_clip(waveform: np.ndarray, extractor: Any, family: EncoderFamily) -> dict[str, Any]:
    """Prepare one clip for `collate`.

    Args:
        waveform: float32 of shape (samples,), mono, at the extractor's sampling rate.
        extractor: Feature extractor of the encoder.
        family: Family of the encoder.

    Returns:
        `inputs`, the clip's model inputs before padding, and `samples`, the length of the waveform.
    """
    return {"inputs": family.prepare(waveform, extractor), "samples": len(waveform)}


def collate(items: Sequence[dict[str, Any]], config: Any) -> dict[str, Any]:
    """Pad clips into a batch.

    Args:
        items: Clips as returned by `Clips`; a clip without `recording` counts as its own recording.
        config: Config of the encoder.

    Returns:
        `inputs` holds the model inputs by name. `samples` (length in samples after padding to the encoder's minimum),
        `label`, `index`, `recording` and `weight` are of shape (clips,). With SpecAugment, `time_mask` is bool of shape
        (clips, frames), and `feature_mask` is bool of shape (clips, channels).
    """
    family = family_of(config)
    shortest = family.minimum_samples(config)
    return collate_facts(items) | {
        "inputs": family.pad([item["inputs"] for item in items], config),
        "samples": torch.tensor([max(item["samples"], shortest) for item in items]),
    }


def collate_facts(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collect everything of a batch except its inputs; see `collate`."""
    masks = {
        name: pad_sequence([torch.from_numpy(item[name]) for item in items], batch_first=True)
        for name in ("time_mask", "feature_mask")
        if name in items[0]
    }
    return masks | {
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "recording": torch.tensor([item.get("recording", item["index"]) for item in items]),
        "weight": torch.tensor([item["weight"] for item in items], dtype=torch.float32),
    }
