"""A run's folder, and what is written into it before the report."""

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
    back_to,
    on_first,
    take_up,
)
from peft_audio.runs.predictions import predictions_table
from peft_audio.text import printable, several
from peft_audio.training.checkpointing import Checkpoint, Checkpoints, read_checkpoint
from peft_audio.training.tracking import Log, start_log


@dataclass(frozen=True)
class Run:
    """A run under way: its folder, and what its report will say of where it started from.

    Attributes:
        place: Its folder, which it holds.
        cfg: The recipe's settings.
        splits: The rows.
        base: The encoder; see `baseline.NO_ENCODER` for none.
        accelerator: Where it runs.
        began: `time.perf_counter()` at its start, as if nothing had ever stopped it.
        log: Of its steps and epochs.
        checkpoints: Where its training stands.
    """

    place: RunFolder
    cfg: Recipe | BaselineRecipe
    splits: Splits
    base: Base
    accelerator: Accelerator
    began: float
    log: Log
    checkpoints: Checkpoints

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.place.path


def start_run(
    folder: RunFolder, cfg: Recipe | BaselineRecipe, splits: Splits, base: Base, accelerator: Accelerator, began: float
) -> Run:
    """Fill the run's folder with the resolved settings and the splits, or go on with the run that is in it.

    Raises:
        UserError: It was asked to go on, and what is there is another run.
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
    found = _prepare_on_all(path, cfg, splits, about, accelerator)
    trackers = cfg.train.log_with if isinstance(cfg, Recipe) else []
    step = found.state["position"]["step"] if found else 0
    log = start_log(path, trackers, about["settings"], accelerator.is_main_process, step)
    began -= found.state["run_seconds"] if found else 0.0
    checkpoints = Checkpoints(path / CHECKPOINTS, about, began, found)
    return Run(folder, cfg, splits, base, accelerator, began, log, checkpoints)


def _prepare_on_all(
    path: Path, cfg: Recipe | BaselineRecipe, splits: Splits, about: dict[str, Any], accelerator: Accelerator
) -> Checkpoint | None:
    """Prepare the folder on the first process, and read the checkpoint to resume from on each process."""
    of_first: list[Checkpoint] = []

    def prepare() -> Path | None:
        found = _prepare(path, cfg, splits, about)
        of_first.extend([found] if found else [])
        return found.folder if found else None

    # The others get its path: a checkpoint can hold gigabytes.
    folder = on_first(accelerator, prepare)
    if of_first or folder is None:
        return of_first[0] if of_first else None
    return read_checkpoint(folder)


def _prepare(path: Path, cfg: Recipe | BaselineRecipe, splits: Splits, about: dict[str, Any]) -> Checkpoint | None:
    """On the first process: what is to stand in the folder before the training."""
    found = take_up(path, cfg, about) if isinstance(cfg, Recipe) else None
    if found:
        back_to(path, found)
    else:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir()
        (path / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
        pq.write_table(splits.table(), path / "splits.parquet")
    _tell(cfg, splits)
    return found


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
        print(printable(note))
    if splits.skipped:
        name, reason = splits.skipped[0]
        count = several(len(splits.skipped), "clip")
        print(f"skipped {count} that cannot be used, listed in {SKIPPED}; {printable(f'{name} {reason}')}")
    if splits.ignored:
        print(ignored_note(splits.ignored))
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
    """Write `predictions.parquet`, see `predictions`."""
    if not run.accelerator.is_main_process:
        return
    tables = [
        predictions_table(run.splits.recordings(split), split, evaluation.logits, run.splits.labels, run.splits.task)
        for split, evaluation in evaluations.items()
    ]
    pq.write_table(pa.concat_tables(tables), run.folder / "predictions.parquet")
