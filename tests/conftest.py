"""Tiny models and real audio files; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Where frozen prefixes are kept, by tests and by the recipes that they launch.
os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp(prefix="peft-audio-tests-")
# Tests hand CPU batches to what a run trained, and count on a CPU's bits; test_gpu.py is for GPUs.
os.environ["ACCELERATE_USE_CPU"] = "true"
# Models this small lose more to handing work to a second thread than they gain.
os.environ["OMP_NUM_THREADS"] = "1"
# The same precision on CPUs with and without bf16 units, in this process and in those that tests start.
os.environ.setdefault("PEFT_AUDIO_AUTO_PRECISION", "no")

import pytest
import torch
from helpers.broken_functions import break_named
from helpers.tiny_encoders import save_base
from helpers.tones import write_tone
from transformers import (
    Wav2Vec2FeatureExtractor,
)

# What tests start sees no GPU, however it is launched; this process keeps it.
if torch.cuda.is_available():
    torch.cuda.init()
    torch.cuda.device_count()
os.environ["CUDA_VISIBLE_DEVICES"] = ""
break_named()


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["HF_ASSETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained-encoder directory as save_pretrained makes it, with random weights and a group norm."""
    return save_base(tmp_path_factory.mktemp("bases") / "tiny-group", "group")


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
    from peft_audio.config import DataConfig, ModelConfig
    from peft_audio.encoders.family import family_of
    from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
    from peft_audio.strategies import LoraRecipe, Setup, strategy_of

    torch.manual_seed(1)
    cfg = LoraRecipe(data=DataConfig(max_eval_seconds=2.0), model=ModelConfig(name=str(tiny_base)))
    model = load_classifier(cfg.model, ["a", "b", "c"])
    base, extractor = identify_base(cfg.model, model), load_extractor(cfg.model)
    model, trained = strategy_of(cfg)(model, Setup(family_of(model.config), cfg))
    for name, weight in model.named_parameters():
        if name in trained.parameters:
            torch.nn.init.normal_(weight, std=0.5)
    record = describe_adapter(cfg, base, ["a", "b", "c"], extractor, "lora", {"test_accuracy": 0.5})
    return save_adapter(tmp_path_factory.mktemp("saved"), model, trained, extractor, record)
