"""Tables of recordings: the same clips from any format, and rows that cannot be used are told by number."""

from __future__ import annotations

import json
import tempfile
import time
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
from peft_audio.data.clip_table import similar_labels
from peft_audio.data.dataset import Clips, View
from peft_audio.data.manifest import from_manifest
from peft_audio.data.recording_files import RecordingIndex
from peft_audio.data.sampler import Draw
from peft_audio.data.splits import Splits, load_splits
from peft_audio.data.tables import as_name, read_table
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
    assert message.startswith("--data.audio_column and --data.label_column: ") and "file, kind, who" in message
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
    assert "parts of one recording stay in one split" in splits.notes
    # Given splits are taken as they are, and the leak is told.
    given = [row | {"split": ("train", "test", "validation")[i % 3]} for i, row in enumerate(rows)]
    notes = "\n".join(load(write(tmp_path / "given.jsonl", given)).notes)
    assert "warning: groups in more than one split: 0.wav, 1.wav" in notes


def test_parts_far_into_a_recording_have_ids_and_hashes_of_their_own() -> None:
    rows = [{"path": "day.wav", "label": "ab"[i % 2], "start_seconds": 80_000 + i / 100} for i in range(40)]
    rows = [row | {"end_seconds": row["start_seconds"] + 0.01} for row in rows]
    table = pd.DataFrame(rows)
    for name, clips in (("given", table), ("later", table.assign(end_seconds=table["end_seconds"] + 0.005))):
        assert from_table(clips)["id"].is_unique, name
    assert set(from_table(table)["id"]).isdisjoint(from_table(table.assign(end_seconds=90_000.5))["id"])


def from_table(table: pd.DataFrame) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "day.wav").touch()
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


def tones(root: Path, count: int = 12, seconds: float = 0.3) -> Path:
    """Write `count` short tones 0.wav, 1.wav, ..."""
    for i in range(count):
        write_tone(root / f"{i}.wav", 200 + 50 * i, seconds, seed=i)
    return root


def spans(clips: pd.DataFrame) -> list[tuple[float, float]]:
    return [(round(a, 6), round(b, 6)) for a, b in zip(clips["start_seconds"], clips["end_seconds"], strict=True)]


RAVEN = "Begin Time (s),End Time (s),File Offset (s)"


@pytest.mark.parametrize(
    ("columns", "values", "wanted"),
    [
        ("start,end", (0.5, 1.5), (0.5, 1.5)),
        ("Begin Time (s),End Time (s)", (0.5, 1.5), (0.5, 1.5)),
        ("start_ms,end_ms", (500, 1500), (0.5, 1.5)),
        ("onset,offset", (0.5, 1.5), (0.5, 1.5)),
        ("onset,duration", (0.5, 1.0), (0.5, 1.5)),
        ("offset,duration", (0.5, 1.0), (0.5, 1.5)),
        # Raven counts the begin over all files that were open.
        (RAVEN, (100.5, 101.5, 0.5), (0.5, 1.5)),
        ("start_time", (0.5,), (0.5, np.nan)),
    ],
)
def test_times_of_other_tools_are_parts_of_recordings(
    tmp_path: Path, columns: str, values: tuple[float, ...], wanted: tuple[float, float]
) -> None:
    tones(tmp_path, 2, 2.0)
    rows = [{"path": f"{i}.wav", "label": "ab"[i]} | dict(zip(columns.split(","), values, strict=True)) for i in (0, 1)]
    table = from_manifest(write(tmp_path / "table.jsonl", rows), DataConfig())
    assert np.array_equal(spans(table.clips), [wanted] * 2, equal_nan=True)
    assert table.notes == (
        f"columns {', '.join(columns.split(','))}: read as start".replace("columns start_time", "column start_time")
        + " and end of each row's part of its recording",
    )


@pytest.mark.parametrize(
    ("columns", "values", "reason"),
    [
        # As in UrbanSound8K, whose files are cut from longer originals.
        (
            "start,end",
            (70.2, 72.2),
            "they are outside the files (0.wav has 2.0 s, but its row has 70.2 to 72.2 s)",
        ),
        ("start,end", (8000, 16000), "they are outside the files"),
        ("start,end", ("2020-01-01", "2020-01-02"), "'2020-01-01' is not a number of seconds"),
        ("start_sample,end_sample", (8000, 16000), "must be in seconds"),
        ("offset", (0.5,), "no column holds the start"),
    ],
)
def test_times_that_cannot_be_used_are_named(
    tmp_path: Path, columns: str, values: tuple[Any, ...], reason: str
) -> None:
    tones(tmp_path, 2, 2.0)
    rows = [{"path": f"{i}.wav", "label": "ab"[i]} | dict(zip(columns.split(","), values, strict=True)) for i in (0, 1)]
    table = from_manifest(write(tmp_path / "table.jsonl", rows), DataConfig())
    assert np.array_equal(spans(table.clips), [(0.0, np.nan)] * 2, equal_nan=True)
    (note,) = table.notes
    assert columns.replace(",", ", ") in note and "not used" in note and reason in note


def test_segments_of_other_tools_stay_on_one_side(tmp_path: Path) -> None:
    tones(tmp_path, 12, 1.0)
    rows = [
        {"Begin File": f"{'./' * part}{i}.wav", "Begin Time (s)": part / 2, "End Time (s)": part / 2 + 0.5}
        | {"Species": "ab"[part], "Selection": 2 * i + part, "View": view}
        for i in range(12)
        for part in (0, 1)
        for view in ("Waveform 1", "Spectrogram 1")
    ]
    file = tmp_path / "selections.tsv"
    pd.DataFrame(rows).to_csv(file, sep="\t", index=False)
    assert "Add --data.audio_column 'Begin File' --data.label_column Species." in refusal(file)
    splits = load(file, audio_column="Begin File", label_column="Species")
    sides = {split: {Path(row["path"]).name for row in splits[split]} for split in ("train", "validation", "test")}
    assert sum(map(len, sides.values())) == 12 and all(sides.values())
    assert sum(len(splits[split]) for split in sides) == 24
    assert "24 rows that differ only in View are left out" in splits.notes


def test_recordings_of_one_name_are_found_by_their_folders(tmp_path: Path) -> None:
    for i in range(1000):
        (tmp_path / "a" / f"s{i}").mkdir(parents=True)
        (tmp_path / "a" / f"s{i}" / "0001.wav").touch()
    (tmp_path / "b" / "s1").mkdir(parents=True)
    (tmp_path / "b" / "s1" / "0001.wav").touch()
    below = RecordingIndex(tmp_path)
    began = time.perf_counter()
    for i in range(2, 1000):
        assert below.find(f"/gone/s{i}/0001.wav") == f"{tmp_path}/a/s{i}/0001.wav"
    assert time.perf_counter() - began < 2
    assert below.find("gone\\s7\\0001") == f"{tmp_path}/a/s7/0001.wav"
    assert below.find("b/s1/0001.wav") == f"{tmp_path}/b/s1/0001.wav"
    assert below.find("s1/0001.wav") == below.find("0001.wav") == below.find("other/0001.wav") == ""
    assert below.find("") == below.find("s1/0002.wav") == ""


def test_rows_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    """Left out rows before a row, and numbers that pandas saved with it, do not change its number."""
    tones(tmp_path, 2)
    rows = [{"path": f"{i}.wav", "label": label, "View": view} for i, label in enumerate(("a", "")) for view in "WS"]
    pd.DataFrame(rows).to_csv(tmp_path / "views.csv", index=False)
    assert "no label in row 3 (below the header)" in refusal(tmp_path / "views.csv")
    table = pd.DataFrame({"path": ["0.wav", "1.wav"], "label": ["a", ""]}, index=[7, 9])
    table.to_parquet(tmp_path / "index.parquet")
    assert "no label in row 2 (below the header)" in refusal(tmp_path / "index.parquet")


@pytest.mark.parametrize("columns", ["tmin,tmax", "Tmin,Tmax"])
def test_temperatures_are_no_times(tmp_path: Path, columns: str) -> None:
    tones(tmp_path, 2, 2.0)
    low, high = columns.split(",")
    rows = [{"path": f"{i}.wav", "label": "ab"[i], low: 0.5, high: 1.5} for i in (0, 1)]
    table = from_manifest(write(tmp_path / "table.jsonl", rows), DataConfig())
    assert np.array_equal(spans(table.clips), [(0.0, np.nan)] * 2, equal_nan=True) and not table.notes


def test_unnamed_columns_without_content_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "sheet.csv"
    file.write_text("path,,label,,\n0.wav,,a,,\n1.wav,,b\n")
    table, _ = read_table(file, "data.source")
    assert list(table) == ["path", "label"] and table.to_numpy().tolist() == [["0.wav", "a"], ["1.wav", "b"]]
    file.write_text("path,label,,\n0.wav,a,1,2\n")
    assert "names a column twice" in refusal(file)
    file.write_text(",,\n0.wav,a\n")
    assert "names a column twice" in refusal(file)
    file.write_text(",,\n,,\n")
    assert "has no header" in refusal(file)


def test_a_table_without_header_loses_no_clip(tmp_path: Path) -> None:
    tones(tmp_path)
    lines = "".join(f"{i}.wav,{'ab'[i % 2]}\n" for i in range(12))
    (tmp_path / "names.csv").write_text(lines)
    (tmp_path / "track.tsv").write_text("0.5\t1.5\ta\n1.5\t2.5\tb\n")
    for settings in ({}, {"audio_column": "0.wav", "label_column": "a"}):
        message = refusal(tmp_path / "names.csv", **settings)
        assert "the first line" in message and "names a recording (0.wav)" in message and "path,label" in message
    message = refusal(tmp_path / "track.tsv")
    assert "the first line" in message and "holds numbers (0.5, 1.5, a)" in message and "start_seconds" in message


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    tones(tmp_path, 4, 2.0)
    rows = "".join(f"{i}.wav;{'ab'[i % 2]};0,5;1,5\r\n" for i in range(4))
    for name, content in (
        ("comma.csv", f"path;label;start_seconds;end_seconds\r\n{rows}".encode()),
        ("blank.csv", f"\r\n\r\npath;label;start;end\r\n{rows}".encode()),
        ("unicode.tsv", f"path;label;start;end\r\n{rows}".replace(";", "\t").encode("utf-16")),
    ):
        (tmp_path / name).write_bytes(content)
        table = from_manifest(tmp_path / name, DataConfig())
        assert spans(table.clips) == [(0.5, 1.5)] * 4 and table.labels == ("a", "b"), name


@pytest.mark.parametrize(("suffix", "separator"), [("csv", "\t"), ("csv", ";"), ("tsv", ","), ("csv", "|")])
def test_other_separators_are_read(folder: Path, suffix: str, separator: str) -> None:
    pd.DataFrame(ROWS).to_csv(folder / f"other.{suffix}", index=False, sep=separator)
    splits = load(folder / f"other.{suffix}")
    assert splits.dataset_sha256() == load(folder / "clips.csv").dataset_sha256()
    assert any("is separated by" in note for note in splits.notes)


def test_names_are_found_as_people_write_them(tmp_path: Path) -> None:
    tones(tmp_path / "audio" / "fold1", 3), tones(tmp_path / "audio" / "fold2", 6)
    (tmp_path / "meta").mkdir()
    for i in range(3):
        (tmp_path / "audio" / "fold2" / f"{i}.wav").unlink()
    for form, fix, settings in (
        ("audio\\fold{fold}\\{i}.wav", "read with / for \\", {}),
        ("audio/fold{fold}/{i}", "found with an extension", {}),
        ("audio\\fold{fold}\\{i}", "read with / for \\ and found with an extension", {}),
        ("audio/fold{fold}/{i}.WAV", "found in other letter case", {}),
        ("fold{fold}/{i}.wav", "", {"audio_folder": "audio"}),
        ("{i}.wav", "found by their names below", {"audio_folder": "audio"}),
        ("{i}", "found by their names below", {"audio_folder": "audio"}),
        ("C:\\sounds\\fold{fold}\\{i}.wav", "found by their names below", {"audio_folder": "."}),
        ("/home/me/fold{fold}/{i}.wav", "found by their names below", {"audio_folder": "audio"}),
    ):
        rows = [{"path": form.format(fold=1 + i // 3, i=i), "label": "ab"[i % 2]} for i in range(6)]
        file = write(tmp_path / "table.jsonl", rows)
        folder = {name: str(tmp_path / value) for name, value in settings.items()}
        table = from_manifest(file, DataConfig(source=str(file), **folder))
        assert [Path(path).name for path in table.clips["path"]] == [f"{i}.wav" for i in range(6)]
        assert all(Path(path).is_file() for path in table.clips["path"]), form
        assert list(table.clips["id"]) == [row["path"] for row in rows]
        assert [note for note in table.notes if fix in note] or (not fix and not table.notes), (form, table.notes)


def test_missing_recordings_are_explained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tones(tmp_path / "sounds" / "deep")
    monkeypatch.chdir(tmp_path)
    for form, cause in (
        ("{}.wav", "add --data.audio_folder sounds/deep"),
        ("D:\\recordings\\{}.wav", "add --data.audio_folder sounds/deep"),
        ("sounds/deep/{}.wav", "relative to the current folder: add --data.audio_folder ."),
        ("../sounds/deep/{}.mp3", "has the same names with .wav"),
        ("https://example.org/{}.wav", "download the recordings"),
        ("none/x{}.wav", "relative to the table's folder"),
    ):
        (tmp_path / "tables").mkdir(exist_ok=True)
        rows = [{"path": form.format(i), "label": "ab"[i % 2]} for i in range(12)]
        message = refusal(write(tmp_path / "tables" / "table.jsonl", rows))
        assert "none of the 12 recordings" in message and cause in message, message
    rows = [{"path": f"{i}.wav", "label": "ab"[i % 2]} for i in range(13)]
    file = write(tmp_path / "sounds" / "deep" / "table.jsonl", rows)
    assert "1 of 13 clips cannot be used" in refusal(file) and "12.wav does not exist" in refusal(file)
    assert "must be a folder" in refusal(file, audio_folder=str(tmp_path / "absent"))


LABELS: list[list[Any]] = [[1, 2], [1.0, 2.0], [0.5, 1.5], [True, False], [1, None], ["1.0", "2.0"], ["01", "1.10"]]


@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_labels_are_the_same_in_every_format(tmp_path: Path, labels: list[Any]) -> None:
    tones(tmp_path, 4)
    values = [labels[i % 2] for i in range(4)] if None not in labels else [1.0, 2.0, 1.0, 2.0]
    table = pd.DataFrame({"path": [f"{i}.wav" for i in range(4)], "label": values})
    table.to_csv(tmp_path / "table.csv", index=False)
    table.to_csv(tmp_path / "table.tsv", index=False, sep="\t")
    table.to_json(tmp_path / "table.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "table.parquet")
    table.astype({"label": object}).to_json(tmp_path / "object.jsonl", orient="records", lines=True)
    (tmp_path / "excel.csv").write_text(table.to_csv(index=False).replace("True", "TRUE").replace("False", "FALSE"))
    found = {file.name: from_manifest(file, DataConfig()).labels for file in tmp_path.glob("*.[cjpt]s*[vlt]")}
    found |= {"parquet": from_manifest(tmp_path / "table.parquet", DataConfig()).labels}
    wanted = {"True": ("False", "True"), "0.5": ("0.5", "1.5"), "01": ("01", "1.10")}.get(str(labels[0]), ("1", "2"))
    assert set(found.values()) == {wanted} and len(found) == 6, found


@pytest.mark.parametrize(
    ("cell", "name"), [("1.0", "1"), ("+1", "+1"), ("+1.0", "+1"), ("01.", "01"), ("1.0.0", "1.0.0")]
)
def test_whole_numbers_lose_their_decimals_alone(cell: str, name: str) -> None:
    assert as_name(cell) == name


def test_signs_do_not_make_labels_similar() -> None:
    for labels in (["-1", "1"], ["A", "A-"], ["1-2", "12"], ["1 2", "12"], ["dog", "_dog"]):
        assert not similar_labels(labels), labels
    for labels in (["Dog", "dog"], ["fire engine", "fire_engine"], ["a-1", "A1"], ["7-up", "7up"]):
        assert similar_labels(labels), labels
