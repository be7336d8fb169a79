"""The rest of a model, run on what its frozen prefix returned, against the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cuts import ENDS, EVERY
from helpers.family_cells import LABELS, batch
from helpers.matrix import encoders_by_strategies
from helpers.tiny_encoders import ENCODERS, save_encoder, tiny_config
from torch.nn.functional import cross_entropy

from peft_audio.config import ModelConfig
from peft_audio.encoders.base import Cut
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import load_classifier
from peft_audio.encoders.spec_augment import masked
from peft_audio.feature_cache.cut import find_cut, run_prefix
from peft_audio.strategies.base import Trainable
from peft_audio.training.loop import set_modes

LENGTHS = [8_000, 5_000, 700]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: save_encoder(folder / str(i), config) for i, (name, config) in enumerate(ENCODERS.items())}


def ready(base: Path, strategy: str, **settings: Any) -> tuple[Any, Trainable]:
    """A model of a strategy whose output is far from where it starts, and whose head tells clips apart."""
    torch.manual_seed(0)
    model, trained = EVERY[strategy](load_classifier(ModelConfig(name=str(base), **settings), LABELS))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in trained.head or "lora_B" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    set_modes(model, trained)
    return model, trained


def step(model: Any, trained: Trainable, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Logits and gradients of what trains; dropout draws the same in every call."""
    torch.manual_seed(2)
    model.zero_grad()
    with masked(model, inputs):
        logits = model(**inputs["inputs"]).logits
    cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    weights = dict(model.named_parameters())
    return {"logits": logits.detach()} | {name: weights[name].grad.clone() for name in trained.parameters}


def features_of(model: Any, trained: Trainable, cut: Cut) -> dict[str, Any]:
    """A batch of features made clip by clip: what one clip returned does not depend on the batch it is trained in."""
    whole, shortest = batch(), 400
    parts = []
    for i, length in enumerate(LENGTHS):
        values = whole["inputs"]["input_values"][i : i + 1, : max(length, shortest)]
        inputs = {"input_values": values, "attention_mask": torch.ones_like(values).long()}
        alone = run_prefix(model, {"inputs": inputs, "samples": torch.tensor([values.shape[1]])}, cut)
        assert cut.place == "pooled" or alone.shape[1] == family_of(model.config).count_frames(model.config, length)
        parts.append(alone[0])
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    return whole | {"inputs": {"features": padded, "samples": torch.tensor(LENGTHS)}}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Require a difference of at most 2e-5 of the largest entry of each tensor (of the logits: where that is above 1).

    Up to 1e-6 is always allowed: the terms of some gradients cancel (the biases of keys, the weights of the layer sum).
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        unit = max(1.0 if name == "logits" else 0.05, float(value.abs().max()))
        torch.testing.assert_close(
            found[name], value, atol=2e-5 * unit, rtol=0, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize(
    ("family", "strategy"), encoders_by_strategies(ENCODERS, [name for name in EVERY if ENDS[name]])
)
def test_logits_and_gradients_are_those_of_the_whole_model(bases: dict[str, Path], strategy: str, family: str) -> None:
    model, trained = ready(bases[family], strategy)
    expected = step(model, trained, batch())
    cut = find_cut(model, trained, masked=False, head_dropout=False)
    assert cut is not None
    features = features_of(model, trained, cut)
    family_of(model.config).accept_features(model, cut)
    assert_same(step(model, trained, features), expected)
    # Waveforms are still taken.
    assert_same(step(model, trained, batch()), expected)


@pytest.mark.parametrize("strategy", EVERY)
def test_prefix_ends_before_the_first_weight_that_trains(bases: dict[str, Path], strategy: str) -> None:
    family = "hubert-base" if strategy == "ia3" else "wav2vec2-base"
    model, trained = ready(bases[family], strategy)
    assert find_cut(model, trained, masked=False, head_dropout=False) == ENDS[strategy]


@pytest.mark.parametrize("family", ["wav2vec2-base", "wav2vec2-large, XLS-R", "hubert-base", "wavlm-large"])
@pytest.mark.parametrize(
    ("strategy", "settings", "hidden", "end"),
    [
        ("head_only", {"layer_weighted_sum": True}, False, Cut("pooled", 2)),
        ("last_n_layers", {"layer_weighted_sum": True}, False, Cut("layers", 0)),
        ("head_only", {"head_dropout": 0.3}, False, Cut("layers", 2)),
        ("head_only", {"head_dropout": 0.3, "layer_weighted_sum": True}, False, Cut("layers", 0)),
        ("last_n_layers", {}, True, Cut("projection")),
        ("head_only", {}, True, Cut("projection")),
        ("full", {}, True, Cut("convolutions")),
    ],
)
def test_prefix_ends_earlier_where_later_frames_are_needed(
    bases: dict[str, Path], family: str, strategy: str, settings: dict[str, Any], hidden: bool, end: Cut
) -> None:
    model, trained = ready(bases[family], strategy, **settings)
    cut = find_cut(model, trained, masked=hidden, head_dropout="head_dropout" in settings)
    assert cut == end
    masks = {}
    if hidden:
        rng = torch.Generator().manual_seed(3)
        frames = family_of(model.config).count_frames(model.config, LENGTHS[0])
        masks["time_mask"] = torch.rand(len(LENGTHS), frames, generator=rng) < 0.3
        masks["feature_mask"] = torch.rand(len(LENGTHS), model.config.hidden_size, generator=rng) < 0.3
    expected = step(model, trained, batch() | masks)
    features = features_of(model, trained, cut)
    family_of(model.config).accept_features(model, cut)
    assert_same(step(model, trained, features | masks), expected)


def test_prefix_of_a_deeper_encoder_is_everything_before_its_last_layers(tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "deep", tiny_config("layer", num_hidden_layers=4))
    model, trained = ready(base, "last_n_layers, all")
    cut = find_cut(model, trained, masked=False, head_dropout=False)
    assert cut == Cut("layers", 2)
    expected = step(model, trained, batch())
    features = features_of(model, trained, cut)
    family_of(model.config).accept_features(model, cut)
    assert_same(step(model, trained, features), expected)
