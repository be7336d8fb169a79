"""Whisper's encoder: its window, its traps, and what others do with an adapter of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.adapt import adapt
from helpers.tiny_whisper import save_whisper
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)

from peft_audio import DataConfig, FullRecipe, HeadOnlyRecipe, LastNLayersRecipe, LoraRecipe, ModelConfig, fine_tune
from peft_audio.adapters.load import load_adapter
from peft_audio.adapters.verify import check_probes
from peft_audio.cli import main
from peft_audio.config import AugmentConfig, PrefixCacheConfig, TrainConfig
from peft_audio.data.collate import collate, prepare_clip
from peft_audio.data.windows import window_starts
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import load_classifier, load_extractor
from peft_audio.encoders.log_mel import WhisperLogMel
from peft_audio.encoders.spec_augment import make_masks, masked
from peft_audio.encoders.whisper import WHISPER
from peft_audio.errors import UserError
from peft_audio.inference.predict import predict
from peft_audio.publish.export import export_adapter
from peft_audio.strategies import FullConfig, LastNLayersConfig

RATE = 16_000
LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("bases") / "whisper")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def batch_of(cfg: ModelConfig, model: Any, clips: list[np.ndarray]) -> dict[str, Any]:
    extractor, family = load_extractor(cfg), family_of(model.config)
    items = [
        prepare_clip(clip, extractor, family) | {"label": 0, "index": i, "weight": 1.0} for i, clip in enumerate(clips)
    ]
    return collate(items, model.config)


@pytest.mark.parametrize("kind", [WhisperForAudioClassification, WhisperForConditionalGeneration])
def test_positions_are_cut_exactly_from_any_directory(kind: type[Any], tmp_path: Path) -> None:
    base = save_whisper(tmp_path / "base", kind=kind)
    own = AutoModelForAudioClassification.from_pretrained(base, dtype=torch.float32).encoder
    model = load_classifier(ModelConfig(name=str(base), input_seconds=1), LABELS)
    encoder = model.encoder
    assert torch.equal(encoder.embed_positions.weight, own.embed_positions.weight[:50])
    assert encoder.embed_positions.num_embeddings == model.config.max_source_positions == 50
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    rest = {name: value for name, value in encoder.state_dict().items() if "embed_positions" not in name}
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in rest.items())
    # Those of a model that was built for this window.
    model.save_pretrained(tmp_path / "short")
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "short").eval()
    values = torch.randn(2, 80, 100)
    with torch.no_grad():
        assert torch.equal(model(values).logits, again(values).logits)


def test_a_window_that_the_encoder_does_not_have_is_refused(whisper: Path, tmp_path: Path) -> None:
    for seconds in (5, 1.5):
        with pytest.raises(UserError, match=rf"--model.input_seconds: got {seconds}, must be whole seconds, 1 to 4"):
            load_extractor(ModelConfig(name=str(whisper), input_seconds=seconds))
    base = save_whisper(tmp_path / "odd")
    stored = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(stored | {"max_source_positions": 75}))
    with pytest.raises(UserError, match=r"75 positions of 20 ms .*whole seconds"):
        load_extractor(ModelConfig(name=str(base)))


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero:UserWarning")
@pytest.mark.parametrize("wrong", [{"sampling_rate": 8000}, {"feature_size": 64}])
def test_features_that_whisper_does_not_take_are_refused(wrong: dict[str, int], whisper: Path, tmp_path: Path) -> None:
    base = shutil.copytree(whisper, tmp_path / "base")
    WhisperFeatureExtractor(**wrong).save_pretrained(base)
    name, value = next(iter(wrong.items()))
    with pytest.raises(UserError, match=f"preprocessor_config.json: {name} is {value}, must be "):
        load_extractor(ModelConfig(name=str(base)))


def test_the_extractor_makes_the_window_and_refuses_to_cut(whisper: Path, tmp_path: Path) -> None:
    cfg = ModelConfig(name=str(whisper), input_seconds=2)
    extractor, model = load_extractor(cfg), load_classifier(cfg, LABELS)
    family = family_of(model.config)
    for samples in (1, 700, RATE, 2 * RATE, 2 * RATE + 1):
        made = family.prepare(noise(samples), extractor)["input_features"]
        assert made.shape == (80, 200) and made.dtype == np.float32
    with pytest.raises(UserError, match=r"a clip of 2.10 s is longer than the encoder's window of 2 s"):
        family.prepare(noise(round(2.1 * RATE)), extractor)
    extractor.save_pretrained(tmp_path)
    again = AutoFeatureExtractor.from_pretrained(tmp_path)
    clip = noise(9_000)
    same = again(clip, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    np.testing.assert_array_equal(same, family.prepare(clip, extractor)["input_features"])


def test_one_clip_one_answer(whisper: Path) -> None:
    cfg = ModelConfig(name=str(whisper), input_seconds=1)
    model = load_classifier(cfg, LABELS)
    clips = [noise(n, n) for n in (16_000, 9_000, 700)]
    with torch.no_grad():
        together = model(**batch_of(cfg, model, clips)["inputs"]).logits
        alone = torch.cat([model(**batch_of(cfg, model, [clip])["inputs"]).logits for clip in clips])
    assert together.std(0).max() > 1e-4
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("train_cnn", [False, True])
def test_full_fine_tuning_leaves_the_sinusoids(whisper: Path, train_cnn: bool) -> None:
    cfg = ModelConfig(name=str(whisper), input_seconds=1)
    plain = AutoModelForAudioClassification.from_pretrained(whisper)
    assert plain.encoder.embed_positions.weight.requires_grad, "the trap is gone from transformers"
    model, trained = adapt(load_classifier(cfg, LABELS), FullRecipe(full=FullConfig(train_cnn=train_cnn)))
    assert not any("embed_positions" in name for name in trained.parameters)
    assert any("conv1" in name for name in trained.parameters) == train_cnn
    model.train()
    model(**batch_of(cfg, model, [noise(RATE)])["inputs"]).logits.sum().backward()
    assert model.encoder.embed_positions.weight.grad is None
    assert (model.encoder.conv2.weight.grad is not None) == train_cnn


@pytest.mark.parametrize("recipe", [LoraRecipe(), LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))])
def test_gradients_reach_the_attention_and_the_whole_head(whisper: Path, recipe: Any) -> None:
    cfg = ModelConfig(name=str(whisper), input_seconds=1)
    model, trained = adapt(load_classifier(cfg, LABELS), recipe)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    inputs = batch_of(cfg, model, [noise(RATE), noise(RATE, 1)])["inputs"]
    torch.nn.functional.cross_entropy(model(**inputs).logits, torch.tensor([0, 1])).backward()
    parameters = dict(model.named_parameters())
    assert [name for name in trained.parameters if parameters[name].grad is None] == []
    layers = {name for name in trained.parameters if ".layers." in name}
    assert any("self_attn.q_proj" in name for name in layers) and any("fc1" in name for name in layers)
    assert all(any(part in name for name in trained.head) for part in ("projector", "classifier"))


def test_the_features_of_the_graph_are_those_of_the_extractor(whisper: Path) -> None:
    extractor = load_extractor(ModelConfig(name=str(whisper), input_seconds=1))
    tone = 0.4 * np.cos(np.arange(RATE) / 3).astype(np.float32)
    clips = np.stack([noise(RATE), np.pad(noise(4_000, 1), (0, 12_000)), tone, np.zeros(RATE, np.float32)])
    ours = WhisperLogMel(extractor)(torch.from_numpy(clips)).numpy()
    theirs = extractor(list(clips), sampling_rate=RATE, return_tensors="np")["input_features"]
    assert ours.shape == theirs.shape == (4, 80, 100)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_masks_hide_bands_and_frames_of_the_clip_alone(whisper: Path) -> None:
    cfg = ModelConfig(name=str(whisper), input_seconds=1)
    model = load_classifier(cfg, LABELS)
    augment = AugmentConfig(mask_time_share=0.5, mask_time_ms=50, mask_feature_share=0.3, mask_feature_channels=8)
    masks = make_masks(augment, model.config)
    clips, drawn = [noise(8_000), noise(4_800, 1)], []
    batch = batch_of(cfg, model, clips)
    for i, clip in enumerate(clips):
        drawn.append(masks(len(clip), [i]))
    assert [len(one["time_mask"]) for one in drawn] == [50, 30]
    assert all(len(one["feature_mask"]) == 80 for one in drawn)
    pad = torch.nn.utils.rnn.pad_sequence
    for name in ("time_mask", "feature_mask"):
        batch[name] = pad([torch.from_numpy(one[name]) for one in drawn], batch_first=True)
    seen: list[torch.Tensor] = []
    with masked(model, batch):
        hook = model.encoder.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        model(**batch["inputs"])
        hook.remove()
    hidden = torch.zeros(2, 80, 100, dtype=torch.bool)
    for i, one in enumerate(drawn):
        hidden[i, :, : len(one["time_mask"])] |= torch.from_numpy(one["time_mask"])
        hidden[i] |= torch.from_numpy(one["feature_mask"])[:, None]
    expected = batch["inputs"]["input_features"].masked_fill(hidden, 0)
    assert 0.1 < hidden.float().mean() < 0.9
    torch.testing.assert_close(seen[0], expected, atol=0, rtol=0)


def run(recipe: Any, whisper: Path, data: Path, folder: Path, use: Any = "never", **model: Any) -> Any:
    cfg = replace(
        recipe,
        data=DataConfig(source=str(data)),
        model=ModelConfig(name=str(whisper), input_seconds=1, **model),
        prefix_cache=PrefixCacheConfig(use=use),
        train=TrainConfig(output_dir=str(folder), epochs=2, batch_size=6, mixed_precision="no", verify_adapter=False),
    )
    return fine_tune(cfg)


LAST = LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))


@pytest.mark.parametrize(
    ("recipe", "mixture", "cached"),
    [
        (HeadOnlyRecipe(), False, "the whole encoder (pooled over time)"),
        (HeadOnlyRecipe(), True, "the whole encoder (pooled over time)"),
        (LAST, False, "everything up to the transformer's first 1 layers"),
        (LoraRecipe(), True, "everything before the transformer's first layer"),
    ],
)
def test_the_cache_gives_the_same_run(
    recipe: Any, mixture: bool, cached: str, whisper: Path, tone_folder: Path, tmp_path: Path
) -> None:
    kept = run(recipe, whisper, tone_folder, tmp_path / "kept", "always", layer_weighted_sum=mixture)
    whole = run(recipe, whisper, tone_folder, tmp_path / "whole", layer_weighted_sum=mixture)
    assert kept.prefix_cached == cached
    assert kept.validation_loss == pytest.approx(whole.validation_loss, rel=1e-4)


def test_readmes_cut_the_windows_of_evaluation() -> None:
    about = {"sampling_rate": RATE, "input_seconds": 1, "window_seconds": 0.3, "hop_seconds": 0.2}
    here = {
        "waveform": np.arange(RATE),
        "extractor": lambda windows, **about: SimpleNamespace(input_features=windows),
    }
    exec(WHISPER.input_code(about), here)
    assert [part[0] / RATE for part in here["values"]] == pytest.approx(window_starts(1.0, 0.3, 0.2))
    assert {len(part) for part in here["values"]} == {round(0.3 * RATE)}
    assert "windows of 0.3 s, one every 0.2 s" in WHISPER.graph_code(about)


# What somebody without this package does with the README of an adapter.
CHECK = """
assert not any(name.startswith("peft_audio") for name in __import__("sys").modules)
assert model.config.max_source_positions == 50 and values.shape == (3, 80, 100), (model.config, values.shape)
import json
print(json.dumps([logits.softmax(-1).tolist(), logits.tolist()]))
"""


@pytest.mark.slow
def test_others_load_an_adapter_by_its_readme(whisper: Path, tone_folder: Path, tmp_path: Path) -> None:
    run(LoraRecipe(), whisper, tone_folder, tmp_path / "run", layer_weighted_sum=True)
    folder = tmp_path / "run" / "adapter"
    assert main(["verify", "--snippet", str(folder)]) == 0
    adapter = load_adapter(folder)
    assert adapter.record.input["input_seconds"] == 1 and adapter.record.input["kind"] == "log-mel"
    clip = noise(40_000)
    (expected,) = predict(adapter, [clip], sampling_rate=RATE)

    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    cut = code[code.index("table = ") : code.index("model = PeftModel")]
    assert len(cut.strip().splitlines()) <= 4
    code = code.replace('"PATH/TO/BASE"', repr(str(whisper)))
    start = code.index("waveform = np.sin")
    code = (
        code[:start]
        + "waveform = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)"
        + code[code.index("\n", start) :]
    )
    child = subprocess.run(
        [sys.executable, "-P", "-c", code + CHECK], cwd=folder, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    probabilities, _ = json.loads(child.stdout.splitlines()[-1])
    np.testing.assert_allclose(probabilities, list(expected.probabilities.values()), atol=1e-5)


@pytest.mark.parametrize("form", [pytest.param("merged", marks=pytest.mark.slow), "onnx"])
def test_exports_take_a_window(form: Any, whisper: Path, tone_folder: Path, tmp_path: Path) -> None:
    run(LoraRecipe(), whisper, tone_folder, tmp_path / "run")
    done = export_adapter(tmp_path / "run" / "adapter", tmp_path / "out", form)
    assert done.difference < (1e-4 if form == "merged" else 1e-3)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "The model takes a window of 1 s." in readme
    assert ("The graph computes the log-mel features." in readme) == (form == "onnx")
    if form == "merged":
        assert check_probes(tmp_path / "out") == []
        assert AutoModelForAudioClassification.from_pretrained(tmp_path / "out").config.max_source_positions == 50
