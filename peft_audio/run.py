"""A run's folder, and what is written into it before the report."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from accelerate.utils import gather_object
from scipy.special import softmax

from peft_audio.collection import SPLITS, listed, several
from peft_audio.config import BaselineRecipe, BaselineTrainConfig, Recipe, TrainConfig, UserError, to_yaml
from peft_audio.data import Splits
from peft_audio.evaluation import Evaluation
from peft_audio.models import Base
from peft_audio.tracking import Log, start_log

SKIPPED = "skipped_clips.csv"
RUN_FILES = {
    "adapter",
    "adapter.partial",
    "config.yaml",
    "metrics.jsonl",
    "model",
    "model.partial",
    "predictions.parquet",
    "report.json",
    "report.json.partial",
    SKIPPED,
    "splits.parquet",
    "tensorboard",
    "wandb",
}


def check_output_dir(cfg: TrainConfig | BaselineTrainConfig, accelerator: Accelerator) -> None:
    """Refuse a folder that exists, or that cannot be made, before any work is done.

    Raises:
        UserError: It exists and may not be replaced, holds what no run wrote, or its parent cannot be written to.
    """
    folder = output_folder(cfg)
    if folder.exists() and not cfg.overwrite:
        unfinished = (folder / "config.yaml").exists() and not (folder / "report.json").exists()
        what = "exists already, from a run that did not finish" if unfinished else "exists already"
        raise UserError(f"--train.output_dir: {folder} {what}; give another, or --train.overwrite true to replace it.")
    if folder.exists() or folder.is_symlink():
        foreign = [folder] if folder.is_symlink() or not folder.is_dir() else []
        foreign += [path for path in folder.glob("*") if path.name not in RUN_FILES]
        if foreign:
            raise UserError(f"--train.overwrite: {foreign[0]} was not made by a run; move it away yourself.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--train.output_dir: cannot make {folder} ({error.strerror}); give another.") from error
    if not os.access(folder.parent, os.W_OK):
        raise UserError(f"--train.output_dir: {folder.parent} is not writable; give another folder.")
    # No process may find the folder that the first one is about to make.
    accelerator.wait_for_everyone()


def output_folder(cfg: TrainConfig | BaselineTrainConfig) -> Path:
    """`train.output_dir`, with ~ as the user's home."""
    return Path(cfg.output_dir).expanduser()


@dataclass(frozen=True)
class Run:
    """A run under way: its folder, and what its report will say of where it started from.

    Attributes:
        folder: Of the run.
        cfg: The recipe's settings.
        splits: The rows.
        base: The encoder; see `baseline.NO_ENCODER` for none.
        accelerator: Where it runs.
        began: `time.perf_counter()` at its start.
        log: Of its steps and epochs.
    """

    folder: Path
    cfg: Recipe | BaselineRecipe
    splits: Splits
    base: Base
    accelerator: Accelerator
    began: float
    log: Log


def start_run(cfg: Recipe | BaselineRecipe, splits: Splits, base: Base, accelerator: Accelerator, began: float) -> Run:
    """Make the run's folder, with the resolved settings and the splits in it."""
    folder = output_folder(cfg.train)
    if accelerator.is_main_process:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
        pq.write_table(splits.table(), folder / "splits.parquet")
        _tell(cfg, splits)
    accelerator.wait_for_everyone()
    settings = {f"{group}.{name}": value for group, values in asdict(cfg).items() for name, value in values.items()}
    trackers = cfg.train.log_with if isinstance(cfg, Recipe) else []
    log = start_log(folder, trackers, settings, accelerator.is_main_process)
    return Run(folder, cfg, splits, base, accelerator, began, log)


def _tell(cfg: Recipe | BaselineRecipe, splits: Splits) -> None:
    """What is trained on, and what was decided about it."""
    counts = ", ".join(
        "train streamed" if splits.stream and split == "train" else f"{len(splits.recordings(split))} {split}"
        for split in SPLITS
    )
    print(f"{len(splits.labels)} classes; clips: {counts}")
    if cfg.data.window_seconds is not None:
        print("windows: " + ", ".join(f"{len(splits[split])} {split}" for split in SPLITS))
    if cfg.data.validate_on_test and isinstance(cfg, Recipe):
        print("warning: the best epoch is chosen on the test clips; the figures flatter")
    for note in splits.notes:
        print(note)
    if splits.skipped:
        name, reason = splits.skipped[0]
        count = several(len(splits.skipped), "clip")
        print(f"skipped {count} that cannot be used, listed in {SKIPPED}; {name} {reason}")
    if splits.ignored:
        print(f"ignored {several(len(splits.ignored), 'file')}, no recordings by their names: {listed(splits.ignored)}")
    if isinstance(cfg, Recipe) and not cfg.model.pretrained:
        print("the encoder's weights are random, a control; the run saves a whole model")
    if isinstance(cfg, Recipe) and cfg.model.quantization != "none":
        print(f"epochs are validated on the {cfg.model.quantization} encoder, the report is of the float32 one")


def save_skipped(run: Run) -> int:
    """Write the clips that were left out, with the reasons; over all processes, which all call this.

    Returns:
        How many they are.
    """
    # Over the passes of a stream, several processes may meet the same clip.
    streamed = gather_object(list(run.splits.stream.skipped.items())) if run.splits.stream else []
    skipped = [*run.splits.skipped, *sorted(set(streamed))]
    if skipped and run.accelerator.is_main_process:
        with (run.folder / SKIPPED).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", "reason"), *skipped])
    return len(skipped)


def save_predictions(run: Run, evaluations: dict[str, Evaluation]) -> None:
    """Write `predictions.parquet`: id, group, split, label and a probability for each label, a row a recording."""
    if not run.accelerator.is_main_process:
        return
    tables = [
        predictions_table(run.splits.recordings(split), split, evaluation.logits, run.splits.labels)
        for split, evaluation in evaluations.items()
    ]
    pq.write_table(pa.concat_tables(tables), run.folder / "predictions.parquet")


def predictions_table(recordings: pd.DataFrame, split: str, logits: np.ndarray, labels: Sequence[str]) -> pa.Table:
    """What was said of a split's recordings: a probability for each label beside what they are.

    Args:
        recordings: `id`, `group`, `label`.
        split: Of all of them.
        logits: Of shape (recordings, labels).
        labels: In the order of the logits.
    """
    columns: dict[str, Any] = {
        "id": list(recordings["id"]),
        "group": list(recordings["group"]),
        "split": [split] * len(recordings),
        "label": list(recordings["label"]),
    }
    probabilities = softmax(logits, axis=1)
    return pa.table(columns | {f"probability_{label}": probabilities[:, i] for i, label in enumerate(labels)})
