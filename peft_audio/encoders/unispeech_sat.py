"""Describe UniSpeech-SAT (Chen et al., 2021, arXiv 2110.05752)."""

from peft_audio.encoders.conv_transformer import ConvTransformerFamily

UNISPEECH_SAT = ConvTransformerFamily("unispeech-sat", "unispeech_sat", "UniSpeech-SAT")
