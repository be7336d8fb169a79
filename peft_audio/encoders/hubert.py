"""Describe HuBERT (Hsu et al., 2021, arXiv 2106.07447)."""

from peft_audio.encoders.conv_transformer import ConvTransformerFamily

HUBERT = ConvTransformerFamily("hubert", "hubert", "HuBERT, DistilHuBERT", projection_returns_both=False)
