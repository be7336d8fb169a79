"""Small encoders with random weights, one for each published architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    HubertConfig,
    UniSpeechSatConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)


def tiny_config(norm: str = "group", kind: type[Any] = Wav2Vec2Config, **overrides: object) -> Any:
    """Two layers of width 32 with the CNN's usual kernels and strides; `norm` is "group" or "layer"."""
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "classifier_proj_size": 16,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
        "vocab_size": 12,
    }
    return kind(**settings | overrides)


# The architectures that people use, small: what their published configs set apart is set here too.
ENCODERS = {
    "wav2vec2-base": tiny_config("group"),
    "wav2vec2-large, XLS-R": tiny_config("layer", conv_bias=True),
    "hubert-base": tiny_config("group", HubertConfig),
    "hubert-large": tiny_config("layer", HubertConfig, conv_bias=True),
    "distilhubert": tiny_config("group", HubertConfig, feat_proj_layer_norm=False),
    "wavlm-base": tiny_config("group", WavLMConfig),
    "wavlm-large": tiny_config("layer", WavLMConfig),
    "unispeech-sat-base": tiny_config("group", UniSpeechSatConfig),
    "unispeech-sat-large": tiny_config("layer", UniSpeechSatConfig, conv_bias=True),
}


def save_base(folder: Path, norm: str) -> Path:
    return save_encoder(folder, tiny_config(norm))


def save_encoder(folder: Path, config: Any, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    AutoModel.from_config(config).save_pretrained(folder)
    mask = config.feat_extract_norm == "layer"
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=mask).save_pretrained(folder)
    return folder
