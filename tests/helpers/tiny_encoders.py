"""Small encoders with random weights, one for each published architecture."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    SeamlessM4TFeatureExtractor,
    SEWConfig,
    SEWDConfig,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
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

# SEW's convolutions are longer: two frames of them make one of the transformer's.
SQUEEZED: dict[str, Any] = {
    "conv_dim": (16,) * 13,
    "conv_stride": (5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1),
    "conv_kernel": (10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1),
    "squeeze_factor": 2,
}
# Architectures that are used less, with every strategy in a test of their own.
SIBLINGS = {
    "unispeech": tiny_config("group", UniSpeechConfig),
    "data2vec-audio": tiny_config("layer", Data2VecAudioConfig, num_conv_pos_embeddings=3, conv_pos_kernel_size=5),
    "hubert, batch norm": tiny_config("layer", HubertConfig, conv_pos_batch_norm=True),
    "conformer, relative": tiny_config("layer", Wav2Vec2ConformerConfig, conv_depthwise_kernel_size=7),
    "conformer, rotary": tiny_config(
        "layer", Wav2Vec2ConformerConfig, conv_depthwise_kernel_size=7, position_embeddings_type="rotary"
    ),
    "sew": tiny_config("group", SEWConfig, **SQUEEZED),
    "sew-d": tiny_config("group", SEWDConfig, **SQUEEZED, position_buckets=8, max_position_embeddings=16),
    "w2v-bert": tiny_config(
        "layer",
        Wav2Vec2BertConfig,
        feature_projection_input_dim=160,
        conv_depthwise_kernel_size=7,
        left_max_position_embeddings=8,
        right_max_position_embeddings=4,
    ),
}
if tuple(map(int, version("transformers").split(".")[:2])) < (5, 18):
    del SIBLINGS["sew-d"]  # refused


def save_base(folder: Path, norm: str) -> Path:
    return save_encoder(folder, tiny_config(norm))


def save_encoder(folder: Path, config: Any, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    AutoModel.from_config(config).save_pretrained(folder)
    extractor: Any
    if config.model_type == "wav2vec2-bert":
        extractor = SeamlessM4TFeatureExtractor(padding_value=1)
    else:
        mask = config.feat_extract_norm == "layer"
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=mask)
    extractor.save_pretrained(folder)
    return folder
