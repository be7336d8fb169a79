"""Start a run: prepare its folder, open its log, and write skipped clips and predictions."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from accelerate.utils import gather_object

from peft_audio.config import BaselineRecipe, Recipe, dotted, to_yaml
from peft_audio.data.clip_table import SPLITS
from peft_audio.data.folder import ignored_note
from peft_audio.data.splits import Splits
from peft_audio.encoders.loading import Base, versions
from peft_audio.evaluation.run_split import Evaluation
from peft_audio.runs.folder import (
    CHECKPOINTS,
    SKIPPED,
    RunFolder,
    checkpoint_to_resume,
    discard_after,
    on_first,
)
from peft_audio.runs.predictions import predictions_table
from peft_audio.text import printable, several
from peft_audio.training.checkpointing import Checkpoint, Checkpoints, read_checkpoint
from peft_audio.training.tracking import Log, start_log


@dataclass(frozen=True)
class Run:
    """A run in progress.

    Attributes:
        locked_folder: Folder that only this run uses.
        cfg: Settings of the recipe.
        splits: Rows of the splits.
        base: Encoder; `baseline.NO_ENCODER` for none.
        accelerator: Processes and device.
        began: `time.perf_counter()` at the start of the run, minus the seconds that it ran before it was resumed.
        log: Log of steps and epochs.
        checkpoints: Checkpoints of the training.
    """

    locked_folder: RunFolder
    cfg: Recipe | BaselineRecipe
    splits: Splits
    base: Base
    accelerator: Accelerator
    began: float
    log: Log
    checkpoints: Checkpoints

    @property
    def folder(self) -> Path:
        """Return the path of the run's folder."""
        return self.locked_folder.path


def start_run(
    folder: RunFolder, cfg: Recipe | BaselineRecipe, splits: Splits, base: Base, accelerator: Accelerator, began: float
) -> Run:
    """Write the resolved settings and the splits into the run's folder, or resume the run in it.

    Raises:
        UserError: `train.resume` is set, but the run in the folder has other settings or data.
    """
    path = folder.path
    about = {
        "settings": dotted(to_yaml(cfg)),
        "recordings": splits.dataset_sha256(),
        "splits": splits.split_sha256(),
        "encoder": base.sha256,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "made_with": versions(),
    }
    checkpoint = _prepare_on_all(path, cfg, splits, about, accelerator)
    trackers = cfg.train.log_with if isinstance(cfg, Recipe) else []
    step = checkpoint.state["position"]["step"] if checkpoint else 0
    log = start_log(path, trackers, about["settings"], accelerator.is_main_process, step)
    began -= checkpoint.state["run_seconds"] if checkpoint else 0.0
    checkpoints = Checkpoints(path / CHECKPOINTS, about, began, checkpoint)
    return Run(folder, cfg, splits, base, accelerator, began, log, checkpoints)


def _prepare_on_all(
    path: Path, cfg: Recipe | BaselineRecipe, splits: Splits, about: dict[str, Any], accelerator: Accelerator
) -> Checkpoint | None:
    """Prepare the folder on the first process, and read the checkpoint to resume from on all processes."""
    of_first: list[Checkpoint] = []

    def prepare() -> Path | None:
        checkpoint = _prepare(path, cfg, splits, about)
        of_first.extend([checkpoint] if checkpoint else [])
        return checkpoint.folder if checkpoint else None

    # The other processes get only the path, because a checkpoint can hold gigabytes.
    folder = on_first(accelerator, prepare)
    if of_first or folder is None:
        return of_first[0] if of_first else None
    return read_checkpoint(folder)


def _prepare(path: Path, cfg: Recipe | BaselineRecipe, splits: Splits, about: dict[str, Any]) -> Checkpoint | None:
    """Prepare the folder for the training, and return the checkpoint to resume from."""
    checkpoint = checkpoint_to_resume(path, cfg, about) if isinstance(cfg, Recipe) else None
    if checkpoint:
        discard_after(path, checkpoint)
    else:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir()
        (path / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
        pq.write_table(splits.table(), path / "splits.parquet")
    _print_data(cfg, splits)
    return checkpoint


def _print_data(cfg: Recipe | BaselineRecipe, splits: Splits) -> None:
    """Print the number of clips, the notes on the data, and settings that change the meaning of the figures."""
    counts = ", ".join(
        "train streamed" if splits.stream and split == "train" else f"{len(splits.recordings(split))} {split}"
        for split in SPLITS
    )
    print(f"{len(splits.labels)} classes; clips: {counts}")
    if cfg.data.window_seconds is not None:
        print("windows: " + ", ".join(f"{len(splits[split])} {split}" for split in SPLITS))
    if cfg.data.validate_on_test and isinstance(cfg, Recipe):
        print("warning: the best epoch is chosen on the test clips, so the figures are too good")
    for note in splits.notes:
        print(printable(note))
    if splits.skipped:
        name, reason = splits.skipped[0]
        count = several(len(splits.skipped), "clip")
        print(f"skipped {count} that cannot be used, listed in {SKIPPED}; {printable(f'{name} {reason}')}")
    if splits.ignored:
        print(ignored_note(splits.ignored))
    if isinstance(cfg, Recipe) and not cfg.model.pretrained:
        print("the encoder starts from random weights, as a control; the run saves a whole model")
    if isinstance(cfg, Recipe) and cfg.model.quantization != "none":
        print(f"epochs are validated with the {cfg.model.quantization} encoder; the report uses the float32 encoder")


def save_skipped(run: Run) -> int:
    """Write the skipped clips of all processes, with the reasons. All processes must call this.

    Returns:
        Number of skipped clips.
    """
    # In the passes over a stream, several processes can read the same clip.
    streamed = gather_object(list(run.splits.stream.skipped.items())) if run.splits.stream else []
    skipped = [*run.splits.skipped, *sorted(set(streamed))]
    if skipped and run.accelerator.is_main_process:
        with (run.folder / SKIPPED).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", "reason"), *skipped])
    return len(skipped)


def save_predictions(run: Run, evaluations: dict[str, Evaluation]) -> None:
    """Write the predictions of the evaluated splits, in the format of `runs.predictions`."""
    if not run.accelerator.is_main_process:
        return
    tables = [
        predictions_table(run.splits.recordings(split), split, evaluation.logits, run.splits.labels, run.splits.task)
        for split, evaluation in evaluations.items()
    ]
    pq.write_table(pa.concat_tables(tables), run.folder / "predictions.parquet")
