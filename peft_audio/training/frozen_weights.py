"""Hold frozen weights in 16 bits while training; measure and save with them in float32."""

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
    """Hold the encoder's frozen linear layers in 16 bits, in place: half the memory, and nothing to cast in each step.

    Norms stay in float32. An encoder from random weights stays as it is, because nothing could give it back.

    Args:
        model: What a strategy returned.
        cfg: How it was loaded; `on_float32_encoder` loads it again.
        mixed_precision: What training computes in.
    """
    if mixed_precision not in DTYPES or not cfg.pretrained:
        return
    for module in _frozen_linear(model):
        module.to(DTYPES[mixed_precision])


def _frozen_linear(model: Any) -> Iterator[nn.Linear]:
    for name, module in encoder_of(model).named_modules():
        # Those of bitsandbytes are of a class of their own, and factors that an adapter keeps fixed are not the base's.
        own = type(module) is nn.Linear and "lora_" not in name
        if own and not any(weight.requires_grad for weight in module.parameters()):
            yield module


def _check_unmoved(model: Any, plain: Any, cfg: ModelConfig) -> None:
    """What is loaded afresh would hide it, had training moved a weight that it held in 16 bits."""
    if cfg.quantization != "none":
        return
    low = {name: weight for name, weight in encoder_of(model).named_parameters() if weight.dtype != torch.float32}
    for name, drift in weight_drifts(low, dict(encoder_of(plain).named_parameters())).items():
        if drift != 0:
            raise RuntimeError(f"the frozen weight {name} was changed by the training")


def weight_drifts(weights: Mapping[str, torch.Tensor], fresh: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Measure the largest absolute change of each weight since it was loaded, in its own precision; NaN for NaN.

    Args:
        weights: Weights after a training, by name.
        fresh: The same weights and others, loaded again.
    """
    return {
        name: float((weight.detach().cpu() - fresh[name].detach().to(weight.dtype)).abs().max())
        for name, weight in weights.items()
    }


def on_float32_encoder(model: Any, trained: Trainable, cfg: ModelConfig, labels: Sequence[str]) -> Any:
    """What is measured and saved: the trained weights on the encoder as published, in float32.

    Args:
        model: A trained model.
        trained: What trains in it.
        cfg: How it was loaded.
        labels: The label names in the order of the logits.

    Returns:
        The model itself where its encoder is in float32 already.
    """
    low = any(weight.dtype != torch.float32 for weight in encoder_of(model).parameters())
    if cfg.quantization == "none" and not low:
        return model
    plain = load_classifier(replace(cfg, quantization="none"), labels)
    if hasattr(model, "peft_config"):
        with quiet_loading():
            plain = peft.get_peft_model(plain, model.peft_config["default"])
    _check_unmoved(model, plain, cfg)
    # Factors that an adapter keeps fixed are no part of the encoder either.
    prefix = f".{model.base_model.prefix}" if hasattr(model, "peft_config") else None
    weights = {
        name: weight
        for name, weight in model.named_parameters()
        if name in trained.parameters or (prefix and prefix in name)
    }
    plain.load_state_dict(weights, strict=False)
    for name, weight in plain.named_parameters():
        weight.requires_grad_(name in trained.parameters)
    return plain.to(next(model.parameters()).device).eval()
