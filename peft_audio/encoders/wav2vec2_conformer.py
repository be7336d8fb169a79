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
        """Normalise over valid frames, hide the padding from each layer's convolution, and drop kept positions."""
        from peft_audio.encoders.exact_padding import zero_padding_before

        super().make_padding_exact(model)
        transformer = getattr(model, self.encoder).encoder
        zero_padding_before(transformer, [layer.conv_module.depthwise_conv for layer in transformer.layers])
        drop_kept_positions(transformer)


def drop_kept_positions(transformer: Any) -> None:
    """Compute positions again for another dtype, or after inference mode, in place.

    transformers keeps the positions of an earlier pass. Tensors made in inference mode cannot be used in training, and
    positions of a bfloat16 pass are too coarse for a float32 pass.

    Args:
        transformer: Conformer of transformers, with `embed_positions` or None.
    """
    if transformer.embed_positions is not None:
        transformer.embed_positions.register_forward_pre_hook(_drop_positions)


def _drop_positions(positions: Any, args: tuple[Any, ...]) -> None:
    import torch

    (hidden,) = args
    if not hasattr(positions, "pe"):  # rotary
        positions.cached_sequence_length = None
    elif positions.pe.dtype != hidden.dtype or (positions.pe.is_inference() and not torch.is_inference_mode_enabled()):
        positions.pe = positions.extend_pe(hidden.new_empty(1, positions.max_len))


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
