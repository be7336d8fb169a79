"""Compute log-mel features inside an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn


class WhisperLogMel(nn.Module):
    """Compute the features of transformers' `WhisperFeatureExtractor` with convolutions, which every ONNX runtime has.

    The discrete Fourier transform of each frame is a convolution with the windowed cosines and sines.

    Args:
        extractor: A `WhisperFeatureExtractor`.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        size, self.hop = extractor.n_fft, extractor.hop_length
        angles = 2 * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        waves = np.concatenate([np.cos(angles), np.sin(angles)]) * hann
        self.register_buffer("waves", torch.from_numpy(waves[:, None]).float())
        self.register_buffer("filters", torch.from_numpy(extractor.mel_filters.T.copy()).float())

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Return features of shape (clips, mels, frames) for waveforms of shape (clips, samples of the window)."""
        waves: Any = self.waves
        half = waves.shape[-1] // 2
        padded = nn.functional.pad(waveforms[:, None], (half, half), mode="reflect")
        real, imaginary = nn.functional.conv1d(padded, waves, stride=self.hop)[..., :-1].chunk(2, dim=1)
        filters: Any = self.filters
        mels = filters @ (real.square() + imaginary.square())
        logs = mels.clamp(min=1e-10).log() / np.log(10)
        return (torch.maximum(logs, logs.amax((1, 2), keepdim=True) - 8) + 4) / 4
