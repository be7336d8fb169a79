"""Lock the folder of a run, and find out if the run in it is finished or can be resumed."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, SoftFileLock, Timeout

from peft_audio.config import (
    BaselineRecipe,
    BaselineTrainConfig,
    Recipe,
    TrainConfig,
    dotted,
    free_settings,
    to_yaml,
    with_new_names,
)
from peft_audio.encoders.loading import with_recorded_commit
from peft_audio.errors import ResumeError, UserError, in_one_line
from peft_audio.files import expanded
from peft_audio.training.checkpointing import MISMATCH_ADVICE, Checkpoint, discard_newer, newest_checkpoint

CHECKPOINTS = "checkpoints"
REPORT = "report.json"
SKIPPED = "skipped_clips.csv"
PRODUCTS = ("adapter", "model")
RUN_FILES = {
    *PRODUCTS,
    *(f"{name}.partial" for name in (*PRODUCTS, REPORT)),
    CHECKPOINTS,
    REPORT,
    SKIPPED,
    "config.yaml",
    "metrics.jsonl",
    "predictions.parquet",
    "splits.parquet",
    "tensorboard",
    "wandb",
}
REPLACE = "give another --train.output_dir, or --train.overwrite true, without --train.resume, to replace it"

T = TypeVar("T")


@dataclass(frozen=True)
class RunFolder:
    """Folder that only this run uses, until the end of a `with` block.

    Attributes:
        path: Path of the folder.
        lock: Lock of the folder; None on processes other than the first and on a disk without locks.
        finished: Whether `train.resume` found a finished run, so that nothing is left to do.
        recorded: Settings of the run that is resumed, by dotted name; empty for a new run.
    """

    path: Path
    lock: FileLock | None
    finished: bool = False
    recorded: Mapping[str, Any] = field(default_factory=dict)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock:
            self.lock.release()


def output_folder(cfg: TrainConfig | BaselineTrainConfig) -> Path:
    """Return the path of `train.output_dir`, with ~ replaced by the home folder."""
    return expanded(cfg.output_dir)


def open_folder(cfg: Recipe | BaselineRecipe, accelerator: Accelerator) -> RunFolder:
    """Check and lock the folder of a run before any work is done. All processes must call this.

    Returns:
        The folder. The first process locks it, and prints a line if the run in it is finished.

    Raises:
        UserError: The folder exists and must not be replaced, another run uses it, it holds other files or a finished
            run with other settings, or it cannot be written to.
    """
    folder = output_folder(cfg.train)
    locks: list[FileLock] = []  # of the first process

    def check_and_lock() -> tuple[bool, dict[str, Any]]:
        _check_replaceable(folder, cfg.train)
        locks.extend(_lock(folder))
        try:
            recorded = _recorded_settings(folder) if cfg.train.resume else {}
            return _is_finished(folder, cfg, recorded), recorded
        except BaseException:
            for lock in locks:
                lock.release()
            raise

    finished, recorded = on_first(accelerator, check_and_lock)
    return RunFolder(folder, locks[0] if locks else None, finished, recorded)


def on_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Call a function on the first process; all processes return its result or raise its error."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (UserError, OSError) as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    try:
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]
    finally:
        del outcome  # the error refers to this frame, which would keep the folder's lock until garbage collection


def _check_replaceable(folder: Path, cfg: TrainConfig | BaselineTrainConfig) -> None:
    """Refuse a folder that exists, unless the settings allow to replace or resume the run in it."""
    ours = folder.is_dir() and not folder.is_symlink()
    files = {path.name for path in folder.iterdir()} if ours else set()
    used = bool(files) if ours else os.path.lexists(folder)
    if used and not cfg.overwrite and not cfg.resume:
        unfinished = "config.yaml" in files and REPORT not in files
        problem = "already exists, from an unfinished run" if unfinished else "already exists"
        resume = "--train.resume true to resume it, " if unfinished else ""
        raise UserError(
            f"--train.output_dir: {folder} {problem}; give {resume}another folder, or --train.overwrite true to "
            "replace it."
        )
    foreign = sorted(files - RUN_FILES) if files or not used else [""]
    if foreign:
        flag = "overwrite" if cfg.overwrite else "resume" if cfg.resume else "output_dir"
        raise UserError(f"--train.{flag}: {folder / foreign[0]} was not made by a run; move it away.")


def _lock(folder: Path) -> list[FileLock]:
    """Lock the folder with a hidden file beside it; return no lock on a disk without locks."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        absolute = folder.resolve()
        lock = FileLock(absolute.with_name(f".{absolute.name}.lock"), timeout=0)
        with warnings.catch_warnings():
            # Newer versions warn when they use a plain file as the lock; a note below explains it.
            warnings.simplefilter("ignore")
            lock.acquire()
    except Timeout as error:
        stale = f" (if none is running, remove {lock.lock_file})" if isinstance(lock, SoftFileLock) else ""
        raise UserError(
            f"--train.output_dir: another run is using {folder}{stale}; wait for it, end it, or give another folder."
        ) from error
    except NotImplementedError:
        print(f"note: {folder} is on a disk without locks; use it for one run at a time")
        return []
    except OSError as error:
        raise UserError(
            f"--train.output_dir: {folder.parent} cannot be written to ({error.strerror}); give another folder."
        ) from error
    if isinstance(lock, SoftFileLock):
        print(f"note: {folder} is on a disk without locks; {lock.lock_file} replaces the lock, remove it after a crash")
    return [lock]


def _recorded_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of the run in a folder, by dotted name; empty if an unfinished run has none.

    Raises:
        ResumeError: The settings of a finished run are missing or damaged.
    """
    try:
        return dotted((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        if not (folder / REPORT).exists():
            return {}
        problem = f"{folder / 'config.yaml'} cannot be read ({in_one_line(error)})"
        raise ResumeError(f"--train.resume: {problem}; {REPLACE}.") from error


def _is_finished(folder: Path, cfg: Recipe | BaselineRecipe, recorded: Mapping[str, Any]) -> bool:
    """Return whether the folder holds a finished run with these settings; finish its folder if it was interrupted."""
    if not cfg.train.resume or not (folder / REPORT).exists():
        return False
    if isinstance(cfg, Recipe):
        cfg = replace(cfg, model=with_recorded_commit(cfg.model, recorded))
    # config.yaml holds the values that replaced "auto".
    given = {name: recorded.get(name) if value == "auto" else value for name, value in dotted(to_yaml(cfg)).items()}
    changes = changed_facts(recorded, given, free_settings())
    if changes and cfg.train.overwrite:
        return False
    if changes:
        problem = f"the run in {folder} is finished, with other settings ({'; '.join(changes)})"
        raise ResumeError(f"--train.resume: {problem}; {REPLACE}.")
    finish_folder(folder)
    print(f"the run in {folder} is finished; nothing is left to do")
    return True


def finish_folder(folder: Path) -> None:
    """Rename the saved adapter or model to its final name and remove the checkpoints, after the report is written."""
    for name in PRODUCTS:
        partial = folder / f"{name}.partial"
        if partial.exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            partial.rename(folder / name)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def changed_facts(recorded: Mapping[str, Any], given: Mapping[str, Any], free: Iterable[str] = ()) -> list[str]:
    """List the facts that differ between a recorded run and the given one, sorted by name.

    Args:
        recorded: Facts of the run in the folder.
        given: Facts of the run that was started.
        free: Names that may differ.

    Returns:
        One phrase per difference, such as "train.seed 0 there, 1 here".
    """
    names = sorted((recorded.keys() | given.keys()) - set(free))
    return [
        f"{name} {_short(recorded.get(name, 'not set'))} there, {_short(given.get(name, 'not set'))} here"
        for name in names
        if recorded.get(name) != given.get(name)
    ]


def _short(value: Any) -> Any:
    """Shorten a SHA-256 to its first digits; return other values as they are."""
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else value


def checkpoint_to_resume(folder: Path, cfg: Recipe, about: Mapping[str, Any]) -> Checkpoint | None:
    """Read the checkpoint that a run resumes from, and print where the run starts.

    Args:
        folder: Folder of the run.
        cfg: Settings of the run.
        about: Facts that identify the run: settings, recordings, splits, encoder, processes, device, versions.

    Returns:
        The checkpoint; None if the run starts from scratch.

    Raises:
        ResumeError: The checkpoints are of another run or damaged, and `train.overwrite` is false.
    """
    if not cfg.train.resume:
        return None
    try:
        checkpoint = newest_checkpoint(folder / CHECKPOINTS, print)
        if checkpoint is None:
            print(f"no checkpoint in {folder}; starting from scratch")
            return None
        recorded = _recorded_facts(checkpoint)
        given = json.loads(json.dumps(about))
        compared_apart = {"settings", "made_with"}
        # Two revisions can name the same encoder; its hash is compared instead.
        free = {*free_settings(), "model.revision"}
        # Worker processes divide the files of a stream, so their number changes the batches.
        free -= {"data.num_workers"} if cfg.data.streaming else set()
        changes = changed_facts(with_new_names(recorded["settings"]), given["settings"], free)
        changes += changed_facts(recorded, given, compared_apart)
        if changes:
            raise ResumeError(
                f"--train.resume: the run in {folder} is another one ({'; '.join(changes)}). Repeat the command that "
                "started it, give another --train.output_dir, or --train.overwrite true to start from scratch."
            )
    except ResumeError as error:
        if not cfg.train.overwrite:
            raise
        print(f"note: {error} Starting from scratch, because train.overwrite is true.")
        return None
    changed_versions = changed_facts(recorded.get("made_with") or {}, given["made_with"])
    if changed_versions:
        print(
            f"warning: versions changed since the run was started, so results can differ in the last digits: "
            f"{'; '.join(changed_versions)}"
        )
    print(f"resuming from {checkpoint.folder}")
    return checkpoint


def _recorded_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the facts that identify the run of a checkpoint, if its position in the training is valid.

    Raises:
        ResumeError: The facts or the position are missing or have wrong types.
    """
    about, position = checkpoint.state.get("about"), checkpoint.state.get("position")
    counts = [position.get(name) for name in ("step", "log_bytes")] if isinstance(position, dict) else [None]
    valid = all(type(count) is int and count >= 0 for count in counts)
    valid = valid and isinstance(checkpoint.state.get("run_seconds"), float)
    if valid and isinstance(about, dict) and isinstance(about.get("settings"), dict):
        return about
    raise ResumeError(
        f"--train.resume: the checkpoint {checkpoint.folder} lacks the facts of its run or its position in the "
        f"training. {MISMATCH_ADVICE}"
    )


def discard_after(folder: Path, checkpoint: Checkpoint) -> None:
    """Remove what a run wrote after a checkpoint, and cut its log to the size at the checkpoint.

    Raises:
        ResumeError: The log is shorter than it was at the checkpoint.
    """
    discard_newer(checkpoint)
    for path in folder.glob("*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    log, size = folder / "metrics.jsonl", checkpoint.state["position"]["log_bytes"]
    present = log.stat().st_size if log.exists() else 0
    if present < size:
        raise ResumeError(f"--train.resume: {log} was removed or cut; --train.overwrite true starts from scratch.")
    if present:
        os.truncate(log, size)


def path_beside(folder: Path, ending: str) -> Path:
    """Return the path of a file beside a run's folder, because a run empties its folder when it starts."""
    return folder.with_name(folder.name + ending)
