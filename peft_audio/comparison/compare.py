"""Compare the arms of finished runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from peft_audio.comparison.arms import by_seed, correctness, make_arm, trials_of
from peft_audio.comparison.results import MEASURED_COSTS, Arm, Comparison, Failure, peft_result
from peft_audio.comparison.rules import Arms, broken_rules, hashes
from peft_audio.comparison.tuning import DIVERGED_SCORE
from peft_audio.errors import UserError
from peft_audio.evaluation.significance import Difference, claim, holm, paired_difference, resolution
from peft_audio.runs.finished import Finished, predictions_of
from peft_audio.runs.predictions import Predictions
from peft_audio.text import printable

COSTS = ("num_trainable_params", "train_time", "accelerator_memory_max")


@dataclass(frozen=True)
class Question:
    """Settings of a comparison of finished runs.

    Attributes:
        reference: name of the arm that the others are compared with.
        margin: smallest difference in accuracy that matters.
        order: names of the arms in the order of the settings; other arms follow.
        controls: names of the arms that are controls.
        seconds: training time of each run, if the budget is a time.
    """

    reference: str = "full"
    margin: float = 0.02
    order: tuple[str, ...] = ()
    controls: frozenset[str] = frozenset()
    seconds: float | None = None


def compare(
    runs: Sequence[Finished],
    question: Question,
    failures: Mapping[str, Sequence[Failure]] | None = None,
    diverged: Mapping[tuple[str, int | None], Sequence[float]] | None = None,
) -> Comparison:
    """Compare arms, and rank them if every rule holds.

    Args:
        runs: finished runs of all arms, tuning and final.
        question: reference, margin and order.
        failures: failed runs by arm.
        diverged: learning rates at which the loss became NaN or infinite, by arm and fold. They count as the worst.

    Raises:
        UserError: No run is final.
    """
    failures = failures or {}
    names = [*question.order, *sorted({run.arm for run in runs} - set(question.order))]
    finals = {name: [run for run in runs if run.arm == name and run.final] for name in names}
    tuning = {name: [run for run in runs if run.arm == name and not run.final] for name in names}
    competing = {name: arm for name, arm in finals.items() if _competes(name, arm, question)}
    if not any(finals.values()):
        raise UserError(_nothing(failures))
    first = next(run for arm in (*competing.values(), *finals.values()) for run in arm)
    metric = first.settings.get("train.best_metric", "macro_f1")
    trials = {key: scores for name in names for key, scores in trials_of(name, tuning[name], metric).items()}
    for key, rates in (diverged or {}).items():
        trials[key] = {**trials.get(key, {}), **dict.fromkeys(rates, DIVERGED_SCORE)}
    folds = {run.fold for arm in finals.values() for run in arm}
    tables = {name: by_seed(arm, folds) for name, arm in finals.items()}
    lost = {name: found for name, found in failures.items() if name in competing}
    broken = broken_rules(competing, tuning, trials, lost, question.seconds is not None)
    arms = [
        make_arm(
            name,
            finals[name],
            tuning[name],
            trials,
            tables[name],
            failures=tuple(failures.get(name, ())),
            control=name not in competing,
        )
        for name in names
    ]
    arms = with_differences(arms, finals, tables, question)
    # A broken rule also forbids claims and Pareto fronts.
    arms = [replace(arm, claim=None, p_holm=None) for arm in arms] if broken else with_fronts(ranked(arms))
    return _described(arms, finals, tables, broken, question, first)


def _competes(name: str, finals: Sequence[Finished], question: Question) -> bool:
    """Return whether an arm must keep the rules: the reference, and every arm that is no control."""
    return name == question.reference or not (name in question.controls or any(run.control for run in finals))


def _nothing(failures: Mapping[str, Sequence[Failure]]) -> str:
    for name, lost in failures.items():
        if lost:
            return f"every final run is missing; the first of {name} that failed said:\n{lost[0].last_lines}"
    return "no run read the test split; a comparison needs final runs (train.evaluate_test true)."


def with_differences(
    arms: Sequence[Arm], finals: Arms, tables: Mapping[str, Mapping[int, Predictions]], question: Question
) -> list[Arm]:
    """Add the difference between each arm and the reference, if both have the same data, splits and clips.

    The correction for several arms leaves controls out.
    """
    reference = tables.get(question.reference)
    if not reference:
        return list(arms)
    clips = next(iter(reference.values())).clips
    groups = [None if pd.isna(group) or group == "" else str(group) for group in clips["group"]]
    base = next(arm for arm in arms if arm.name == question.reference)
    found: dict[str, Difference] = {}
    for arm in arms:
        own = tables[arm.name]
        same = hashes(finals[arm.name]) == hashes(finals[base.name]) and all(
            table.clips[["id", "label"]].equals(clips[["id", "label"]])
            for table in (*own.values(), *reference.values())
        )
        if own and same and arm is not base:
            found[arm.name] = paired_difference(correctness(own), correctness(reference), groups)
    held = [arm.name for arm in arms if arm.name in found and not arm.control]
    corrected = dict(zip(held, holm([found[name].p_value for name in held]), strict=True)) if held else {}
    return [
        replace(
            arm,
            difference=found.get(arm.name),
            p_holm=corrected.get(arm.name),
            claim=_claim(arm, base, found[arm.name], corrected[arm.name], question.margin)
            if arm.name in held
            else None,
        )
        for arm in arms
    ]


def ranked(arms: Sequence[Arm]) -> list[Arm]:
    """Add ranks by mean test accuracy; equal means share a rank."""
    scores = sorted(
        (arm.test_accuracy.interval.mean for arm in arms if arm.test_accuracy and not arm.control), reverse=True
    )
    return [
        replace(arm, rank=1 + scores.index(arm.test_accuracy.interval.mean))
        if arm.test_accuracy and not arm.control
        else arm
        for arm in arms
    ]


def with_fronts(arms: Sequence[Arm]) -> list[Arm]:
    """Add the costs for which the arm is on the Pareto front of cost and accuracy."""

    def beaten(arm: Arm, cost: str) -> bool:
        own, accuracy = getattr(arm, cost), _mean(arm)
        others = [(getattr(other, cost), _mean(other)) for other in arms if not other.control and other is not arm]
        return any(
            spent is not None and spent <= own and score >= accuracy and (spent, score) != (own, accuracy)
            for spent, score in others
        )

    return [
        replace(
            arm,
            front=tuple(
                cost
                for cost in COSTS
                if not arm.control and arm.test_accuracy and getattr(arm, cost) is not None and not beaten(arm, cost)
            ),
        )
        for arm in arms
    ]


def _mean(arm: Arm) -> float:
    return arm.test_accuracy.interval.mean if arm.test_accuracy else -math.inf


def _claim(arm: Arm, reference: Arm, difference: Difference, p_holm: float, margin: float) -> str:
    """Write the claim on an arm: its difference, its share of parameters and the difference that is resolved."""
    sentence = claim(arm.name, reference.name, difference, margin, p_holm).rstrip(".")
    if arm.num_trainable_params and reference.num_trainable_params:
        ratio = reference.num_trainable_params / arm.num_trainable_params
        share = f"1/{ratio:.0f}" if ratio >= 5 else f"{1 / ratio:.0%}"
        sentence += f", with {share} of its trained parameters"
    return f"{sentence}; for these two, this test can resolve {100 * resolution([difference]):.1f} points."


def _described(
    arms: Sequence[Arm],
    finals: Arms,
    tables: Mapping[str, Mapping[int, Predictions]],
    broken: Sequence[str],
    question: Question,
    first: Finished,
) -> Comparison:
    every = [run for arm in finals.values() for run in arm]
    whole = [table for arm in tables.values() for table in arm.values()]
    clips = (whole[0] if whole else predictions_of(first)).clips
    groups = clips["group"].replace("", None)
    held = [arm.difference for arm in arms if arm.difference and not arm.control]
    folds = {run.fold for run in every} - {None}
    order = sorted(arms, key=lambda arm: (arm.control, arm.rank or 0, -_mean(arm)))
    return Comparison(
        arms=tuple(order),
        reference=question.reference,
        margin=question.margin,
        broken_rules=tuple(broken),
        notes=tuple(_notes(arms, every, question)),
        source=printable(first.settings.get("data.source", "")),
        encoder=printable(first.settings.get("model.name", "")),
        clips=(first.report["train_clips"], first.report["validation_clips"], len(clips)),
        groups=None if groups.isna().any() else groups.nunique(),
        folds=len(folds) or None,
        budget=_budget(first, question),
        best_metric=first.settings.get("train.best_metric", "macro_f1"),
        resolution=resolution(held) if held else None,
        conditional=any(difference.conditional for difference in held),
        device=first.report.get("device", ""),
        versions=first.report.get("versions", {}),
        dataset_sha256=tuple(sorted({run.report["dataset_sha256"] for run in every})),
        split_sha256=tuple(sorted({run.report["split_sha256"] for run in every})),
        results=tuple(peft_result(run) for run in every),
    )


def _budget(run: Finished, question: Question) -> str:
    if question.seconds is not None:
        return f"{question.seconds:g} s of training, as the steps that fit in when a few were timed"
    steps = run.settings.get("train.max_steps")
    return f"{steps} steps" if steps else f"{run.settings.get('train.epochs')} epochs"


def _notes(arms: Sequence[Arm], runs: Sequence[Finished], question: Question) -> Iterable[str]:
    """List the notes of a comparison."""
    names = {arm.name for arm in arms}
    if question.reference not in names:
        yield f"there is no arm {question.reference} to hold the others against; name another reference."
    for arm in arms:
        if arm.at_edge:
            yield f"{arm.name}: its best learning rate is at the edge of those tried; a better one may lie beyond."
        spent = arm.train_time
        if spent and question.seconds and not arm.control and not 0.8 < spent / question.seconds < 1.25:
            yield f"{arm.name}: {question.seconds:g} s of training became {spent:.0f} s; the timed steps misled."
    pretrained = [run for run in runs if not run.control]
    if len({run.report.get("base_sha256") for run in pretrained}) > 1:
        yield "the arms do not share one pretrained encoder."
    for what in ("device", "mixed_precision", "versions"):
        if len({str(run.report.get(what)) for run in pretrained}) > 1:
            yield f"the runs differ in {what}; compare costs with care."
    yield from _notes_on_costs([arm for arm in arms if arm.seeds])


def _notes_on_costs(arms: Sequence[Arm]) -> Iterable[str]:
    """List which costs are missing or cannot be trusted, and why."""
    missing: dict[str, list[str]] = {}
    for arm in arms:
        columns = ", ".join(column for cost, column in MEASURED_COSTS.items() if getattr(arm, cost) is None)
        missing.setdefault(columns, []).append(arm.name)
    for columns, names in missing.items():
        if columns:
            yield (
                f"missing costs of {', '.join(names)}: {columns}. These runs shared their device, or no record says "
                "that they did not."
            )
    busy = [f"{arm.name} ({arm.other_cpus:.1f} CPUs)" for arm in arms if arm.other_cpus is not None]
    if busy:
        yield (
            f"times of {', '.join(busy)} were measured on a busy machine: other programs used so many CPUs meanwhile. "
            "The times are too long, and the order of the arms by time is uncertain; measure again on a quiet machine."
        )
