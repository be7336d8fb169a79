"""Parameter-efficient fine-tuning of audio classifiers.

Public names are imported on first use, so that `import peft_audio` is fast.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from peft_audio.processes import OldRecipes, WithoutHubKernels

if TYPE_CHECKING:
    from peft_audio.adapters.adapter_set import AdapterSet, load_adapters
    from peft_audio.adapters.load import Adapter, load_adapter
    from peft_audio.api import compare, fine_tune, run_baseline
    from peft_audio.comparison.settings import CompareRecipe
    from peft_audio.config import (
        AugmentConfig,
        BaselineRecipe,
        DataConfig,
        ModelConfig,
        PrefixCacheConfig,
        TrainConfig,
    )
    from peft_audio.inference.predict import Prediction, predict
    from peft_audio.runs.report import RunReport
    from peft_audio.strategies import (
        AttentionHeadsConfig,
        AttentionHeadsRecipe,
        BiasOnlyRecipe,
        FullConfig,
        FullRecipe,
        HeadOnlyRecipe,
        IA3Recipe,
        LastNLayersConfig,
        LastNLayersRecipe,
        LoraConfig,
        LoraRecipe,
    )

# With each request, huggingface_hub would send telemetry, including the coding agent that it runs under. datasets would
# report each load to a server that counts downloads.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
sys.meta_path.insert(0, WithoutHubKernels())
sys.meta_path.append(OldRecipes())

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "AdapterSet",
    "AttentionHeadsConfig",
    "AttentionHeadsRecipe",
    "AugmentConfig",
    "BaselineRecipe",
    "BiasOnlyRecipe",
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
    "Prediction",
    "PrefixCacheConfig",
    "RunReport",
    "TrainConfig",
    "compare",
    "fine_tune",
    "load_adapter",
    "load_adapters",
    "predict",
    "run_baseline",
]

_HOMES = {
    "Adapter": "adapters.load",
    "AdapterSet": "adapters.adapter_set",
    "AttentionHeadsConfig": "strategies",
    "AttentionHeadsRecipe": "strategies",
    "AugmentConfig": "config",
    "BaselineRecipe": "config",
    "BiasOnlyRecipe": "strategies",
    "CompareRecipe": "comparison.settings",
    "DataConfig": "config",
    "FullConfig": "strategies",
    "FullRecipe": "strategies",
    "HeadOnlyRecipe": "strategies",
    "IA3Recipe": "strategies",
    "LastNLayersConfig": "strategies",
    "LastNLayersRecipe": "strategies",
    "LoraConfig": "strategies",
    "LoraRecipe": "strategies",
    "ModelConfig": "config",
    "Prediction": "inference.predict",
    "PrefixCacheConfig": "config",
    "RunReport": "runs.report",
    "TrainConfig": "config",
    "compare": "api",
    "fine_tune": "api",
    "load_adapter": "adapters.load",
    "load_adapters": "adapters.adapter_set",
    "predict": "inference.predict",
    "run_baseline": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'peft_audio' has no attribute {name!r}")
    return getattr(import_module(f"peft_audio.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
