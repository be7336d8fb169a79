"""Train biases and the head (BitFit)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft_audio.config.recipes import Recipe
from peft_audio.config.settings import TrainConfig
from peft_audio.encoders.family import encoder_of, family_of
from peft_audio.strategies.base import (
    Setup,
    Trainable,
    describe_trained,
    save_whole_modules,
)


@dataclass(frozen=True)
class BiasOnlyRecipe(Recipe):
    """Train the biases of an audio classifier and its head."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(output_dir="runs/bias_only", learning_rate=1e-2, head_learning_rate=1e-3)
    )
    takes_random_encoder: ClassVar[bool] = True


def train_biases(model: Any, setup: Setup) -> tuple[Any, Trainable]:
    """Train all biases, with those of layer norms, and the head (BitFit; Ben Zaken et al., 2022, arXiv 2106.10199).

    The convolutional feature encoder stays frozen, including its biases.
    """
    family = setup.family
    mark_biases(model)
    # With this config, PEFT saves biases of the base in the adapter and loads them.
    return model, describe_trained("bias_only", model, family, save_whole_modules(family.head, bias="all"))


def mark_biases(model: Any) -> tuple[str, ...]:
    """Freeze the encoder except for the biases of its transformer, and return the names of all trained parameters."""
    family = family_of(model.config)
    encoder_of(model).requires_grad_(False)
    unused = family.unused_parameters(model)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") and name not in unused:
            parameter.requires_grad_(True)
    family.freeze_stem(model)
    return tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
