"""Describe data2vec for audio (Baevski et al., 2022, arXiv 2202.03555)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft_audio.encoders.conv_transformer import ConvTransformerFamily


@dataclass(frozen=True)
class Data2VecAudioFamily(ConvTransformerFamily):
    """Provide data2vec-audio, whose positions come from several convolutions with norms between them."""

    def make_padding_exact(self, model: Any) -> None:
        """Hide from each positional convolution what the one before it made of the padding."""
        from peft_audio.encoders.exact_padding import zero_padding_before

        transformer = getattr(model, self.encoder).encoder
        zero_padding_before(transformer, [layer.conv for layer in transformer.pos_conv_embed.layers])


DATA2VEC_AUDIO = Data2VecAudioFamily(
    "data2vec-audio",
    "data2vec_audio",
    "data2vec-audio",
    padding="attention mask, and zeros before each positional convolution",
    arithmetic={},
)
