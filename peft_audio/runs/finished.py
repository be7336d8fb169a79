"""Read finished runs from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from peft_audio.adapters.record import AdapterRecord
from peft_audio.config import dotted, settings_per_run
from peft_audio.errors import UserError
from peft_audio.files import read_json
from peft_audio.runs.folder import path_beside
from peft_audio.runs.predictions import Predictions, pooled, read_predictions
from peft_audio.text import printable

# Fields without which a report cannot be compared. Reports of earlier versions can lack the others.
NEEDED = {
    "strategy",
    "seed",
    "dataset_sha256",
    "split_sha256",
    "validation_accuracy",
    "validation_macro_f1",
    "validation_loss",
    "validation_clips",
    "train_clips",
}


def training_seconds(report: dict[str, Any]) -> float | None:
    """Return the time of the training steps plus the time to fill the feature cache, whichever run filled it."""
    if "train_seconds" not in report:
        return None
    return report["train_seconds"] + report.get("prefix_seconds", 0.0)


def whole_seconds(report: dict[str, Any]) -> float | None:
    """Return the time from start to report, as if this run had filled the feature cache."""
    if "total_seconds" not in report:
        return None
    return report["total_seconds"] + (report["prefix_seconds"] if report.get("prefix_reused") else 0.0)


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        folder: folder of the run.
        arm: name of its arm; "" if no comparison named it, see `with_arm_names`.
        final: true if the run read the test split, or was started to read it.
        report: contents of `report.json`.
        settings: contents of `config.yaml`, by dotted name.
        alone: true if no other run of its comparison used the device at the same time.
        control: true if its arm is a control.
        other_cpus: mean number of CPUs that other programs kept busy, if they left the run fewer CPUs than threads;
            None if they did not, or it was not measured.
    """

    folder: Path
    arm: str
    final: bool
    report: dict[str, Any]
    settings: dict[str, Any]
    alone: bool
    control: bool
    other_cpus: float | None = None

    @property
    def seed(self) -> int:
        """Return `train.seed`."""
        return self.report["seed"]

    @property
    def fold(self) -> int | None:
        """Return the number of the fold that was held out; None without folds."""
        return self.settings.get("data.fold")

    @property
    def learning_rate(self) -> float | None:
        """Return the peak learning rate; None where the recipe has none."""
        return self.settings.get("train.learning_rate")


def read_run(folder: Path) -> Finished:
    """Read the report and the settings of a run.

    Raises:
        UserError: A file is missing or damaged, or was not written by a run.
    """
    report = read_json(folder / "report.json")
    missing = NEEDED - report.keys()
    if missing:
        problem = f"lacks {', '.join(sorted(missing))}" if report else "is missing or damaged"
        raise UserError(f"{folder / 'report.json'} {problem}; repeat the run.")
    try:
        settings = dotted((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder / 'config.yaml'} cannot be read ({error}); a report needs its settings.") from error
    texts = {"strategy": report["strategy"]} | {name: settings.get(name, "") for name in ("data.source", "model.name")}
    invalid = [name for name, value in texts.items() if not isinstance(value, str)]
    if invalid:
        raise UserError(f"{folder}: {invalid[0]} is not text; repeat the run.")
    start = read_json(path_beside(folder, ".json"))
    arm = printable(str(start.get("arm", "")))
    final = start["phase"] == "final" if "phase" in start else report.get("test_accuracy") is not None
    control = not report.get("pretrained", True) or report["strategy"] in ("majority", "log_mel")
    other_cpus = start.get("other_cpus") if start.get("busy") else None
    return Finished(folder, arm, final, report, settings, start.get("alone", False), control, other_cpus)


def made_adapter(folder: Path, record: AdapterRecord) -> Path | None:
    """Return the folder of the run that made an adapter, if the adapter is in it; None if another run is there."""
    run = folder.resolve().parent
    report = read_json(run / "report.json")
    fits = report.get("strategy") == record.strategy and all(report.get(k) == v for k, v in record.metrics.items())
    return run if fits else None


def with_arm_names(runs: Sequence[Finished]) -> list[Finished]:
    """Name the arm of each run without a name by its strategy and by the settings that differ between such runs."""
    by_strategy: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.arm:
            continue
        by_strategy.setdefault(run.report["strategy"], []).append(run.settings)
    names = {}
    for strategy, all_settings in by_strategy.items():
        keys = {name for settings in all_settings for name in settings} - set(settings_per_run())
        names[strategy] = sorted(key for key in keys if len({str(each.get(key)) for each in all_settings}) > 1)
    named_runs = []
    for run in runs:
        strategy = run.report["strategy"]
        own = ", ".join(f"{key} {run.settings.get(key)}" for key in names.get(strategy, ()))
        named_runs.append(run if run.arm else replace(run, arm=printable(f"{strategy} ({own})" if own else strategy)))
    return named_runs


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of epochs in `metrics.jsonl`; empty if the run has no epochs."""
    path = folder / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); repeat the run.") from error
    return [line for line in lines if "epoch" in line]


def predictions_of(run: Finished) -> Predictions:
    """Read the predictions of the test clips, sorted by id; ids start with the fold if there are folds.

    Raises:
        UserError: The file is missing, damaged or does not fit the report.
    """
    path = run.folder / "predictions.parquet"
    predictions = read_predictions(path).of_split("test")
    accuracy, reported = predictions.metric("accuracy"), run.report["test_accuracy"]
    # Reports are computed from logits. Close logits can have equal probabilities in a file of version 1.
    ties = np.count_nonzero((predictions.logits == predictions.logits.max(axis=1, keepdims=True)).sum(axis=1) > 1)
    unclear = ties / max(1, len(predictions)) if predictions.version == 1 else 0.0
    if abs(accuracy - reported) > unclear + 1e-6:
        raise UserError(
            f"{path} gives a test accuracy of {accuracy:.4f}, report.json has {reported:.4f}; repeat the run."
        )
    fold = "" if run.fold is None else f"{run.fold}/"
    return pooled([replace(predictions, clips=predictions.clips.assign(id=fold + predictions.clips["id"]))])
