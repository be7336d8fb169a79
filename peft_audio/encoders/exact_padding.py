"""Make an encoder's output for a clip independent of the batch that it is padded into."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask


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
    encoder.register_forward_pre_hook(_set_valid_frames, with_kwargs=True)


def _set_valid_frames(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    first = encoder.feature_extractor.conv_layers[0]
    kernel, stride = first.conv.kernel_size[0], first.conv.stride[0]
    # Without padding, torch's own norm returns the same faster. Reading the mask from a GPU would cost more than that.
    if mask is None or (mask.device.type == "cpu" and bool(mask.all())):
        first.layer_norm.valid_frames = None
    else:
        first.layer_norm.valid_frames = (mask.sum(-1) - kernel) // stride + 1


def zero_padding_before(transformer: nn.Module, convolutions: Iterable[nn.Module]) -> None:
    """Let convolutions over frames read zeros behind a clip's last frame, as they do for the clip alone.

    Without this, they read what norms and feed-forward layers made of the padding.

    Args:
        transformer: Module that is called with `attention_mask`, bool of shape (clips, frames), or None.
        convolutions: Convolutions in it, over inputs of shape (clips, channels, frames).
    """
    # A closure: PEFT's copies of a layer must read what this transformer was given.
    now = SimpleNamespace(valid=None)

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now.valid = kwargs.get("attention_mask")

    def hide(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return None if now.valid is None else (args[0].masked_fill(~now.valid[:, None], 0),)

    transformer.register_forward_pre_hook(remember, with_kwargs=True)
    for convolution in convolutions:
        convolution.register_forward_pre_hook(hide)


def floor_squeezed_frames(transformer: Any, layers: Iterable[nn.Module], factor: int) -> None:
    """Let a transformer that squeezes frames drop the last ones that do not fill a squeezed frame, in every batch.

    SEW averages each `factor` frames into one, and later writes each as `factor` frames again. For a clip alone, the
    frames that are left over are dropped and come back as zeros. In a batch, transformers counts a squeezed frame that
    is partly padding as the clip's own. The zeros are added here, because transformers asks first whether it needs any,
    and an ONNX graph would keep the answer for the clip that it was traced with.

    Args:
        transformer: Encoder with `upsample`, called with `attention_mask`, bool of shape (clips, frames), or None.
        layers: Modules that take the squeezed frames and their attention mask.
        factor: Frames in a squeezed frame.
    """
    now = SimpleNamespace(frames=0, counts=None, mask=None)

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        valid = kwargs.get("attention_mask")
        now.frames = args[0].shape[1]
        now.counts, now.mask = None if valid is None else valid.sum(-1, keepdim=True) // factor, None

    def attend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if now.counts is None:
            return None
        hidden = args[0]
        if now.mask is None:
            now.mask = (torch.arange(hidden.shape[1], device=hidden.device) < now.counts).long()
        mask = now.mask
        if "attention_mask" not in kwargs:
            # SEW-D makes the mask of its layers inside.
            return (hidden, mask, *args[2:]), kwargs
        mask = create_bidirectional_mask(config=transformer.config, inputs_embeds=hidden, attention_mask=mask)
        return args, kwargs | {"attention_mask": mask}

    def drop(module: nn.Module, args: tuple[Any, ...], hidden: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.pad(hidden, (0, 0, 0, now.frames - hidden.shape[1]))
        if now.counts is None:
            return hidden
        own = torch.arange(hidden.shape[1], device=hidden.device) < now.counts * factor
        return hidden.masked_fill(~own[:, :, None], 0)

    transformer.register_forward_pre_hook(remember, with_kwargs=True)
    for layer in layers:
        layer.register_forward_pre_hook(attend, with_kwargs=True)
    transformer.upsample.register_forward_hook(drop)
