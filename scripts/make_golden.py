"""Make the golden adapters, one per strategy on a tiny encoder, which every later version must load.

    python scripts/make_golden.py tests/golden

Existing golden adapters are never replaced, because an adapter that is made again proves nothing about older versions.
A new strategy gets a new folder. Trainable weights are random, so that every weight changes the logits. Each
`peft_audio.json` holds the recorded logits of the probe clips.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor

from peft_audio.adapters.record import describe_adapter
from peft_audio.adapters.save import save_adapter
from peft_audio.config import ModelConfig, Recipe
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
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

# Relative name of the base; tests run in the folder that holds it.
BASE = "golden-base"
LABELS = ("low", "mid dle", "höher", "zed")


def adapt(model: Any, recipe: Recipe) -> tuple[Any, Trainable]:
    """Apply the strategy of a recipe class."""
    return strategy_of(recipe)(model, Setup(family_of(model.config), recipe))


STRATEGIES: dict[str, Callable[[Any], Any]] = {
    "lora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(r=4))),
    "dora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(r=2, use_dora=True))),
    "rslora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(r=2, use_rslora=True))),
    "head_only": lambda model: adapt(model, HeadOnlyRecipe()),
    "head_only_weighted": lambda model: adapt(model, HeadOnlyRecipe()),
    "bias_only": lambda model: adapt(model, BiasOnlyRecipe()),
    "ia3": lambda model: adapt(model, IA3Recipe()),
    "last_n_layers": lambda model: adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))),
    "attention_heads": lambda model: unfreeze_heads(model, {0: [1], 1: [0]}),
    "full": lambda model: adapt(model, FullRecipe()),
}


def make_base(folder: Path) -> None:
    """Save a wav2vec 2.0 model with two layers of width 32 and random weights."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        vocab_size=12,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)


def make_product(name: str, strategy: Callable[[Any], Any]) -> None:
    """Apply a strategy to the base, and save the adapter in a folder named after the strategy."""
    torch.manual_seed(0)
    cfg = LoraRecipe(model=ModelConfig(name=BASE, layer_weighted_sum=name.endswith("_weighted")))
    model = load_classifier(cfg.model, LABELS)
    base, extractor = identify_base(cfg.model, model), load_extractor(cfg.model)
    model, trained = strategy(model)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if path in trained.parameters:
                # Full models keep their weights plus noise, so that norms stay usable.
                weight.copy_(weight * (trained.strategy == "full") + 0.2 * torch.randn_like(weight))
    record = describe_adapter(cfg, base, LABELS, extractor, trained.strategy, {"validation_accuracy": 0.5})
    with TemporaryDirectory(dir=".") as run:
        saved = save_adapter(Path(run), model, trained, extractor, record, verify=False)
        # Removed, because it holds the path of the base on this machine.
        (saved / "README.md").unlink()
        saved.rename(name)


def main(folder: Path) -> None:
    """Make the base and the adapters that do not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not Path(BASE).exists():
        make_base(Path(BASE))
    for name, strategy in STRATEGIES.items():
        if not Path(name).exists():
            make_product(name, strategy)
            print(f"{name}: {sum(path.stat().st_size for path in Path(name).iterdir()):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
