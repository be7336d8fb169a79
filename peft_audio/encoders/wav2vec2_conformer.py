"""Describe wav2vec 2.0 with Conformer layers (Wang et al., 2020, arXiv 2010.05171; Gulati et al., arXiv 2005.08100)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft_audio.encoders.conv_transformer import ConvTransformerFamily

CONFORMER_DROPOUTS = (
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "feat_proj_dropout",
    "conformer_conv_dropout",
)


@dataclass(frozen=True)
class Wav2Vec2ConformerFamily(ConvTransformerFamily):
    """Provide wav2vec2-conformer: each layer holds two feed-forward blocks, attention and a convolution over frames."""

    def layer_norms(self, config: Any) -> tuple[str, str]:
        """Name the norm after the last layer, which every variant has."""
        return ("", "encoder.layer_norm")

    def unused_parameters(self, model: Any) -> list[str]:
        """List as well the positional convolution, which transformers makes and never calls."""
        prefix = f"{self.encoder}.encoder.pos_conv_embed."
        return super().unused_parameters(model) + [
            name for name, _ in model.named_parameters() if name.startswith(prefix)
        ]

    def make_padding_exact(self, model: Any) -> None:
        """Normalise over valid frames, and hide the padding from the convolution of each layer."""
        from peft_audio.encoders.exact_padding import zero_padding_before

        super().make_padding_exact(model)
        transformer = getattr(model, self.encoder).encoder
        zero_padding_before(transformer, [layer.conv_module.depthwise_conv for layer in transformer.layers])


WAV2VEC2_CONFORMER = Wav2Vec2ConformerFamily(
    "wav2vec2-conformer",
    "wav2vec2_conformer",
    "wav2vec2-conformer",
    attention_block="self_attn",
    attention=("linear_q", "linear_k", "linear_v", "linear_out"),
    keys_and_values=("linear_k", "linear_v"),
    dropouts=CONFORMER_DROPOUTS,
    padding="attention mask, group norm over valid frames, and zeros before each layer's convolution",
    arithmetic={},
    positions="",
)
