"""Train the last layers of the transformer, and the head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peft_audio.config.fields import setting
from peft_audio.config.recipes import Recipe
from peft_audio.config.settings import TrainConfig
from peft_audio.encoders.family import encoder_of
from peft_audio.errors import UserError, require
from peft_audio.strategies.base import Setup, Trainable, describe_trained, save_whole_modules


@dataclass(frozen=True)
class LastNLayersConfig:
    """Select the last layers of the encoder's transformer that train.

    Args:
        n: Number of layers that train, counted from the last. A choice: a third of the layers of the bundled encoder, a
            sixth of those of wav2vec2-base.
        part: Part of each layer that trains: "layer", the whole layer, or "attention".
    """

    n: int = setting(2, "training")
    part: Literal["layer", "attention"] = setting("layer", "training")

    def __post_init__(self) -> None:
        require(self.n >= 1, "last_n_layers.n", self.n, "1 or more", "Try 2, or recipes/head_only.py for none.")


@dataclass(frozen=True)
class LastNLayersRecipe(Recipe):
    """Fine-tune the last layers of an audio classifier.

    Args:
        last_n_layers: Selection of the layers.
    """

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            output_dir="runs/last_n_layers", learning_rate=1e-4, head_learning_rate=1e-3
        )
    )
    last_n_layers: LastNLayersConfig = field(default_factory=LastNLayersConfig)
    takes_random_encoder: ClassVar[bool] = True


def train_last_n_layers(model: Any, setup: Setup) -> tuple[Any, Trainable]:
    """Train the last layers of the transformer, and the head.

    Args:
        model: Model from `load_classifier`.
        setup: Parts of the run; `cfg.last_n_layers` selects the layers.

    Returns:
        The model, and its trained parameters. A layer norm after the last layer stays frozen.

    Raises:
        UserError: The encoder has fewer layers.
    """
    cfg = setup.cfg.last_n_layers
    family = setup.family
    count = family.layer_count(model.config)
    if cfg.n > count:
        raise UserError(
            f"--last_n_layers.n: got {cfg.n}, must be 1 to {count}, because the encoder has {count} layers. "
            "Lower it, or use recipes/full.py."
        )
    family.freeze_stem(model)
    encoder = encoder_of(model)
    encoder.requires_grad_(False)
    names = [f"{family.layers}.{i}" for i in range(count - cfg.n, count)]
    if cfg.part == "attention":
        names = [f"{name}.{family.attention_block}" for name in names]
    for name in names:
        encoder.get_submodule(name).requires_grad_(True)
    return model, describe_trained("last_n_layers", model, family, save_whole_modules((*family.head, *names)))
