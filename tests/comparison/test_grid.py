"""Which runs a comparison makes, with runs that write their reports at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from peft_audio.comparison.jobs import Job, finished
from peft_audio.comparison.settings import ArmConfig, CompareRecipe
from peft_audio.comparison.tuning import Cell, check_arms, final_jobs, tune
from peft_audio.config import TrainConfig
from peft_audio.errors import UserError
from peft_audio.runs.folder import path_beside

OPTIMA = {"lora": 1e-3, "full": 1e-5, "head_only": 1e-3}


def report_of(job: Job) -> dict[str, Any]:
    """Validation falls off from the arm's best rate."""
    rate = job.flags.get("train.learning_rate", 1.0)
    best = OPTIMA.get(job.arm, 1.0)
    score = 1 - abs(max(rate, best) / min(rate, best) - 1) / 1000
    return {
        "strategy": job.arm,
        "seed": job.flags["train.seed"],
        "validation_macro_f1": score,
        "validation_loss": 1 - score,
    }


def write(job: Job, report: dict[str, Any]) -> None:
    """What a run and its launcher leave behind."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "report.json").write_text(json.dumps(report))
    record = {"recipe": job.recipe, "flags": job.flags, "exit_code": 0, "seconds": 30.0}
    path_beside(job.folder, ".json").write_text(json.dumps(record))


def recorder(broken: Sequence[str] = ()) -> tuple[Callable[[Sequence[Job], bool], None], list[Job]]:
    """Something that makes runs at once, and the runs that it was asked for and had not made."""
    made: list[Job] = []

    def run(jobs: Sequence[Job], costs_count: bool) -> None:
        for job in jobs:
            if not finished(job):
                made.append(job)
                if job.arm not in broken:
                    write(job, report_of(job))

    return run, made


def settings(folder: Path, **changes: Any) -> CompareRecipe:
    return CompareRecipe(
        **{"output_dir": str(folder), "arms": ["lora", "full", "log_mel"], "extra_trials": 2} | changes
    )


def test_every_arm_has_as_many_trials_while_one_is_at_the_edge(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    run, made = recorder()
    chosen = tune(cfg, run, {})
    rates = {arm: sorted(job.flags["train.learning_rate"] for job in made if job.arm == arm) for arm in cfg.arms[:2]}
    assert rates["full"] == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
    assert len(rates["lora"]) == 5 and set(rates["lora"]) > {3e-4, 1e-3, 3e-3}
    assert chosen == {Cell("lora", None): 1e-3, Cell("full", None): 1e-5, Cell("log_mel", None): None}
    assert not any(job.flags["train.evaluate_test"] for job in made)


def test_tuning_again_makes_no_run_and_changed_settings_make_all(tmp_path: Path) -> None:
    run, made = recorder()
    first = tune(settings(tmp_path), run, {})
    count = len(made)
    assert tune(settings(tmp_path), run, {}) == first
    assert len(made) == count
    tune(settings(tmp_path, train=TrainConfig(evaluate_train=True, epochs=3)), run, {})
    assert len(made) == 2 * count


def test_final_runs_have_fresh_seeds_and_alone_read_the_test_split(tmp_path: Path) -> None:
    cfg = settings(tmp_path, folds=3, seeds=2)
    run, made = recorder()
    chosen = tune(cfg, run, {})
    jobs = final_jobs(cfg, chosen, {})
    assert len(jobs) == 3 * (2 + 2 + 1) and len({job.folder for job in jobs}) == len(jobs)
    assert all(job.flags["train.evaluate_test"] for job in jobs)
    assert {job.flags["data.fold"] for job in jobs} == {0, 1, 2}
    assert not {job.flags["train.seed"] for job in jobs} & {job.flags["train.seed"] for job in made}
    shared = [{name: value for name, value in job.flags.items() if name.startswith("data.")} for job in jobs]
    by_fold = {flags["data.fold"]: flags for flags in shared}
    assert all(flags == by_fold[flags["data.fold"]] for flags in shared)


def test_an_arm_whose_trials_all_fail_leaves_the_others_alone(tmp_path: Path) -> None:
    run, _ = recorder(broken=["full"])
    assert tune(settings(tmp_path), run, {}) == {Cell("lora", None): 1e-3, Cell("log_mel", None): None}


def test_nothing_goes_on_where_every_trial_failed(tmp_path: Path) -> None:
    """Such as where the data source does not exist."""

    def run(jobs: Sequence[Job], costs_count: bool) -> None:
        for job in jobs:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            record = {"recipe": job.recipe, "flags": job.flags, "exit_code": 2, "last_lines": "error: no folder x"}
            path_beside(job.folder, ".json").write_text(json.dumps(record))

    with pytest.raises(UserError, match="every tuning run failed; last lines of the first one:\nerror: no folder x"):
        tune(settings(tmp_path), run, {})


def test_arms_may_not_bring_more_trials_than_others(tmp_path: Path) -> None:
    own = {"mine": ArmConfig("lora", [1e-3, 3e-3, 1e-2, 3e-2])}
    cfg = settings(tmp_path, arms=["lora", "mine"], own_arms=own, reference="lora")
    with pytest.raises(UserError, match=r"different numbers of learning rates \(lora 3, mine 4\)"):
        check_arms(cfg)
