"""Compare ways of fine-tuning an audio classifier under equal conditions.

python recipes/compare.py                                               # the bundled spoken digits
python recipes/compare.py --data.source FOLDER --output_dir runs/mine --arms "[head_only, lora, full]"
python recipes/compare.py --help

Starts the recipes as a user would, tries learning rates on validation, runs fresh seeds, and writes comparison.md,
.json, .html, .png and .svg. The same command goes on where an earlier one stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from rich.console import Console

from peft_audio.comparison.collect import note_jobs, read_comparison, with_commits
from peft_audio.comparison.jobs import Job, alone_in, diverged, finished, other_settings, run_jobs
from peft_audio.comparison.page import print_comparison, write_comparison
from peft_audio.comparison.plan import at_once, time_steps
from peft_audio.comparison.results import Comparison
from peft_audio.comparison.rules import MIN_SEEDS
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.comparison.tuning import check_arms, final_jobs, steps_for_seconds, tune
from peft_audio.config import parse_config
from peft_audio.errors import INTERRUPTED, UserError, failure, print_traceback_if_debugging
from peft_audio.files import expanded, read_json
from peft_audio.text import printable
from peft_audio.training.hardware import resolve

AGAIN = "The same command goes on from there."


def main(cfg: CompareRecipe) -> Comparison:
    """Timing where the budget is a time, tuning on validation, fresh seeds, and what they say together."""
    console = Console()
    cfg = with_commits(cfg)
    cfg = resolve(cfg, cfg.has_one_encoder())
    check_arms(cfg)
    if cfg.seeds < MIN_SEEDS or cfg.trials == 1:
        needed = f"that takes seeds of {MIN_SEEDS} or more and trials of 2 or more"
        console.print(f"note: nothing will be ranked; {needed}", highlight=False)
    done: list[Job] = []

    def run(jobs: Sequence[Job], costs_count: bool) -> None:
        if not jobs:
            return
        missing = [job for job in jobs if not (finished(job) or diverged(job))]
        keep_finished(cfg, missing)
        done.extend(job for job in jobs if job not in done)
        note_jobs(cfg, done)
        if not missing:
            console.print(f"{jobs[0].phase}: all {len(jobs)} runs are there")
            return
        console.print(f"{jobs[0].phase}: {len(missing)} of {len(jobs)} runs to do; a line as each ends")
        run_jobs(missing, at_once(cfg, costs_count), teller(console, len(missing)))

    steps: dict[str, int] = {}
    if cfg.train_seconds is not None:
        time_steps(cfg, teller(console, len(cfg.arms)))
        steps = steps_for_seconds(cfg)
    chosen = tune(cfg, run, steps)
    finals = final_jobs(cfg, chosen, steps)
    # The first seed of each arm says what it costs, alone on the device; the others may share it.
    run([job for job in finals if job.flags["train.seed"] == 0], True)
    run([job for job in finals if job.flags["train.seed"] != 0], False)
    comparison = read_comparison([expanded(cfg.output_dir)])
    written = write_comparison(comparison, expanded(cfg.output_dir))
    print_comparison(comparison, written, console)
    return comparison


def keep_finished(cfg: CompareRecipe, jobs: Sequence[Job]) -> None:
    """Refuse to replace runs that were finished with other settings.

    Raises:
        UserError: There is one, and the user did not say that it may go.
    """
    other = {job.folder: made for job in jobs if (made := other_settings(job))}
    if other and not cfg.overwrite:
        folder, made = next(iter(other.items()))
        raise UserError(
            f"--output_dir: {cfg.output_dir} holds {len(other)} finished runs with other settings, such as {made} in "
            f"{folder.name}; give another, or --overwrite true to make them again."
        )


def teller(console: Console, total: int) -> Callable[[Job, dict[str, Any]], None]:
    """Says how each run ended, and about how long the others will take."""
    began, ended = time.monotonic(), count(1)

    def tell(job: Job, record: dict[str, Any]) -> None:
        done = next(ended)
        left = (time.monotonic() - began) / done * (total - done) / 60
        report = read_json(job.folder / "report.json") if record.get("exit_code") == 0 else {}
        last = record.get("last_lines", "").splitlines()[-1:] or ["no word"]
        failed = "the loss diverged" if diverged(job) else f"FAILED, {last[0]}"
        said = f"validation {report['validation_accuracy']:.3f}" if report else failed
        line = f"[{done}/{total}] {job.arm} {job.folder.name}: {said} ({record.get('seconds', 0):.0f} s"
        console.print(f"{printable(line)}; {left:.0f} min left)", highlight=False, markup=False, soft_wrap=True)

    return tell


def conclude(cfg: CompareRecipe) -> int:
    """Run `main` as the only one in its folder; return 1 if nothing is ranked, 2 for an error that the user can fix."""
    folder = expanded(cfg.output_dir)
    try:
        with alone_in(folder):
            comparison = main(cfg)
            return int(bool(comparison.broken_rules) or any(arm.failures for arm in comparison.arms))
    except KeyboardInterrupt:
        print_traceback_if_debugging()
        print(f"stopped; what is finished stays in {folder}. {AGAIN}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message, code = failure(error, str(folder), again=AGAIN)
        print(f"error: {message}", file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(conclude(parse_config(CompareRecipe)))
