"""Check the rules that must hold before arms are ranked; each broken rule is a sentence with the arm and the values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from peft_audio.comparison.results import Failure
from peft_audio.comparison.tuning import Trials, best_rate
from peft_audio.config import settings_equal_between_arms
from peft_audio.runs.finished import Finished

MIN_SEEDS = 5
ON_TEST = "chosen on the test clips (data.validate_on_test)"
Arms = Mapping[str, Sequence[Finished]]
TrialsOfArms = Mapping[tuple[str, int | None], Trials]


def broken_rules(
    finals: Arms, tuning: Arms, trials: TrialsOfArms, failures: Mapping[str, Sequence[Failure]], timed: bool
) -> list[str]:
    """List the broken rules, because of which runs cannot be ranked.

    Args:
        finals: Final runs by competing arm; controls need not keep the rules.
        tuning: Tuning runs by competing arm.
        trials: Validation scores by arm and fold.
        failures: Failed runs by competing arm.
        timed: Whether the budget is a time, so that arms make different numbers of steps.
    """
    every = {name: [*runs, *tuning.get(name, ())] for name, runs in finals.items()}
    broken = [f"{name}: {len(lost)} of its runs failed." for name, lost in failures.items() if lost]
    broken += [f"{name}: it has no final run." for name, runs in finals.items() if not runs]
    broken += _different("were trained or tested on different data or splits (hashes)", every, hashes)
    broken += [
        f"{name}: its runs of one fold are of different data or splits (hashes)."
        for name, runs in every.items()
        if len(hashes(runs)) > len({run.fold for run in runs})
    ]
    broken += _different("had different final seeds or folds", finals, seeds_and_folds)
    for name in equal_settings(timed):
        broken += _different(f"had different {name}", every, partial(_values, name))
    for name, runs in finals.items():
        broken += _of_one_arm(name, runs, tuning.get(name, ()))
    return [*broken, *_tuning(finals, tuning, trials)]


def equal_settings(timed: bool) -> list[str]:
    """List the settings that arms must have in common.

    Args:
        timed: whether the budget is a time, so that arms make different numbers of steps.
    """
    free = ("train.epochs", "train.max_steps") if timed else ()
    return [name for name in settings_equal_between_arms() if name not in free]


def hashes(runs: Sequence[Finished]) -> list[tuple[str, str, str]]:
    """Return the distinct folds of runs with the hashes of their data and splits."""
    return sorted({(str(run.fold), run.report["dataset_sha256"], run.report["split_sha256"]) for run in runs})


def seeds_and_folds(runs: Sequence[Finished]) -> list[tuple[int, str]]:
    """Return the distinct pairs of seed and fold of runs."""
    return sorted({(run.seed, str(run.fold)) for run in runs})


def _of_one_arm(name: str, finals: Sequence[Finished], tuning: Sequence[Finished]) -> Iterable[str]:
    every = (*finals, *tuning)
    if any(run.report.get("validation_is_test") or run.settings.get("data.validate_on_test") for run in every):
        yield f"{name}: its epochs or rates were {ON_TEST}."
    if any(run.report.get("test_accuracy") is not None for run in tuning):
        yield f"{name}: its tuning runs read the test split (train.evaluate_test)."
    # NaN and a missing value must not count as 0.
    drifts = [run.report.get("encoder_drift") for run in finals]
    moved = [drift for drift in drifts if drift != 0]
    if moved:
        yield f"{name}: frozen weights of the encoder changed by {moved[0]}, which must be 0."
    seeds = {run.seed for run in finals}
    if len(seeds) < MIN_SEEDS:
        yield f"{name}: only {len(seeds)} of at least {MIN_SEEDS} final seeds."
    if len(seeds_and_folds(finals)) < len(finals):
        yield f"{name}: a final seed was run more than once."
    reused = sorted(seeds & {run.seed for run in tuning})
    if reused:
        yield f"{name}: seeds {', '.join(map(str, reused))} served for tuning and for the final runs."


def _tuning(finals: Arms, tuning: Arms, trials: TrialsOfArms) -> Iterable[str]:
    """Check that every arm had equally many trials on validation, and used its best rate in each fold."""
    counts = {name: [(str(fold), len(trials[arm, fold])) for arm, fold in trials if arm == name] for name in finals}
    if not any(counts.values()):
        yield "no arm's learning rate was chosen on validation; one that suits one arm may not suit another."
        return
    if len({str(sorted(count)) for count in counts.values()}) > 1:
        given = ", ".join(f"{name} {sum(number for _, number in count)}" for name, count in counts.items())
        yield f"arms had different numbers of learning rate trials ({given})."
    yield from _different("were tuned with different seeds", _tuned(finals, tuning), _seeds)
    for name, arm in finals.items():
        chosen = {(run.fold, run.learning_rate) for run in arm}
        for fold, rate in sorted(chosen, key=str):
            scores = trials.get((name, fold))
            where = "" if fold is None else f" of fold {fold}"
            if not scores:
                yield f"{name}: no rate was tried on the validation clips{where}."
            elif rate != best_rate(scores):
                yield f"{name}: final runs{where} use rate {rate:g}, validation chose {best_rate(scores):g}."


def _tuned(finals: Arms, tuning: Arms) -> Arms:
    """Return the arms that have tuning runs; an arm has none if all its trials diverged."""
    return {name: tuning[name] for name in finals if tuning.get(name)}


def _seeds(runs: Sequence[Finished]) -> list[int]:
    return sorted({run.seed for run in runs})


def _different(what: str, arms: Arms, value: Callable[[Sequence[Finished]], Any]) -> Iterable[str]:
    """Yield a sentence if arms differ in a value of their runs."""
    by_value: dict[str, list[str]] = {}
    for name, runs in arms.items():
        by_value.setdefault(str(value(runs)), []).append(name)
    if len(by_value) > 1:
        camps = " against ".join(", ".join(names) for names in by_value.values())
        yield f"arms {what}: {camps}."


def _values(name: str, runs: Sequence[Finished]) -> list[str]:
    return sorted({str(run.settings.get(name)) for run in runs})
