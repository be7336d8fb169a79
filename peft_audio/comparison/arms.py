"""Summarize the finished runs of one arm of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any

import numpy as np
import pandas as pd

from peft_audio.comparison.results import Arm, Curve, Failure, Score, Trial
from peft_audio.comparison.tuning import Trials, at_edge, best_rate, mean_score
from peft_audio.evaluation.significance import Resampled, resample, seed_interval
from peft_audio.runs.finished import Finished, epochs_of, predictions_of, training_seconds, whole_seconds
from peft_audio.runs.predictions import Predictions, pooled

# Names of the measured costs in PEFT's method comparison, and in reports.
MEASURED = {
    "accelerator_memory_max": "peak_memory_bytes",
    "samples_per_second": "samples_per_second",
    "inference_seconds": "inference_seconds",
}


def make_arm(
    name: str,
    finals: Sequence[Finished],
    tuning: Sequence[Finished],
    trials: Mapping[tuple[str, int | None], Trials],
    tables: Mapping[int, Predictions],
    failures: tuple[Failure, ...],
    control: bool,
) -> Arm:
    """Summarize the runs of an arm; differences to other arms are added later.

    Args:
        name: name of the arm.
        finals: final runs of the arm.
        tuning: tuning runs of the arm.
        trials: scores on validation by arm and fold.
        tables: predictions on the test clips by seed.
        failures: runs of the arm that failed.
        control: true for a control, which is not ranked.
    """
    reports = [run.report for run in finals]
    first = reports[0] if reports else {}
    own = {fold: scores for (arm, fold), scores in trials.items() if arm == name}
    rates = sorted({run.learning_rate for run in finals if run.learning_rate is not None})
    train, validation = (_of_seeds(finals, f"{split}_accuracy") for split in ("train", "validation"))
    gap = train.interval.mean - validation.interval.mean if train and validation else None
    alone = [run for run in finals if run.alone]
    # Costs on a busy machine count only where there are no others.
    measured = [run for run in alone if run.other_cpus is None] or alone
    reports_of_costs = [run.report for run in measured]
    costs: dict[str, Any] = {
        cost: _median(report.get(key) for report in reports_of_costs) for cost, key in MEASURED.items()
    }
    costs["train_time"] = _median(training_seconds(report) for report in reports_of_costs)
    costs["total_time"] = _median(whole_seconds(report) for report in reports_of_costs)
    return Arm(
        name=name,
        strategy=first.get("strategy", ""),
        control=control,
        rank=None,
        learning_rates=tuple(rates),
        trials=tuple(_trial(fold, rate, scores, tuning) for fold, scores in own.items() for rate in sorted(scores)),
        at_edge=any(at_edge(scores) for scores in own.values()),
        seeds=tuple(tables),
        test_accuracy=_score([float(row.mean()) for row in correctness(tables)]) if tables else None,
        test_macro_f1=_score([table.metric("macro_f1") for table in tables.values()]) if tables else None,
        test_balanced_accuracy=_score([table.metric("balanced_accuracy") for table in tables.values()])
        if tables
        else None,
        recalls=_recalls(tables),
        validation_accuracy=validation,
        train_accuracy=train,
        gap=gap,
        difference=None,
        p_holm=None,
        claim=None,
        num_trainable_params=first.get("trainable_parameters"),
        num_total_params=first.get("total_parameters"),
        file_size=first.get("adapter_bytes"),
        encoder_drift=_largest(report.get("encoder_drift") for report in reports),
        front=(),
        curves=tuple(_curve(run) for run in finals),
        failures=failures,
        other_cpus=_median(run.other_cpus for run in measured),
        **costs,
    )


def _recalls(tables: Mapping[int, Predictions]) -> tuple[float, ...]:
    """Compute the share of each class's clips that are labelled correctly, mean over seeds."""
    if not tables:
        return ()
    # The balanced accuracy of the clips of one class is the recall of the class.
    recalls = [table.metric("balanced_accuracy", table.of_labels()) for table in tables.values()]
    return tuple(float(recall) for recall in np.mean(recalls, axis=0))


def _trial(fold: int | None, rate: float, scores: Trials, tuning: Sequence[Finished]) -> Trial:
    seeds = sorted({run.seed for run in tuning if (run.fold, run.learning_rate) == (fold, rate)})
    return Trial(rate, fold, scores[rate][0], tuple(seeds), rate == best_rate(scores))


def _curve(run: Finished) -> Curve:
    """Read the loss and accuracy of each epoch."""
    epochs = epochs_of(run.folder)
    return Curve(
        seed=run.seed,
        fold=run.fold,
        train_loss=tuple(line["train_loss"] for line in epochs),
        validation_loss=tuple(line["validation_loss"] for line in epochs),
        validation_accuracy=tuple(line["validation_accuracy"] for line in epochs),
        best_epoch=run.report.get("best_epoch", 0),
    )


def _of_seeds(finals: Sequence[Finished], key: str) -> Score | None:
    """Average a field of the reports over the folds of each seed; None if a report lacks it."""
    by_seeds: dict[int, list[float]] = {}
    for run in finals:
        if run.report.get(key) is None:
            return None
        by_seeds.setdefault(run.seed, []).append(run.report[key])
    return _score([mean(by_seeds[seed]) for seed in sorted(by_seeds)]) if by_seeds else None


def _score(values: Sequence[float]) -> Score:
    return Score(seed_interval(values), tuple(values))


def _largest(values: Iterable[Any]) -> float | None:
    """Return the largest value; None if a value is unknown or there are none, NaN if a value is NaN."""
    known = list(values)
    return None if not known or None in known else float(np.max(known))


def _median(values: Iterable[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None


def trials_of(name: str, runs: Sequence[Finished], metric: str) -> dict[tuple[str, int | None], Trials]:
    """Compute the score on validation of each learning rate, by arm and fold."""
    found: dict[tuple[str, int | None], dict[float, tuple[float, float]]] = {}
    for fold, rate in sorted({(run.fold, run.learning_rate) for run in runs}, key=str):
        reports = [run.report for run in runs if (run.fold, run.learning_rate) == (fold, rate)]
        found.setdefault((name, fold), {})[rate or 0.0] = mean_score(reports, metric)
    return dict(found)


def by_seed(runs: Sequence[Finished], folds: Set[int | None]) -> dict[int, Predictions]:
    """Pool the predictions on the test clips of all folds, for each seed that has a run for every fold."""
    seeds = [
        seed for seed in sorted({run.seed for run in runs}) if {run.fold for run in runs if run.seed == seed} == folds
    ]
    return {seed: pooled([predictions_of(run) for run in runs if run.seed == seed]) for seed in seeds}


def resampled(tables: Mapping[int, Predictions], metric: str, groups: Sequence[str | None]) -> Resampled:
    """Compute the scores of an arm on draws of its test clips; each draw keeps every class.

    Args:
        tables: predictions on the test clips by seed.
        metric: metric of the task.
        groups: group of each clip; None where it is unknown.
    """
    first = next(iter(tables.values()))
    task, labels = first.task, first.clips["label"].astype(str)
    counts = [task.label_counts(table.logits, table.targets) for table in tables.values()]
    return resample(counts, partial(task.metric_of_counts, metric), groups, classes=labels)


def majority_answers(runs: Sequence[Finished]) -> tuple[Predictions | None, str]:
    """Make the predictions of the control that always answers the largest class, from the splits of finished runs.

    The largest class is that of the training clips. With `data.max_train_clips`, which draws classes evenly, it is that
    of the training and validation clips together. Splits that cannot be read leave the test clips.

    Args:
        runs: one run of each fold, on the clips of interest.

    Returns:
        The predictions, None without runs; and a note on the clips that were counted, "" if these are the training
        clips of all runs.
    """
    parts = []
    notes = set()
    for run in runs:
        found = predictions_of(run)
        try:
            table = pd.read_parquet(run.folder / "splits.parquet", columns=["label", "split"])
            drawn = run.settings.get("data.max_train_clips") is not None
            kept = ("train", "validation") if drawn else ("train",)
            texts = table["label"][table["split"].isin(kept)].astype(str)
            on_test = run.settings.get("data.validate_on_test")
            if drawn:
                other = "test clips (data.validate_on_test)" if on_test else "validation clips"
                notes.add(f"the drawn training clips (data.max_train_clips) and the {other}")
            elif on_test:
                notes.add("the training clips, which include the validation clips (data.validate_on_test)")
        except (OSError, ValueError, KeyError):
            texts = found.clips["label"]
            notes.add("the test clips, because splits.parquet cannot be read")
        counts = texts[texts.isin(found.labels)].value_counts()
        largest = min(counts.index[counts == counts.max()]) if len(counts) else found.labels[0]
        logits = np.zeros_like(found.logits)
        logits[:, found.labels.index(largest)] = 1
        parts.append(replace(found, logits=logits))
    note = f"the largest class is that of {' or '.join(sorted(notes))}." if notes else ""
    return (pooled(parts) if parts else None), note


def is_majority(table: Predictions, answers: Predictions, folds: int) -> bool:
    """Return whether predictions are on the same clips as other answers, and give one label in each fold."""
    same = table.clips[["id", "label"]].equals(answers.clips[["id", "label"]])
    return same and len(np.unique(table.decided)) <= folds


def correctness(tables: Mapping[int, Predictions]) -> np.ndarray:
    """Return 1 where a clip was labelled correctly, else 0; float64 of shape (seeds, clips)."""
    return np.stack([table.correct.astype(float) for table in tables.values()])
