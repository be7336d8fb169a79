"""Encoders of any family as a strategy leaves them after three steps, saved, with what was measured on the way."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from helpers.cuts import EVERY
from helpers.family_cells import LABELS
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from peft_audio.adapters.load import Adapter
from peft_audio.adapters.record import describe_adapter
from peft_audio.adapters.save import save_adapter
from peft_audio.config import ModelConfig, Recipe, TrainConfig
from peft_audio.data.collate import collate, prepare_clip
from peft_audio.data.loaders import Loaders
from peft_audio.data.sampler import TrainingBatches
from peft_audio.encoders.base import Cut
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.feature_cache.cut import find_cut, run_prefix
from peft_audio.strategies.base import Trainable, set_modes
from peft_audio.training.loop import train
from peft_audio.training.tracking import Log

# An odd and an even number of frames, nearly equal lengths, and one clip shorter than any encoder takes.
LENGTHS = (8_000, 7_990, 7_321, 5_000, 2_900, 300)


def clips() -> list[np.ndarray]:
    return [np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate(LENGTHS)]


def batch_of(waveforms: list[np.ndarray], extractor: Any, config: Any) -> dict[str, Any]:
    facts = [{"label": i % len(LABELS), "index": i, "weight": 1 / len(waveforms)} for i in range(len(waveforms))]
    items = [
        prepare_clip(one, extractor, family_of(config)) | about for one, about in zip(waveforms, facts, strict=True)
    ]
    return collate(items, config)


@dataclass
class Trained:
    """What a strategy made of an encoder in three steps, and what it said in between."""

    base: Path
    folder: Path
    model: Any
    trained: Trainable
    moved: set[str]
    steps: list[dict[str, torch.Tensor]]  # of the whole model, and of what follows the cached part
    cut: Cut | None
    logits: np.ndarray  # of each clip alone, saved
    padding_error: float


def step(model: Any, trained: Trainable, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Logits and gradients; dropout draws the same in every call."""
    torch.manual_seed(2)
    model.zero_grad()
    logits = model(**batch["inputs"]).logits
    cross_entropy(logits, batch["label"]).backward()
    weights = dict(model.named_parameters())
    return {"logits": logits.detach()} | {name: weights[name].grad.clone() for name in trained.parameters}


def features_of(model: Any, cut: Cut, extractor: Any) -> dict[str, Any]:
    """A batch of features, made clip by clip."""
    whole, parts = batch_of(clips(), extractor, model.config), []
    for clip in clips():
        alone = batch_of([clip], extractor, model.config)
        parts.append(run_prefix(model, alone, cut)[0])
        frames = family_of(model.config).count_frames(model.config, int(alone["samples"][0]))
        assert cut.pooled or len(parts[-1]) == frames
    features = pad_sequence(parts, batch_first=True)
    return whole | {"inputs": {"features": features, "samples": whole["samples"]}}


def make(base: Path, strategy: str, folder: Path, mixture: bool = False) -> Trained:
    """Train with a strategy, or a mixture of layers as well, and save."""
    torch.manual_seed(0)
    cfg = Recipe(model=ModelConfig(name=str(base), layer_weighted_sum=mixture))
    extractor, model = load_extractor(cfg.model), load_classifier(cfg.model, LABELS)
    identity = identify_base(cfg.model, model)
    with torch.no_grad():
        for name in family_of(model.config).head:
            for part in getattr(model, name).modules():
                if isinstance(part, torch.nn.Linear):
                    part.weight.mul_(30)
    model, trained = EVERY[strategy](model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in trained.parameters and ("lora_B" in name or "ia3_l" in name):
                weight.add_(torch.randn_like(weight) * 0.3)
    set_modes(model, trained)
    cut = find_cut(model, trained, masked=False, head_dropout=False)
    whole = batch_of(clips(), extractor, model.config)
    steps = [step(model, trained, whole)]
    if cut is not None:
        undo = family_of(model.config).accept_features(model, cut)
        steps.append(step(model, trained, features_of(model, cut, extractor)))
        undo()
    model.zero_grad()

    before = copy.deepcopy(model.state_dict())
    loaders = Loaders([whole] * 3, TrainingBatches([1.0] * 18, 6, seed=0), None, validation=[whole], test=None)
    settings = TrainConfig(epochs=1, batch_size=6, learning_rate=1e-3, warmup_share=0.0)
    model = train(model, trained, loaders, settings, Accelerator(), Log(folder / "log.jsonl")).model.eval()
    after = model.state_dict()
    record = describe_adapter(cfg, identity, LABELS, extractor, trained.strategy, {"validation_accuracy": 0.5})
    adapter = Adapter(model, extractor, record)
    together, alone = adapter.logits(clips()), np.concatenate([adapter.logits([clip]) for clip in clips()])
    saved = save_adapter(folder, model, trained, extractor, record, verify=False)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    return Trained(base, saved, model, trained, moved, steps, cut, alone, float(np.abs(together - alone).max()))
