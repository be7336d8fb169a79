"""Compute WavLM's attention by calling its linear layers, with torch's scaled dot product attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.wavlm.modeling_wavlm import WavLMAttention


class CallingWavLMAttention(WavLMAttention):
    """Compute what transformers' `WavLMAttention` does, from calls of the linear layers instead of their weights.

    transformers passes the weights to `torch.nn.functional.multi_head_attention_forward`. PEFT and bitsandbytes replace
    the layers, so LoRA, IA3 and quantisation have an effect only if the layers are called. The scores of query i and
    key j are `q_i k_j / sqrt(d) + g_i b_ij`, with a bias b by distance and a gate g that the query's frame gives (Chen
    et al., 2021, arXiv 2110.13900, section III-B).
    """

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        index: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None, torch.Tensor]:
        """Attend over a clip's own frames.

        Args:
            hidden_states: Frames of shape (clips, frames, channels).
            attention_mask: True at valid frames, of shape (clips, frames); None without padding.
            position_bias: Bias of shape (heads, frames, frames) from the first layer; None in the first layer.
            index: Not used, as in transformers.
            **kwargs: Not used.

        Returns:
            Output of shape (clips, frames, channels), None in place of the attention weights, and the position bias.
        """
        clips, frames, _ = hidden_states.shape

        def by_head(values: torch.Tensor) -> torch.Tensor:
            return values.view(clips, frames, self.num_heads, self.head_dim).transpose(1, 2)

        if position_bias is None:
            position_bias = self.compute_bias(frames, frames)
        query, key, value = (by_head(layer(hidden_states)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        bias = self._gate(by_head(hidden_states)) * position_bias
        if attention_mask is not None:
            bias.masked_fill_(~attention_mask[:, None, None].bool(), float("-inf"))
        dropout = self.dropout if self.training else 0.0
        output = scaled_dot_product_attention(query, key, value, bias.to(query.dtype), dropout)
        return self.out_proj(output.transpose(1, 2).flatten(2)), None, position_bias

    def _gate(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute gates of shape (clips, heads, frames, 1) from frames of shape (clips, heads, frames, channels)."""
        parts = self.gru_rel_pos_linear(hidden).unflatten(-1, (2, 4)).sum(-1)
        gate_a, gate_b = torch.sigmoid(parts).chunk(2, dim=-1)
        return gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0


def call_linear_layers(model: torch.nn.Module) -> None:
    """Replace transformers' attention in every layer of a WavLM, in place; weights and their names stay."""
    for module in model.modules():
        if type(module) is WavLMAttention:
            module.__class__ = CallingWavLMAttention


def pass_weights(model: torch.nn.Module) -> None:
    """Undo `call_linear_layers`."""
    for module in model.modules():
        if type(module) is CallingWavLMAttention:
            module.__class__ = WavLMAttention  # type: ignore[assignment]
