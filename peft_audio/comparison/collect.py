"""Read comparisons and single runs from folders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from peft_audio.comparison.compare import RankingSettings, compare
from peft_audio.comparison.jobs import Job, diverged, finished, other_settings
from peft_audio.comparison.results import Comparison, Failure
from peft_audio.comparison.settings import ARMS, CompareRecipe
from peft_audio.config import ModelConfig, read_config, to_yaml
from peft_audio.config.parse import plain_yaml
from peft_audio.encoders.loading import with_commit, with_recorded_commit
from peft_audio.errors import UserError
from peft_audio.files import expanded, read_json, write_atomically
from peft_audio.runs.finished import Finished, read_run, with_arm_names
from peft_audio.runs.folder import path_beside
from peft_audio.text import printable

SETTINGS = "comparison.yaml"
JOBS = "runs.json"


@dataclass
class RunsFound:
    """Runs that were read from folders.

    Attributes:
        runs: finished runs.
        failures: failed runs by arm.
        diverged: learning rates whose loss diverged, by arm and fold.
    """

    runs: list[Finished] = field(default_factory=list)
    failures: dict[str, list[Failure]] = field(default_factory=dict)
    diverged: dict[tuple[str, int | None], list[float]] = field(default_factory=dict)


def with_commits(cfg: CompareRecipe) -> CompareRecipe:
    """Replace the revisions of Hub bases by commits, so that all runs start from the same weights.

    A resumed comparison keeps the revisions that it recorded. An arm whose own base cannot be found keeps the revision
    that it names, so that only its runs fail.

    Raises:
        UserError: The base that the arms share cannot be found.
    """
    recorded = expanded(cfg.output_dir) / SETTINGS
    stored = plain_yaml(recorded.read_text(encoding="utf-8")) if recorded.exists() else None

    def of_arm(model: ModelConfig, made: Mapping[str, Any]) -> ModelConfig:
        if made.get("model.name") == model.name:
            return with_recorded_commit(model, made)
        try:
            return with_commit(model)
        except UserError:
            return model

    made = {f"model.{name}": value for name, value in (stored or {}).get("model", {}).items()}
    arms = {name: arm.get("flags", {}) for name, arm in (stored or {}).get("own_arms", {}).items()}
    cfg = replace(cfg, model=with_commit(cfg.model) if stored is None else with_recorded_commit(cfg.model, made))
    own = {}
    for name in cfg.arms:
        arm = cfg.all_arms()[name]
        if "model.name" in arm.flags:
            flags = cfg.shared_settings(arm)
            base = of_arm(ModelConfig(flags["model.name"], flags.get("model.revision")), arms.get(name, {}))
            own[name] = replace(arm, flags=arm.flags | ({"model.revision": base.revision} if base.revision else {}))
    return replace(cfg, own_arms=cfg.own_arms | own)


def save_jobs(cfg: CompareRecipe, jobs: Sequence[Job]) -> None:
    """Save the settings and runs of a comparison for `peft-audio report`."""
    folder = expanded(cfg.output_dir)
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
    write_atomically(folder / SETTINGS, to_yaml(cfg))
    write_atomically(folder / JOBS, json.dumps({"jobs": listed}, indent=1) + "\n")


def read_comparison(
    folders: Sequence[Path], reference: str | None = None, margin: float | None = None, metric: str | None = None
) -> Comparison:
    """Compare the runs in some folders.

    Args:
        folders: Folders of comparisons or of runs, which are searched at any depth.
        reference: Arm that the others are compared with; that of the comparison when not given.
        margin: Smallest difference that matters; that of the comparison when not given.
        metric: Metric that ranks the arms; that of the comparison when not given.

    Raises:
        UserError: The folders hold no runs, a file is damaged, or two comparisons have arms with the same name.
    """
    found, ranking, settings = RunsFound(), RankingSettings(), {}
    for folder in map(Path.resolve, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder of a comparison or of runs.")
        comparisons = sorted(path.parent for path in folder.rglob(JOBS) if (path.parent / SETTINGS).is_file())
        for inner in comparisons:
            jobs = _jobs(inner)
            settings[inner] = _settings(inner / SETTINGS, jobs)
            ranking = _ranking_settings(settings[inner], inner / SETTINGS)
            for job in jobs:
                _add_job(job, inner, ranking.controls, found)
        reports = sorted(path.parent for path in folder.rglob("report.json"))
        loose = [path for path in reports if not any(path.is_relative_to(inner) for inner in comparisons)]
        if not loose and not comparisons:
            raise UserError(f"{folder} and its subfolders hold no report.json; give the folder of finished runs.")
        for path in loose:
            _add_run(path, folder, found)
    _check_names(settings)
    ranking = replace(
        ranking,
        reference=reference or ranking.reference,
        margin=margin or ranking.margin,
        metric=metric or ranking.metric,
    )
    return compare(with_arm_names(found.runs), ranking, found.failures, found.diverged)


def _settings(file: Path, jobs: Sequence[Job]) -> CompareRecipe:
    """Read the settings of a comparison; arms of earlier versions may be described only by their jobs."""
    try:
        own = plain_yaml(file.read_text(encoding="utf-8")).get("own_arms") or {}
        jobs_only = {job.arm: {"recipe": job.recipe} for job in jobs if job.arm not in {**ARMS, **own}}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        jobs_only = {}  # read_config reports the error
    more = ["--own_arms", json.dumps(own | jobs_only)] if jobs_only else []
    return read_config(CompareRecipe, ["--config", str(file), *more])


def _ranking_settings(cfg: CompareRecipe, file: Path) -> RankingSettings:
    controls = frozenset(name for name, arm in cfg.all_arms().items() if arm.control)
    # Comparisons of version 0.1.0 were ranked by accuracy and do not record a metric.
    recorded = "metric" in plain_yaml(file.read_text(encoding="utf-8"))
    metric = cfg.metric if recorded else "accuracy"
    return RankingSettings(cfg.reference, cfg.margin, tuple(cfg.arms), controls, cfg.train_seconds, metric)


def _check_names(settings: dict[Path, CompareRecipe]) -> None:
    """Refuse two comparisons with arms of the same name, because they would become one arm.

    Raises:
        UserError: Two comparisons have an arm of the same name.
    """
    homes: dict[str, Path] = {}
    for folder, cfg in settings.items():
        for name in cfg.arms:
            if name in homes:
                raise UserError(f"{homes[name]} and {folder} both have an arm {name}; report on each separately.")
            homes[name] = folder


def _jobs(folder: Path) -> list[Job]:
    listed = read_json(folder / JOBS).get("jobs")
    try:
        jobs = [Job(**(entry | {"folder": folder / entry["folder"]})) for entry in listed or ()]
        # A list from somebody else may name folders outside, or hold control characters for the terminal.
        inside = all(Path(os.path.normpath(job.folder)).is_relative_to(folder) for job in jobs)
        sound = all(isinstance(job.flags, dict) and job.arm == printable(job.arm) for job in jobs)
    except (TypeError, KeyError):
        sound = False
    if listed is None or not sound or not inside:
        raise UserError(f"{folder / JOBS} is damaged; run the comparison again, which keeps finished runs.")
    return jobs


def _add_job(job: Job, folder: Path, controls: frozenset[str], found: RunsFound) -> None:
    """Add a job of a comparison to the finished, diverged or failed runs."""
    if finished(job):
        run = read_run(job.folder)
        found.runs.append(replace(run, control=run.control or job.arm in controls))
        return
    if diverged(job):
        rates = found.diverged.setdefault((job.arm, job.flags.get("data.fold")), [])
        rates.append(job.flags["train.learning_rate"])
        return
    record = read_json(path_beside(job.folder, ".json"))
    other = other_settings(job)
    reason = f"made with other settings ({other})" if other else record.get("last_lines", "not run to its end")
    place = job.folder.relative_to(folder).as_posix()
    found.failures.setdefault(job.arm, []).append(Failure(place, record.get("exit_code", -1), reason))


def _add_run(path: Path, folder: Path, found: RunsFound) -> None:
    """Add a run outside any comparison to the finished or failed runs.

    A run that failed when it was repeated has an old report, but its record has the exit code.
    """
    record = read_json(path_beside(path, ".json"))
    if record.get("phase") == "timing":
        return
    if "flags" in record and record.get("exit_code") != 0:
        reason = str(record.get("last_lines", "it was not run to its end"))
        lost = Failure(path.relative_to(folder).as_posix(), record.get("exit_code", -1), reason)
        found.failures.setdefault(printable(str(record.get("arm", "?"))), []).append(lost)
        return
    found.runs.append(read_run(path))
