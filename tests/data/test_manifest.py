"""Tables of recordings: the same clips from any format, and rows that cannot be used are told by number."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tones import write_tone

from peft_audio.audio.decoding import load_audio
from peft_audio.config import DataConfig
from peft_audio.data.dataset import Clips, View
from peft_audio.data.manifest import from_manifest
from peft_audio.data.sampler import Draw
from peft_audio.data.splits import Splits, load_splits
from peft_audio.encoders.wav2vec2 import WAV2VEC2
from peft_audio.errors import UserError

ROWS = [
    {"path": f"clips/{label} {i}.wav", "label": label, "split": split, "group": f"s{i}"}
    for label in ("01", "NA")
    for i, split in enumerate(("train", "train", "dev", "test"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tones, and the table of them in every format."""
    root = tmp_path_factory.mktemp("manifests")
    for number, row in enumerate(ROWS):
        write_tone(root / row["path"], 200 + 100 * number, 0.3, seed=number)
    table = pd.DataFrame(ROWS)
    table.to_csv(root / "clips.csv", index=False, encoding="utf-8-sig")
    table.to_csv(root / "clips.tsv", index=False, sep="\t")
    table.to_json(root / "clips.jsonl", orient="records", lines=True)
    table.to_parquet(root / "clips.parquet")
    return root


def load(file: Path, **settings: Any) -> Splits:
    return load_splits(DataConfig(source=str(file), **settings))


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def refusal(file: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        load(file, **settings)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_clips_with_labels_as_written(folder: Path, suffix: str) -> None:
    splits = load(folder / f"clips.{suffix}")
    assert splits.labels == ("01", "NA"), "neither a number nor a missing value"
    found = splits.table().to_pylist()
    wanted = {(row["path"], row["label"], row["group"], row["split"].replace("dev", "validation")) for row in ROWS}
    assert {(row["id"], row["label"], row["group"], row["split"]) for row in found} == wanted
    assert splits.dataset_sha256() == load(folder / "clips.csv").dataset_sha256()


def test_columns_may_have_other_names(folder: Path, tmp_path: Path) -> None:
    rows = [{"file": str(folder / row["path"]), "kind": row["label"], "who": i} for i, row in enumerate(ROWS)]
    file = write(tmp_path / "table.jsonl", rows)
    message = refusal(file)
    assert message.startswith("--data.audio_column: ") and "file, kind, who" in message
    named = {"audio_column": "file", "label_column": "kind", "group_column": "who"}
    splits = load(file, **named)
    assert sorted(row["group"] for row in splits.table().to_pylist()) == [str(i) for i in range(8)]


def test_rows_that_cannot_be_used_are_all_told_by_number(folder: Path, tmp_path: Path) -> None:
    good = [{"path": str(folder / row["path"]), "label": row["label"]} for row in ROWS]
    rows = [*good, {"path": "", "label": "01"}, good[0], {"path": "x.wav", "label": " "}]
    rows += [{"path": "y.wav", "label": "01", "start_seconds": 2, "end_seconds": 1.5}]
    message = refusal(write(tmp_path / "table.jsonl", rows))
    for part in (
        "no path in row 9 (below the header)",
        "the same clip as another row in row 10",
        "no label in row 11",
        "in row 12",
    ):
        assert part in message, message
    rows = [*good, {"path": "z.wav", "label": "01", "start_seconds": "soon"}]
    assert "start_seconds must be a number of seconds or empty; got 'soon' in row 9" in refusal(
        write(tmp_path / "times.jsonl", rows)
    )
    rows = [row | {"split": "holdout"} for row in good]
    assert "a split (holdout) that is not one of train, validation, test in rows 1, 2, 3, 4, 5 and 3 more" in refusal(
        write(tmp_path / "splits.jsonl", rows)
    )


def test_what_is_no_table_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_text("no table")
    (tmp_path / "broken.jsonl").write_text('{"path": ')
    # What pandas notes about columns, damaged; found by fuzzing.
    notes = {"pandas": '{"index_columns": [], "columns": [{}], "column_indexes": []}'}
    pq.write_table(pa.table({"path": ["a.wav"]}).replace_schema_metadata(notes), tmp_path / "notes.parquet")
    (tmp_path / "bytes.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    (tmp_path / "empty.csv").write_text("path,label\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "twice.csv").write_text("path,label,label\na,b,c\n")
    (tmp_path / "long.csv").write_text("path,label\na.wav,x\nb.wav,y,z\n")
    assert "is not text in UTF-8" in refusal(tmp_path / "bytes.csv")
    assert "has no header" in refusal(tmp_path / "nothing.csv")
    assert "names a column twice" in refusal(tmp_path / "twice.csv")
    assert "more fields than columns in row 2" in refusal(tmp_path / "long.csv")
    for name in ("broken.parquet", "broken.jsonl", "notes.parquet"):
        assert "cannot be read as a table" in refusal(tmp_path / name)
    assert "lists no recordings" in refusal(tmp_path / "empty.csv")
    assert "does not exist" in refusal(tmp_path / "absent.csv")


def test_json_that_python_cannot_hold_or_write_is_no_table(folder: Path, tmp_path: Path) -> None:
    rows = [{"path": str(folder / row["path"]), "label": row["label"]} for row in ROWS]
    for label in ("[" * 100_000, '"\\ud800"'):
        file = write(tmp_path / "odd.jsonl", rows)
        file.write_text(file.read_text().replace('"NA"', label))
        assert "odd.jsonl cannot be read as a table" in refusal(file)


def test_names_cannot_write_on_the_terminal_nor_fill_it(folder: Path, tmp_path: Path) -> None:
    rows = [{"path": str(folder / row["path"]), "label": row["label"], "split": row["split"]} for row in ROWS]
    for split, shown in (("\x1b[2J", r"\x1b[2J"), ("s" * 9_000, "characters) ...")):
        message = refusal(write(tmp_path / "odd.jsonl", [*rows, rows[0] | {"path": "a.wav", "split": split}]))
        assert shown in message and message.isprintable() and len(message) < 2_000


def test_splits_file_with_an_empty_cell_is_told(folder: Path, tmp_path: Path) -> None:
    named = [{"id": row["path"], "split": row["split"]} for row in ROWS]
    splits = write(tmp_path / "splits.jsonl", [*named[1:], named[0] | {"split": None}])
    assert "--data.splits_file" in refusal(folder / "clips.csv", splits_file=str(splits))


def test_parts_of_a_recording_are_read_where_they_stand(tmp_path: Path, raw_extractor: Any) -> None:
    long = write_tone(tmp_path / "long.wav", 300, 10.0)
    spans = [(0.0, 2.0, "a"), (2.0, 4.5, "b"), (4.5, 6.0, "a"), (6.0, 7.0, "b"), (7.0, 8.5, "a"), (8.5, None, "b")]
    names = ["start_seconds", "end_seconds", "label"]
    rows = [{"path": "long.wav"} | dict(zip(names, span, strict=True)) for span in spans]
    rows = [row | {"group": str(i)} for i, row in enumerate(rows)]
    splits = load(write(tmp_path / "parts.jsonl", rows))
    whole, seen = load_audio(long, 16_000), {}
    view = View(WAV2VEC2, raw_extractor, DataConfig(max_seconds=60, max_eval_seconds=60))
    for split in ("train", "validation", "test"):
        clips = Clips(splits[split], None, view)
        for i, row in enumerate(splits[split]):
            seen[row["start_seconds"]] = [clips[Draw(i, epoch)]["inputs"]["input_values"] for epoch in (None, 3)]
    assert sorted(seen) == [span[0] for span in spans]
    for start, end, _ in spans:
        wanted = whole[round(start * 16_000) : None if end is None else round(end * 16_000)]
        assert all(np.array_equal(values, wanted) for values in seen[start])


def test_parts_of_a_recording_stay_on_one_side(tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        write_tone(tmp_path / f"{i}.wav", 300 + 50 * i, 2.0, seed=i)
        rows += [
            {"path": f"{i}.wav", "label": "ab"[part], "start_seconds": part, "end_seconds": part + 1} for part in (0, 1)
        ]
    splits = load(write(tmp_path / "parts.jsonl", rows))
    sides = {split: {name.split("@")[0] for name in splits[split]["id"]} for split in ("train", "validation", "test")}
    assert sum(map(len, sides.values())) == 12 and all(sides.values())
    assert "parts of one recording stay on one side of the splits" in splits.notes
    # Given splits are taken as they are, and the leak is told.
    given = [row | {"split": ("train", "test", "validation")[i % 3]} for i, row in enumerate(rows)]
    notes = "\n".join(load(write(tmp_path / "given.jsonl", given)).notes)
    assert "warning: groups that stand in more than one split: 0.wav, 1.wav" in notes


def test_parts_far_into_a_recording_have_ids_and_hashes_of_their_own() -> None:
    rows = [{"path": "day.wav", "label": "ab"[i % 2], "start_seconds": 80_000 + i / 100} for i in range(40)]
    rows = [row | {"end_seconds": row["start_seconds"] + 0.01} for row in rows]
    table = pd.DataFrame(rows)
    for name, clips in (("given", table), ("later", table.assign(end_seconds=table["end_seconds"] + 0.005))):
        assert from_table(clips)["id"].is_unique, name
    assert set(from_table(table)["id"]).isdisjoint(from_table(table.assign(end_seconds=90_000.5))["id"])


def from_table(table: pd.DataFrame) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        table.to_csv(Path(folder) / "table.csv", index=False)
        return from_manifest(Path(folder) / "table.csv", DataConfig()).clips


def test_other_cuts_of_the_same_files_have_another_hash(tmp_path: Path) -> None:
    hashes = set()
    for number, end in enumerate((0.5, 0.6)):
        rows = []
        for i in range(12):
            write_tone(tmp_path / f"{i}.wav", 300 + 50 * i, 1.0, seed=i)
            rows.append({"path": f"{i}.wav", "label": "ab"[i % 2], "start_seconds": 0, "end_seconds": end})
        hashes.add(load(write(tmp_path / f"{number}.jsonl", rows)).dataset_sha256())
    assert len(hashes) == 2
