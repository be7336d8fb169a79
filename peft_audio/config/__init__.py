"""What a run is told: frozen dataclasses, read from YAML files and then flags."""

from peft_audio.config.baseline import BaselineConfig, BaselineRecipe, BaselineTrainConfig
from peft_audio.config.comparison import ARMS, RECIPES, ArmConfig, CompareRecipe
from peft_audio.config.data import DataConfig
from peft_audio.config.failures import STOPPING
from peft_audio.config.fields import (
    AugmentConfig,
    ModelConfig,
    Stopped,
    TrainConfig,
    UserError,
    expanded,
    is_folder,
    require,
)
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
    "STOPPING",
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
    "Stopped",
    "TrainConfig",
    "UserError",
    "dotted",
    "expanded",
    "is_folder",
    "parse_config",
    "read_config",
    "require",
    "run_recipe",
    "to_yaml",
]
