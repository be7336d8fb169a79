"""Describe UniSpeech (Wang et al., 2021, arXiv 2101.07597)."""

from peft_audio.encoders.conv_transformer import ConvTransformerFamily

UNISPEECH = ConvTransformerFamily("unispeech", "unispeech", "UniSpeech", arithmetic={})
