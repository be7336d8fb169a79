"""Mask an encoder's frames as SpecAugment does (Park et al., 2019, arXiv 1904.08779), drawn per clip.

transformers draws masks for a whole batch from NumPy's global generator, only in train mode, and stops at clips shorter
than a span. Here a mask depends on the clip's seed alone, so workers, processes and batches change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from peft_audio.config import AugmentConfig
from peft_audio.encoders.base import MASK_VECTOR
from peft_audio.encoders.family import encoder_of, family_of

# Crops are drawn from the same seed: another stream keeps where a clip is cut and what is hidden apart.
STREAM = 1
Masks = Callable[[int, Sequence[int]], dict[str, np.ndarray]]


def make_masks(cfg: AugmentConfig, encoder: Any) -> Masks | None:
    """Return the function that draws a clip's masks, or None where SpecAugment is turned off.

    Args:
        cfg: Shares and lengths of spans.
        encoder: The encoder's config.

    Returns:
        A function that takes a number of samples and a seed, a sequence of numbers, and gives `time_mask`, bool of
        shape (frames,), and `feature_mask`, bool of shape (channels,), true where hidden.
    """
    off = not (cfg.mask_time_share or cfg.mask_feature_share)
    return None if off else partial(_draw, cfg, encoder)


def _draw(cfg: AugmentConfig, encoder: Any, samples: int, seed: Sequence[int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([*seed, STREAM])
    family = family_of(encoder)
    frames, channels = family.mask_shape(encoder, samples)
    span = max(1, round(cfg.mask_time_ms / family.mask_frame_ms))
    return {
        "time_mask": _spans(frames, cfg.mask_time_share, span, rng),
        "feature_mask": _spans(channels, cfg.mask_feature_share, cfg.mask_feature_channels, rng),
    }


@contextmanager
def masked(model: Any, batch: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Apply the batch's masks inside the block: to the transformer's input, or to log-mel features.

    Hidden frames become the vector that the encoder was pretrained with, or zeros where it has none; hidden channels
    become zeros.

    Args:
        model: A classifier, as it is or in PEFT's form.
        batch: Perhaps with `time_mask` of shape (clips, frames) and `feature_mask` of shape (clips, channels).
    """
    if "time_mask" not in batch:
        yield
        return
    encoder, family = encoder_of(model), family_of(model.config)
    vector = getattr(encoder, MASK_VECTOR, None)

    def hide(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0].transpose(1, 2) if family.masked_channels_first else args[0]
        fill = torch.zeros_like(hidden[0, 0]) if vector is None else vector.detach().to(hidden.dtype)
        # A fixed window goes on after the longest clip of the batch.
        time = F.pad(batch["time_mask"], (0, hidden.shape[1] - batch["time_mask"].shape[1]))
        hidden = torch.where(time[:, :, None], fill, hidden)
        hidden = hidden.masked_fill(batch["feature_mask"][:, None, :], 0)
        return (hidden.transpose(1, 2) if family.masked_channels_first else hidden, *args[1:])

    hook = encoder.get_submodule(family.masked_module).register_forward_pre_hook(hide)
    try:
        yield
    finally:
        hook.remove()


def _spans(size: int, share: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Spans at random places, overlaps allowed, as many as give the share on average if none overlapped."""
    mask = np.zeros(size, dtype=bool)
    length = min(length, size // 2)
    if not share or length < 1:
        return mask
    # Rounded up or down at random, as transformers does, so that short clips are masked now and then too.
    count = min(int(share * size / length + rng.uniform()), size - length + 1)
    starts = rng.choice(size - length + 1, count, replace=False)
    mask[(starts[:, None] + np.arange(length)).ravel()] = True
    return mask
