"""Strategies, and where the frozen part of a two-layer encoder ends with each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers.adapt import adapt
from helpers.family_cells import STRATEGIES

from peft_audio.encoders.base import Cut
from peft_audio.strategies import LastNLayersConfig, LastNLayersRecipe, LoraConfig, LoraRecipe
from peft_audio.strategies.attention_heads import unfreeze_heads
from peft_audio.strategies.base import Trainable

Strategy = Callable[[Any], tuple[Any, Trainable]]


EVERY: dict[str, Strategy] = STRATEGIES | {
    "attention_heads": lambda model: unfreeze_heads(model, {1: [0]}),
    "lora, last layer": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(layers=[1]))),
    "last_n_layers, all": lambda model: adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=2))),
}


# Where the frozen part ends with each strategy, on encoders of two layers.
ENDS = {
    "head_only": Cut("pooled", 2),
    "bias_only": Cut("convolutions"),
    "last_n_layers": Cut("layers", 1),
    "last_n_layers, attention": Cut("layers", 0),
    "last_n_layers, all": Cut("layers", 0),
    "lora": Cut("layers", 0),
    "lora, dora": Cut("layers", 0),
    "lora, rslora": Cut("layers", 0),
    "lora, last layer": Cut("layers", 1),
    "ia3": Cut("layers", 0),
    "attention_heads": Cut("layers", 1),
    "full": Cut("convolutions"),
    "full, train_cnn": None,
}
