"""A small AST with random weights, as a directory that transformers reads."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification


def save_ast(folder: Path) -> Path:
    """Save the published layout, small: patches of 16 x 16 every 10, a window of 2.56 s, labels of its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = ASTForAudioClassification(ASTConfig(**sizes, max_length=256, num_labels=7))
    embeddings = model.audio_spectrogram_transformer.embeddings
    for table in (embeddings.position_embeddings, embeddings.cls_token, embeddings.distillation_token):
        torch.nn.init.normal_(table)
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=256).save_pretrained(folder)
    return folder
