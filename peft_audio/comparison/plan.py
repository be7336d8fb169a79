"""What a comparison will cost, from a few real steps of each arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from joblib import cpu_count
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from peft_audio.comparison.jobs import Job, finished, run_jobs
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.comparison.tuning import check_arms, grid_of, timing_jobs
from peft_audio.errors import UserError
from peft_audio.files import read_json
from peft_audio.runs.folder import beside

# Of a CPU's cores, as many tune side by side: each run holds the encoder and its libraries in memory.
MOST_AT_ONCE = 4


@dataclass(frozen=True)
class ArmPlan:
    """What one arm will cost.

    Attributes:
        name: Of the arm.
        num_trainable_params: What trains.
        file_size: Bytes of the saved weights.
        accelerator_memory_max: Peak memory of the timed steps, bytes; longer clips later on may need more.
        train_time: Seconds in training steps of one run that has the device to itself.
        total_time: Seconds of one final run, from start to report.
        tuning_time: Seconds of one tuning run, likewise; a little high, because those do not verify what they save.
        runs: Tuning runs at least, tuning runs at most, final runs.
        seconds: Of all of them at least and at most, one after the other.
    """

    name: str
    num_trainable_params: int
    file_size: int
    accelerator_memory_max: int
    train_time: float
    total_time: float
    tuning_time: float
    runs: tuple[int, int, int]
    seconds: tuple[float, float]


def plan(cfg: CompareRecipe, tell: Callable[[Job, dict[str, Any]], None]) -> list[ArmPlan]:
    """Time a few steps of every arm, alone on the device, and reckon what the comparison will cost.

    Args:
        cfg: The comparison. Its folder gets the timed runs, which it will not have to make again.
        tell: Is called with each timed run as it ends.

    Raises:
        UserError: An arm's settings are wrong, or its timed steps failed.
    """
    check_arms(cfg)
    return [_arm_plan(cfg, job) for job in time_steps(cfg, tell)]


def time_steps(cfg: CompareRecipe, tell: Callable[[Job, dict[str, Any]], None]) -> list[Job]:
    """Make the timing runs that are missing, each with the device to itself; all of them.

    Raises:
        UserError: One failed.
    """
    jobs = timing_jobs(cfg)
    run_jobs([job for job in jobs if not finished(job)], None, tell)
    for job in jobs:
        if not finished(job):
            said = read_json(beside(job.folder, ".json")).get("last_lines", "they did not end")
            raise UserError(f"arm {job.arm}: its few timed steps failed: {said}")
    return jobs


def at_once(cfg: CompareRecipe, costs_count: bool) -> int | None:
    """How many runs side by side: on a CPU, runs whose costs do not count may share it."""
    shared = None if costs_count or torch.cuda.is_available() else min(MOST_AT_ONCE, cpu_count())
    return cfg.jobs or shared


def _arm_plan(cfg: CompareRecipe, job: Job) -> ArmPlan:
    report, record = read_json(job.folder / "report.json"), read_json(beside(job.folder, ".json"))
    folds = cfg.folds or 1
    trials = [0, 0]
    if job.recipe != "baseline":
        least = len(grid_of(cfg, cfg.all_arms()[job.arm]))
        trials = [least, least + cfg.extra_trials] if least > 1 else [0, 0]
    least_runs, most_runs = (count * cfg.tuning_seeds * folds for count in trials)
    final_runs = folds * (1 if job.recipe == "baseline" else cfg.seeds)
    train, tuning, final = _seconds(cfg, job, report, record)
    return ArmPlan(
        name=job.arm,
        num_trainable_params=report["trainable_parameters"],
        file_size=report["adapter_bytes"],
        accelerator_memory_max=report["peak_memory_bytes"],
        train_time=train,
        total_time=final,
        tuning_time=tuning,
        runs=(least_runs, most_runs, final_runs),
        seconds=(least_runs * tuning + final_runs * final, most_runs * tuning + final_runs * final),
    )


def _seconds(
    cfg: CompareRecipe, job: Job, report: dict[str, Any], record: dict[str, Any]
) -> tuple[float, float, float]:
    """Training alone, a tuning run and a final run."""
    if job.recipe == "baseline":
        return report["train_seconds"], record["seconds"], record["seconds"]
    # A recording may be several windows.
    clips = int((pd.read_parquet(job.folder / "splits.parquet", columns=["split"])["split"] == "train").sum())
    epochs = cfg.train.epochs
    if cfg.train_seconds is not None:
        train = cfg.train_seconds
        epochs = max(1, round(train * report["samples_per_second"] / clips))
    else:
        made = clips * epochs
        if cfg.train.max_steps is not None:
            made = min(made, cfg.train.max_steps * cfg.train.batch_size)
            epochs = -(-made // clips)
        train = made / report["samples_per_second"]
    # The timed run validated after each of its epochs; what ran once before them is there for all that follow.
    timed_epochs = -(-report["steps"] * cfg.train.batch_size // clips)
    fixed = record["seconds"] - report["train_seconds"] - report["validation_seconds"]
    fixed -= 0.0 if report["prefix_reused"] else report["prefix_seconds"]
    tuning = fixed + train + epochs * report["validation_seconds"] / timed_epochs
    heard = report["test_clips"] + (report["train_clips"] if cfg.train.evaluate_train else 0)
    return train + report["prefix_seconds"], tuning, tuning + heard * report["inference_seconds"]


def print_plan(arms: list[ArmPlan], console: Console) -> None:
    """A row an arm, and the total."""
    title = "What the comparison will cost, from a few steps of each arm"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ("arm", "trained", "saved", "peak memory", "a run", "tuning runs", "final runs", "in all")
    for name in columns:
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=name in ("arm", "trained"))
    for arm in arms:
        least, most, final = arm.runs
        table.add_row(
            arm.name,
            f"{arm.num_trainable_params:,}",
            f"{arm.file_size / 1000:,.0f} kB",
            f"{arm.accelerator_memory_max / 2**20:,.0f} MiB",
            f"{arm.total_time:.0f} s",
            f"{least}" if least == most else f"{least} to {most}",
            f"{final}",
            _minutes(arm.seconds),
        )
    console.print(table)
    runs = [sum(arm.runs[0] + arm.runs[2] for arm in arms), sum(arm.runs[1] + arm.runs[2] for arm in arms)]
    total = (sum(arm.seconds[0] for arm in arms), sum(arm.seconds[1] for arm in arms))
    count = f"{runs[0]}" if runs[0] == runs[1] else f"{runs[0]} to {runs[1]}"
    console.print(f"{count} runs, {_minutes(total)} one after the other, if nothing else keeps the machine busy")


def _minutes(seconds: tuple[float, float]) -> str:
    low, high = (f"{value / 60:.0f}" if value >= 570 else f"{value / 60:.1f}" for value in seconds)
    return f"{low} min" if low == high else f"{low} to {high} min"
