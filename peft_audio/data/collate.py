"""Prepare and pad clips into batches.

Prediction needs no more than this module of data/, and starts sooner without the rest.
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
        items: Clips as `Clips` returns them; one without `recording` is a recording of its own.
        config: Config of the encoder.

    Returns:
        `inputs`, the model inputs by name; of shape (clips,): `samples`, the length that counts as the clip, `label`,
        `index`, `recording`, `weight`; and with SpecAugment `time_mask`, bool of shape (clips, frames), and
        `feature_mask`, bool of shape (clips, channels).
    """
    family = family_of(config)
    shortest = family.minimum_samples(config)
    return collate_facts(items) | {
        "inputs": family.pad([item["inputs"] for item in items], config),
        "samples": torch.tensor([max(item["samples"], shortest) for item in items]),
    }


def collate_facts(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collect what a batch holds beside its inputs; see `collate`."""
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
