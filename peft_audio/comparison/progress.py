"""Show the progress of a comparison and estimate the time left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from peft_audio.comparison.jobs import Job, diverged
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.comparison.tuning import cells, grid_of, is_tuned
from peft_audio.files import read_json
from peft_audio.runs.folder import path_beside
from peft_audio.tasks.metrics import METRIC_NAMES
from peft_audio.text import printable

UNKNOWN = "time left: unknown"


@dataclass(frozen=True)
class RunKind:
    """RunKind of runs that take about equally long.

    Attributes:
        arm: name of the arm.
        phase: "tuning" or "final".
        costs_count: whether a run has the device to itself.
    """

    arm: str
    phase: str
    costs_count: bool


def run_kind(job: Job) -> RunKind:
    """Return the kind of a run; final runs with seed 0 measure costs."""
    return RunKind(job.arm, job.phase, job.phase == "final" and job.flags["train.seed"] == 0)


def expected_runs(cfg: CompareRecipe) -> Counter[RunKind]:
    """Count the runs of a comparison by kind, including extra trials that may not be needed."""
    runs: Counter[RunKind] = Counter()
    for cell in cells(cfg):
        tuned = is_tuned(cfg, cell)
        if tuned and cfg.trials > 1:
            rates = len(grid_of(cfg, cfg.all_arms()[cell.arm])) + cfg.extra_trials
            runs[RunKind(cell.arm, "tuning", False)] += rates * cfg.tuning_seeds
        runs[RunKind(cell.arm, "final", True)] += 1
        if tuned and cfg.seeds > 1:
            runs[RunKind(cell.arm, "final", False)] += cfg.seeds - 1
    return runs


@dataclass
class ComparisonProgress:
    """Count the runs of a comparison and estimate the time of those that are left.

    Attributes:
        console: console that gets a line per run.
        bar: bar of the whole comparison; it is shown on terminals only.
        task: its only task.
        metric: validation metric that decides on epochs and learning rates, see `train.best_metric`.
        at_once: number of runs side by side, for runs whose costs count and for others.
        left: number of runs that are left, by kind.
        took: seconds of the runs that ended, by kind.
        done: number of runs that ended.
    """

    console: Console
    bar: Progress
    task: TaskID
    metric: str
    at_once: dict[bool, int]
    left: Counter[RunKind]
    took: dict[RunKind, list[float]] = field(default_factory=dict)
    done: int = 0

    @property
    def total(self) -> int:
        """Return the number of runs that ended and are left."""
        return self.done + self.left.total()

    def begin(self, jobs: Sequence[Job], missing: Sequence[Job]) -> None:
        """Start a series of runs, and count those that an earlier call of the command finished.

        Args:
            jobs: all runs of the series.
            missing: runs that are not finished.
        """
        if jobs and jobs[0].phase == "final":
            # No further trials are needed.
            self.left = Counter({kind: count for kind, count in self.left.items() if kind.phase == "final"})
        finished_before = [job for job in jobs if job not in missing]
        for job in finished_before:
            self._count(job, read_json(path_beside(job.folder, ".json")))
        self._show()

    def leave_out(self, arms: set[str]) -> None:
        """Drop the final runs of arms that have none, because all their trials failed."""
        self.left = Counter({kind: count for kind, count in self.left.items() if kind.arm not in arms})
        self._show()

    def report(self, job: Job, record: dict[str, Any]) -> None:
        """Print the result of a run and the estimated time left."""
        self._count(job, record)
        report = read_json(job.folder / "report.json") if record.get("exit_code") == 0 else {}
        last = record.get("last_lines", "").splitlines()[-1:] or ["no output"]
        failed = "the loss diverged" if diverged(job) else f"FAILED, {last[0]}"
        # The metric that chooses rates and epochs.
        value = report.get(f"validation_{self.metric}")
        result = failed if value is None else f"validation {METRIC_NAMES[self.metric]} {value:.3f}"
        line = f"[{self.done}/{self.total}] {job.arm} {job.folder.name}: {result} ({record.get('seconds', 0):.0f} s"
        self.console.print(f"{printable(line)}; {self.time_left()})", highlight=False, markup=False, soft_wrap=True)
        self._show()

    def time_left(self) -> str:
        """Estimate the time of the runs that are left, in words."""
        seconds = self.seconds_left()
        if seconds is None:
            return UNKNOWN
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def seconds_left(self) -> float | None:
        """Estimate the time of the remaining runs from those that ended; None before the first has ended.

        The estimate of a run is the mean of its kind, or else of its arm, of its phase, or of all runs.
        """
        if not any(self.took.values()):
            return None
        return sum(
            count * mean(self._like(kind)) / self.at_once[kind.costs_count]
            for kind, count in self.left.items()
            if count
        )

    def _like(self, kind: RunKind) -> list[float]:
        alike = (
            lambda other: other == kind,
            lambda other: (other.arm, other.phase) == (kind.arm, kind.phase),
            lambda other: other.arm == kind.arm,
            lambda other: other.phase == kind.phase,
            lambda other: True,
        )
        every = ([value for other, values in self.took.items() if same(other) for value in values] for same in alike)
        return next(found for found in every if found)

    def _count(self, job: Job, record: dict[str, Any]) -> None:
        kind = run_kind(job)
        self.left[kind] = max(0, self.left[kind] - 1)
        self.done += 1
        if record.get("exit_code") == 0 and "seconds" in record:
            self.took.setdefault(kind, []).append(record["seconds"])

    def _show(self) -> None:
        self.bar.update(self.task, completed=self.done, total=self.total, left=self.time_left())


@contextmanager
def show_progress(cfg: CompareRecipe, at_once: dict[bool, int], console: Console) -> Iterator[ComparisonProgress]:
    """Show a bar of the whole comparison on a terminal, and a line per run anywhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # FORCE_COLOR makes rich take a pipe for a terminal, and a bar would fill it with codes that move the cursor.
    shown = console.is_terminal and console.file.isatty()
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        left = expected_runs(cfg)
        task = bar.add_task("comparison", total=left.total(), left=UNKNOWN)
        yield ComparisonProgress(console, bar, task, cfg.train.best_metric, at_once, left)
