"""Which attention heads are chosen, and that they train as if nothing else were there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers.adapt import adapt
from helpers.family_cells import LABELS, alone, batch, logits, run_cell
from helpers.tiny_encoders import ENCODERS, save_encoder
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForAudioClassification

from peft_audio.adapters import save as saving
from peft_audio.adapters import verify
from peft_audio.config import ModelConfig, TrainConfig
from peft_audio.encoders.loading import load_classifier, quiet_loading
from peft_audio.errors import UserError
from peft_audio.strategies import AttentionHeadsConfig, AttentionHeadsRecipe, attention_heads
from peft_audio.strategies.attention_heads import (
    best_heads,
    mask_gradients,
    pooled_features,
    score_heads,
    unfreeze_heads,
)
from peft_audio.tasks import task_of

WIDTH = 16  # of a head of the tiny encoders, which have two layers of two heads
INPUTS, OUTPUT = ("q_proj", "k_proj", "v_proj"), "out_proj"


def classifier(base: Path, **settings: Any) -> Any:
    """With a head that tells clips apart by more than rounding errors."""
    torch.manual_seed(0)
    model = load_classifier(ModelConfig(name=str(base), **settings), LABELS)
    with torch.no_grad():
        model.projector.weight.mul_(5)
        model.classifier.weight.mul_(5)
    return model


@pytest.fixture(scope="module")
def stable_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("bases") / "layer", ENCODERS["wav2vec2-large, XLS-R"])


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return classifier(tiny_base)


def projection(model: Any, layer: int, name: str) -> Any:
    return model.wav2vec2.encoder.layers[layer].attention.get_submodule(name)


def rows_of(heads: Sequence[int]) -> list[int]:
    return [row for head in heads for row in range(head * WIDTH, (head + 1) * WIDTH)]


@pytest.mark.parametrize("heads", [{1: [0]}, {0: [1], 1: [0, 1]}])
def test_steps_are_those_of_the_heads_own_rows_and_columns(model: Any, heads: dict[int, list[int]]) -> None:
    rate = 0.5
    plain, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    adapted, trained = unfreeze_heads(model, heads)
    ours = [weight for name, weight in adapted.named_parameters() if name in trained.parameters]
    for _ in range(3):
        cross_entropy(logits(plain), batch()["label"]).backward()
        with torch.no_grad():
            for module in (plain.projector, plain.classifier):
                for weight in module.parameters():
                    weight.sub_(rate * weight.grad)
            for layer, chosen in heads.items():
                rows = rows_of(chosen)
                for name in INPUTS:
                    weight = projection(plain, layer, name).weight
                    weight[rows] -= rate * weight.grad[rows]
                weight = projection(plain, layer, OUTPUT).weight
                weight[:, rows] -= rate * weight.grad[:, rows]
        plain.zero_grad()

        cross_entropy(logits(adapted), batch()["label"]).backward()
        torch.optim.SGD(ours, rate).step()
        adapted.zero_grad()
    with torch.no_grad():
        torch.testing.assert_close(logits(adapted), logits(plain), rtol=0, atol=1e-5)
    merged = adapted.merge_and_unload().state_dict()
    assert merged.keys() == before.keys()
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=1e-5)
        # What is not the heads' own was moved by neither, by a single bit.
        assert torch.equal(merged[name] == before[name], expected == before[name])
    moved = {name for name, value in merged.items() if not torch.equal(value, before[name])}
    assert len(moved) == 4 * len(heads) + 4, "four matrices a layer, and the head"


def test_weights_that_train_are_the_heads_alone(tiny_base: Path) -> None:
    head = 32 * 16 + 16 + 16 * len(LABELS) + len(LABELS)
    for mixture in (False, True):
        adapted, trained = unfreeze_heads(classifier(tiny_base, layer_weighted_sum=mixture), {0: [1], 1: [0, 1]})
        weights = dict(adapted.named_parameters())
        assert set(trained.parameters) == {name for name, weight in weights.items() if weight.requires_grad}
        size = sum(weights[name].numel() for name in trained.parameters)
        assert size == 3 * 4 * WIDTH * 32 + head + 3 * mixture
        changed = {name.split(".lora_")[0] for name in trained.parameters if name not in trained.head}
        assert len(changed) == 8


def test_gradients_are_what_scaling_a_head_does_to_the_loss(model: Any) -> None:
    inputs, step = batch(), 1e-4
    inputs["inputs"]["input_values"] = inputs["inputs"]["input_values"].double()
    model = model.double()
    found = mask_gradients(model, inputs, task_of())
    assert found.shape == (3, 2, 2)

    def losses(layer: int, rows: list[int], factor: float) -> torch.Tensor:
        """Of each clip, with the columns that take up a head's output scaled."""
        scaled = copy.deepcopy(model)
        projection(scaled, layer, OUTPUT).weight[:, rows] *= factor
        answers = scaled(**inputs["inputs"]).logits
        return cross_entropy(answers, inputs["label"], reduction="none")

    for layer in (0, 1):
        for head in (0, 1):
            with torch.no_grad():
                up, down = (losses(layer, rows_of([head]), 1 + sign * step) for sign in (1, -1))
            expected = ((up - down) / (2 * step)).float()
            torch.testing.assert_close(found[:, layer, head], expected, rtol=1e-4, atol=1e-8)
    assert found.abs().min() > 1e-6
    assert not any(module._forward_pre_hooks for module in model.wav2vec2.encoder.layers.modules())


def test_a_clip_s_gradients_do_not_depend_on_its_batch(model: Any) -> None:
    together = mask_gradients(model, batch(), task_of())
    for i, row in enumerate(together):
        whole = batch()
        one = {name: value[i : i + 1] for name, value in whole.items() if name != "inputs"}
        length = int(one["samples"])
        one |= {"inputs": {name: value[i : i + 1, :length] for name, value in whole["inputs"].items()}}
        torch.testing.assert_close(mask_gradients(model, one, task_of())[0], row, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mixture", [False, True])
def test_the_classifier_says_the_same_of_pooled_features(stable_base: Path, mixture: bool) -> None:
    model = classifier(stable_base, layer_weighted_sum=mixture)
    features = pooled_features(model, batch())
    assert features.shape == (3, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(model.projector(features)), logits(model), rtol=0, atol=1e-5)


def recipe(base: Path | str = "tiny", seed: int = 0, **settings: Any) -> AttentionHeadsRecipe:
    return AttentionHeadsRecipe(
        model=ModelConfig(name=str(base)),
        train=TrainConfig(seed=seed, learning_rate=1e-2),
        attention_heads=AttentionHeadsConfig(**settings),
    )


def test_scores_are_taken_from_a_fitted_classifier_that_then_starts_anew(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, heard = copy.deepcopy(model.state_dict()), []

    def listening(model: Any, inputs: Any, task: Any) -> torch.Tensor:
        heard.append(copy.deepcopy(model))
        return mask_gradients(model, inputs, task)

    monkeypatch.setattr(attention_heads, "mask_gradients", listening)
    scores = score_heads(model, [batch()] * 5, recipe(scoring_batches=1), Accelerator(), task_of())
    (fitted,) = heard
    with torch.no_grad():
        first, then = (cross_entropy(logits(answering), batch()["label"]) for answering in (model, fitted))
    assert then < 0.5 * first
    expected = mask_gradients(fitted, batch(), task_of()).abs().mean(0)
    torch.testing.assert_close(scores, expected / expected.norm(dim=1, keepdim=True))
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


def clips_of(values: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Take some clips of a batch, also of the inputs nested in it."""
    return {name: clips_of(value, rows) if isinstance(value, dict) else value[rows] for name, value in values.items()}


def test_scores_do_not_depend_on_how_clips_are_divided(tiny_base: Path) -> None:
    whole = score_heads(classifier(tiny_base), [batch()], recipe(), Accelerator(), task_of())
    parts = [clips_of(batch(), rows) for rows in ([2], [0, 1], [1])]
    parts[2]["weight"] = torch.zeros(1)  # what a part of a ragged step is filled with
    divided = score_heads(classifier(tiny_base), parts, recipe(), Accelerator(), task_of())
    torch.testing.assert_close(divided, whole, rtol=1e-3, atol=1e-5)


def test_the_only_head_that_is_listened_to_is_chosen(model: Any) -> None:
    with torch.no_grad():
        projection(model, 0, OUTPUT).weight.zero_()
        projection(model, 1, OUTPUT).weight[:, rows_of([0])] = 0
    scores = score_heads(model, [batch()], recipe(), Accelerator(), task_of())
    torch.testing.assert_close(scores, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert best_heads(scores, 1) == {1: [1]}


def test_best_heads_are_by_layer_and_the_lower_ones_in_a_tie() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.2, 0.5]])
    assert best_heads(scores, 3) == {0: [1, 2], 1: [0]}
    assert best_heads(scores, 6) == {0: [0, 1, 2], 1: [0, 1, 2]}


def test_random_heads_are_the_seed_s(stable_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = []
    for seed in (0, 0, 1, 2, 3):
        cfg = recipe(seed=seed, choose="random", count=1)
        _, trained = adapt(classifier(stable_base), cfg)
        assert trained.strategy == "attention_heads"
        chosen.append(capsys.readouterr().out)
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 2
    assert all(line.startswith("attention heads that train (layer.head, chosen by random): ") for line in chosen)


@pytest.mark.parametrize("encoder", ["hubert-base", "unispeech-sat-large", "wavlm-base"])
def test_others_load_what_was_trained(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)  # a fresh process; tested elsewhere
    base = save_encoder(tmp_path / "base", ENCODERS[encoder])
    mixture = encoder.endswith("large")
    cell = run_cell(base, lambda model: unfreeze_heads(model, {0: [1], 1: [0, 1]}), mixture, tmp_path)
    assert (cell.without_gradient, cell.gradient_elsewhere, cell.graph_through_cnn) == ([], [], [False] * 2)
    assert cell.moved == cell.trained
    assert cell.padding_error < 1e-5
    assert verify.check_probes(cell.folder) == []
    settings = {"num_labels": len(LABELS), "use_weighted_layer_sum": mixture, "dtype": torch.float32}
    with quiet_loading(), torch.no_grad():
        plain = AutoModelForAudioClassification.from_pretrained(base, **settings)
        adapted = PeftModel.from_pretrained(plain, cell.folder)
        # Without the merge, transformers' WavLM answers as if its attention had no adapter.
        found = alone((adapted.merge_and_unload() if encoder == "wavlm-base" else adapted).eval())
    torch.testing.assert_close(found, torch.from_numpy(cell.logits), rtol=0, atol=1e-5)


def test_more_heads_than_there_are_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match=r"--attention_heads.count: got 5, must be 1 to 4, .*2 layers of 2 heads"):
        adapt(model, recipe(count=5))
