from __future__ import annotations

from typing import Any

from peft_audio.config import Recipe
from peft_audio.encoders.family import family_of
from peft_audio.strategies import Setup, Trainable, strategy_of


def adapt(model: Any, recipe: Recipe) -> tuple[Any, Trainable]:
    """Apply the strategy of a recipe class that reads no clips."""
    return strategy_of(recipe)(model, Setup(family_of(model.config), recipe))
