"""Models as a strategy leaves them after training, ready to be saved as an adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers.adapt import adapt

from peft_audio.adapters.record import AdapterRecord, describe_adapter
from peft_audio.config import ModelConfig
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.strategies import (
    BiasOnlyRecipe,
    FullRecipe,
    IA3Recipe,
    LastNLayersConfig,
    LastNLayersRecipe,
    LoraConfig,
    LoraRecipe,
)
from peft_audio.strategies.base import Trainable

LABELS = ("low", "mid dle", "höher", "zed")


@dataclass
class Saved:
    folder: Path
    model: Any
    trained: Trainable
    extractor: Any
    record: AdapterRecord


def describe(
    base: Path,
    strategy: Callable[[Any], tuple[Any, Trainable]] | None = None,
    seed: int = 0,
    std: float = 0.2,
    **model_settings: Any,
) -> Saved:
    """A model whose every trained weight matters, LoRA's unless another strategy is given, not yet saved."""
    cfg = LoraRecipe(model=ModelConfig(name=str(base), **model_settings))
    torch.manual_seed(seed)
    model = load_classifier(cfg.model, LABELS)
    identity = identify_base(cfg.model, model)
    model, trained = (strategy or PRODUCTS["lora"])(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in trained.parameters:
                weight.normal_(std=std)
    model.eval()
    extractor = load_extractor(cfg.model)
    record = describe_adapter(cfg, identity, LABELS, extractor, trained.strategy, {"validation_accuracy": 0.5})
    return Saved(base, model, trained, extractor, record)


PRODUCTS: dict[str, Callable[[Any], tuple[Any, Trainable]]] = {
    "lora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(r=4))),
    "bias_only": lambda model: adapt(model, BiasOnlyRecipe()),
    "ia3": lambda model: adapt(model, IA3Recipe()),
    "last_n_layers": lambda model: adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))),
    "full": lambda model: adapt(model, FullRecipe()),
}
