"""Settings as frozen dataclasses, read from YAML files and then from flags."""

from peft_audio.config.augment import AugmentConfig
from peft_audio.config.baseline import BaselineConfig, BaselineRecipe, BaselineTrainConfig
from peft_audio.config.data import DataConfig
from peft_audio.config.feature_cache import PrefixCacheConfig
from peft_audio.config.model import ModelConfig
from peft_audio.config.parse import parse_config, read_config, run_recipe, to_yaml
from peft_audio.config.recipes import CheckSettings, Recipe
from peft_audio.config.sections import (
    SECTIONS,
    free_settings,
    settings_decided_by_comparison,
    settings_equal_between_arms,
    settings_on_card,
    settings_per_run,
)
from peft_audio.config.train import TrainConfig
from peft_audio.config.yaml_values import dotted

__all__ = [
    "SECTIONS",
    "AugmentConfig",
    "BaselineConfig",
    "BaselineRecipe",
    "BaselineTrainConfig",
    "CheckSettings",
    "DataConfig",
    "ModelConfig",
    "PrefixCacheConfig",
    "Recipe",
    "TrainConfig",
    "dotted",
    "free_settings",
    "parse_config",
    "read_config",
    "run_recipe",
    "settings_decided_by_comparison",
    "settings_equal_between_arms",
    "settings_on_card",
    "settings_per_run",
    "to_yaml",
]
