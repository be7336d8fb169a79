"""Describe WavLM (Chen et al., 2021, arXiv 2110.13900)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_audio.encoders.base import Arithmetic
from peft_audio.encoders.conv_transformer import ConvTransformerFamily

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WavLMFamily(ConvTransformerFamily):
    """Provide WavLM, with an attention of our own, whose layers share the position bias that the first one computes."""

    def replace_attention(self, model: Any) -> None:
        """Call the attention's linear layers, with equal outputs."""
        from peft_audio.encoders.wavlm_attention import call_linear_layers

        call_linear_layers(model)

    def restore_attention(self, model: Any) -> None:
        """Put transformers' attention back, which reads the weights of its linear layers."""
        from peft_audio.encoders.wavlm_attention import pass_weights

        pass_weights(model)

    def skip_layer(
        self, layer: Any, hidden: torch.Tensor, position_bias: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a skipped layer's input and the position bias, computed if this layer would have computed it."""
        if position_bias is None:
            frames = hidden.shape[1]
            position_bias = layer.attention.compute_bias(frames, frames)
        return hidden, position_bias


WAVLM = WavLMFamily(
    "wavlm",
    "wavlm",
    "WavLM",
    uncalled=("q_proj", "k_proj", "v_proj", "out_proj"),
    # With 8 outputs it is not worth quantising.
    unquantized_linear=("gru_rel_pos_linear",),
    only_arithmetic=Arithmetic("sdpa", False, "peft-audio's own; benchmarks/speed/arithmetic.py"),
)
