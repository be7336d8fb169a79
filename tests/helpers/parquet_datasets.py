"""Write datasets of Parquet files as the Hub stores them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

# Features as datasets writes them into a Parquet file's metadata.
AUDIO = {"sampling_rate": 16_000, "_type": "Audio"}


TEXT = {"dtype": "string", "_type": "Value"}


def write_split(file: Path, name: str, labels: list[str], label_column: str, count: int, bad: int = 0) -> None:
    """A Parquet file of a dataset: noisy tones, higher ones for later labels; the last `bad` rows hold no sound."""
    rng, rows = np.random.default_rng(list(name.encode())), []
    for i in range(count):
        number, content = i % len(labels), io.BytesIO()
        tone = np.sin(2 * np.pi * 300 * (1 + 2 * number) * np.arange(4800) / 16_000)
        soundfile.write(content, 0.5 * tone + 0.05 * rng.normal(size=4800), 16_000, format="WAV")
        audio = {"bytes": b"no sound" if i >= count - bad else content.getvalue(), "path": f"{name}.{i:05}.wav"}
        rows.append({"file": f"/somewhere/{name}.{i:05}.wav", "audio": audio, label_column: number})
    features = {"file": TEXT, "audio": AUDIO, label_column: {"names": labels, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), file)


def make_dataset(folder: Path, bad: int = 0) -> Path:
    """A dataset with a train split in two files, one for validation and one for the test."""
    for split, shards, count in (("train", 2, 12), ("validation", 1, 5), ("test", 1, 7)):
        for shard in range(shards):
            file = folder / "data" / f"{split}-{shard:05}-of-{shards:05}.parquet"
            write_split(file, f"{split}{shard}", ["low", "high"], "pitch", count, bad if split == "train" else 0)
    return folder
