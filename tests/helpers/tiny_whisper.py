"""A small Whisper with random weights, as a directory that transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

# The published layout, small: 80 mel bands, positions for whole seconds, a key projection without a bias.
TINY = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 64,
    "vocab_size": 60,
    "classifier_proj_size": 16,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}


def save_whisper(folder: Path, seconds: int = 4, kind: type[Any] = WhisperForAudioClassification) -> Path:
    """Save a random Whisper of `seconds` seconds, in float16 as published."""
    torch.manual_seed(0)
    model = kind(WhisperConfig(**TINY, max_source_positions=50 * seconds))
    model.to(torch.float16).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=seconds).save_pretrained(folder)
    return folder
