"""Train a tiny encoder of one family with one strategy, and record what moved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from helpers.adapt import adapt
from helpers.tiny_encoders import tiny_config
from torch.nn.functional import cross_entropy

from peft_audio.adapters import save as saving
from peft_audio.adapters.record import describe_adapter
from peft_audio.config import ModelConfig, Recipe, TrainConfig
from peft_audio.data.collate import collate
from peft_audio.data.loaders import Loaders
from peft_audio.data.sampler import TrainingBatches
from peft_audio.encoders.family import encoder_of
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.strategies import (
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
from peft_audio.training.loop import set_modes, train
from peft_audio.training.tracking import Log

LABELS = ("a", "b", "c")


LENGTHS = (8_000, 5_000, 700)


STRATEGIES = {
    "head_only": lambda model: adapt(model, HeadOnlyRecipe()),
    "bias_only": lambda model: adapt(model, BiasOnlyRecipe()),
    "last_n_layers": lambda model: adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))),
    "last_n_layers, attention": lambda model: adapt(
        model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=2, part="attention"))
    ),
    "lora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(dropout=0.1))),
    "lora, dora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(use_dora=True))),
    # Scaled by alpha / sqrt(r): as much as LoRA's default here, or rounding errors grow with it.
    "lora, rslora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(alpha=6, use_rslora=True))),
    "ia3": lambda model: adapt(model, IA3Recipe()),
    "full": lambda model: adapt(model, FullRecipe()),
    "full, train_cnn": lambda model: adapt(model, FullRecipe(full=FullConfig(train_cnn=True))),
}


@dataclass
class Cell:
    """What one encoder did under one strategy."""

    folder: Path
    base: Path
    whole: bool
    mixture: bool
    logits: np.ndarray  # of each clip alone, after training
    moved: set[str]  # by three steps
    trained: set[str]
    without_gradient: list[str]
    gradient_elsewhere: list[str]
    graph_through_cnn: list[bool]  # while training, and in a loop that calls model.train()
    padding_error: float  # between each clip alone and in a padded batch


def clips() -> list[np.ndarray]:
    return [np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate(LENGTHS)]


def batch() -> dict[str, Any]:
    items = [
        {"inputs": {"input_values": clip}, "samples": len(clip), "label": i % len(LABELS), "index": i}
        | {"weight": 1 / len(LENGTHS)}
        for i, clip in enumerate(clips())
    ]
    return collate(items, tiny_config())


def logits(model: Any) -> torch.Tensor:
    inputs = batch()
    return model(**inputs["inputs"]).logits


def alone(model: Any) -> torch.Tensor:
    return torch.cat([model(input_values=torch.from_numpy(clip)[None]).logits for clip in clips()])


def run_cell(base: Path, strategy: Callable[[Any], Any], mixture: bool, folder: Path) -> Cell:
    cfg = Recipe(model=ModelConfig(name=str(base), layer_weighted_sum=mixture))
    torch.manual_seed(0)
    model = load_classifier(cfg.model, LABELS)
    identity, extractor = identify_base(cfg.model, model), load_extractor(cfg.model)
    with torch.no_grad():
        for weight in (model.projector.weight, model.classifier.weight):
            weight.mul_(10)  # a head that tells clips apart by more than rounding errors
    model, trained = strategy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)

    set_modes(model, trained)
    outputs: list[torch.Tensor] = []
    hook = encoder_of(model).feature_extractor.register_forward_hook(lambda *call: outputs.append(call[2]))
    cross_entropy(logits(model), batch()["label"]).backward()
    # transformers builds that graph in train mode only: somebody with a loop of their own would meet it.
    logits(model.train())
    hook.remove()
    parameters = dict(model.named_parameters())
    without = [n for n in trained.parameters if parameters[n].grad is None or not parameters[n].grad.any()]
    elsewhere = [n for n, p in parameters.items() if p.grad is not None and n not in trained.parameters]
    model.zero_grad()

    before = copy.deepcopy(model.state_dict())
    order = TrainingBatches([1.0] * 9, 3, seed=0)
    loaders = Loaders([batch()] * 3, order, train_whole=None, validation=[batch()], test=None)
    settings = TrainConfig(epochs=1, batch_size=3, learning_rate=1e-2, warmup_share=0.0)
    result = train(model, trained, loaders, settings, Accelerator(), Log(folder / "log.jsonl"))
    after = result.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}

    model = result.model.eval()
    with torch.no_grad():
        together, each = logits(model), alone(model)
    record = describe_adapter(cfg, identity, LABELS, extractor, trained.strategy, {"validation_accuracy": 0.5})
    product = saving.save_adapter(folder, model, trained, extractor, record)
    return Cell(
        folder=product,
        base=base,
        whole=trained.peft_config is None,
        mixture=mixture,
        logits=each.numpy(),
        moved=moved,
        trained=set(trained.parameters),
        # A key's bias shifts all scores of a query alike, and softmax does not see it.
        without_gradient=[name for name in without if not name.endswith("k_proj.bias")],
        gradient_elsewhere=elsewhere,
        graph_through_cnn=[output.requires_grad for output in outputs],
        padding_error=float((together - each).abs().max()),
    )
