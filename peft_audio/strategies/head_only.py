"""Train only the classification head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft_audio.config.recipes import Recipe
from peft_audio.config.settings import TrainConfig
from peft_audio.encoders.family import encoder_of
from peft_audio.strategies.base import Setup, Trainable, describe_trained, save_whole_modules


@dataclass(frozen=True)
class HeadOnlyRecipe(Recipe):
    """Train a classification head on a frozen encoder."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(output_dir="runs/head_only", learning_rate=1e-3))
    takes_random_encoder: ClassVar[bool] = True


def train_head(model: Any, setup: Setup) -> tuple[Any, Trainable]:
    """Train only the new head on a frozen encoder, as a linear probe with one hidden projection."""
    family = setup.family
    family.freeze_stem(model)
    encoder_of(model).requires_grad_(False)
    return model, describe_trained("head_only", model, family, save_whole_modules(family.head))
