"""Write and read `predictions.parquet`: the logits, id, group, split and label of each evaluated clip.

The file has one row per clip, with the columns id, group, split, label and logits. Logits are a list of float32 in the
order of the label names. The names, the task and the format version are JSON under `METADATA` in the file's metadata.
Files of version 1 have no such metadata, and one column `probability_<label>` per label instead of the logits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from peft_audio.errors import UserError
from peft_audio.tasks import task_of
from peft_audio.tasks.task import Task

FORMAT_VERSION = 2
METADATA = b"peft_audio_predictions"
PROBABILITY = "probability_"


@dataclass(frozen=True)
class Predictions:
    """Logits of clips, with the ids, groups, splits and labels of the clips.

    Attributes:
        clips: one row per clip: `id`, `group`, `split` and `label` (text).
        logits: float32 of shape (clips, labels). From a file of version 1, the logarithms of its probabilities in
            float64, in which close probabilities stay distinct.
        labels: label names in the order of the logits.
        task: task of the logits.
        version: format version of the file.
    """

    clips: pd.DataFrame
    logits: np.ndarray
    labels: tuple[str, ...]
    task: Task
    version: int = FORMAT_VERSION

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def targets(self) -> np.ndarray:
        """Return the true labels as targets of the task."""
        return self.task.encode(list(self.clips["label"]), self.labels)

    @property
    def decided(self) -> list[str]:
        """Return the label text that the task predicts for each clip."""
        return self.task.decode(self.task.decide(self.logits), self.labels)

    @property
    def probabilities(self) -> np.ndarray:
        """Return the probabilities, in the shape of the logits."""
        return self.task.probabilities(self.logits)

    @property
    def correct(self) -> np.ndarray:
        """Return whether each clip is predicted correctly, bool of shape (clips,)."""
        return self.task.correct(self.logits, self.targets)

    def metric(self, name: str, weights: np.ndarray | None = None) -> Any:
        """Compute a metric of the clips, see `Task.metric`."""
        return self.task.metric(name, self.logits, self.targets, weights)

    def of_labels(self) -> np.ndarray:
        """Return clip weights that select the clips of each label; float64 of shape (labels, clips)."""
        texts = self.clips["label"].to_numpy()
        return np.stack([texts == label for label in self.labels]).astype(np.float64)

    def of_split(self, split: str) -> Predictions:
        """Select the clips of a split."""
        rows = (self.clips["split"] == split).to_numpy()
        return replace(self, clips=self.clips[rows], logits=self.logits[rows])


def predictions_table(
    recordings: pd.DataFrame, split: str, logits: np.ndarray, labels: Sequence[str], task: Task
) -> pa.Table:
    """Make the table of the predictions of a split.

    Args:
        recordings: `id`, `group` and `label` of each clip.
        split: name of their split.
        logits: of shape (clips, labels).
        labels: label names in the order of the logits.
        task: task of the logits.
    """
    values = pa.array(np.asarray(logits, dtype=np.float32).ravel())
    starts = pa.array(np.arange(len(recordings) + 1, dtype=np.int32) * len(labels))
    about = {"format_version": FORMAT_VERSION, "task": task.name, "labels": list(labels)}
    columns = {name: pa.array(list(recordings[name]), pa.string()) for name in ("id", "group")}
    columns |= {
        "split": pa.array([split] * len(recordings), pa.string()),
        "label": pa.array(list(recordings["label"]), pa.string()),
        "logits": pa.ListArray.from_arrays(starts, values),
    }
    return pa.table(columns, metadata={METADATA: json.dumps(about, ensure_ascii=False).encode()})


def read_predictions(path: Path) -> Predictions:
    """Read predictions in any version of the format.

    Raises:
        UserError: The file is missing, damaged or of a newer version.
    """
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
        version = about.get("format_version", 1)
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {version}, expected {FORMAT_VERSION} or less; upgrade peft-audio."
            )
        clips = table.select(["id", "group", "split", "label"]).to_pandas()
        clips["label"] = clips["label"].astype(str)
        if version == 1:
            names = [name for name in table.column_names if name.startswith(PROBABILITY)]
            labels, task = tuple(name.removeprefix(PROBABILITY) for name in names), task_of()
            with np.errstate(divide="ignore"):
                logits = np.log(table.select(names).to_pandas().to_numpy(np.float64))
        else:
            labels, task = tuple(about["labels"]), task_of(about["task"])
            parts = [part.flatten().to_numpy() for part in table["logits"].chunks]
            logits = np.concatenate(parts or [np.zeros(0, np.float32)]).reshape(len(clips), len(labels))
        predictions = Predictions(clips, logits, labels, task, version)
        _ = predictions.targets  # raises if a label has no name
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); a comparison needs each clip's prediction.") from error
    return predictions


def pooled(parts: Sequence[Predictions]) -> Predictions:
    """Join predictions of different clips, sorted by id.

    Raises:
        UserError: Their labels or tasks differ.
    """
    first = parts[0]
    if any((part.labels, part.task) != (first.labels, first.task) for part in parts):
        raise UserError("folds of one comparison have different labels or tasks; give runs on one source.")
    clips = pd.concat([part.clips for part in parts], ignore_index=True)
    logits = np.concatenate([part.logits for part in parts])
    order = clips["id"].argsort(kind="stable").to_numpy()
    return replace(first, clips=clips.iloc[order].reset_index(drop=True), logits=logits[order])
