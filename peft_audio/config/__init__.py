"""What a run is told: frozen dataclasses, read from YAML files and then flags."""

from peft_audio.config.fields import (
    AugmentConfig,
    DataConfig,
    LoraConfig,
    LoraRecipe,
    ModelConfig,
    TrainConfig,
    UserError,
)
from peft_audio.config.parse import parse_config, run_recipe, to_yaml

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "LoraConfig",
    "LoraRecipe",
    "ModelConfig",
    "TrainConfig",
    "UserError",
    "parse_config",
    "run_recipe",
    "to_yaml",
]
