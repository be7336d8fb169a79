"""Waveforms as a model takes them: normalised each for itself, then padded into a batch.

Prediction needs no more than this of the way to batches, and starts sooner without the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence


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
        items: What `clips.Clips` gives; one without `recording` is a recording of its own.
        minimum_samples: See `EncoderFamily.minimum_samples`. Zeros up to it count as part of the clip, in any batch.

    Returns:
        `input_values`, float32 of shape (clips, samples); `attention_mask`, int64 of the same shape; of shape
        (clips,): `label`, `index`, `recording`, `weight`; and with SpecAugment `time_mask`, bool of shape
        (clips, frames), and `feature_mask`, bool of shape (clips, channels).
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
        "recording": torch.tensor([item.get("recording", item["index"]) for item in items]),
        "weight": torch.tensor([item["weight"] for item in items], dtype=torch.float32),
    }
