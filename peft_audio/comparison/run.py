"""Run a comparison: time the arms, tune on validation, run fresh seeds and compare the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

from rich.console import Console

from peft_audio.comparison.budget import fit
from peft_audio.comparison.collect import read_comparison, save_jobs, with_commits
from peft_audio.comparison.jobs import Job, diverged, finished, locked, other_settings, run_jobs
from peft_audio.comparison.page import print_comparison, write_comparison
from peft_audio.comparison.plan import measure, plan, print_plan, runs_at_once, steps_for_seconds, unranked
from peft_audio.comparison.progress import show_progress
from peft_audio.comparison.results import Comparison
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.comparison.tuning import check_arms, final_jobs, tune
from peft_audio.errors import INTERRUPTED, UserError, failure, print_traceback_if_debugging
from peft_audio.files import expanded
from peft_audio.tasks.metrics import METRIC_NAMES
from peft_audio.training.hardware import resolve_auto

AGAIN = "Repeat the command to resume."


def run_arms(cfg: CompareRecipe) -> Comparison:
    """Run the unfinished runs of a comparison, and write the results to its folder, which is locked meanwhile.

    Args:
        cfg: Settings of the comparison.

    Raises:
        UserError: A setting cannot be used, another process uses the folder, or it holds finished runs with other
            settings.
    """
    with locked(expanded(cfg.output_dir)):
        return _run_arms(cfg)


def _run_arms(cfg: CompareRecipe) -> Comparison:
    console = Console()

    def show(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    reasons = unranked(cfg)
    if cfg.minutes is None and reasons:
        show(f"note: nothing will be ranked; {'; '.join(reasons)}")
    # With `minutes`, the output starts with whether the result can be ranked, so other messages go to stderr.
    with redirect_stdout(sys.stderr) if cfg.minutes is not None else nullcontext():
        cfg = with_commits(cfg)
        cfg = resolve_auto(cfg, cfg.has_one_encoder())
    check_arms(cfg)
    steps: dict[str, int] = {}
    if cfg.minutes is not None or cfg.train_seconds is not None:
        print(f"timing a few steps of {len(cfg.arms)} arms", file=sys.stderr)
        timing = measure(cfg)
        cfg, cut = fit(cfg, timing)
        steps = steps_for_seconds(cfg, timing)
        if cfg.minutes is not None:
            print_plan(plan(cfg, timing, cut), cfg.minutes, console)
    at_once = {costs_count: runs_at_once(cfg, costs_count) for costs_count in (True, False)}
    with show_progress(cfg, at_once, console) as watch:
        done: list[Job] = []

        def run(jobs: Sequence[Job], costs_count: bool) -> None:
            if not jobs:
                return
            missing = [job for job in jobs if not (finished(job) or diverged(job))]
            refuse_other_settings(cfg, missing)
            done.extend(job for job in jobs if job not in done)
            save_jobs(cfg, done)
            watch.begin(jobs, missing)
            if not missing:
                show(f"{jobs[0].phase}: all {len(jobs)} runs are finished")
                return
            show(f"{jobs[0].phase}: {len(missing)} of {len(jobs)} runs to do")
            if jobs[0].phase == "tuning":
                show(f"validation {METRIC_NAMES[cfg.train.best_metric]} decides on epochs and learning rates")
            run_jobs(missing, at_once[costs_count], watch.report)

        chosen = tune(cfg, run, steps)
        watch.leave_out({*cfg.arms} - {cell.arm for cell in chosen})
        finals = final_jobs(cfg, chosen, steps)
        # The first seed of each arm runs alone on the device to measure costs; the others may share it.
        run([job for job in finals if job.flags["train.seed"] == 0], True)
        run([job for job in finals if job.flags["train.seed"] != 0], False)
    comparison = read_comparison([expanded(cfg.output_dir)])
    written = write_comparison(comparison, expanded(cfg.output_dir))
    print_comparison(comparison, written, console)
    return comparison


def refuse_other_settings(cfg: CompareRecipe, jobs: Sequence[Job]) -> None:
    """Refuse to replace runs that were finished with other settings.

    Raises:
        UserError: Such a run exists, and `overwrite` is false.
    """
    other = {job.folder: made for job in jobs if (made := other_settings(job))}
    if other and not cfg.overwrite:
        folder, made = next(iter(other.items()))
        raise UserError(
            f"--output_dir: {cfg.output_dir} holds {len(other)} finished runs with other settings, such as {made} in "
            f"{folder.name}; give another folder, or --overwrite true to repeat them."
        )


def run_comparison(cfg: CompareRecipe) -> int:
    """Run a comparison and return an exit code: 1 if nothing is ranked, 2 for an error that the user can fix."""
    folder = expanded(cfg.output_dir)
    try:
        comparison = run_arms(cfg)
        return int(bool(comparison.broken_rules) or any(arm.failures for arm in comparison.arms))
    except KeyboardInterrupt:
        print_traceback_if_debugging()
        print(f"stopped; finished runs are kept in {folder}. {AGAIN}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message, code = failure(error, str(folder), again=AGAIN)
        print(f"error: {message}", file=sys.stderr)
        return code
