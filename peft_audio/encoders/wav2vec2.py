"""Describe wav2vec 2.0 (Baevski et al., 2020, arXiv 2006.11477)."""

from peft_audio.encoders.conv_transformer import ConvTransformerFamily

WAV2VEC2 = ConvTransformerFamily("wav2vec2", "wav2vec2", "wav2vec 2.0, XLS-R")
