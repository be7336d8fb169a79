"""Controls without a network against scikit-learn used directly, and as runs like any other."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from helpers.recipe_runs import launch, two_processes
from helpers.tones import write_tone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.preprocessing import StandardScaler

from peft_audio.audio.decoding import load_audio
from peft_audio.config import BaselineRecipe, DataConfig, parse_config
from peft_audio.data.clip_table import recording_of
from peft_audio.data.splits import Splits, load_splits
from peft_audio.data.windows import window_starts
from peft_audio.errors import UserError
from peft_audio.runs.baseline import log_mel, run_baseline
from peft_audio.runs.predictions import read_predictions
from peft_audio.runs.report import RunReport


def run(folder: Path, *flags: str) -> RunReport:
    """The report as `report.json` holds it."""
    cfg = parse_config(BaselineRecipe, ["--train.output_dir", str(folder), *flags])
    report = run_baseline(cfg)
    stored = RunReport(**json.loads((folder / "report.json").read_text()))
    assert stored == report
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "predictions.parquet",
        "report.json",
        "splits.parquet",
    }
    return stored


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_splits(DataConfig(max_train_clips=60))


def by_hand(splits: Splits, split: str) -> np.ndarray:
    """Log-mel statistics of the bundled digits, which are recorded at 8 kHz."""
    found = []
    for row in splits[split]:
        clip = recording_of(row, splits.stored)
        samples, rate = soundfile.read(io.BytesIO(clip), dtype="float32")
        assert rate == 8_000
        found.append(log_mel(soxr.resample(samples, rate, 16_000), 4_000.0))
    return np.stack(found)


def test_log_mel_is_what_scikit_learn_says(digits: Splits, tmp_path: Path) -> None:
    report = run(tmp_path / "run", "--data.max_train_clips", "60", "--train.evaluate_train", "true")
    scaler = StandardScaler().fit(by_hand(digits, "train"))
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(by_hand(digits, "train")), digits.train["label"])
    assert report.trainable_parameters == report.total_parameters == model.coef_.size + model.intercept_.size
    whole = read_predictions(tmp_path / "run" / "predictions.parquet")
    for split in ("train", "validation", "test"):
        x, y = scaler.transform(by_hand(digits, split)), digits[split]["label"]
        wanted = {
            "accuracy": accuracy_score(y, model.predict(x)),
            "macro_f1": f1_score(y, model.predict(x), average="macro"),
        }
        wanted |= {} if split == "train" else {"loss": log_loss(y, model.predict_proba(x))}
        assert {name: getattr(report, f"{split}_{name}") for name in wanted} == pytest.approx(wanted, abs=1e-4)
        found = whole.of_split(split)
        assert list(found.clips["id"]) == digits[split]["id"] and found.labels == digits.labels
        np.testing.assert_allclose(found.probabilities, model.predict_proba(x), rtol=0, atol=1e-4)
    assert report.validation_accuracy > 0.2, "twice as often as by chance"
    assert (report.strategy, report.adapter_bytes, report.base_sha256, report.encoder_drift) == ("log_mel", 0, "", None)


def test_majority_is_what_scikit_learn_says(tmp_path: Path) -> None:
    for i in range(12):
        write_tone(tmp_path / "data" / ("low" if i < 8 else "high") / f"{i}.wav", 300, seed=i)
    report = run(
        tmp_path / "run",
        "--data.source",
        str(tmp_path / "data"),
        "--baseline.kind",
        "majority",
        "--train.evaluate_test",
        "false",
    )
    splits = load_splits(DataConfig(source=str(tmp_path / "data")))
    train, y = splits.train["label"], splits.validation["label"]
    model = DummyClassifier(strategy="most_frequent").fit(train, train)
    assert report.validation_accuracy == model.score(y, y)
    assert report.validation_macro_f1 == pytest.approx(f1_score(y, model.predict(y), average="macro"))
    shares = np.bincount(train) / len(train)
    assert report.validation_loss == pytest.approx(float(-np.log(shares[y]).mean()), abs=1e-6)
    assert report.test_accuracy is report.test_loss is None
    assert (report.strategy, report.trainable_parameters) == ("majority", 0)


def test_majority_is_that_of_the_whole_training_split(tmp_path: Path) -> None:
    """Fewer training clips are drawn evenly over the classes: their majority would be the first class by name."""
    for i in range(20):
        write_tone(tmp_path / "data" / ("rare" if i < 5 else "usual") / f"{i}.wav", 300, seed=i)
    flags = ["--data.source", str(tmp_path / "data"), "--baseline.kind", "majority"]
    whole = run(tmp_path / "whole", *flags)
    few = run(tmp_path / "few", *flags, "--data.max_train_clips", "4")
    assert few.train_clips == 4 and few.test_accuracy == whole.test_accuracy == 0.75
    assert few.test_loss == whole.test_loss
    assert few.chance is not None and few.chance["only_label"] == "usual" and few.chance["learned_nothing"]


@pytest.mark.slow
def test_two_processes_and_windows(tmp_path: Path) -> None:
    """Against the definition: the mean of the probabilities of a recording's windows."""
    rng = np.random.default_rng(0)
    for i in range(24):
        write_tone(
            tmp_path / "data" / "ab"[i % 2] / f"{i}.wav", 300 + 100 * (i % 2), float(rng.uniform(0.3, 1.5)), seed=i
        )
    windows = ["--data.window_seconds", "0.5", "--data.hop_seconds", "0.4"]
    flags = ["--data.source", str(tmp_path / "data"), "--train.output_dir", str(tmp_path / "run"), *windows]
    printed, warned = launch(two_processes(), flags, tmp_path, "baseline", ACCELERATE_USE_CPU="true")
    assert printed.count("validation accuracy") == 1 and warned == "", "only the first process speaks"
    report = RunReport(**json.loads((tmp_path / "run" / "report.json").read_text()))
    assert report.num_processes == 2 and report.device.startswith("cpu")

    splits = load_splits(DataConfig(source=str(tmp_path / "data")))

    def windows_of(row: dict[str, Any]) -> list[np.ndarray]:
        starts = window_starts(row["num_frames"] / 16_000, 0.5, 0.4)
        return [log_mel(load_audio(Path(row["path"]), 16_000, start, 0.5), 8_000.0) for start in starts]

    cut = [windows_of(row) for row in splits.train]
    x, y = np.concatenate(cut), np.repeat(splits.train["label"], [len(parts) for parts in cut])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(x), y)
    wanted = [model.predict_proba(scaler.transform(windows_of(row))).mean(0) for row in splits.test]
    found = read_predictions(tmp_path / "run" / "predictions.parquet").of_split("test")
    assert list(found.clips["id"]) == splits.test["id"]
    np.testing.assert_allclose(found.probabilities, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("hertz", [300.0, 1_000.0, 3_000.0])
def test_the_loudest_band_is_where_the_tone_is(hertz: float) -> None:
    tone = np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000).astype(np.float32)
    # The mel scale of Slaney's Auditory Toolbox: linear to 1 kHz, logarithmic above.
    edges = np.array([50.0, hertz, 4_000.0])
    mels = np.where(edges < 1000, 3 * edges / 200, 15 + 27 * np.log(np.maximum(edges, 1) / 1000) / np.log(6.4))
    band = (mels[1] - mels[0]) / (mels[2] - mels[0]) * 65 - 1
    assert abs(log_mel(tone, 4_000.0)[:64].argmax() - band) <= 1
    assert log_mel(tone[:1], 4_000.0).shape == (128,), "a clip of one sample"


def test_streaming_is_refused() -> None:
    with pytest.raises(UserError, match=r"--data.streaming: got true, must be false, because a baseline"):
        BaselineRecipe(data=DataConfig(source="org/name", streaming=True))
