"""A run's folder: one run at a time, a finished run, and a run to go on with."""

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

from peft_audio.config import BaselineRecipe, BaselineTrainConfig, Recipe, TrainConfig, dotted, free_settings, to_yaml
from peft_audio.encoders.loading import with_recorded_commit
from peft_audio.errors import ResumeError, UserError, in_one_line
from peft_audio.files import expanded
from peft_audio.training.checkpointing import WAYS_OUT, Checkpoint, discard_newer, newest_checkpoint

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
    """A folder that only this run uses, until the end of a `with` block.

    Attributes:
        path: Path of the folder.
        lock: Lock of the folder. None on processes other than the first, and on a disk without locks.
        finished: Whether `train.resume` found a finished run, so that nothing is left to do.
        made: Settings of the run that is resumed, by dotted name; empty for a new run.
    """

    path: Path
    lock: FileLock | None
    finished: bool = False
    made: Mapping[str, Any] = field(default_factory=dict)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock:
            self.lock.release()


def output_folder(cfg: TrainConfig | BaselineTrainConfig) -> Path:
    """`train.output_dir`, with ~ as the user's home."""
    return expanded(cfg.output_dir)


def open_folder(cfg: Recipe | BaselineRecipe, accelerator: Accelerator) -> RunFolder:
    """Take a run's folder before any work is done; all processes call this.

    Returns:
        The folder. The first process locks it, and prints a line if the run in it is finished.

    Raises:
        UserError: It exists and may not be replaced, another run is in it, it holds what no run wrote or a finished run
            with other settings, or it cannot be written to.
    """
    folder = output_folder(cfg.train)
    locks: list[FileLock] = []  # of the first process

    def take() -> tuple[bool, dict[str, Any]]:
        _check_place(folder, cfg.train)
        locks.extend(_lock(folder))
        try:
            made = _recorded_settings(folder) if cfg.train.resume else {}
            return _is_finished(folder, cfg, made), made
        except BaseException:
            for lock in locks:
                lock.release()
            raise

    finished, made = on_first(accelerator, take)
    return RunFolder(folder, locks[0] if locks else None, finished, made)


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
        del outcome  # with the error in it, this frame and the folder's lock would live until garbage is collected


def _check_place(folder: Path, cfg: TrainConfig | BaselineTrainConfig) -> None:
    ours = folder.is_dir() and not folder.is_symlink()
    files = {path.name for path in folder.iterdir()} if ours else set()
    used = bool(files) if ours else os.path.lexists(folder)
    if used and not cfg.overwrite and not cfg.resume:
        unfinished = "config.yaml" in files and REPORT not in files
        what = "exists already, from a run that did not finish" if unfinished else "exists already"
        go_on = "--train.resume true to go on with it, " if unfinished else ""
        raise UserError(
            f"--train.output_dir: {folder} {what}; give {go_on}another, or --train.overwrite true to replace it."
        )
    foreign = sorted(files - RUN_FILES) if files or not used else [""]
    if foreign:
        flag = "overwrite" if cfg.overwrite else "resume" if cfg.resume else "output_dir"
        raise UserError(f"--train.{flag}: {folder / foreign[0]} was not made by a run; move it away yourself.")


def _lock(folder: Path) -> list[FileLock]:
    """Take the folder's lock, a hidden file beside it; none where the disk knows no locks."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        whole = folder.resolve()
        lock = FileLock(whole.with_name(f".{whole.name}.lock"), timeout=0)
        with warnings.catch_warnings():
            # Newer versions warn where they make do with a file; what that means is said below.
            warnings.simplefilter("ignore")
            lock.acquire()
    except Timeout as error:
        left = f" (if there is none any more, remove {lock.lock_file})" if isinstance(lock, SoftFileLock) else ""
        raise UserError(
            f"--train.output_dir: another run is at work in {folder}{left}; wait for it, end it, or give another "
            "folder."
        ) from error
    except NotImplementedError:
        print(f"note: {folder} is on a disk without locks; no second run may use it meanwhile")
        return []
    except OSError as error:
        raise UserError(
            f"--train.output_dir: {folder.parent} cannot be written to ({error.strerror}); give another folder."
        ) from error
    if isinstance(lock, SoftFileLock):
        print(f"note: {folder} is on a disk without locks; {lock.lock_file} stands in for one, remove it after a crash")
    return [lock]


def _recorded_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of the run in a folder, by dotted name; empty if an unfinished run has none.

    Raises:
        ResumeError: Those of a finished run are missing or damaged.
    """
    try:
        return dotted((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        if not (folder / REPORT).exists():
            return {}
        what = f"{folder / 'config.yaml'} cannot be read ({in_one_line(error)})"
        raise ResumeError(f"--train.resume: {what}; {REPLACE}.") from error


def _is_finished(folder: Path, cfg: Recipe | BaselineRecipe, made: Mapping[str, Any]) -> bool:
    """Whether a finished run is to be left as it is; what it did not get to at its very end is done."""
    if not cfg.train.resume or not (folder / REPORT).exists():
        return False
    if isinstance(cfg, Recipe):
        cfg = replace(cfg, model=with_recorded_commit(cfg.model, made))
    # config.yaml holds what this package decided in place of "auto".
    asked = {name: made.get(name) if value == "auto" else value for name, value in dotted(to_yaml(cfg)).items()}
    other = differences(made, asked, free_settings())
    if other and cfg.train.overwrite:
        return False
    if other:
        what = f"the run in {folder} is finished, with other settings ({'; '.join(other)})"
        raise ResumeError(f"--train.resume: {what}; {REPLACE}.")
    finish_folder(folder)
    print(f"the run in {folder} is finished; nothing is left to do")
    return True


def finish_folder(folder: Path) -> None:
    """Let a run's product appear, and its checkpoints go: the last act of a run, behind its report."""
    for name in PRODUCTS:
        aside = folder / f"{name}.partial"
        if aside.exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            aside.rename(folder / name)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def differences(made: Mapping[str, Any], asked: Mapping[str, Any], free: Iterable[str] = ()) -> list[str]:
    """What of a run was told otherwise, in words, by name.

    Args:
        made: Of the run that is there.
        asked: Of the one that was asked for.
        free: Names whose values decide no number.
    """
    names = sorted((made.keys() | asked.keys()) - set(free))
    return [
        f"{name} {_short(made.get(name, 'not set'))} there, {_short(asked.get(name, 'not set'))} here"
        for name in names
        if made.get(name) != asked.get(name)
    ]


def _short(value: Any) -> Any:
    """A hash by its first digits, which tell two of them apart."""
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else value


def take_up(folder: Path, cfg: Recipe, about: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint that a run is to go on from; says what it does.

    Args:
        folder: Of the run.
        cfg: Its settings.
        about: What it is: settings, recordings, encoder, processes, device.

    Returns:
        None where the run starts afresh.

    Raises:
        ResumeError: There is one, of another run, or none is whole; and `train.overwrite` is false.
    """
    if not cfg.train.resume:
        return None
    try:
        found = newest_checkpoint(folder / CHECKPOINTS, print)
        if found is None:
            print(f"nothing to go on from in {folder}: the run starts afresh")
            return None
        made = _run_of(found)
        asked = json.loads(json.dumps(about))
        rest = {"settings", "made_with"}
        # The hash of the encoder tells whether another revision is another encoder.
        free = {*free_settings(), "model.revision"}
        # Worker processes divide the files of a stream, so their number decides which clips form a batch.
        free -= {"data.num_workers"} if cfg.data.streaming else set()
        other = differences(made["settings"], asked["settings"], free) + differences(made, asked, rest)
        if other:
            raise ResumeError(
                f"--train.resume: the run in {folder} is another one ({'; '.join(other)}). Start the command that "
                "began it, give another --train.output_dir, or --train.overwrite true to start afresh."
            )
    except ResumeError as error:
        if not cfg.train.overwrite:
            raise
        print(f"note: {error} As train.overwrite says, it starts afresh.")
        return None
    changed = differences(made.get("made_with") or {}, asked["made_with"])
    if changed:
        print(f"warning: the run was begun with something else, and its last digits may differ: {'; '.join(changed)}")
    print(f"going on from {found.folder}")
    return found


def _run_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What run a checkpoint says that it is of, if it says where that stands too."""
    made, at = checkpoint.state.get("about"), checkpoint.state.get("position")
    stands = isinstance(at, dict) and all(type(at.get(name)) is int and at[name] >= 0 for name in ("step", "log_bytes"))
    stands = stands and isinstance(checkpoint.state.get("run_seconds"), float)
    if isinstance(made, dict) and isinstance(made.get("settings"), dict) and stands:
        return made
    raise ResumeError(
        f"--train.resume: the checkpoint {checkpoint.folder} does not say of what run it is and where that stands. "
        + WAYS_OUT
    )


def back_to(folder: Path, checkpoint: Checkpoint) -> None:
    """Remove what a run wrote after a checkpoint.

    Raises:
        ResumeError: Its log lacks what it held when the checkpoint was written.
    """
    discard_newer(checkpoint)
    for path in folder.glob("*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    log, size = folder / "metrics.jsonl", checkpoint.state["position"]["log_bytes"]
    there = log.stat().st_size if log.exists() else 0
    if there < size:
        raise ResumeError(f"--train.resume: {log} was removed or cut; --train.overwrite true starts afresh.")
    if there:
        os.truncate(log, size)


def beside(folder: Path, ending: str) -> Path:
    """A file beside a run's folder: the run itself empties the folder when it starts."""
    return folder.with_name(folder.name + ending)
