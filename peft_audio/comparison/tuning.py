"""List the runs of a comparison: learning rates tried on validation, then fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from peft_audio.comparison.jobs import Job, finished
from peft_audio.comparison.settings import RECIPES, ArmConfig, CompareRecipe
from peft_audio.config import read_config
from peft_audio.errors import UserError
from peft_audio.files import expanded, read_json
from peft_audio.runs.folder import path_beside
from peft_audio.tasks import task_of

# A rate's score on validation and the negative loss that settles ties; higher is better.
Trials = Mapping[float, tuple[float, float]]
# Score of a rate at which a run ended without a report: worse than all others.
DIVERGED_SCORE = (-math.inf, -math.inf)


def mean_score(reports: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float]:
    """Compute the score of a rate: the means over its runs of a validation metric and of the negative loss.

    Args:
        reports: reports of the runs.
        metric: "accuracy", "macro_f1" or "loss".
    """
    task = task_of()
    loss = -mean(report["validation_loss"] for report in reports)
    return mean(task.selection_score(report, metric, "validation_") for report in reports), loss


def half_decade(rate: float, steps: int) -> float:
    """Return the rate N half decades away, on 1, 3, 10, 30 and so on: 3e-4 is followed by 1e-3.

    Validation splits of a few hundred clips cannot distinguish finer steps.
    """
    return float(f"{10 ** ((round(2 * math.log10(rate)) + steps) / 2):.0e}")


def first_rates(default: float, count: int) -> list[float]:
    """List N rates around a default in ascending order: the default, half a decade below, half a decade above, ..."""
    return sorted(half_decade(default, (-1) ** i * ((i + 1) // 2)) for i in range(count))


def best_rate(trials: Trials) -> float:
    """Return the rate with the highest score; the lower loss wins a tie, then the lower rate."""
    return max(sorted(trials), key=lambda rate: trials[rate])


def at_edge(trials: Trials) -> bool:
    """Return whether the best rate is the lowest or the highest of several; a better one may be further out."""
    return len(trials) > 1 and best_rate(trials) in (min(trials), max(trials))


def next_rate(trials: Trials) -> float:
    """Return the rate to try next.

    It is half a decade beyond the best rate if that is at the edge, else halfway to its better neighbour.
    """
    tried, best = sorted(trials), best_rate(trials)
    if at_edge(trials) or len(tried) == 1:
        return half_decade(best, -1 if best == tried[0] and len(tried) > 1 else 1)
    place = tried.index(best)
    neighbour = best_rate({rate: trials[rate] for rate in (tried[place - 1], tried[place + 1])})
    return float(f"{math.sqrt(best * neighbour):.2e}")


# Tuning seeds start here, so that no final seed is among them.
FIRST_TUNING_SEED = 1000

Run = Callable[[Sequence[Job], bool], None]


@dataclass(frozen=True)
class Cell:
    """Unit of tuning: an arm, or an arm in one fold."""

    arm: str
    fold: int | None


def cells(cfg: CompareRecipe) -> list[Cell]:
    """List every arm in every fold."""
    folds = list(range(cfg.folds)) if cfg.folds else [None]
    return [Cell(arm, fold) for fold in folds for arm in cfg.arms]


def check_arms(cfg: CompareRecipe) -> None:
    """Check before anything runs that recipes accept the settings of their arms, and that arms have equal trials.

    Raises:
        UserError: A recipe does not accept the settings of an arm, or arms have different numbers of rates.
    """
    arms = {name: cfg.all_arms()[name] for name in cfg.arms}
    counts = {
        name: len(grid_of(cfg, arm)) for name, arm in arms.items() if arm.recipe != "baseline" and not arm.control
    }
    if len(set(counts.values())) > 1:
        given = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"--own_arms: arms have different numbers of learning rates ({given}); make them equal.")
    for name in cfg.arms:
        job = make_job(cfg, Cell(name, 0 if cfg.folds else None), "final", 0, first_rate(cfg, name))
        try:
            read_config(RECIPES[job.recipe], job.arguments())
        except UserError as error:
            raise UserError(f"arm {name}: {error}") from error


def make_job(cfg: CompareRecipe, cell: Cell, phase: str, seed: int, rate: float | None, **more: Any) -> Job:
    """Describe one run of an arm.

    Args:
        cfg: comparison.
        cell: arm and fold.
        phase: "tuning" or "final".
        seed: `train.seed`.
        rate: peak learning rate; None for a recipe that has none.
        **more: settings of this run, with __ for the dot.
    """
    arm = cfg.all_arms()[cell.arm]
    flags = cfg.shared_settings(arm) | {"train.seed": seed, "train.evaluate_test": phase == "final"}
    if phase != "final":
        flags["train.evaluate_train"] = False
    if phase == "tuning" and arm.recipe != "baseline":
        flags["train.verify_adapter"] = False
    if rate is not None:
        flags["train.learning_rate"] = rate
    if cell.fold is not None:
        flags |= {"data.num_folds": cfg.folds, "data.fold": cell.fold}
    flags |= {name.replace("__", "."): value for name, value in more.items()}
    parts = [phase, *([f"fold{cell.fold}"] if cell.fold is not None else []), *([f"rate{rate:g}"] if rate else [])]
    folder = expanded(cfg.output_dir) / "runs" / cell.arm / "-".join([*parts, f"seed{seed}"])
    return Job(cell.arm, phase, arm.recipe, flags, folder)


def grid_of(cfg: CompareRecipe, arm: ArmConfig) -> list[float | None]:
    """List the rates that an arm is tried with first."""
    if arm.recipe == "baseline":
        return [None]
    default = RECIPES[arm.recipe]().train.learning_rate
    # A default may lie between half decades; a single trial is of the default itself.
    return [*(arm.learning_rates or (first_rates(default, cfg.trials) if cfg.trials > 1 else [default]))]


def first_rate(cfg: CompareRecipe, name: str) -> float | None:
    """Return the middle one of the rates that an arm is tried with first."""
    rates = grid_of(cfg, cfg.all_arms()[name])
    return rates[len(rates) // 2]


def is_tuned(cfg: CompareRecipe, cell: Cell) -> bool:
    """Return whether an arm has a learning rate to choose."""
    return cfg.all_arms()[cell.arm].recipe != "baseline"


def tune(cfg: CompareRecipe, run: Run, steps: dict[str, int]) -> dict[Cell, float | None]:
    """Try rates on validation, every cell equally often, and choose.

    Args:
        cfg: comparison.
        run: function that makes runs; its second argument is true if their costs count.
        steps: optimizer steps of each arm, if the budget is a time.

    Returns:
        The rate of each cell; cells whose trials all failed are left out.
    """
    tried = {cell: list(grid_of(cfg, cfg.all_arms()[cell.arm])) for cell in cells(cfg)}
    if cfg.trials == 1:
        return {cell: rates[len(rates) // 2] for cell, rates in tried.items()}
    for extra in range(cfg.extra_trials + 1):
        tuned = {cell: rates for cell, rates in tried.items() if is_tuned(cfg, cell)}
        run([job for cell, rates in tuned.items() for job in tuning_jobs(cfg, cell, rates, steps)], False)
        trials = {cell: scores_of(cfg, cell, rates, steps) for cell, rates in tuned.items()}
        trials = {cell: scores for cell, scores in trials.items() if set(scores.values()) != {DIVERGED_SCORE}}
        if tuned and not trials:
            raise UserError(f"every tuning run failed; last lines of the first one:\n{_last_lines(cfg, tuned, steps)}")
        if extra == cfg.extra_trials or not any(at_edge(scores) for scores in trials.values()):
            break
        for cell, scores in trials.items():
            tried[cell].append(next_rate(scores))
    chosen: dict[Cell, float | None] = {cell: None for cell in tried if not is_tuned(cfg, cell)}
    return chosen | {cell: best_rate(scores) for cell, scores in trials.items()}


def tuning_jobs(cfg: CompareRecipe, cell: Cell, rates: Sequence[float | None], steps: dict[str, int]) -> list[Job]:
    """List the tuning runs of a cell: one per rate and tuning seed."""
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + cfg.tuning_seeds)
    return [make_job(cfg, cell, "tuning", seed, rate, **budget(cfg, cell, steps)) for rate in rates for seed in seeds]


def final_jobs(cfg: CompareRecipe, chosen: dict[Cell, float | None], steps: dict[str, int]) -> list[Job]:
    """List the final runs: one per seed and cell, ordered by seed, so that a stopped comparison has all arms.

    A baseline uses no random numbers, so it has one seed.
    """
    return [
        make_job(cfg, cell, "final", seed, rate, **budget(cfg, cell, steps))
        for seed in range(cfg.seeds)
        for cell, rate in chosen.items()
        if seed == 0 or is_tuned(cfg, cell)
    ]


def budget(cfg: CompareRecipe, cell: Cell, steps: dict[str, int]) -> dict[str, Any]:
    """Return the settings that fit an arm's training to its steps, if the budget is a time."""
    if cell.arm not in steps:
        return {}
    # The number of epochs is never the limit, so that the steps end the training.
    return {"train__max_steps": steps[cell.arm], "train__epochs": max(cfg.train.epochs, steps[cell.arm])}


def scores_of(
    cfg: CompareRecipe, cell: Cell, rates: Sequence[float | None], steps: dict[str, int]
) -> dict[float, tuple[float, float]]:
    """Compute the score of each rate over the tuning seeds; -inf if one of its runs failed."""
    scores = {}
    for rate in rates:
        reports = [
            read_json(job.folder / "report.json") if finished(job) else {}
            for job in tuning_jobs(cfg, cell, [rate], steps)
        ]
        worked = mean_score(reports, cfg.train.best_metric) if all(reports) else DIVERGED_SCORE
        scores[rate or 0.0] = worked
    return scores


def _last_lines(cfg: CompareRecipe, tuned: dict[Cell, list[float | None]], steps: dict[str, int]) -> str:
    cell, rates = next(iter(tuned.items()))
    job = tuning_jobs(cfg, cell, rates, steps)[0]
    return read_json(path_beside(job.folder, ".json")).get("last_lines", "no output")
