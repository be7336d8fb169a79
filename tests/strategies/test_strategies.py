"""What trains, what is frozen for real, and LoRA against its formula."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.adapt import adapt
from helpers.tiny_encoders import save_base, tiny_config
from torch import nn
from torch.nn.functional import linear
from transformers import Wav2Vec2Model

from peft_audio.config import ModelConfig
from peft_audio.data.collate import collate
from peft_audio.encoders.loading import load_classifier
from peft_audio.errors import UserError
from peft_audio.runs.report import encoder_drift
from peft_audio.strategies import (
    BiasOnlyRecipe,
    FullRecipe,
    HeadOnlyRecipe,
    IA3Recipe,
    LastNLayersConfig,
    LastNLayersRecipe,
    LoraConfig,
    LoraRecipe,
)
from peft_audio.strategies.attention_heads import unfreeze_heads
from peft_audio.strategies.base import Trainable
from peft_audio.training.loop import set_modes

LABELS = ("a", "b", "c")
ROOT = Path(__file__).parents[2]

Strategy = Callable[[Any], tuple[Any, Trainable]]
STRATEGIES: dict[str, Strategy] = {
    "lora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(dropout=0.1))),
    "dora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(dropout=0.1, use_dora=True))),
    "rslora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(dropout=0.1, use_rslora=True))),
    "head_only": lambda model: adapt(model, HeadOnlyRecipe()),
    "bias_only": lambda model: adapt(model, BiasOnlyRecipe()),
    "ia3": lambda model: adapt(model, IA3Recipe()),
    "last_n_layers": lambda model: adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))),
    "full": lambda model: adapt(model, FullRecipe()),
    "attention_heads": lambda model: unfreeze_heads(model, {1: [0]}),
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
both_norms = pytest.mark.parametrize("norm", ["group", "layer"])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {norm: save_base(tmp_path_factory.mktemp("bases") / norm, norm) for norm in ("group", "layer")}


def classifier(base: Path) -> Any:
    """With a head that tells clips apart by more than rounding errors."""
    torch.manual_seed(0)
    model = load_classifier(ModelConfig(name=str(base)), LABELS)
    with torch.no_grad():
        model.projector.weight.mul_(5)
        model.classifier.weight.mul_(5)
    return model


def adapted(base: Path, **settings: Any) -> tuple[Any, Trainable]:
    """A LoRA model whose B is not zero, so that it changes something."""
    model, trained = adapt(classifier(base), LoraRecipe(lora=LoraConfig(**settings)))
    fill_b(model)
    return model, trained


def fill_b(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)


def changed_layers(model: Any) -> dict[str, Any]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def batch(lengths: tuple[int, ...] = (8_000, 5_000, 2_000)) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(2)  # of its own, so that dropout draws on
    items = [
        {
            "inputs": {"input_values": torch.randn(n, generator=draw).numpy()},
            "samples": n,
            "label": i % len(LABELS),
            "index": i,
            "weight": 1 / len(lengths),
        }
        for i, n in enumerate(lengths)
    ]
    return collate(items, tiny_config())


def logits(model: Any) -> torch.Tensor:
    inputs = batch()
    return model(**inputs["inputs"]).logits


@pytest.mark.parametrize(("rslora", "scale"), [(False, 12 / 4), (True, 12 / math.sqrt(4))])
def test_lora_adds_scaled_b_a_x(bases: dict[str, Path], rslora: bool, scale: float) -> None:
    model, _ = adapted(bases["group"], r=4, alpha=12, use_rslora=rslora)
    plain = dict(Wav2Vec2Model.from_pretrained(bases["group"]).named_modules())
    for name, layer in changed_layers(model.eval()).items():
        before = plain[name.removeprefix("wav2vec2.")]
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert (a.shape, b.shape) == ((4, before.in_features), (before.out_features, 4))
        x = torch.randn(3, 5, before.in_features)
        unchanged = linear(x, before.weight, before.bias)
        expected = unchanged + scale * (x @ a.T @ b.T)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
        assert (expected - unchanged).abs().max() > 0.1


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_merged_equals_unmerged(bases: dict[str, Path], settings: dict[str, Any]) -> None:
    model, _ = adapted(bases["layer"], **settings)
    with torch.no_grad():
        adapted_logits = logits(model.eval())
        with model.disable_adapter():
            untouched = logits(model)
        merged = logits(model.merge_and_unload())
    torch.testing.assert_close(merged, adapted_logits, rtol=0, atol=1e-5)
    assert (adapted_logits - untouched).abs().max() > 1e-3


def test_a_fresh_adapter_changes_nothing(bases: dict[str, Path]) -> None:
    with torch.no_grad():
        before = logits(classifier(bases["group"]))
        for use_dora in (False, True):
            model, _ = adapt(classifier(bases["group"]), LoraRecipe(lora=LoraConfig(use_dora=use_dora)))
            torch.testing.assert_close(logits(model.eval()), before, rtol=0, atol=1e-6)


def test_lora_changes_all_linear_layers_of_the_transformer_and_no_other(bases: dict[str, Path]) -> None:
    plain = Wav2Vec2Model.from_pretrained(bases["group"])
    wanted = {
        f"wav2vec2.encoder.{name}" for name, module in plain.encoder.named_modules() if isinstance(module, nn.Linear)
    }
    assert len(wanted) == 12
    assert set(changed_layers(adapted(bases["group"])[0])) == wanted


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"targets": "attention", "layers": [1]}, {f"1.attention.{p}_proj" for p in ("q", "k", "v", "out")}),
        ({"targets": "feed-forward", "layers": [0]}, {f"0.feed_forward.{p}_dense" for p in ("intermediate", "output")}),
        ({"targets": ["v_proj", "q_proj"]}, {f"{i}.attention.{p}_proj" for i in (0, 1) for p in ("q", "v")}),
    ],
)
def test_lora_places_can_be_chosen(bases: dict[str, Path], settings: dict[str, Any], wanted: set[str]) -> None:
    found = set(changed_layers(adapted(bases["group"], **settings)[0]))
    assert found == {f"wav2vec2.encoder.layers.{name}" for name in wanted}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"targets": ["q_proj", "query"]}, r"--lora.targets: got query, must be among .*k_proj.*output_dense"),
        ({"targets": ["projection"]}, r"--lora.targets: got projection"),
        ({"targets": ["projector"]}, r"--lora.targets: got projector"),
        ({"layers": [0, 2]}, r"--lora.layers: got 2, must be 0 to 1"),
    ],
)
def test_lora_in_unknown_places_is_refused(bases: dict[str, Path], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        adapt(classifier(bases["group"]), LoraRecipe(lora=LoraConfig(**settings)))


def test_ia3_scales_keys_values_and_inner_activations(bases: dict[str, Path]) -> None:
    """Against equations 3 and 4 of Liu et al.: l_k * (K x), l_v * (V x) and W2 (l_ff * h)."""
    model, trained = adapt(classifier(bases["group"]), IA3Recipe())
    plain = dict(Wav2Vec2Model.from_pretrained(bases["group"]).named_modules())
    torch.manual_seed(1)
    scaled = {name: module for name, module in model.eval().named_modules() if hasattr(module, "ia3_l")}
    assert len(scaled) == 6 and len(trained.parameters) == 6 + len(trained.head)
    for name, layer in scaled.items():
        before = plain[name.removeprefix("base_model.model.wav2vec2.")]
        vector = layer.ia3_l["default"]
        assert (vector == 1).all(), "a fresh one changes nothing"
        with torch.no_grad():
            vector.normal_()
        x, inner = torch.randn(3, 5, before.in_features), name.endswith("output_dense")
        assert vector.numel() == (before.in_features if inner else before.out_features)
        expected = before(x * vector.flatten()) if inner else before(x) * vector.flatten()
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
        assert inner or name.endswith(("k_proj", "v_proj"))


def test_biases_of_the_transformer_train_and_none_of_the_convolutions(bases: dict[str, Path]) -> None:
    model, trained = adapt(classifier(bases["layer"]), BiasOnlyRecipe())
    body = set(trained.parameters) - set(trained.head)
    biases = {name for name, _ in model.wav2vec2.named_parameters(prefix="wav2vec2") if name.endswith(".bias")}
    assert body == {name for name in biases if ".feature_extractor." not in name}
    assert {
        "wav2vec2.encoder.layers.1.final_layer_norm.bias",
        "wav2vec2.encoder.layers.0.attention.q_proj.bias",
    } <= body


@every_strategy
def test_the_head_trains_whole_and_is_named(bases: dict[str, Path], strategy: str) -> None:
    plain = classifier(bases["group"])
    size = sum(weight.numel() for head in (plain.projector, plain.classifier) for weight in head.parameters())
    model, trained = STRATEGIES[strategy](plain)
    weights = dict(model.named_parameters())
    assert sum(weights[name].numel() for name in trained.head) == size
    assert set(trained.head) <= set(trained.parameters)
    if strategy == "head_only":
        assert trained.head == trained.parameters
    if strategy == "full":
        frozen = {name for name in weights if name not in trained.parameters}
        assert {name for name in frozen if ".feature_extractor." not in name} <= {"wav2vec2.masked_spec_embed"}
    assert trained.strategy == {"dora": "lora", "rslora": "lora"}.get(strategy, strategy)


def training_modes(model: Any) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, module in model.named_modules() if module.training}


@every_strategy
def test_frozen_parts_run_in_eval_mode_while_training(bases: dict[str, Path], strategy: str) -> None:
    model, trained = STRATEGIES[strategy](classifier(bases["layer"]))
    set_modes(model, trained)
    on = training_modes(model)
    names = {name.removeprefix("base_model.model.") for name, _ in model.named_modules()}
    transformer = {name for name in names if name.startswith(("wav2vec2.encoder", "wav2vec2.feature_projection"))}
    heads = {name for name in names if name.startswith(("projector", "classifier"))}
    assert not any("feature_extractor" in name for name in on)
    if strategy == "full":
        assert on == transformer | heads
        assert any(name.endswith("dropout") for name in on)
    elif strategy in ("head_only", "bias_only"):
        assert on == heads == {"projector", "classifier"}
    elif strategy == "last_n_layers":
        last = {name for name in names if name.startswith("wav2vec2.encoder.layers.1")}
        assert on == heads | last
        assert "wav2vec2.encoder.layers.1.dropout" in on
    elif strategy == "ia3":
        vectors = {name for name in on & transformer if name.endswith(".ia3_l")}
        assert on & transformer == vectors and len(vectors) == 2 * 3
        assert {"projector.modules_to_save.default", "classifier.modules_to_save.default"} <= on
    else:
        changed = set(changed_layers(model))
        assert all(name.startswith(tuple(changed)) for name in on & transformer)
        assert changed <= on
        assert not any(name.endswith("dropout") and "lora_dropout" not in name for name in on)
        assert {"projector.modules_to_save.default", "classifier.modules_to_save.default"} <= on
    model.eval()
    assert training_modes(model) == set()


@every_strategy
def test_frozen_dropout_brings_the_documented_modes_back(bases: dict[str, Path], strategy: str) -> None:
    model, trained = STRATEGIES[strategy](classifier(bases["layer"]))
    set_modes(model, trained, frozen_dropout=True)
    everything = {name.removeprefix("base_model.model.") for name, _ in model.named_modules()}
    assert training_modes(model) == everything
    with torch.no_grad():
        assert not torch.equal(logits(model), logits(model))


def test_full_fine_tuning_drops_out_everywhere_beside_a_mixture_too(bases: dict[str, Path]) -> None:
    torch.manual_seed(0)
    plain, mixture = (
        load_classifier(ModelConfig(name=str(bases["layer"]), layer_weighted_sum=on), LABELS) for on in (False, True)
    )
    modes = []
    for classifier_ in (plain, mixture):
        model, trained = adapt(classifier_, FullRecipe())
        set_modes(model, trained)
        modes.append({name for name, module in model.named_modules() if module.training and "dropout" in name})
    assert modes[0] == modes[1] and "wav2vec2.encoder.dropout" in modes[0]


def test_encoder_dropout_is_what_was_asked_for(bases: dict[str, Path]) -> None:
    for share, expected in ((None, 0.1), (0.0, 0.0), (0.4, 0.4)):
        model = load_classifier(ModelConfig(name=str(bases["group"]), dropout=share), LABELS)
        config = model.config
        found = {config.hidden_dropout, config.attention_dropout, config.activation_dropout}
        assert found == {expected}
        assert {module.p for module in model.wav2vec2.encoder.modules() if isinstance(module, nn.Dropout)} == {expected}


@pytest.mark.parametrize(("strategy", "noisy"), [("lora", True), ("dora", True), ("head_only", False), ("full", True)])
def test_only_the_dropout_of_what_trains_is_drawn(bases: dict[str, Path], strategy: str, noisy: bool) -> None:
    model, trained = STRATEGIES[strategy](classifier(bases["group"]))
    fill_b(model)
    assert model.config.hidden_dropout == model.config.attention_dropout == 0.1
    with torch.no_grad():
        set_modes(model, trained)
        assert torch.equal(logits(model), logits(model)) is not noisy
        model.eval()
        assert torch.equal(logits(model), logits(model))


@every_strategy
def test_encoder_drift_finds_a_frozen_weight_that_changed(bases: dict[str, Path], strategy: str) -> None:
    cfg = ModelConfig(name=str(bases["layer"]))
    model, trained = STRATEGIES[strategy](classifier(bases["layer"]))
    weights = dict(model.named_parameters())
    frozen = [name for name in weights if ".wav2vec2." in f".{name}" and name not in trained.parameters]
    with torch.no_grad():
        for name in trained.parameters:
            weights[name].add_(1)
        assert encoder_drift(model, trained, cfg, LABELS) == 0
        for name in (frozen[0], frozen[-1]):
            weights[name].view(-1)[-1].add_(0.25)
            assert encoder_drift(model, trained, cfg, LABELS) == pytest.approx(0.25, abs=1e-6)
            weights[name].view(-1)[-1].sub_(0.25)


def sets_modes(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else None
        return name == "train"
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Attribute) and target.attr == "training" for target in targets)


def test_nothing_but_set_modes_switches_to_train_mode() -> None:
    places = SimpleNamespace(allowed=0, others=[])
    for path in [*ROOT.glob("peft_audio/**/*.py"), *ROOT.glob("recipes/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        allowed = [
            line
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and (path.name, function.name) == ("base.py", "set_modes")
            for line in range(function.lineno, function.end_lineno + 1)
        ]
        for node in ast.walk(tree):
            if sets_modes(node) and node.lineno in allowed:
                places.allowed += 1
            elif sets_modes(node):
                places.others.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert places.others == []
    assert places.allowed >= 1, "the search itself finds nothing"
