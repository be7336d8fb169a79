"""Cut a comparison so that it fits into a number of minutes."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from peft_audio.comparison.plan import LEAST_RATES, Timing, arm_plan, duration
from peft_audio.comparison.rules import MIN_SEEDS
from peft_audio.comparison.settings import CompareRecipe

# Limits of the cuts that are made before arms are left out; this package's own choice.
LEAST_CLIPS_PER_CLASS = 10
LEAST_EPOCHS = 2


def fit(cfg: CompareRecipe, timing: Timing) -> tuple[CompareRecipe, dict[str, Any]]:
    """Cut a comparison so that it fits into `cfg.minutes`.

    The order of the cuts is: extra trials, training clips, epochs, rates and seeds that a ranking does not need, the
    most expensive arms. Learning rates and final seeds that a ranking needs are cut last. Then the first cuts are
    undone as far as the time allows.

    Args:
        cfg: comparison.
        timing: measured costs of its arms; the duration of the timing counts.

    Returns:
        The cut comparison, and the settings that were changed, by dotted name.
    """
    if cfg.minutes is None:
        return cfg, {}
    left = 60 * cfg.minutes - timing.seconds
    cuts = [
        [{"extra_trials": count} for count in range(cfg.extra_trials - 1, -1, -1)],
        _fewer_clips(cfg, timing),
        _fewer_epochs(cfg),
        _fewer_spare_runs(cfg),
        _fewer_arms(cfg, timing),
        [{"seeds": seeds} for seeds in range(min(cfg.seeds, MIN_SEEDS) - 1, 0, -1)],
        [{"trials": 1}] if cfg.trials > 1 and not _has_own_rates(cfg) else [],
    ]
    choices: list[list[dict[str, Any]]] = [[{}, *each] for each in cuts]
    chosen = [0] * len(choices)

    def settings() -> dict[str, Any]:
        return {name: value for i, each in enumerate(choices) for name, value in each[chosen[i]].items()}

    def fits() -> bool:
        return duration(with_settings(cfg, settings()), timing) <= left

    last = 0
    for last, each in enumerate(choices):
        while not fits() and chosen[last] < len(each) - 1:
            chosen[last] += 1
        if fits():
            break
    for i in reversed(range(last)) if fits() else ():
        while chosen[i]:
            chosen[i] -= 1
            if not fits():
                chosen[i] += 1
                break
    return with_settings(cfg, settings()), settings()


def _fewer_spare_runs(cfg: CompareRecipe) -> list[dict[str, Any]]:
    """List smaller numbers of tuning seeds, rates and seeds, down to those that a ranking needs."""
    found: list[dict[str, Any]] = []
    more: dict[str, Any] = {}
    for name, least in (("tuning_seeds", 1), ("trials", LEAST_RATES), ("seeds", MIN_SEEDS)):
        if name == "trials" and _has_own_rates(cfg):
            continue
        for count in range(getattr(cfg, name) - 1, least - 1, -1):
            more = more | {name: count}
            found.append(more)
    return found


def _has_own_rates(cfg: CompareRecipe) -> bool:
    """Return whether an arm has its own learning rates, so that their number cannot be cut for all arms."""
    arms = (cfg.all_arms()[name] for name in cfg.arms)
    return any(arm.learning_rates and not arm.control for arm in arms)


def _fewer_clips(cfg: CompareRecipe, timing: Timing) -> list[dict[str, Any]]:
    """List smaller numbers of training clips, each about a tenth below the one before."""
    clips = min(timing.measured.recordings, cfg.data.max_train_clips or sys.maxsize)
    least = LEAST_CLIPS_PER_CLASS * timing.measured.classes
    found = []
    while clips > least:
        clips = max(least, int(0.9 * clips))
        found.append({"data.max_train_clips": clips})
    return found


def _fewer_epochs(cfg: CompareRecipe) -> list[dict[str, Any]]:
    """List smaller budgets of training, in the unit that the comparison uses."""
    if cfg.train_seconds is not None:
        return [{"train_seconds": round(cfg.train_seconds * 0.8**power, 1)} for power in range(1, 8)]
    if cfg.train.max_steps is not None:
        return [{"train.max_steps": max(1, round(cfg.train.max_steps * 0.8**power))} for power in range(1, 8)]
    return [{"train.epochs": epochs} for epochs in range(cfg.train.epochs - 1, LEAST_EPOCHS - 1, -1)]


def _fewer_arms(cfg: CompareRecipe, timing: Timing) -> list[dict[str, Any]]:
    """List smaller sets of arms without the most expensive ones; the reference, another arm and majority stay."""
    controls = {name for name in cfg.arms if cfg.all_arms()[name].control}
    costs = {name: arm_plan(cfg, timing, name).seconds[1] for name in cfg.arms}
    competing = sorted({*cfg.arms} - controls - {cfg.reference}, key=lambda name: -costs[name])
    droppable = [*competing[:-1], *(name for name in controls if name not in ("majority", cfg.reference))]
    found, arms = [], list(cfg.arms)
    for name in sorted(droppable, key=lambda name: -costs[name]):
        arms = [arm for arm in arms if arm != name]
        found.append({"arms": arms})
    return found


def with_settings(cfg: CompareRecipe, settings: dict[str, Any]) -> CompareRecipe:
    """Replace settings of a comparison by dotted name."""
    for name, value in settings.items():
        section, _, field = name.rpartition(".")
        changed = {field: value} if not section else {section: replace(getattr(cfg, section), **{field: value})}
        cfg = replace(cfg, **changed)
    return cfg
