"""AST: its features, its window, and what others do with an adapter of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.tiny_ast import save_ast
from transformers import ASTConfig, ASTFeatureExtractor, AutoModelForAudioClassification
from transformers.models.audio_spectrogram_transformer import feature_extraction_audio_spectrogram_transformer as theirs

from peft_audio import DataConfig, FullRecipe, HeadOnlyRecipe, LastNLayersRecipe, LoraRecipe, ModelConfig, fine_tune
from peft_audio.adapters.load import load_adapter
from peft_audio.cli import main
from peft_audio.config import AugmentConfig, PrefixCacheConfig, TrainConfig
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import load_classifier, load_extractor
from peft_audio.errors import UserError
from peft_audio.inference.predict import predict
from peft_audio.publish.export import FORMS, export_adapter, write_export
from peft_audio.strategies import LastNLayersConfig

RATE = 16_000
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero:UserWarning")
LAST = LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))
LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ast(tmp_path_factory.mktemp("bases") / "ast")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("samples", [400, 5_000, 16_000, 40_960])
def test_features_are_those_of_transformers_without_torchaudio(
    samples: int, ast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theirs, "is_speech_available", lambda: False)
    extractor = load_extractor(ModelConfig(name=str(ast)))
    family = family_of(ASTConfig())
    tone = 0.4 * np.cos(np.arange(samples) / 5).astype(np.float32)
    for clip in (noise(samples), tone):
        expected = extractor(clip, sampling_rate=RATE, return_tensors="np")["input_values"][0]
        ours = family.prepare(clip, extractor)["input_values"]
        assert ours.dtype == np.float32 and ours.shape == (256, 128)
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_positions_are_cut_by_columns_of_time(ast: Path) -> None:
    own = AutoModelForAudioClassification.from_pretrained(ast).audio_spectrogram_transformer.embeddings
    model = load_classifier(ModelConfig(name=str(ast), input_seconds=1), LABELS)
    cut = model.audio_spectrogram_transformer.embeddings
    assert model.config.max_length == 100
    # Patches of the first second are the same with both, wherever they stand in the table.
    values = torch.randn(1, 256, 128)
    long, short = own(values)[:, 2:].unflatten(1, (12, 25)), cut(values[:, :100])[:, 2:].unflatten(1, (12, 9))
    torch.testing.assert_close(short, long[:, :, :9])
    torch.testing.assert_close(cut(values[:, :100])[:, :2], own(values)[:, :2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_seconds": 3}, r"input_seconds: got 3.*, must be 0.16 to 2.56"),
        ({"layer_weighted_sum": True}, r"layer_weighted_sum: got true, must be false for AST"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: Any, message: str, ast: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_classifier(ModelConfig(name=str(ast), **settings), LABELS)


@pytest.mark.parametrize("wrong", [{"sampling_rate": 8000}, {"num_mel_bins": 64}])
def test_features_that_the_encoder_does_not_take_are_refused(wrong: dict[str, int], ast: Path, tmp_path: Path) -> None:
    base = shutil.copytree(ast, tmp_path / "base")
    ASTFeatureExtractor(**wrong).save_pretrained(base)
    name, value = next(iter(wrong.items()))
    with pytest.raises(UserError, match=f"preprocessor_config.json: {name} is {value}, must be "):
        load_extractor(ModelConfig(name=str(base)))


def run(recipe: Any, ast: Path, data: Path, folder: Path, use: Any = "never", **windows: float) -> Any:
    cfg = replace(
        recipe,
        data=DataConfig(source=str(data), **windows),
        model=ModelConfig(name=str(ast), input_seconds=0.4),
        prefix_cache=PrefixCacheConfig(use=use),
        train=TrainConfig(output_dir=str(folder), epochs=2, batch_size=6, mixed_precision="no", verify_adapter=False),
    )
    return fine_tune(cfg)


@pytest.mark.parametrize("recipe", [HeadOnlyRecipe(), LAST, LoraRecipe()])
def test_the_cache_gives_the_same_run(recipe: Any, ast: Path, tone_folder: Path, tmp_path: Path) -> None:
    kept = run(recipe, ast, tone_folder, tmp_path / "kept", "always")
    whole = run(recipe, ast, tone_folder, tmp_path / "whole")
    assert kept.prefix_cached
    assert kept.validation_loss == pytest.approx(whole.validation_loss, rel=1e-4)


@pytest.mark.parametrize(
    ("recipe", "masks", "reason"), [(FullRecipe(), 0.0, "the first layers train"), (LAST, 0.2, "SpecAugment (augment.")]
)
def test_the_reason_for_no_cache_names_what_changes_the_first_layers(
    recipe: Any, masks: float, reason: str, ast: Path, tone_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    run(replace(recipe, augment=AugmentConfig(mask_time_share=masks)), ast, tone_folder, tmp_path / "run", "always")
    assert f"prefix cache: not used: {reason}" in capsys.readouterr().out


def test_full_fine_tuning_trains_positions_but_no_patches(ast: Path, tone_folder: Path, tmp_path: Path) -> None:
    run(FullRecipe(), ast, tone_folder, tmp_path / "run")
    folder = tmp_path / "run" / "model"
    assert main(["verify", str(folder)]) == 0
    before = load_classifier(ModelConfig(name=str(ast), input_seconds=0.4), LABELS).audio_spectrogram_transformer
    after = load_adapter(folder).model.audio_spectrogram_transformer
    same = {name for name, value in after.named_parameters() if torch.equal(value, before.get_parameter(name))}
    assert {name.rpartition(".")[0] for name in same} == {"embeddings.patch_embeddings.projection"}


def test_the_graph_takes_features_of_the_window(ast: Path, tone_folder: Path, tmp_path: Path) -> None:
    run(HeadOnlyRecipe(), ast, tone_folder, tmp_path / "run")
    write_export(load_adapter(tmp_path / "run" / "adapter"), tmp_path / "onnx", FORMS["onnx"])
    shape = onnx.load(tmp_path / "onnx" / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [axis.dim_param or axis.dim_value for axis in shape.dim] == ["clips", 40, 128]
    write_export(load_adapter(tmp_path / "run" / "adapter"), tmp_path / "merged", FORMS["merged"])
    assert "With torchaudio installed" in (tmp_path / "merged" / "README.md").read_text()
    readme = (tmp_path / "onnx" / "README.md").read_text()
    assert "torchaudio" not in readme
    assert "The code above computes the log-mel features." in readme and "silence" not in readme


@pytest.mark.slow
def test_others_load_an_adapter_by_its_readme(ast: Path, tone_folder: Path, tmp_path: Path) -> None:
    run(LoraRecipe(), ast, tone_folder, tmp_path / "run", window_seconds=0.3, hop_seconds=0.2)
    folder = tmp_path / "run" / "adapter"
    assert "averaged over windows of 0.3 s, one every 0.2 s" in (folder / "README.md").read_text().replace("\n", " ")
    assert main(["verify", "--snippet", str(folder)]) == 0
    clip = noise(16_000)
    (expected,) = predict(load_adapter(folder), [clip], sampling_rate=RATE)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('"PATH/TO/BASE"', repr(str(ast)))
    start = code.index("waveform = np.sin")
    drawn = "waveform = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)"
    code = code[:start] + drawn + code[code.index("\n", start) :]
    code += "\nimport json, sys\nassert 'peft_audio' not in sys.modules and values.shape == (5, 40, 128)"
    code += "\nprint(json.dumps(logits.softmax(-1).tolist()))"
    child = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    probabilities = json.loads(child.stdout.splitlines()[-1])
    np.testing.assert_allclose(probabilities, list(expected.probabilities.values()), atol=1e-5)
    for form, bound in (("merged", 1e-4), ("onnx", 1e-3)):
        assert export_adapter(folder, tmp_path / form, form).difference < bound
