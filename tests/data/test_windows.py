"""Long recordings as windows: nothing unheard, and what is said of a recording is the mean over its windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from accelerate import Accelerator
from helpers.tones import write_tone
from scipy.special import softmax
from sklearn.metrics import accuracy_score

from peft_audio.adapters.load import Adapter
from peft_audio.adapters.record import describe_adapter
from peft_audio.audio.decoding import load_audio
from peft_audio.config import DataConfig, ModelConfig
from peft_audio.data.clip_table import make_clips
from peft_audio.data.loaders import make_loaders
from peft_audio.data.splits import load_splits
from peft_audio.data.windows import cut_windows, fit_lengths, window_starts
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.evaluation.run_split import evaluate
from peft_audio.inference.predict import predict
from peft_audio.strategies import LoraRecipe
from peft_audio.tasks import task_of


@pytest.mark.parametrize(
    ("seconds", "window", "hop", "starts"),
    [
        (9.0, 3.0, None, [0, 3, 6]),
        (10.0, 3.0, None, [0, 3, 6, 7]),
        (10.0, 4.0, 2.0, [0, 2, 4, 6]),
        (3.0, 3.0, None, [0]),
        (0.2, 3.0, 1.0, [0]),
        (0.3 * 3, 0.3, None, [0, 0.3, 0.6]),
    ],
)
def test_windows_are_whole_and_the_last_ends_with_the_recording(
    seconds: float, window: float, hop: float | None, starts: list[float]
) -> None:
    assert window_starts(seconds, window, hop) == pytest.approx(starts)


def test_windows_of_a_part_of_a_recording_stay_inside_it() -> None:
    clips = make_clips({"id": ["a", "b"], "start_seconds": [5.0, 1.0], "end_seconds": [9.0, 2.0]})
    clips = clips.assign(num_frames=[32_000, 8_000], sampling_rate=8_000, label="x")
    rows = cut_windows(clips, 1.5, None)
    assert list(rows["id"]) == ["a@5", "a@6.5", "a@7.5", "b"] and list(rows["recording"]) == ["a", "a", "a", "b"]
    assert list(rows["end_seconds"]) == [6.5, 8.0, 9.0, 2.0] and list(rows["num_frames"]) == [12_000] * 3 + [8_000]


def test_average_of_windows_is_the_mean_of_their_probabilities() -> None:
    logits, owners = np.random.default_rng(0).normal(size=(7, 3)), np.array([0, 0, 1, 2, 2, 2, 1])
    found = task_of().average_windows(torch.tensor(logits).float(), torch.tensor(owners)).numpy()
    wanted = pd.DataFrame(softmax(logits, axis=1)).groupby(owners).mean().to_numpy()
    assert softmax(found, axis=1) == pytest.approx(wanted, abs=1e-6) and np.exp(found) == pytest.approx(
        wanted, abs=1e-6
    )


def test_evaluation_and_prediction_average_over_a_recordings_windows(tiny_base: Path, tmp_path: Path) -> None:
    """Against the definition: each window decoded and run alone, then averaged by recording."""
    rng = np.random.default_rng(0)
    for label in ("high", "low"):
        for i in range(6):
            seconds = float(rng.uniform(0.3, 2.4))
            write_tone(tmp_path / "data" / label / f"{i}.wav", 300 + 1000 * (label == "high"), seconds, 22_050, seed=i)
    data = DataConfig(source=str(tmp_path / "data"), window_seconds=0.7, hop_seconds=0.5)
    cfg = LoraRecipe(data=data, model=ModelConfig(name=str(tiny_base)))
    splits, extractor = load_splits(data), load_extractor(cfg.model)
    model = load_classifier(cfg.model, splits.labels)
    torch.nn.init.normal_(model.classifier.weight, std=3.0)
    accelerator = Accelerator(cpu=True)
    loaders = make_loaders(splits, extractor, model.config, cfg, accelerator)
    found = evaluate(model, loaders.train_whole, accelerator, loaders.task)
    recordings = splits.recordings("train")
    assert len(found.logits) == len(recordings) < len(splits.train)

    base = identify_base(cfg.model, model)
    adapter = Adapter(model, extractor, describe_adapter(cfg, base, splits.labels, extractor, "lora", {}))
    wanted = []
    for name in recordings["id"]:
        path = tmp_path / "data" / name
        seconds = soundfile.info(path).frames / 22_050
        parts = [load_audio(path, 16_000, start, 0.7) for start in window_starts(seconds, 0.7, 0.5)]
        wanted.append(np.mean([softmax(adapter.logits([part])[0]) for part in parts], axis=0))
    assert softmax(found.logits, axis=1) == pytest.approx(np.array(wanted), abs=1e-5)
    right = [splits.labels.index(label) for label in recordings["label"]]
    assert found.metrics["accuracy"] == accuracy_score(right, np.argmax(wanted, axis=1))

    said = predict(adapter, [tmp_path / "data" / name for name in recordings["id"]], batch_size=3)
    assert np.array([list(one.probabilities.values()) for one in said]) == pytest.approx(np.array(wanted), abs=1e-5)
    assert all(one.seconds_used == one.seconds for one in said)


@pytest.mark.parametrize(
    ("settings", "crop"),
    [
        ({}, 30),
        ({"max_seconds": 5}, 5),
        ({"max_seconds": 60}, 30),
        ({"window_seconds": 4}, 4),
        ({"max_eval_seconds": 8}, 8),
    ],
)
def test_training_crops_fill_a_fixed_window(settings: dict[str, float], crop: float) -> None:
    """A crop of 10 s in a window of 30 s would train on 20 s of silence, which evaluation never sees."""
    assert fit_lengths(DataConfig(**settings), 30).max_seconds == crop
