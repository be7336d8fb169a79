"""Runs as processes: each is what a user would start, on a device of its own where there are several."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PACKAGE = Path(__file__).parent
# A wheel carries the recipes inside the package; a checkout has them beside it.
RECIPES = PACKAGE / "recipes" if (PACKAGE / "recipes").is_dir() else PACKAGE.parent / "recipes"
LAST_LINES = 12


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes:
        arm: Whose it is.
        phase: "timing" makes a few steps to see what they cost, "tuning" tries a learning rate on validation, "final"
            alone reads the test split.
        recipe: Which recipe makes it.
        flags: Its settings by name, without the folder.
        folder: Of the run. Beside it stand `<folder>.json`, how it was started and how it ended, and `<folder>.log`.
    """

    arm: str
    phase: str
    recipe: str
    flags: dict[str, Any]
    folder: Path

    def arguments(self) -> list[str]:
        """The recipe's command line."""
        flags = self.flags | {"train.output_dir": str(self.folder), "train.overwrite": True}
        return [part for name, value in flags.items() for part in (f"--{name}", in_words(value))]


def in_words(value: Any) -> str:
    """A setting as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def beside(folder: Path, ending: str) -> Path:
    """A file beside a run's folder: the run itself empties the folder when it starts."""
    return folder.with_name(folder.name + ending)


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing or cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def finished(job: Job) -> bool:
    """Whether the run is there already, with a report and the same settings."""
    start = read_json(beside(job.folder, ".json"))
    report = read_json(job.folder / "report.json")
    asked = json.loads(json.dumps(job.flags))
    same = start.get("flags") == asked and start.get("recipe") == job.recipe
    return same and start.get("exit_code") == 0 and "strategy" in report


def run_jobs(
    jobs: Sequence[Job], at_once: int | None, mixed_precision: str, tell: Callable[[Job, dict[str, Any]], None]
) -> None:
    """Run what is not finished yet.

    Args:
        jobs: The runs.
        at_once: How many side by side; one for each GPU, or one on a CPU, when None.
        mixed_precision: As the recipes are told.
        tell: Is called with each job and the record of its process as it ends, or as it was where it ended before.
    """
    gpus = visible_gpus()
    at_once = at_once or max(1, len(gpus))
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(at_once):
        slots.put(slot)
    children: list[subprocess.Popen[bytes]] = []
    stop = threading.Event()
    for job in jobs:
        _end_leftover(job)

    def work(job: Job) -> dict[str, Any]:
        if finished(job) or stop.is_set():
            return read_json(beside(job.folder, ".json"))
        slot = slots.get()
        try:
            alone = at_once <= max(1, len(gpus))
            threads = max(1, (os.cpu_count() or 1) // at_once)
            launcher = launch_command(gpus[slot % len(gpus)] if gpus else None, threads, mixed_precision)
            return _run(job, launcher, {"alone": alone, "threads": threads}, children, stop)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            futures = {pool.submit(work, job): job for job in jobs}
            for future in as_completed(futures):
                tell(futures[future], future.result())
        except BaseException:
            # Runs left to themselves would write into the folders that the next call uses.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(children):
                end(child.pid)
            raise


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that their users know."""
    import torch  # the command reads RECIPES from here, and must start at once

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return chosen[:count] if chosen != [""] else [str(i) for i in range(count)]


def launch_command(gpu: str | None, threads: int, mixed_precision: str) -> list[str]:
    """`accelerate launch` with every choice made, so that no machine's default config has a say."""
    device = ["--cpu"] if gpu is None else ["--gpu_ids", gpu]
    one = ["--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"]
    rest = ["--mixed_precision", mixed_precision, "--num_cpu_threads_per_process", str(threads)]
    return [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *device, *one, *rest]


def _run(
    job: Job, launcher: list[str], how: dict[str, Any], children: list[subprocess.Popen[bytes]], stop: threading.Event
) -> dict[str, Any]:
    """Start one run and wait for it; gives the record of its process."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    record_file = beside(job.folder, ".json")
    command = [*launcher, str(RECIPES / f"{job.recipe}.py"), *job.arguments()]
    record = {"arm": job.arm, "phase": job.phase, "recipe": job.recipe, "flags": job.flags, **how, "command": command}
    began = time.perf_counter()
    with beside(job.folder, ".log").open("wb") as log:
        # A session of its own: an interrupt at the terminal is for the comparison, which then ends its runs.
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        children.append(child)
        if stop.is_set():
            end(child.pid)
        _write(record_file, record | {"pid": child.pid, "created": created(child.pid)})
        exit_code = child.wait()
    children.remove(child)
    if stop.is_set():
        return record
    log_text = beside(job.folder, ".log").read_text(encoding="utf-8", errors="replace")
    record |= {"exit_code": exit_code, "seconds": time.perf_counter() - began}
    if exit_code:
        record["last_lines"] = "\n".join(log_text.strip().splitlines()[-LAST_LINES:])
    elif not read_json(job.folder / "report.json"):
        record |= {"exit_code": 1, "last_lines": "it ended without a report"}
    _write(record_file, record)
    return record


def _end_leftover(job: Job) -> None:
    """End a run that outlived a comparison which was killed: it would write into the folder, and share the device."""
    record = read_json(beside(job.folder, ".json"))
    if "exit_code" not in record and record.get("created") is not None:
        end(record["pid"], record["created"])


def created(pid: int) -> float | None:
    """When a process began, so that another one with its number is not taken for it; None where it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def end(pid: int, began: float | None = None) -> None:
    """End a process and what it started, if it still runs (and is the one that began then)."""
    try:
        process = psutil.Process(pid)
        if began is not None and process.create_time() != began:
            return
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.terminate()
        except psutil.NoSuchProcess:
            continue
    for member in psutil.wait_procs(family, timeout=5)[1]:
        member.kill()


def _write(path: Path, record: dict[str, Any]) -> None:
    aside = path.with_name(path.name + ".partial")
    aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)
