"""Compare the arms of finished runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from peft_audio.comparison.arms import by_seed, is_majority, majority_answers, make_arm, trials_of
from peft_audio.comparison.controls import (
    MAJORITY,
    Tables,
    differences,
    log_mel_text,
    majority_label,
    rare_classes,
    sentences,
    with_log_mel,
    with_majority,
)
from peft_audio.comparison.results import MEASURED_COSTS, METRICS, Arm, Comparison, Failure, peft_result
from peft_audio.comparison.rules import Arms, broken_rules, hashes
from peft_audio.comparison.tuning import DIVERGED_SCORE
from peft_audio.errors import UserError
from peft_audio.evaluation.significance import Difference, claim, holm, resolution
from peft_audio.runs.finished import Finished, predictions_of
from peft_audio.runs.predictions import Predictions
from peft_audio.tasks.metrics import METRIC_NAMES
from peft_audio.text import printable

COSTS = ("num_trainable_params", "train_time", "accelerator_memory_max")


@dataclass(frozen=True)
class RankingSettings:
    """Settings of a comparison of finished runs.

    Attributes:
        reference: name of the arm that the others are compared with.
        margin: smallest difference in the metric that matters.
        order: names of the arms in the order of the settings; other arms follow.
        controls: names of the arms that are controls.
        seconds: training time of each run, if the budget is a time.
        metric: test metric that ranks the arms, one of `METRICS`.
    """

    reference: str = "full"
    margin: float = 0.02
    order: tuple[str, ...] = ()
    controls: frozenset[str] = frozenset()
    seconds: float | None = None
    metric: str = METRICS[0]


def compare(
    runs: Sequence[Finished],
    ranking: RankingSettings,
    failures: Mapping[str, Sequence[Failure]] | None = None,
    diverged: Mapping[tuple[str, int | None], Sequence[float]] | None = None,
) -> Comparison:
    """Compare arms, and rank them if every rule holds.

    Args:
        runs: finished runs of all arms, tuning and final.
        ranking: reference, margin and order.
        failures: failed runs by arm.
        diverged: learning rates at which the loss became NaN or infinite, by arm and fold. They count as the worst.

    Raises:
        UserError: No run is final.
    """
    failures = failures or {}
    names = [*ranking.order, *sorted({run.arm for run in runs} - set(ranking.order))]
    finals = {name: [run for run in runs if run.arm == name and run.final] for name in names}
    tuning = {name: [run for run in runs if run.arm == name and not run.final] for name in names}
    competing = {name: arm for name, arm in finals.items() if _competes(name, arm, ranking)}
    if not any(finals.values()):
        raise UserError(_explain_missing_runs(failures))
    first = next(run for arm in (*competing.values(), *finals.values()) for run in arm)
    metric = first.settings.get("train.best_metric", "macro_f1")
    trials = {key: scores for name in names for key, scores in trials_of(name, tuning[name], metric).items()}
    for key, rates in (diverged or {}).items():
        trials[key] = {**trials.get(key, {}), **dict.fromkeys(rates, DIVERGED_SCORE)}
    folds = {run.fold for arm in finals.values() for run in arm}
    tables = {name: by_seed(arm, folds) for name, arm in finals.items()}
    lost = {name: found for name, found in failures.items() if name in competing}
    broken = broken_rules(competing, tuning, trials, lost, ranking.seconds is not None)
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
    answers, note = _majority(finals, _one_seed(finals, competing, tables, ranking), tables)
    pool: Tables = {**tables, **({} if answers is None else {MAJORITY: {0: answers}})}
    arms = with_differences(arms, finals, pool, ranking)
    # A broken rule also forbids claims and Pareto fronts.
    if broken:
        arms = [replace(arm, claim=None, p_holm=None) for arm in arms]
    else:
        arms = with_fronts(ranked(arms, ranking.metric), ranking.metric)
    return _make_comparison(arms, finals, pool, broken, ranking, first, note)


def _competes(name: str, finals: Sequence[Finished], ranking: RankingSettings) -> bool:
    """Return whether an arm must keep the rules: the reference, and every arm that is no control."""
    return name == ranking.reference or not (name in ranking.controls or any(run.control for run in finals))


def _explain_missing_runs(failures: Mapping[str, Sequence[Failure]]) -> str:
    for name, lost in failures.items():
        if lost:
            return f"every final run is missing; last lines of the first failed run of {name}:\n{lost[0].last_lines}"
    return "no run read the test split; a comparison needs runs with train.evaluate_test true."


def _one_seed(finals: Arms, competing: Arms, tables: Tables, ranking: RankingSettings) -> list[Finished]:
    """Select the runs of one seed, of the reference if possible, whose clips the majority control answers."""
    names = sorted(competing, key=lambda name: name != ranking.reference)
    for name in names:
        for seed in tables[name]:
            return [run for run in finals[name] if run.seed == seed]
    return []


def _majority(finals: Arms, runs: Sequence[Finished], tables: Tables) -> tuple[Predictions | None, str]:
    """Return the answers of the majority control, and a note on the clips that decided, see `majority_answers`.

    Args:
        finals: final runs of each arm. An arm that is this control, on the same data and clips, has the answers.
        runs: see `majority_answers`; they make the answers where there is no such arm.
        tables: predictions on the test clips by arm and seed.
    """
    answers, note = majority_answers(runs)
    if answers is None:
        return None, note
    for name, arm in finals.items():
        if not arm or arm[0].report["strategy"] != "majority" or hashes(arm) != hashes(runs):
            continue
        for table in tables[name].values():
            if is_majority(table, answers, folds=len(runs)):
                return table, ""
    return answers, note


def with_differences(arms: Sequence[Arm], finals: Arms, tables: Tables, ranking: RankingSettings) -> list[Arm]:
    """Add the differences of arms to the controls and to the reference, and the claims that follow.

    Two arms are paired if they have the same data, splits and clips. The correction for several arms leaves controls
    out. An arm that is not better than the majority control makes no claim, and if the reference is not better, none
    does.

    Args:
        arms: all arms.
        finals: final runs of each arm.
        tables: predictions on the test clips by arm and seed; the answers of the majority control under `MAJORITY`.
        ranking: reference, margin and metric.
    """
    scored = [name for name in [ranking.reference, *(arm.name for arm in arms)] if tables.get(name)]
    if not scored:
        return list(arms)
    home = scored[0]
    clips = next(iter(tables[home].values())).clips
    groups = _groups(clips)
    paired = {
        name
        for name in scored
        if hashes(finals[name]) == hashes(finals[home])
        and all(table.clips[["id", "label"]].equals(clips[["id", "label"]]) for table in tables[name].values())
    }
    between = differences(tables, groups)
    rivals = [arm.name for arm in arms if arm.name in paired and not arm.control]
    if MAJORITY in tables and rivals:
        arms = with_majority(arms, rivals, tables, ranking.metric, between)
    for control in arms:
        if control.control and control.strategy == "log_mel" and control.name in paired and rivals:
            arms = with_log_mel(arms, rivals, control.name, ranking.metric, between)
            break
    if home != ranking.reference:
        return list(arms)
    base = next(arm for arm in arms if arm.name == home)
    found = {name: between(name, home, ranking.metric) for name in paired if name != home}
    held = [name for name in rivals if name != home]
    corrected = dict(zip(held, holm([found[name].p_value for name in held]), strict=True))
    return [
        replace(
            arm,
            difference=found.get(arm.name),
            p_holm=corrected.get(arm.name),
            claim=_claim(arm, base, found[arm.name], corrected[arm.name], ranking)
            if arm.name in held and not (arm.useless or base.useless)
            else None,
        )
        for arm in arms
    ]


def _groups(clips: pd.DataFrame) -> list[str | None]:
    return [None if pd.isna(group) or group == "" else str(group) for group in clips["group"]]


def ranked(arms: Sequence[Arm], metric: str) -> list[Arm]:
    """Add ranks by the mean score on the test clips; equal means share a rank.

    Controls, and arms that are not better than the majority control, have no rank.
    """
    means = {arm.name: _mean(arm, metric) for arm in arms if arm.score(metric) and not (arm.control or arm.useless)}
    scores = sorted(means.values(), reverse=True)
    return [replace(arm, rank=1 + scores.index(means[arm.name])) if arm.name in means else arm for arm in arms]


def with_fronts(arms: Sequence[Arm], metric: str) -> list[Arm]:
    """Add the costs for which the arm is on the Pareto front of cost and score. Arms without a rank are left out."""
    rivals = [arm for arm in arms if arm.rank is not None]

    def beaten(arm: Arm, cost: str) -> bool:
        own = getattr(arm, cost), _mean(arm, metric)
        others = [(getattr(other, cost), _mean(other, metric)) for other in rivals if other is not arm]
        return any(
            spent is not None and spent <= own[0] and score >= own[1] and (spent, score) != own
            for spent, score in others
        )

    return [
        replace(
            arm,
            front=tuple(
                cost
                for cost in COSTS
                if arm.rank is not None and getattr(arm, cost) is not None and not beaten(arm, cost)
            ),
        )
        for arm in arms
    ]


def _mean(arm: Arm, metric: str) -> float:
    found = arm.score(metric)
    return found.interval.mean if found else -math.inf


def _claim(arm: Arm, reference: Arm, difference: Difference, p_holm: float, ranking: RankingSettings) -> str:
    """Write the claim on an arm: its difference, its share of parameters and the difference that is resolved.

    If the arm is not better than the log_mel control, the first sentence is that.
    """
    sentence = claim(arm.name, reference.name, difference, ranking.margin, p_holm, METRIC_NAMES[ranking.metric])
    sentence = sentence.rstrip(".")
    if caution := log_mel_text(arm, ranking.metric):
        sentence = f"{caution} {sentence}"
    if arm.num_trainable_params and reference.num_trainable_params:
        ratio = reference.num_trainable_params / arm.num_trainable_params
        share = f"1/{ratio:.0f}" if ratio >= 5 else f"{1 / ratio:.0%}"
        sentence += f", with {share} of its trained parameters"
    return f"{sentence}; for these two, this test can resolve {100 * resolution([difference]):.1f} points."


def _make_comparison(
    arms: Sequence[Arm],
    finals: Arms,
    tables: Tables,
    broken: Sequence[str],
    ranking: RankingSettings,
    first: Finished,
    note: str,
) -> Comparison:
    every = [run for arm in finals.values() for run in arm]
    whole = [table for arm in tables.values() for table in arm.values()]
    answers = whole[0] if whole else predictions_of(first)
    clips = answers.clips
    groups = clips["group"].replace("", None)
    held = [arm.difference for arm in arms if arm.difference and not arm.control]
    folds = {run.fold for run in every} - {None}
    order = sorted(arms, key=lambda arm: (arm.control, arm.useless, arm.rank or 0, -_mean(arm, ranking.metric)))
    majority = majority_label(tables)
    rare = rare_classes(list(clips["label"].astype(str)), _groups(clips))
    return Comparison(
        arms=tuple(order),
        reference=ranking.reference,
        margin=ranking.margin,
        broken_rules=tuple(broken),
        notes=(*_notes(arms, every, ranking), *([note] if note else [])),
        source=printable(first.settings.get("data.source", "")),
        encoder=printable(first.settings.get("model.name", "")),
        clips=(first.report["train_clips"], first.report["validation_clips"], len(clips)),
        groups=None if groups.isna().any() else groups.nunique(),
        folds=len(folds) or None,
        budget=_budget_text(first, ranking),
        best_metric=first.settings.get("train.best_metric", "macro_f1"),
        resolution=resolution(held) if held else None,
        conditional=any(difference.conditional for difference in held),
        device=first.report.get("device", ""),
        versions=first.report.get("versions", {}),
        dataset_sha256=tuple(sorted({run.report["dataset_sha256"] for run in every})),
        split_sha256=tuple(sorted({run.report["split_sha256"] for run in every})),
        results=tuple(peft_result(run) for run in every),
        metric=ranking.metric,
        majority=majority,
        on_controls=sentences(order, ranking.reference, majority, ranking.metric, rare, bool(broken)),
        labels=tuple(map(printable, answers.labels)),
        label_clips=tuple(int(count) for count in answers.of_labels().sum(axis=1)),
    )


def _budget_text(run: Finished, ranking: RankingSettings) -> str:
    if ranking.seconds is not None:
        return f"{ranking.seconds:g} s of training, as the steps that fit in when a few were timed"
    steps = run.settings.get("train.max_steps")
    return f"{steps} steps" if steps else f"{run.settings.get('train.epochs')} epochs"


def _notes(arms: Sequence[Arm], runs: Sequence[Finished], ranking: RankingSettings) -> Iterable[str]:
    """List the notes of a comparison."""
    names = {arm.name for arm in arms}
    if ranking.reference not in names:
        yield f"there is no arm {ranking.reference} to compare the others with; name another reference."
    for arm in arms:
        if arm.at_edge:
            yield f"{arm.name}: its best learning rate is at the edge of those tried; a better one may lie beyond."
        spent = arm.train_time
        if spent and ranking.seconds and not arm.control and not 0.8 < spent / ranking.seconds < 1.25:
            yield f"{arm.name}: {ranking.seconds:g} s of training were planned, but it took {spent:.0f} s."
    chosen_by = {run.settings.get("train.best_metric", ranking.metric) for run in runs if not run.control}
    if chosen_by and chosen_by != {ranking.metric}:
        selection = " or ".join(sorted(METRIC_NAMES.get(name, str(name)) for name in chosen_by))
        yield (
            f"learning rates and epochs were chosen by validation {selection} (train.best_metric); "
            f"arms are ranked by test {METRIC_NAMES[ranking.metric]} (metric)."
        )
    pretrained = [run for run in runs if not run.control]
    if len({run.report.get("base_sha256") for run in pretrained}) > 1:
        yield "the arms do not share one pretrained encoder."
    for what in ("device", "mixed_precision", "versions"):
        if len({str(run.report.get(what)) for run in pretrained}) > 1:
            yield f"the runs differ in {what}; compare costs with care."
    yield from _notes_on_costs([arm for arm in arms if arm.seeds])


def _notes_on_costs(arms: Sequence[Arm]) -> Iterable[str]:
    """List costs that are missing or unreliable, with the reason."""
    missing: dict[str, list[str]] = {}
    for arm in arms:
        columns = ", ".join(column for cost, column in MEASURED_COSTS.items() if getattr(arm, cost) is None)
        missing.setdefault(columns, []).append(arm.name)
    for columns, names in missing.items():
        if columns:
            yield (
                f"missing costs of {', '.join(names)}: {columns}. These runs shared their device, or have no "
                "record that they did not."
            )
    busy = [f"{arm.name} ({arm.other_cpus:.1f} CPUs)" for arm in arms if arm.other_cpus is not None]
    if busy:
        yield (
            f"times of {', '.join(busy)} were measured on a busy machine, where other programs used these CPUs. "
            "The times are too long, and the order of the arms by time is uncertain; measure again on a quiet machine."
        )
