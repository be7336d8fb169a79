"""Define the settings that all recipes of strategies share, and refuse combinations that cannot run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from peft_audio.config.augment import AugmentConfig
from peft_audio.config.baseline import BaselineRecipe
from peft_audio.config.data import DataConfig
from peft_audio.config.feature_cache import PrefixCacheConfig
from peft_audio.config.fields import changed_fields, settings_of
from peft_audio.config.model import ModelConfig
from peft_audio.config.train import TrainConfig
from peft_audio.errors import UserError, require


@dataclass(frozen=True)
class Recipe:
    """Settings that the recipes of all strategies share.

    Args:
        data: Recordings, and the length of each that is used.
        model: Pretrained encoder.
        augment: Changes of training clips.
        prefix_cache: Cache of the output of frozen layers.
        train: Course of the training.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    prefix_cache: PrefixCacheConfig = field(default_factory=PrefixCacheConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    quantizes: ClassVar[bool] = False
    takes_random_encoder: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.model.pretrained and not self.takes_random_encoder:
            raise UserError(
                "--model.pretrained: got False, must be true: there would be no base to load this recipe's adapter "
                "onto. Use recipes/full.py, head_only.py, last_n_layers.py or bias_only.py, which save a whole model."
            )
        if self.model.quantization != "none" and not self.quantizes:
            raise UserError(
                f"--model.quantization: got {self.model.quantization}, must be none: only recipes/lora.py trains "
                "on a quantised encoder. Use that recipe, or leave it out."
            )
        if self.data.streaming:
            steps = self.train.max_steps
            require(steps is not None, "train.max_steps", steps, "given with data.streaming", "Try 1000.")
            for section in ("prefix_cache", "train"):
                given = getattr(self, section)
                for name, value in changed_fields(given).items():
                    usable = "stream" in settings_of(given)[name].source_kinds
                    words = "left out with data.streaming, which reads each clip once and knows none of them before"
                    require(usable, f"{section}.{name}", value, words, "Leave it out.")


@dataclass(frozen=True)
class CheckSettings:
    """Settings of `peft-audio check` and `evaluate`.

    Args:
        data: Recordings and their splits.
    """

    data: DataConfig = field(default_factory=DataConfig)


def own_sections() -> set[str]:
    """Name the sections that one recipe has for itself; each is named like its recipe."""
    shared = {section.name for section in fields(Recipe)}
    recipes = (*Recipe.__subclasses__(), BaselineRecipe)
    return {section.name for recipe in recipes for section in fields(recipe)} - shared
