"""Run the jobs of a comparison as processes with the command of a user, and measure the load meanwhile."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from joblib import cpu_count

from peft_audio.config.parse import in_words
from peft_audio.errors import DivergedError, UserError
from peft_audio.files import RECIPES, read_json, write_atomically
from peft_audio.processes import (
    child_environment,
    cpu_seconds,
    creation_time,
    end_processes,
    family_cpu_seconds,
    signal_handlers,
    usable_cpu_times,
    visible_gpus,
)
from peft_audio.runs.folder import path_beside

LAST_LINES = 12
# Seconds between two measurements of the load of other processes.
LOAD_EVERY_SECONDS = 0.5
# Share of a run's threads that others may occupy before its costs count as measured on a busy machine; this
# package's own choice.
TOLERATED_LOAD = 0.1
# Records of version 0.1.0 have no field "diverged"; their last lines hold one of these texts instead.
OLD_DIVERGED = ("the loss became", "the gradient became", "the validation loss was never a finite number")


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes:
        arm: name of its arm.
        phase: "tuning" tries a learning rate on validation; only "final" reads the test split. Records of version 0.1.0
            also have "timing".
        recipe: name of the recipe.
        flags: settings by dotted name, without the folder.
        folder: folder of the run. Beside it are `<folder>.json`, the record of its process, and `<folder>.log`.
    """

    arm: str
    phase: str
    recipe: str
    flags: dict[str, Any]
    folder: Path

    def arguments(self) -> list[str]:
        """Return the command line of the recipe."""
        # A run that was killed is resumed; a run with other settings is replaced.
        own = {"train.output_dir": str(self.folder), "train.overwrite": True, "train.resume": True}
        flags = self.flags | own
        return [part for name, value in flags.items() for part in (f"--{name}", in_words(value))]


def finished(job: Job) -> bool:
    """Return whether the run has a report and was made with the same settings."""
    return _record(job).get("exit_code") == 0 and "strategy" in read_json(job.folder / "report.json")


def other_settings(job: Job) -> str | None:
    """Describe a setting in which a finished run in the folder differs; None if there is no such run."""
    record, asked = read_json(path_beside(job.folder, ".json")), json.loads(json.dumps(job.flags))
    made = record.get("flags", {})
    if record.get("exit_code") != 0 or made == asked:
        return None
    name = next(name for name in {**asked, **made} if asked.get(name) != made.get(name))
    return f"{name} {in_words(made[name])}" if name in made else f"{name} left out"


def diverged(job: Job) -> bool:
    """Return whether a tuning run with these settings ended with a loss that is not finite; it is not repeated."""
    record = _record(job)
    old = any(text in record.get("last_lines", "") for text in OLD_DIVERGED)
    return job.phase == "tuning" and bool(record.get("diverged", old))


def _record(job: Job) -> dict[str, Any]:
    """Read the record of the run's process; empty if it was started with other settings."""
    record = read_json(path_beside(job.folder, ".json"))
    same = record.get("flags") == json.loads(json.dumps(job.flags)) and record.get("recipe") == job.recipe
    return record if same else {}


def run_jobs(jobs: Sequence[Job], at_once: int | None, on_end: Callable[[Job, dict[str, Any]], None]) -> None:
    """Start the runs that are not finished, and wait for them.

    Args:
        jobs: runs, in the order in which they start.
        at_once: number of runs side by side; by default one for each GPU, or one on a CPU.
        on_end: callback that gets each job and the record of its process when the job ends.
    """
    gpus = visible_gpus()
    at_once = at_once or max(1, len(gpus))
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(at_once):
        slots.put(slot)
    children: list[subprocess.Popen[bytes]] = []
    stop = threading.Event()

    def work(job: Job) -> dict[str, Any]:
        if finished(job) or diverged(job) or stop.is_set():
            return read_json(path_beside(job.folder, ".json"))
        slot = slots.get()
        try:
            alone = at_once <= max(1, len(gpus))
            threads = threads_of_run(at_once)
            where = child_environment(gpus[slot % len(gpus)] if gpus else None, threads)
            return _run(job, where, {"alone": alone, "threads": threads}, children, stop)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            futures = {pool.submit(work, job): job for job in jobs}
            for future in as_completed(futures):
                on_end(futures[future], future.result())
        except BaseException:
            # End the runs, because they would write into folders that the next call uses.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            end_processes([child.pid for child in children])
            raise


def threads_of_run(at_once: int) -> int:
    """Return the threads of each of several runs: its share of the available CPUs, at most OMP_NUM_THREADS.

    Args:
        at_once: number of runs side by side.
    """
    share = max(1, cpu_count() // at_once)
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(share, int(asked)) if asked.isdecimal() and int(asked) else share


def wait_and_measure(child: subprocess.Popen[bytes], threads: int) -> dict[str, Any]:
    """Wait for a process and measure how much other processes used the CPUs meanwhile.

    Args:
        child: process to wait for; its children count as part of it.
        threads: number of threads of the process.

    Returns:
        `other_cpus`, the mean number of CPUs that other processes kept busy; `busy`, whether they left it fewer CPUs
        than threads. Both are None if it ended before the first measurement.
    """
    import psutil

    began, before = time.perf_counter(), cpu_seconds()
    other = None
    while True:
        try:
            child.wait(LOAD_EVERY_SECONDS)
            break
        except subprocess.TimeoutExpired:
            with suppress(psutil.Error):
                own = family_cpu_seconds(child.pid)
                other = (cpu_seconds() - before - own) / (time.perf_counter() - began)
    if other is None:
        return {"other_cpus": None, "busy": None}
    left = len(usable_cpu_times()) - other
    return {"other_cpus": round(max(0.0, other), 2), "busy": left < threads * (1 - TOLERATED_LOAD)}


def _run(
    job: Job, where: dict[str, str], how: dict[str, Any], children: list[subprocess.Popen[bytes]], stop: threading.Event
) -> dict[str, Any]:
    """Start one run, wait for it and return the record of its process."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    record_file = path_beside(job.folder, ".json")
    command = [sys.executable, str(RECIPES / f"{job.recipe}.py"), *job.arguments()]
    record = {"arm": job.arm, "phase": job.phase, "recipe": job.recipe, "flags": job.flags, **how, "command": command}
    began = time.perf_counter()
    with path_beside(job.folder, ".log").open("wb") as log:
        # In its own session, the child gets no interrupt from the terminal; the comparison ends it.
        child = subprocess.Popen(command, env=where, stdout=log, stderr=log, start_new_session=True)
        children.append(child)
        if stop.is_set():
            end_processes([child.pid])
        write_atomically(
            record_file, json.dumps(record | {"pid": child.pid, "created": creation_time(child.pid)}, indent=2)
        )
        how |= wait_and_measure(child, how["threads"])
        exit_code = child.returncode
    children.remove(child)
    if stop.is_set():
        return record
    log_text = path_beside(job.folder, ".log").read_text(encoding="utf-8", errors="replace")
    record |= how | {"exit_code": exit_code, "seconds": time.perf_counter() - began}
    record["diverged"] = exit_code == DivergedError.exit_code
    if exit_code:
        record["last_lines"] = "\n".join(log_text.strip().splitlines()[-LAST_LINES:])
    elif not read_json(job.folder / "report.json"):
        record |= {"exit_code": 1, "last_lines": "it ended without a report"}
    write_atomically(record_file, json.dumps(record, indent=2) + "\n")
    return record


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a comparison's folder, end runs that a killed comparison left, and turn SIGTERM into KeyboardInterrupt.

    Raises:
        UserError: The folder cannot be created, or another comparison or plan uses it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    with signal_handlers({signal.SIGTERM: signal.default_int_handler}):
        try:
            _lock(lock, folder)
            # End them, because they would write into folders that are used next, and share the device.
            for path in folder.glob("runs/*/*.json"):
                record = read_json(path)
                if "pid" in record and "exit_code" not in record and creation_time(record["pid"]) == record["created"]:
                    end_processes([record["pid"]])
            yield
        finally:
            lock.release()


def _lock(lock: FileLock, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"--output_dir: {folder} is in use by another comparison; wait, or give another folder."
        ) from error
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise UserError(f"--output_dir: {folder} cannot be used ({why}); give another folder.") from error
