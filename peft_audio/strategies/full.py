"""Train the whole model (full fine-tuning)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft_audio.config.fields import setting
from peft_audio.config.recipes import Recipe
from peft_audio.config.settings import TrainConfig
from peft_audio.strategies.base import Setup, Trainable, describe_trained


@dataclass(frozen=True)
class FullConfig:
    """Control full fine-tuning.

    Args:
        train_cnn: Train the convolutional feature encoder too, as the tutorial behind this project did. Off by default,
            as in the fine-tuning of wav2vec 2.0 (Baevski et al., 2020). Comparisons use the default as the reference.
    """

    train_cnn: bool = setting(False, "training")


@dataclass(frozen=True)
class FullRecipe(Recipe):
    """Fine-tune a whole audio classifier.

    Args:
        full: Settings of full fine-tuning.
    """

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(output_dir="runs/full", learning_rate=3e-4, head_learning_rate=1e-3)
    )
    full: FullConfig = field(default_factory=FullConfig)
    takes_random_encoder: ClassVar[bool] = True


def train_all(model: Any, setup: Setup) -> tuple[Any, Trainable]:
    """Train the whole model, with the convolutional feature encoder only if `full.train_cnn` is set.

    wav2vec 2.0 is fine-tuned with frozen convolutions (Baevski et al., 2020). Random weights need trained convolutions.
    """
    family = setup.family
    if not setup.cfg.full.train_cnn:
        family.freeze_stem(model)
    unused = family.unused_parameters(model)
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
    return model, describe_trained("full", model, family, None, unused)
