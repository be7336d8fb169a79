"""Many adapters on one base, against each of them loaded alone."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from helpers.adapt import adapt
from helpers.tiny_encoders import ENCODERS, save_encoder
from helpers.tones import write_tone
from safetensors.torch import load_file, save_file

from peft_audio import Adapter, AdapterSet, load_adapter, load_adapters, predict
from peft_audio.adapters import adapter_set
from peft_audio.adapters.record import describe_adapter
from peft_audio.adapters.save import save_adapter
from peft_audio.config import DataConfig, ModelConfig
from peft_audio.encoders.family import encoder_of
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.errors import UserError
from peft_audio.inference.evaluate import evaluate_adapter
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

Strategy = Callable[[Any], tuple[Any, Trainable]]
STRATEGIES: dict[str, Strategy] = {
    "head_only": lambda model: adapt(model, HeadOnlyRecipe()),
    "head_only, mixture": lambda model: adapt(model, HeadOnlyRecipe()),
    "bias_only": lambda model: adapt(model, BiasOnlyRecipe()),
    "bias_only, mixture": lambda model: adapt(model, BiasOnlyRecipe()),
    "last_n_layers": lambda model: adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))),
    "last_n_layers, mixture": lambda model: adapt(
        model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=2, part="attention"))
    ),
    "lora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(r=4, dropout=0.1))),
    "lora, last layer": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(layers=[1]))),
    "dora, mixture": lambda model: adapt(
        model, LoraRecipe(lora=LoraConfig(r=4, alpha=6, use_dora=True, use_rslora=True))
    ),
    "ia3": lambda model: adapt(model, IA3Recipe()),
    "attention_heads": lambda model: unfreeze_heads(model, {1: [0]}),
}
# Both kinds of norm, and the family whose attention is its own.
FAMILIES = ["wav2vec2-base", "wav2vec2-large, XLS-R", "wavlm-large"]


def clips(*lengths: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate(lengths)]


# Padded, alike, and shorter than what the encoder takes.
BATCHES = [clips(8_000, 5_000, 700), clips(6_000, 6_000), clips(100)]


def save(base: Path, folder: Path, name: str, strategy: Strategy, labels: int) -> tuple[Path, list[np.ndarray]]:
    """An adapter far from where its strategy starts, with so many labels; and what the trained model says."""
    names = [f"{name} {i}" for i in range(labels)]
    cfg = LoraRecipe(model=ModelConfig(name=str(base), layer_weighted_sum=name.endswith("mixture")))
    torch.manual_seed(labels)
    model = load_classifier(cfg.model, names)
    identity, extractor = identify_base(cfg.model, model), load_extractor(cfg.model)
    model, trained = strategy(model)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if path in trained.parameters:
                weight.add_(torch.randn_like(weight) * 0.15)
    record = describe_adapter(cfg, identity, names, extractor, trained.strategy, {"accuracy": 0.5})
    answers = [Adapter(model.eval(), extractor, record).logits(batch) for batch in BATCHES]
    assert np.ptp(answers[0], axis=0).max() > 1e-3, "the clips must have different answers"
    return save_adapter(folder / name, model, trained, extractor, record, verify=False), answers


@pytest.fixture(scope="module", params=FAMILIES)
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Adapters of every strategy on one base; each with a number of labels of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_encoder(folder / "base", ENCODERS[request.param])
    return {name: save(base, folder, name, STRATEGIES[name], 2 + i) for i, name in enumerate(STRATEGIES)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("two")
    base = save_encoder(folder / "base", ENCODERS["wav2vec2-base"])
    return {name: save(base, folder, name, STRATEGIES[name], 2 + i)[0] for i, name in enumerate(["lora", "head_only"])}


def test_each_answers_as_it_does_alone_and_after_the_others(several: dict[str, Any]) -> None:
    adapters = load_adapters({name: folder for name, (folder, _) in several.items()})
    assert list(adapters) == list(several)
    first = {name: [adapters[name].logits(batch) for batch in BATCHES] for name in several}
    for name, (folder, expected) in several.items():
        by_itself = load_adapter(folder, merge=False)
        assert adapters[name].labels == tuple(f"{name} {i}" for i in range(expected[0].shape[1]))
        for batch, was, alone in zip(BATCHES, first[name], expected, strict=True):
            np.testing.assert_allclose(was, alone, rtol=0, atol=1e-5, err_msg=name)
            np.testing.assert_array_equal(adapters[name].logits(batch), was, err_msg=name)
            np.testing.assert_array_equal(by_itself.logits(batch), was, err_msg=name)
    for name in several:
        adapters.unload(name)
    assert identify_base(ModelConfig(name=adapters.base.name), adapters._model).sha256 == adapters.base.sha256
    assert not adapters._own and not adapters._wrappings


def test_one_pass_gives_the_answers_of_one_after_another(several: dict[str, Any]) -> None:
    adapters = load_adapters({name: folder for name, (folder, _) in several.items()})
    ran: list[str] = []
    encoder = encoder_of(adapters._model)
    encoder.feature_extractor.conv_layers[0].register_forward_hook(lambda *_: ran.append("convolutions"))
    encoder.encoder.layers[0].feed_forward.register_forward_hook(lambda *_: ran.append("first layer"))
    # These part from the base behind its first layer.
    behind = {"head_only", "head_only, mixture", "last_n_layers", "lora, last layer", "attention_heads"}
    for i, batch in enumerate(BATCHES):
        ran.clear()
        found = adapters.logits_of_all(batch)
        assert list(found) == list(several)
        assert ran.count("convolutions") == 1
        assert ran.count("first layer") == 1 + len(several.keys() - behind)
        for name, logits in found.items():
            np.testing.assert_allclose(logits, several[name][1][i], rtol=1e-5, atol=1e-5, err_msg=name)
    some = adapters.logits_of_all(BATCHES[0], ["lora", "head_only"])
    assert list(some) == ["lora", "head_only"]
    # Nothing of the pass is left behind.
    np.testing.assert_allclose(adapters["lora"].logits(BATCHES[0]), several["lora"][1][0], rtol=0, atol=1e-5)


def test_recordings_are_labelled_as_alone(two: dict[str, Path], tmp_path: Path) -> None:
    files = [write_tone(tmp_path / f"{i}.wav", 300 + 500 * i, 0.3 + 0.2 * i) for i in range(3)]
    adapters = load_adapters(two)
    for name in [*two, *two]:
        for found, expected in zip(
            predict(adapters[name], files), predict(load_adapter(two[name]), files), strict=True
        ):
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
            assert found.label == expected.label


def test_threads_get_the_answers_of_the_adapter_they_ask(two: dict[str, Path]) -> None:
    adapters = load_adapters(two)
    expected = {name: adapters[name].logits(BATCHES[2]) for name in two}
    names = [*two] * 20
    with ThreadPoolExecutor(4) as pool:
        for name, found in zip(names, pool.map(lambda name: adapters[name].logits(BATCHES[2]), names), strict=True):
            np.testing.assert_array_equal(found, expected[name])


def test_none_is_unloaded_in_the_middle_of_a_pass(two: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = load_adapters(two)
    expected, prepare = adapters.logits_of_all(BATCHES[0]), adapter_set.model_inputs
    other = Thread(target=adapters.unload, args=["lora"])

    def slowly(*given: Any) -> Any:
        other.start()
        other.join(timeout=0.5)
        return prepare(*given)

    monkeypatch.setattr(adapter_set, "model_inputs", slowly)
    found = adapters.logits_of_all(BATCHES[0])
    other.join()
    assert list(adapters) == ["head_only"]
    for name, logits in found.items():
        np.testing.assert_array_equal(logits, expected[name], err_msg=name)


def test_an_interrupted_switch_leaves_no_mixture(several: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["lora", "dora, mixture"]
    adapters = load_adapters({name: several[name][0] for name in names})
    expected = {name: adapters[name].logits(BATCHES[2]) for name in names}
    for old, new in (names, names[::-1]):
        for count in (0, 1, 4, 11):
            adapters.switch(old)
            assign = partial(_one, iter(range(count)))
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(adapter_set, "setattr", assign, raising=False)
                adapters.switch(new)
            for name in (old, new):
                np.testing.assert_array_equal(adapters[name].logits(BATCHES[2]), expected[name], err_msg=name)


def _one(left: Iterator[int], *given: Any) -> None:
    """An assignment, or an interrupt where none is left."""
    if next(left, None) is None:
        raise KeyboardInterrupt
    setattr(*given)


def test_a_split_is_judged_as_alone(two: dict[str, Path], tmp_path: Path) -> None:
    for i in range(6):
        write_tone(tmp_path / f"lora {i % 2}" / f"{i}.wav", 300 + 500 * i, 0.3 + 0.1 * i)
    adapters, source = load_adapters(two), DataConfig(source=str(tmp_path))
    adapters.switch("head_only")
    found, alone = (
        evaluate_adapter(adapter, source) for adapter in (adapters["lora"], load_adapter(two["lora"], merge=False))
    )
    np.testing.assert_array_equal(found.evaluation.logits, alone.evaluation.logits)
    assert found.scores == alone.scores
    assert adapters["lora"].model.config.id2label == {0: "lora 0", 1: "lora 1"}


def test_adapters_come_and_go(two: dict[str, Path]) -> None:
    adapters = load_adapters({"lora": two["lora"]})
    expected = adapters["lora"].logits(BATCHES[0])
    np.testing.assert_array_equal(expected, load_adapter(two["lora"], merge=False).logits(BATCHES[0]))
    state = torch.random.get_rng_state()
    adapters.load("other", two["head_only"])
    adapters.load("copy", two["lora"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(adapters._wrappings) == 2  # one for LoRA, one for a head alone
    with pytest.raises(UserError, match="an adapter named 'other' is loaded"):
        adapters.load("other", two["lora"])
    adapters.switch("copy")
    held, weights = adapters["copy"], _weights(adapters, "copy")
    adapters.unload("copy")
    gc.collect()
    assert not [weight for weight in weights if weight() is not None]
    with pytest.raises(UserError, match="'copy' was unloaded"):
        held.logits(BATCHES[0])
    for use in (adapters.__getitem__, adapters.switch, adapters.unload):
        with pytest.raises(UserError, match="no adapter named 'copy' is loaded; loaded: lora, other"):
            use("copy")
    assert ("lora" in adapters, "copy" in adapters, len(adapters)) == (True, False, 2)
    np.testing.assert_array_equal(adapters["lora"].logits(BATCHES[0]), expected)


def _weights(adapters: AdapterSet, name: str) -> list[weakref.ref[torch.Tensor]]:
    values = adapters._members[name].parts.values.values()
    return [weakref.ref(value) for value in values if isinstance(value, torch.Tensor)]


def test_what_shares_no_base_is_refused_in_words(two: dict[str, Path], tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "layer", ENCODERS["wav2vec2-large, XLS-R"])
    other = save(base, tmp_path, "other", lambda model: adapt(model, HeadOnlyRecipe()), 2)[0]
    with pytest.raises(UserError, match=r"other is for another base than lora: .*\(weights [0-9a-f]{12}\), not"):
        load_adapters(two | {"other": other})
    with pytest.raises(UserError, match="other is for another base than the adapters here"):
        load_adapters(two).load("other", other)
    with pytest.raises(UserError, match="is not the one the adapter was trained on"):
        load_adapters(two, base=str(base))
    whole, _ = save(base, tmp_path, "whole", lambda model: adapt(model, FullRecipe()), 2)
    with pytest.raises(UserError, match=r"whole .* is a whole model without a shared base"):
        load_adapters(two | {"whole": whole})
    with pytest.raises(UserError, match="got no adapters"):
        load_adapters({})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda stored: stored.pop("base_model.model.projector.bias"), "1 weights are missing or unknown, .*projector"),
        (lambda stored: stored.pop(next(name for name in stored if "lora_A" in name)), "1 weights are missing.*lora_A"),
        (lambda stored: stored.update({"base_model.model.more": torch.ones(1)}), "1 weights are missing or unknown"),
        (
            lambda stored: stored.update({"base_model.model.classifier.bias": torch.ones(3)}),
            r"classifier.bias has shape \(3,\), expected \(2,\)",
        ),
        (lambda stored: stored.clear(), "weights are missing or unknown"),
        (lambda stored: stored["base_model.model.classifier.bias"].add_(1), "does not answer as recorded"),
    ],
)
def test_a_damaged_adapter_is_refused_and_the_others_stay(
    damage: Callable[[dict[str, torch.Tensor]], Any], words: str, two: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(two["lora"], tmp_path / "damaged")
    stored = load_file(folder / "adapter_model.safetensors")
    damage(stored)
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapters = load_adapters(two)
    expected = {name: adapters[name].logits(BATCHES[0]) for name in two}
    # Whether another is asked in between, or goes.
    for then in (adapters.switch, adapters.unload):
        with pytest.raises(UserError, match=words):
            adapters.load("damaged", folder)
        then("lora")
        for name in adapters:
            np.testing.assert_array_equal(adapters[name].logits(BATCHES[0]), expected[name])
    (folder / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged"):
        adapters.load("damaged", folder)
    assert list(adapters) == ["head_only"]


@pytest.mark.parametrize("name", ["minimum_samples", "sampling_rate"])
def test_what_does_not_fit_the_base_is_refused_at_any_place(name: str, two: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(two["head_only"], tmp_path / "other")
    record = json.loads((folder / "peft_audio.json").read_text())
    record["input"][name] = 401 if name == "minimum_samples" else 8_000
    if name == "sampling_rate":
        about = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps(about | {name: 8_000}))
    (folder / "peft_audio.json").write_text(json.dumps(record))
    words = "but the encoder's is" if name == "minimum_samples" else "is for 8000 Hz, but its base takes 16000 Hz"
    for use in (load_adapters, load_adapters(two).load):
        given = [{**two, "other": folder}] if use is load_adapters else ["other", folder]
        with pytest.raises(UserError, match=words):
            use(*given)
