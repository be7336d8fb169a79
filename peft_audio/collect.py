"""From folders to a comparison: one that `recipes/compare.py` made or is making, or runs of whatever origin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft_audio.compare import Question, compare
from peft_audio.comparison import Comparison, Failure
from peft_audio.config import CompareRecipe, read_config, to_yaml
from peft_audio.finished import Finished, find_runs, named, read_run
from peft_audio.launching import Job, beside, finished, read_json

SETTINGS = "comparison.yaml"
JOBS = "runs.json"
# How our loop says that a rate was too high: a result of a trial, no failure of it.
DIVERGED = ("the loss became", "the validation loss was never a finite number")


def note_jobs(cfg: CompareRecipe, jobs: Sequence[Job]) -> None:
    """Write down what belongs to the comparison, for `peft-audio report`."""
    folder = Path(cfg.output_dir).expanduser()
    (folder / SETTINGS).write_text(to_yaml(cfg), encoding="utf-8")
    listed = [
        {
            "arm": job.arm,
            "phase": job.phase,
            "recipe": job.recipe,
            "flags": job.flags,
            "folder": job.folder.relative_to(folder).as_posix(),
        }
        for job in jobs
    ]
    (folder / JOBS).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def read_comparison(folders: Sequence[Path], reference: str | None = None, margin: float | None = None) -> Comparison:
    """What the runs in some folders say together.

    Args:
        folders: Of comparisons, whose own settings and lists of runs count, or of any runs.
        reference: The arm to hold the others against; the comparison's own when not given.
        margin: The difference in accuracy that matters; likewise.

    Raises:
        UserError: There is nothing to compare in them, or what is there is damaged.
    """
    runs: list[Finished] = []
    failures: dict[str, list[Failure]] = {}
    diverged: dict[tuple[str, int | None], list[float]] = {}
    question = Question()
    for folder in folders:
        if (folder / JOBS).is_file() and (folder / SETTINGS).is_file():
            cfg = read_config(CompareRecipe, ["--config", str(folder / SETTINGS)])
            controls = frozenset(name for name, arm in cfg.all_arms().items() if arm.control)
            question = Question(cfg.reference, cfg.margin, tuple(cfg.arms), controls, cfg.train_seconds is not None)
            for job in _jobs(folder):
                _take(job, folder, controls, runs, failures, diverged)
        else:
            runs += find_runs(folder)
    question = replace(question, reference=reference or question.reference, margin=margin or question.margin)
    return compare(named(runs), question, failures, diverged)


def _jobs(folder: Path) -> list[Job]:
    listed = json.loads((folder / JOBS).read_text(encoding="utf-8"))
    return [Job(**(entry | {"folder": folder / entry["folder"]})) for entry in listed]


def _take(
    job: Job,
    folder: Path,
    controls: frozenset[str],
    runs: list[Finished],
    failures: dict[str, list[Failure]],
    diverged: dict[tuple[str, int | None], list[float]],
) -> None:
    """Put one job of a comparison where it belongs."""
    if finished(job):
        run = read_run(job.folder)
        runs.append(replace(run, control=run.control or job.arm in controls))
        return
    record = read_json(beside(job.folder, ".json"))
    said = record.get("last_lines", "it was not run to its end")
    if job.phase == "tuning" and any(words in said for words in DIVERGED):
        diverged.setdefault((job.arm, job.flags.get("data.fold")), []).append(job.flags["train.learning_rate"])
        return
    place = job.folder.relative_to(folder).as_posix()
    failures.setdefault(job.arm, []).append(Failure(place, record.get("exit_code", -1), said))
