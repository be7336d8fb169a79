"""Make an encoder's output for a clip independent of the batch that it is padded into."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ValidGroupNorm(nn.GroupNorm):
    """Normalise each channel over a clip's own frames only: `nn.GroupNorm` with one channel per group, without padding.

    wav2vec2-base normalises its first convolution over time, so padding would shift every clip's output. With
    `valid_frames` set, each clip is normalised as if it were alone; with None it is a plain group norm.
    """

    valid_frames: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise `input`, of shape (clips, channels, frames), over the valid frames of each clip."""
        if self.valid_frames is None:
            return super().forward(input)
        count = self.valid_frames.view(-1, 1, 1)
        valid = torch.arange(input.shape[-1], device=input.device) < count
        values = input.float()
        mean = values.masked_fill(~valid, 0).sum(-1, keepdim=True) / count
        centred = (values - mean).masked_fill(~valid, 0)
        variance = centred.square().sum(-1, keepdim=True) / count
        scaled = centred * torch.rsqrt(variance + self.eps)
        return (scaled * self.weight[:, None] + self.bias[:, None]).to(input.dtype)


def make_padding_exact(encoder: nn.Module) -> None:
    """Make a clip's output independent of its batch, in place.

    Attention and pooling follow the attention mask already. What is left is the group norm of the first convolution
    (`feat_extract_norm="group"`); encoders with layer norms need nothing.

    Args:
        encoder: A `Wav2Vec2Model`.
    """
    first: Any = encoder.feature_extractor.conv_layers[0]  # type: ignore[union-attr,index]
    plain = getattr(first, "layer_norm", None)
    if not isinstance(plain, nn.GroupNorm):
        return
    exact = ValidGroupNorm(plain.num_groups, plain.num_channels, plain.eps)
    exact.weight, exact.bias = plain.weight, plain.bias
    first.layer_norm = exact
    encoder.register_forward_pre_hook(_tell_valid_frames, with_kwargs=True)


def _tell_valid_frames(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    first = encoder.feature_extractor.conv_layers[0]
    kernel, stride = first.conv.kernel_size[0], first.conv.stride[0]
    # Where nothing is padded, torch's own norm says the same, faster; to ask a GPU would cost more than that.
    if mask is None or (mask.device.type == "cpu" and bool(mask.all())):
        first.layer_norm.valid_frames = None
    else:
        first.layer_norm.valid_frames = (mask.sum(-1) - kernel) // stride + 1
