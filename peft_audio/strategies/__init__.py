"""List the strategies, which decide which weights train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft_audio.config.recipes import Recipe
from peft_audio.strategies.attention_heads import AttentionHeadsConfig, AttentionHeadsRecipe, train_attention_heads
from peft_audio.strategies.base import Setup, Trainable
from peft_audio.strategies.bias_only import BiasOnlyRecipe, train_biases
from peft_audio.strategies.full import FullConfig, FullRecipe, train_all
from peft_audio.strategies.head_only import HeadOnlyRecipe, train_head
from peft_audio.strategies.ia3 import IA3Recipe, apply_ia3
from peft_audio.strategies.last_n_layers import LastNLayersConfig, LastNLayersRecipe, train_last_n_layers
from peft_audio.strategies.lora import LoraConfig, LoraRecipe, apply_lora

Apply = Callable[[Any, Setup], tuple[Any, Trainable]]


@dataclass(frozen=True)
class Strategy:
    """Row of the table of strategies.

    Attributes:
        recipe: Settings class of its runs, with its default learning rates.
        apply: Function that marks the parameters that train, `(model, setup) -> (model, Trainable)`.
    """

    recipe: type[Recipe]
    apply: Apply


# By the names of their recipes. Command line, comparisons and test matrices read this table.
STRATEGIES = {
    "head_only": Strategy(HeadOnlyRecipe, train_head),
    "last_n_layers": Strategy(LastNLayersRecipe, train_last_n_layers),
    "attention_heads": Strategy(AttentionHeadsRecipe, train_attention_heads),
    "bias_only": Strategy(BiasOnlyRecipe, train_biases),
    "ia3": Strategy(IA3Recipe, apply_ia3),
    "lora": Strategy(LoraRecipe, apply_lora),
    "full": Strategy(FullRecipe, train_all),
}


def strategy_of(cfg: Recipe) -> Apply:
    """Return the function of the strategy to which settings belong.

    Raises:
        TypeError: The settings belong to no strategy.
    """
    for strategy in STRATEGIES.values():
        if isinstance(cfg, strategy.recipe):
            return strategy.apply
    raise TypeError(f"got {type(cfg).__name__}, expected the recipe of a strategy, such as LoraRecipe")


__all__ = [
    "STRATEGIES",
    "Apply",
    "AttentionHeadsConfig",
    "AttentionHeadsRecipe",
    "BiasOnlyRecipe",
    "FullConfig",
    "FullRecipe",
    "HeadOnlyRecipe",
    "IA3Recipe",
    "LastNLayersConfig",
    "LastNLayersRecipe",
    "LoraConfig",
    "LoraRecipe",
    "Setup",
    "Strategy",
    "Trainable",
    "strategy_of",
]
