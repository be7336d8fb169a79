"""Test arms against the controls of a comparison, and describe the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from peft_audio.comparison.arms import correctness, resampled
from peft_audio.comparison.results import Arm, ControlTest, in_quotes
from peft_audio.evaluation.significance import (
    Difference,
    holm,
    interval_text,
    paired_difference,
    resampled_difference,
    units_of_classes,
)
from peft_audio.runs.predictions import Predictions
from peft_audio.tasks.metrics import METRIC_NAMES
from peft_audio.text import listed, printable

Tables = Mapping[str, Mapping[int, Predictions]]
# Difference in a metric between two arms, by the names of the arm, the reference and the metric.
Differences = Callable[[str, str, str], Difference]
# Key of the majority control's answers among the tables of arms. No arm has this name.
MAJORITY = ""


def differences(tables: Tables, groups: Sequence[str | None]) -> Differences:
    """Make a function that computes differences between arms, and resamples each arm once per metric.

    Args:
        tables: predictions on the same test clips, by arm and seed.
        groups: group of each clip; None where it is unknown.
    """

    @cache
    def draws(name: str, metric: str):  # type: ignore[no-untyped-def]
        return resampled(tables[name], metric, groups)

    def between(name: str, reference: str, metric: str) -> Difference:
        if metric == "accuracy":
            return paired_difference(correctness(tables[name]), correctness(tables[reference]), groups)
        return resampled_difference(draws(name, metric), draws(reference, metric))

    return between


def compare_with_control(
    names: Sequence[str], control: str, metrics: Sequence[str], between: Differences
) -> dict[str, ControlTest]:
    """Test arms against a control.

    Args:
        names: names of the arms.
        control: name of the control.
        metrics: metrics in which an arm must be better; the first one is reported.
        between: see `differences`.
    """
    found = {name: [between(name, control, metric) for metric in metrics] for name in names}
    # An arm that must be better in each of several metrics is tested by the largest p-value (intersection-union test).
    corrected = holm([max(difference.p_value for difference in each) for each in found.values()])
    return {
        name: ControlTest(each[0], p, p <= 1 - each[0].confidence and all(map(_above_zero, each)))
        for (name, each), p in zip(found.items(), corrected, strict=True)
    }


def _above_zero(difference: Difference) -> bool:
    """Return whether a difference is above 0; one that is the same in every draw has no interval."""
    return (difference.estimate if math.isnan(difference.low) else difference.low) > 0


def with_majority(
    arms: Sequence[Arm], names: Sequence[str], tables: Tables, metric: str, between: Differences
) -> list[Arm]:
    """Add the tests against always answering the largest class.

    Macro-F1 also rewards answers that are drawn at random, because they reach every class. So an arm must be better in
    balanced accuracy, too.
    """
    metrics = ("macro_f1", "balanced_accuracy") if metric == "macro_f1" else (metric,)
    tests = compare_with_control(names, MAJORITY, metrics, between)
    (answers,) = tables[MAJORITY].values()
    constant = {name: all(table.decided == answers.decided for table in tables[name].values()) for name in names}
    return [
        replace(arm, against_majority=replace(tests[arm.name], constant=constant[arm.name]))
        if arm.name in tests
        else arm
        for arm in arms
    ]


def with_log_mel(
    arms: Sequence[Arm], names: Sequence[str], control: str, metric: str, between: Differences
) -> list[Arm]:
    """Add the tests against the log_mel control."""
    tests = compare_with_control(names, control, (metric,), between)
    return [replace(arm, against_log_mel=tests.get(arm.name)) for arm in arms]


def majority_label(tables: Tables) -> str | None:
    """Name the label that the majority control answers; with folds, the labels, see `Comparison.majority`."""
    if MAJORITY not in tables:
        return None
    (answers,) = tables[MAJORITY].values()
    labels = [printable(str(label)) for label in np.unique(answers.decided)]
    return labels[0] if len(labels) == 1 else " or ".join(f"'{label}'" for label in labels)


def rare_classes(labels: Sequence[str], groups: Sequence[str | None]) -> str:
    """Name the classes that have one test clip, or one group where groups are resampled; "" without such classes.

    Args:
        labels: label of each test clip.
        groups: group of each clip; None where it is unknown.
    """
    units = units_of_classes(labels, groups)
    found = [f"'{printable(label)}'" for label, count in units.items() if count < 2]
    if not found:
        return ""
    unit = "group" if units_of_classes(["all"] * len(labels), groups)["all"] < len(labels) else "clip"
    return f"{listed(found)} {'has' if len(found) == 1 else 'each have'} 1 test {unit}"


def useless_text(arm: Arm, majority: str, metric: str, rare: str = "") -> str:
    """Write why an arm is not better than the majority control.

    Args:
        arm: arm that is not better.
        majority: label that the majority control answers.
        metric: metric of the comparison.
        rare: see `rare_classes`; if not empty, the sentence on an arm with a higher score names the rare classes.
    """
    test = arm.against_majority
    if test is None or test.better:
        raise ValueError(f"{arm.name} was not tested, or is better")
    start = f"{arm.name} is no better than always answering {in_quotes(majority)}"
    if test.constant:
        return f"{start}: it gives this answer for every test clip."
    if rare and metric != "accuracy" and test.difference.estimate > 0:
        start = f"{arm.name} cannot be shown to be better than always answering {in_quotes(majority)}"
        return f"{start}: {rare}, so the interval is not reliable ({METRIC_NAMES[metric]}; {_reason(test, metric)})."
    return f"{start} ({METRIC_NAMES[metric]}; {_reason(test, metric)})."


def log_mel_text(arm: Arm, metric: str) -> str | None:
    """Write that an arm is not better than the log_mel control; None if it is, or if it was not tested."""
    test = arm.against_log_mel
    if test is None or test.better:
        return None
    return (
        f"{arm.name} is no better than log_mel, a linear classifier on mean spectra without an encoder "
        f"({METRIC_NAMES[metric]}; {_reason(test, '')})."
    )


def _reason(test: ControlTest, metric: str) -> str:
    found = test.difference
    if not found.low > 0:
        return interval_text(found)
    also = ", in balanced accuracy too," if metric == "macro_f1" else ""
    return f"{interval_text(found)}; not better{also} after Holm's correction, p = {test.p_holm:.2g}"


def sentences(
    arms: Sequence[Arm], reference: str, majority: str | None, metric: str, rare: str = "", broken: bool = False
) -> tuple[str, ...]:
    """Write what the tests against the controls show.

    Args:
        arms: all arms, with their claims.
        reference: name of the reference.
        majority: label that the majority control answers.
        metric: metric of the comparison.
        rare: see `rare_classes`.
        broken: true if a rule of the comparison is broken; then no arm is called better.
    """
    found = [f"{rare}: intervals of {METRIC_NAMES[metric]} are not reliable."] if rare and metric != "accuracy" else []
    tested = [arm for arm in arms if arm.against_majority is not None]
    if majority is not None and tested:
        answer = f"always answering {in_quotes(majority)}"
        useless = [arm for arm in tested if arm.useless]
        missing = [arm.name for arm in arms if arm.against_majority is None and not arm.control]
        found += [useless_text(arm, majority, metric, rare) for arm in useless]
        if any(arm.name == reference for arm in useless):
            found.append(f"{reference} is the reference, so nothing is claimed about the other arms.")
        if not useless and not broken:
            names = [arm.name for arm in tested]
            those = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
            those = "Every arm is" if len(names) > 1 and not missing else those
            found.append(f"{those} better than {answer} ({METRIC_NAMES[metric]}).")
        if missing:
            found.append(
                f"{', '.join(missing)}: not tested against {answer}, because no seed has all its final runs on the "
                "same test clips."
            )
    # A claim begins with this sentence.
    found += [text for arm in arms if not arm.claim and not arm.useless and (text := log_mel_text(arm, metric))]
    return tuple(found)
