"""Settings as frozen dataclasses, read from YAML files and then from flags."""

from peft_audio.config.parse import (
    dotted,
    parse_config,
    read_config,
    read_settings,
    run_recipe,
    to_yaml,
    with_new_names,
)
from peft_audio.config.recipes import BaselineConfig, BaselineRecipe, BaselineTrainConfig, CheckSettings, Recipe
from peft_audio.config.settings import (
    SECTIONS,
    AugmentConfig,
    DataConfig,
    ModelConfig,
    PrefixCacheConfig,
    TrainConfig,
    free_settings,
    settings_decided_by_comparison,
    settings_equal_between_arms,
    settings_on_card,
    settings_per_run,
)

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
    "read_settings",
    "run_recipe",
    "settings_decided_by_comparison",
    "settings_equal_between_arms",
    "settings_on_card",
    "settings_per_run",
    "to_yaml",
    "with_new_names",
]
