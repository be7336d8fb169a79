"""What a run is told: frozen dataclasses, read from YAML files and then flags."""

from peft_audio.config.baseline import BaselineConfig, BaselineRecipe, BaselineTrainConfig
from peft_audio.config.comparison import ARMS, RECIPES, ArmConfig, CompareRecipe
from peft_audio.config.data import DataConfig
from peft_audio.config.fields import AugmentConfig, ModelConfig, TrainConfig
from peft_audio.config.parse import parse_config, read_config, run_recipe, to_yaml
from peft_audio.config.plain import dotted
from peft_audio.config.prefix_cache import PrefixCacheConfig
from peft_audio.config.recipes import (
    AttentionHeadsConfig,
    AttentionHeadsRecipe,
    BiasOnlyRecipe,
    CheckSettings,
    FullConfig,
    FullRecipe,
    HeadOnlyRecipe,
    IA3Recipe,
    LastNLayersConfig,
    LastNLayersRecipe,
    LoraConfig,
    LoraRecipe,
    Recipe,
)

__all__ = [
    "ARMS",
    "RECIPES",
    "ArmConfig",
    "AttentionHeadsConfig",
    "AttentionHeadsRecipe",
    "AugmentConfig",
    "BaselineConfig",
    "BaselineRecipe",
    "BaselineTrainConfig",
    "BiasOnlyRecipe",
    "CheckSettings",
    "CompareRecipe",
    "DataConfig",
    "FullConfig",
    "FullRecipe",
    "HeadOnlyRecipe",
    "IA3Recipe",
    "LastNLayersConfig",
    "LastNLayersRecipe",
    "LoraConfig",
    "LoraRecipe",
    "ModelConfig",
    "PrefixCacheConfig",
    "Recipe",
    "TrainConfig",
    "dotted",
    "parse_config",
    "read_config",
    "run_recipe",
    "to_yaml",
]
