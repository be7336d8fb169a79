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
    from peft_audio.api import check, compare, evaluate, export, fine_tune, predict, push, run_baseline
    from peft_audio.checks.collection import Check
    from peft_audio.comparison.results import Comparison
    from peft_audio.comparison.settings import CompareRecipe
    from peft_audio.config import (
        AugmentConfig,
        BaselineRecipe,
        DataConfig,
        ModelConfig,
        PrefixCacheConfig,
        TrainConfig,
    )
    from peft_audio.errors import UserError
    from peft_audio.inference.evaluate import AdapterEvaluation
    from peft_audio.inference.predict import Prediction
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
    "AdapterEvaluation",
    "AdapterSet",
    "AttentionHeadsConfig",
    "AttentionHeadsRecipe",
    "AugmentConfig",
    "BaselineRecipe",
    "BiasOnlyRecipe",
    "Check",
    "CompareRecipe",
    "Comparison",
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
    "UserError",
    "check",
    "compare",
    "evaluate",
    "export",
    "fine_tune",
    "load_adapter",
    "load_adapters",
    "predict",
    "push",
    "run_baseline",
]

_HOMES = {
    "Adapter": "adapters.load",
    "AdapterEvaluation": "inference.evaluate",
    "AdapterSet": "adapters.adapter_set",
    "AttentionHeadsConfig": "strategies",
    "AttentionHeadsRecipe": "strategies",
    "AugmentConfig": "config",
    "BaselineRecipe": "config",
    "BiasOnlyRecipe": "strategies",
    "Check": "checks.collection",
    "CompareRecipe": "comparison.settings",
    "Comparison": "comparison.results",
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
    "UserError": "errors",
    "check": "api",
    "compare": "api",
    "evaluate": "api",
    "export": "api",
    "fine_tune": "api",
    "load_adapter": "adapters.load",
    "load_adapters": "adapters.adapter_set",
    "predict": "api",
    "push": "api",
    "run_baseline": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'peft_audio' has no attribute {name!r}")
    return getattr(import_module(f"peft_audio.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
