"""What must hold before arms are ranked. Each broken rule is a sentence that names the arm and the values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from peft_audio.comparison import Failure
from peft_audio.finished import Finished
from peft_audio.search import Trials, best_rate

MIN_SEEDS = 5
# What every arm gets alike; an arm with more of it would win by that.
BUDGET = (
    "train.epochs",
    "train.max_steps",
    "train.batch_size",
    "train.batch_seconds",
    "data.max_train_clips",
    "data.max_seconds",
    "data.max_eval_seconds",
)
Arms = Mapping[str, Sequence[Finished]]


def broken_rules(
    finals: Arms,
    tuning: Arms,
    trials: Mapping[tuple[str, int | None], Trials],
    failures: Mapping[str, Sequence[Failure]],
    timed: bool,
) -> list[str]:
    """Why these runs cannot be ranked; controls are not held to it.

    Args:
        finals: Final runs of each competing arm.
        tuning: Tuning runs of each.
        trials: Scores on validation by arm and fold.
        failures: Runs of competing arms that failed.
        timed: Whether the budget was a time, so that arms made different numbers of steps.
    """
    found = [f"{name}: {len(lost)} of its runs failed." for name, lost in failures.items() if lost]
    found += _different("were trained on different data (dataset hashes)", finals, _hash("dataset_sha256"))
    found += _different("were trained or tested on different splits (split hashes)", finals, _hash("split_sha256"))
    found += _different("had different final seeds or folds", finals, lambda runs: sorted(_places(runs)))
    for name in BUDGET:
        if not (timed and name in ("train.epochs", "train.max_steps")):
            found += _different(f"had different {name}", finals, partial(_values, name))
    for name, runs in finals.items():
        found += _of_one_arm(name, runs, tuning.get(name, ()))
    return found + _tuning(finals, tuning, trials)


def _of_one_arm(name: str, finals: Sequence[Finished], tuning: Sequence[Finished]) -> list[str]:
    found = []
    if any(
        run.report.get("validation_is_test") or run.settings.get("data.validate_on_test") for run in (*finals, *tuning)
    ):
        found.append(f"{name}: its epochs or rates were chosen on the test clips (data.validate_on_test).")
    if any(run.report.get("test_accuracy") is not None for run in tuning):
        found.append(f"{name}: its tuning runs read the test split (train.evaluate_test).")
    drift = max((run.report.get("encoder_drift") or 0.0 for run in finals), default=0.0)
    if drift:
        found.append(f"{name}: frozen weights of the encoder changed, by {drift:g}.")
    seeds = {run.seed for run in finals}
    if len(seeds) < MIN_SEEDS:
        found.append(f"{name}: {len(seeds)} final seeds; at least {MIN_SEEDS} are needed.")
    if len(_places(finals)) < len(finals):
        found.append(f"{name}: a final seed was run more than once.")
    reused = sorted(seeds & {run.seed for run in tuning})
    if reused:
        found.append(f"{name}: seeds {', '.join(map(str, reused))} served for tuning and for the final runs.")
    return found


def _tuning(finals: Arms, tuning: Arms, trials: Mapping[tuple[str, int | None], Trials]) -> list[str]:
    """Rates: as many trials for each arm, on validation, and the best one used."""
    counts = {
        name: sorted(
            (fold is not None, fold or 0, len(scores)) for (arm, fold), scores in trials.items() if arm == name
        )
        for name in finals
    }
    seeds = {name: sorted({run.seed for run in tuning.get(name, ())}) for name in finals}
    if not any(seeds.values()):
        return ["no arm's learning rate was chosen on validation; one that suits one arm may not suit another."]
    found = []
    if len(set(map(str, counts.values()))) > 1:
        given = ", ".join(f"{name} {sum(n for *_, n in counts[name])}" for name in finals)
        found.append(f"arms had different numbers of learning rate trials ({given}).")
    if len(set(map(str, seeds.values()))) > 1:
        found.append(f"arms were tuned with different seeds ({', '.join(f'{name} {seeds[name]}' for name in finals)}).")
    for name, arm in finals.items():
        for run in arm:
            scores = trials.get((name, run.fold))
            if scores and run.learning_rate != best_rate(scores):
                best = best_rate(scores)
                found.append(f"{name}: final runs use rate {run.learning_rate:g}, validation chose {best:g}.")
                break
    return found


def _different(what: str, arms: Arms, value: Callable[[Sequence[Finished]], Any]) -> Iterable[str]:
    """One sentence where arms differ in something."""
    by_value: dict[str, list[str]] = {}
    for name, runs in arms.items():
        by_value.setdefault(str(value(runs)), []).append(name)
    if len(by_value) > 1:
        sides = " against ".join(", ".join(names) for names in by_value.values())
        yield f"arms {what}: {sides}."


def _hash(name: str) -> Callable[[Sequence[Finished]], Any]:
    return lambda runs: sorted({(str(run.fold), run.report[name]) for run in runs})


def _values(name: str, runs: Sequence[Finished]) -> list[str]:
    return sorted({str(run.settings.get(name)) for run in runs})


def _places(runs: Sequence[Finished]) -> set[tuple[int, int]]:
    """Seed and fold of each."""
    return {(run.seed, -1 if run.fold is None else run.fold) for run in runs}
