"""Measure the size of the saved weights of each strategy, on an encoder of the size of wav2vec2-base.

    python benchmarks/size/adapter_sizes.py

Prints the table of docs/adapters.md. Bytes are those of the weights' file; the other files of an adapter have a few kB.
The weights are random, because sizes do not depend on values. Takes a few minutes, 2 GB of memory and 2 GB of disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from peft_audio.config import ModelConfig, Recipe
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import load_classifier
from peft_audio.strategies import (
    BiasOnlyRecipe,
    FullRecipe,
    HeadOnlyRecipe,
    IA3Recipe,
    LastNLayersConfig,
    LastNLayersRecipe,
    LoraConfig,
    LoraRecipe,
    Setup,
    Trainable,
    strategy_of,
)
from peft_audio.strategies.attention_heads import unfreeze_heads
from peft_audio.strategies.base import peft_weights

sys.path.append(str(Path(__file__).parents[1] / "speed"))
from machine import base


def adapt(model: Any, recipe: Recipe) -> tuple[Any, Trainable]:
    """Apply the strategy of a recipe class."""
    return strategy_of(recipe)(model, Setup(family_of(model.config), recipe))


# Settings are the defaults of the recipes unless the name gives others.
STRATEGIES: dict[str, Callable[[Any], Any]] = {
    "full": lambda model: adapt(model, FullRecipe()),
    "last_n_layers, n 2": lambda model: adapt(model, LastNLayersRecipe()),
    "last_n_layers, n 1": lambda model: adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))),
    "lora, r 8": lambda model: adapt(model, LoraRecipe()),
    "lora, r 2": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(r=2))),
    "dora, r 8": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(use_dora=True))),
    "rslora, r 8": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(use_rslora=True))),
    "attention_heads, 4 in one layer": lambda model: unfreeze_heads(model, {11: [0, 1, 2, 3]}),
    "attention_heads, 4 in four layers": lambda model: unfreeze_heads(model, {layer: [0] for layer in range(8, 12)}),
    "bias_only": lambda model: adapt(model, BiasOnlyRecipe()),
    "ia3": lambda model: adapt(model, IA3Recipe()),
    "head_only": lambda model: adapt(model, HeadOnlyRecipe()),
}


def main() -> None:
    """Print one Markdown row per strategy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=10, help="number of labels (default: %(default)s)")
    labels = [f"class {i}" for i in range(parser.parse_args().labels)]
    print(f"| strategy | trained parameters | bytes of the file | of the full model's, {len(labels)} labels |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        where, saved = base(f"{folder}/base", "12"), Path(folder) / "weights.safetensors"
        whole = 0
        for name, strategy in STRATEGIES.items():
            model, trained = strategy(load_classifier(ModelConfig(name=where), labels))
            weights = model.state_dict() if trained.peft_config is None else peft_weights(model, trained)
            save_file({key: value.contiguous() for key, value in weights.items()}, saved, metadata={"format": "pt"})
            count = sum(value.numel() for key, value in model.named_parameters() if key in trained.parameters)
            size = saved.stat().st_size
            whole = whole or size
            print(f"| {name} | {count:,} | {size:,} | {size / whole:.2%} |", flush=True)


if __name__ == "__main__":
    main()
