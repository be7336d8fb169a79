"""Compute the log-mel features of AST, with numpy alone.

transformers' extractor takes torchaudio where it is installed, and numpy elsewhere. The two differ in quiet bands. This
is the only implementation here: training, prediction, the README of an adapter and ONNX exports run this function.
"""

from __future__ import annotations

import numpy as np


def ast_features(waveform, mels, frames, mean, std):  # type: ignore[no-untyped-def]
    """Compute Kaldi's log-mel features of a waveform at 16 kHz, float32 of shape (frames, mels)."""
    waveform = np.pad(np.asarray(waveform, np.float64), (0, max(0, 400 - len(waveform))))
    pieces = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160][:frames]
    pieces = pieces - pieces.mean(1, keepdims=True)
    pieces = pieces - 0.97 * np.concatenate([pieces[:, :1], pieces[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(pieces * np.hanning(400), 512)) ** 2
    scale = 1127 * np.log1p(np.arange(257) * 31.25 / 700)
    edges = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700), mels + 2)
    rises = (scale[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falls = (edges[2:] - scale[:, None]) / np.diff(edges)[1:]
    filters = np.maximum(0, np.minimum(rises, falls))
    logs = np.log(np.maximum(power @ filters, 2.0**-23))
    logs = np.pad(logs, ((0, frames - len(logs)), (0, 0)))
    return ((logs - mean) / (2 * std)).astype(np.float32)
