"""Store frozen weights in 16 bits during training, and restore them in float32 to evaluate and save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import peft
import torch
from torch import nn

from peft_audio.config import ModelConfig
from peft_audio.encoders.family import encoder_of
from peft_audio.encoders.loading import load_classifier, quiet_loading
from peft_audio.strategies.base import Trainable

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def store_frozen(model: Any, cfg: ModelConfig, mixed_precision: str) -> None:
    """Convert the encoder's frozen linear layers to 16 bits, in place.

    This halves their memory and saves the casts in each step. Norms stay in float32. An encoder with random weights is
    not converted, because its float32 weights could not be loaded again.

    Args:
        model: Model that a strategy returned.
        cfg: Settings of the encoder, from which `on_float32_encoder` loads it again.
        mixed_precision: Precision of the training.
    """
    if mixed_precision not in DTYPES or not cfg.pretrained:
        return
    for module in _frozen_linear(model):
        module.to(DTYPES[mixed_precision])


def _frozen_linear(model: Any) -> Iterator[nn.Linear]:
    """Yield the frozen linear layers of the encoder."""
    for name, module in encoder_of(model).named_modules():
        # Layers of bitsandbytes have their own class. Fixed factors of an adapter are not part of the base.
        own = type(module) is nn.Linear and "lora_" not in name
        if own and not any(weight.requires_grad for weight in module.parameters()):
            yield module


def _check_unmoved(model: Any, fresh: Any, cfg: ModelConfig) -> None:
    """Check that training did not change a 16-bit weight; loading the base again would hide such a change."""
    if cfg.quantization != "none":
        return
    low = {name: weight for name, weight in encoder_of(model).named_parameters() if weight.dtype != torch.float32}
    for name, drift in weight_drifts(low, dict(encoder_of(fresh).named_parameters())).items():
        if drift != 0:
            raise RuntimeError(f"the frozen weight {name} changed during training")


def weight_drifts(weights: Mapping[str, torch.Tensor], fresh: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Measure the largest absolute change of each weight since it was loaded, in the precision of the weight.

    Args:
        weights: Weights after a training, by name.
        fresh: Weights loaded again, by name; all of `weights` and possibly others.

    Returns:
        The largest absolute change by name; NaN if the weight holds NaN.
    """
    return {
        name: float((weight.detach().cpu() - fresh[name].detach().to(weight.dtype)).abs().max())
        for name, weight in weights.items()
    }


def on_float32_encoder(model: Any, trained: Trainable, cfg: ModelConfig, labels: Sequence[str]) -> Any:
    """Put the trained weights on the encoder as published, in float32, to evaluate and save them.

    Args:
        model: Trained model.
        trained: Parameters and modules that train.
        cfg: Settings from which the encoder was loaded.
        labels: Label names in the order of the logits.

    Returns:
        A new model in eval mode; `model` itself if its encoder is in float32 already.

    Raises:
        RuntimeError: A frozen weight changed during training.
    """
    low = any(weight.dtype != torch.float32 for weight in encoder_of(model).parameters())
    if cfg.quantization == "none" and not low:
        return model
    restored = load_classifier(replace(cfg, quantization="none"), labels)
    if hasattr(model, "peft_config"):
        with quiet_loading():
            restored = peft.get_peft_model(restored, model.peft_config["default"])
    _check_unmoved(model, restored, cfg)
    # Fixed factors of an adapter are not part of the encoder either, so they are copied too.
    prefix = f".{model.base_model.prefix}" if hasattr(model, "peft_config") else None
    weights = {
        name: weight
        for name, weight in model.named_parameters()
        if name in trained.parameters or (prefix and prefix in name)
    }
    restored.load_state_dict(weights, strict=False)
    for name, weight in restored.named_parameters():
        weight.requires_grad_(name in trained.parameters)
    return restored.to(next(model.parameters()).device).eval()
