"""Tiny models and real audio files; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
# Where frozen prefixes are kept, by tests and by the recipes that they launch.
os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp(prefix="peft-audio-tests-")
# Tests hand CPU batches to what a run trained, and count on a CPU's bits; test_gpu.py is for GPUs.
os.environ["ACCELERATE_USE_CPU"] = "true"
# Models this small lose more to handing work to a second thread than they gain.
os.environ["OMP_NUM_THREADS"] = "1"
# The same precision on CPUs with and without bf16 units, in this process and in those that tests start.
os.environ.setdefault("PEFT_AUDIO_AUTO_PRECISION", "no")

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoModel,
    HubertConfig,
    UniSpeechSatConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)

# What tests start sees no GPU, however it is launched; this process keeps it.
if torch.cuda.is_available():
    torch.cuda.init()
    torch.cuda.device_count()
os.environ["CUDA_VISIBLE_DEVICES"] = ""


def tiny_config(norm: str = "group", kind: type[Any] = Wav2Vec2Config, **overrides: object) -> Any:
    """Two layers of width 32 with the CNN's usual kernels and strides; `norm` is "group" or "layer"."""
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "classifier_proj_size": 16,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
        "vocab_size": 12,
    }
    return kind(**settings | overrides)


# The architectures that people use, small: what their published configs set apart is set here too.
ENCODERS = {
    "wav2vec2-base": tiny_config("group"),
    "wav2vec2-large, XLS-R": tiny_config("layer", conv_bias=True),
    "hubert-base": tiny_config("group", HubertConfig),
    "hubert-large": tiny_config("layer", HubertConfig, conv_bias=True),
    "distilhubert": tiny_config("group", HubertConfig, feat_proj_layer_norm=False),
    "wavlm-base": tiny_config("group", WavLMConfig),
    "wavlm-large": tiny_config("layer", WavLMConfig),
    "unispeech-sat-base": tiny_config("group", UniSpeechSatConfig),
    "unispeech-sat-large": tiny_config("layer", UniSpeechSatConfig, conv_bias=True),
}


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["HF_ASSETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained-encoder directory as save_pretrained makes it, with random weights and a group norm."""
    return save_base(tmp_path_factory.mktemp("bases") / "tiny-group", "group")


def save_base(folder: Path, norm: str) -> Path:
    return save_encoder(folder, tiny_config(norm))


def save_encoder(folder: Path, config: Any) -> Path:
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    mask = config.feat_extract_norm == "layer"
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=mask).save_pretrained(folder)
    return folder


def write_tone(path: Path, hertz: float, seconds: float = 0.4, rate: int = 16_000, seed: int = 0) -> Path:
    """A noisy tone as a 16-bit file; the format follows the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(time))
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * time) + 0.02 * noise, rate)
    return path


@pytest.fixture(scope="session")
def raw_extractor() -> Wav2Vec2FeatureExtractor:
    """Leaves samples as they are."""
    return Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)


@pytest.fixture(scope="session")
def tone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection in the audiofolder layout: classes "high" and "low", 12 clips each, 0.2 to 0.5 s at 16 kHz."""
    root = tmp_path_factory.mktemp("tones")
    for i in range(12):
        write_tone(root / "low" / f"{i}.wav", 200 + 5 * i, 0.2 + 0.025 * i, seed=i)
        write_tone(root / "high" / f"{i}.wav", 1500 + 30 * i, 0.5 - 0.025 * i, seed=100 + i)
    return root


@pytest.fixture(scope="session")
def adapter_dir(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LoRA adapter of the labels "a", "b", "c" on the tiny base, far from its zero start."""
    from peft_audio.adapters.record import describe_adapter
    from peft_audio.adapters.save import save_adapter
    from peft_audio.config import DataConfig, LoraConfig, LoraRecipe, ModelConfig
    from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
    from peft_audio.strategies.base import apply_lora

    torch.manual_seed(1)
    cfg = LoraRecipe(data=DataConfig(max_eval_seconds=2.0), model=ModelConfig(name=str(tiny_base)))
    model = load_classifier(cfg.model, ["a", "b", "c"])
    base, extractor = identify_base(cfg.model, model), load_extractor(cfg.model)
    model, trained = apply_lora(model, LoraConfig())
    for name, weight in model.named_parameters():
        if name in trained.parameters:
            torch.nn.init.normal_(weight, std=0.5)
    record = describe_adapter(cfg, base, ["a", "b", "c"], extractor, "lora", {"test_accuracy": 0.5})
    return save_adapter(tmp_path_factory.mktemp("saved"), model, trained, extractor, record)
