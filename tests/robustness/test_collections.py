"""From a collection with everything wrong that is allowed to be wrong, to an adapter that answers as the run said."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers.tones import write_tone

from peft_audio import fine_tune
from peft_audio.adapters import save as saving
from peft_audio.adapters.load import load_adapter
from peft_audio.config import DataConfig, ModelConfig, TrainConfig
from peft_audio.inference.predict import predict
from peft_audio.runs.predictions import read_predictions
from peft_audio.strategies import LoraRecipe


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A manifest of tones by eight singers at three rates, 0.1 to 2.4 s, two of them broken."""
    rows = []
    for i in range(48):
        pitch, singer = ("high", "low")[i % 2], i // 2 % 8
        suffix, rate = (("wav", 8_000), ("flac", 22_050), ("mp3", 48_000))[i % 3]
        file = tmp_path / "sounds" / f"{i:02} {pitch}.{suffix}"
        write_tone(file, (1500, 250)[i % 2] + 10 * singer, 0.1 + 2.3 * (i % 7) / 6, rate, seed=i)
        rows.append({"path": file.relative_to(tmp_path), "label": pitch, "singer": f"singer {singer}"})
    (tmp_path / rows[5]["path"]).write_bytes(b"")
    (tmp_path / rows[6]["path"]).write_text("no sound")
    pd.DataFrame(rows).to_csv(tmp_path / "sounds.csv", index=False)
    return tmp_path / "sounds.csv"


def test_a_run_on_a_hard_collection_keeps_its_word(
    table: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)  # a fresh process; tested elsewhere
    data = DataConfig(
        source=str(table),
        group_column="singer",
        window_seconds=0.8,
        hop_seconds=0.6,
        on_bad_clip="skip",
        num_folds=4,
        fold=1,
    )
    train = TrainConfig(output_dir=str(tmp_path / "run"), epochs=3, batch_seconds=6.0, learning_rate=0.01)
    report = fine_tune(LoraRecipe(data=data, model=ModelConfig(name=str(tiny_base)), train=train))
    run = tmp_path / "run"

    said = capsys.readouterr().out
    assert "skipped 2 clips that cannot be used, listed in skipped_clips.csv" in said and "windows: " in said
    with (run / "skipped_clips.csv").open(newline="") as file:
        skipped = list(csv.DictReader(file))
    assert [Path(row["id"]).name for row in skipped] == ["05 low.mp3", "06 high.wav"]
    assert skipped[0]["reason"].startswith("is empty")
    assert report.skipped_clips == 2 and 0 < report.data_wait_share < 1
    assert json.loads((run / "report.json").read_text())["data_wait_share"] == report.data_wait_share

    splits = pq.read_table(run / "splits.parquet").to_pandas()
    assert len(splits) == 46 and (splits.groupby("group")["split"].nunique() == 1).all()
    assert report.train_clips == (splits["split"] == "train").sum()
    predictions = read_predictions(run / "predictions.parquet")
    assert sorted(predictions.clips["id"]) == sorted(splits["id"][splits["split"] != "train"]), (
        "recordings, not windows"
    )

    # Whoever is given the adapter hears recordings as the run did, windows and all.
    found = predict(load_adapter(run / "adapter"), [table.parent / name for name in predictions.clips["id"]])
    said = np.array([[one.probabilities[label] for label in predictions.labels] for one in found])
    assert said == pytest.approx(predictions.probabilities, abs=1e-4)
    steps = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert report.steps == len(steps) and report.samples_per_second > 0
