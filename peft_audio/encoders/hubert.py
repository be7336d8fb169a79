"""Describe HuBERT (Hsu et al., 2021, arXiv 2106.07447)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft_audio.encoders.conv_transformer import ConvTransformerFamily


@dataclass(frozen=True)
class HubertFamily(ConvTransformerFamily):
    """Provide HuBERT, which can have a batch norm before its positional convolution (`conv_pos_batch_norm`)."""

    def make_padding_exact(self, model: Any) -> None:
        """Normalise over valid frames, and hide what the batch norm makes of the zeros behind a clip."""
        super().make_padding_exact(model)
        if getattr(model.config, "conv_pos_batch_norm", False):
            from peft_audio.encoders.exact_padding import zero_padding_before

            transformer = getattr(model, self.encoder).encoder
            zero_padding_before(transformer, [transformer.pos_conv_embed.conv])


HUBERT = HubertFamily("hubert", "hubert", "HuBERT, DistilHuBERT", projection_returns_both=False)
