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
    """Provide WavLM, whose layers share the position bias that the first one computes."""

    def skip_layer(
        self, layer: Any, hidden: torch.Tensor, position_bias: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a skipped layer's input and the position bias, computed if this layer would have computed it."""
        if position_bias is None:
            clips, frames, _ = hidden.shape
            bias = layer.attention.compute_bias(frames, frames)
            position_bias = bias.repeat(clips, 1, 1)
        return hidden, position_bias


# WavLM's attention passes the weights of its linear layers to one torch function. It never calls the layers, so neither
# LoRA nor quantisation of them has an effect.
WAVLM = WavLMFamily(
    "wavlm",
    "wavlm",
    "WavLM",
    lora_reaches_attention=False,
    unquantized_linear=("q_proj", "k_proj", "v_proj", "out_proj", "gru_rel_pos_linear"),
    only_arithmetic=Arithmetic("eager", False, "transformers has no other for this family"),
)
