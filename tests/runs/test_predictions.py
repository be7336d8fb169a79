"""`predictions.parquet`: both versions are read, and decisions are those of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peft_audio.errors import UserError
from peft_audio.runs.finished import Finished, predictions_of
from peft_audio.runs.predictions import METADATA, pooled, predictions_table, read_predictions
from peft_audio.tasks import task_of

LABELS = ("nö", "yes", "maybe")
# The first two logits of the second clip are equal as float32 probabilities.
LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 1e-9, -3.0], [2.0, 2.0, -1.0]], np.float32)
CLIPS = pd.DataFrame({"id": ["c", "a", "b"], "group": ["", "g", "g"], "label": ["nö", "yes", "yes"]})


def write(path: Path, version: int = 2) -> Path:
    if version == 1:
        columns: dict[str, Any] = {name: list(CLIPS[name]) for name in ("id", "group", "label")} | {"split": "test"}
        values = task_of().probabilities(LOGITS)
        columns |= {f"probability_{label}": values[:, i] for i, label in enumerate(LABELS)}
        pd.DataFrame(columns).to_parquet(path)
        return path
    tables = [predictions_table(CLIPS, split, LOGITS, LABELS, task_of()) for split in ("validation", "test")]
    pq.write_table(pa.concat_tables(tables), path)
    return path


def run(folder: Path, accuracy: float, fold: int | None = None) -> Finished:
    settings = {} if fold is None else {"data.fold": fold}
    return Finished(folder, "lora", True, {"test_accuracy": accuracy}, settings, True, False)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "predictions.parquet")
    found = read_predictions(path)
    assert found.labels == LABELS and found.task is task_of()
    assert list(found.clips["split"])[2:4] == ["validation", "test"]
    assert found.logits.dtype == np.float32 and np.array_equal(found.logits, np.concatenate([LOGITS, LOGITS]))
    assert pq.read_schema(path).field("logits").type == pa.list_(pa.float32())
    assert json.loads(pq.read_schema(path).metadata[METADATA])["format_version"] == 2


@pytest.mark.parametrize(("version", "close"), [(1, "nö"), (2, "yes")])
def test_versions_differ_only_in_what_probabilities_cannot_hold(tmp_path: Path, version: int, close: str) -> None:
    found = read_predictions(write(tmp_path / "predictions.parquet", version))
    assert found.decided[-3:] == ["nö", close, "nö"] and list(found.clips["label"])[-3:] == list(CLIPS["label"])
    np.testing.assert_allclose(found.probabilities[-3:], task_of().probabilities(LOGITS), rtol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_with_close_logits_agrees_with_its_report(tmp_path: Path, version: int) -> None:
    """The report decides by logits, by which two clips are correct; the third one's tie goes to the first label."""
    write(tmp_path / "predictions.parquet", version)
    found = predictions_of(run(tmp_path, 2 / 3, fold=4))
    assert list(found.clips["id"]) == ["4/a", "4/b", "4/c"], "sorted, with the fold"
    assert found.decided == [{1: "nö", 2: "yes"}[version], "nö", "nö"]
    with pytest.raises(UserError, match=r"gives a test accuracy of .* has -0.4000; repeat the run"):
        predictions_of(run(tmp_path, -0.4))


def test_folds_are_pooled_by_id_and_must_share_their_labels(tmp_path: Path) -> None:
    found = read_predictions(write(tmp_path / "predictions.parquet")).of_split("test")
    other = predictions_of(run(tmp_path, 2 / 3, fold=0))
    assert list(pooled([found, other]).clips["id"]) == ["0/a", "0/b", "0/c", "a", "b", "c"]
    assert np.array_equal(pooled([found, other]).logits[3:], LOGITS[[1, 2, 0]])
    with pytest.raises(UserError, match="different labels"):
        pooled([found, type(found)(found.clips, found.logits, LABELS[::-1], found.task)])


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "predictions.parquet")
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[METADATA])
    for changes, said in (
        ({"format_version": 3}, "format version 3, expected 2 or less"),
        ({"labels": ["nö", "yes"]}, "cannot be read"),
        ({"labels": ["a", "b", "c"]}, "cannot be read"),
        ({"task": "regression"}, "regression"),
    ):
        pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(about | changes)}), path)
        with pytest.raises(UserError, match=said):
            read_predictions(path)
