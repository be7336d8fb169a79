"""The bar and the lines of a comparison, with runs whose times are known."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peft_audio.comparison.jobs import Job
from peft_audio.comparison.progress import ComparisonProgress, RunKind, expected_runs, show_progress
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.comparison.tuning import Cell, final_jobs, tuning_jobs
from peft_audio.config import TrainConfig
from peft_audio.runs.folder import path_beside

RATES = (3e-4, 1e-3, 3e-3)
REPORT = {"strategy": "x", "validation_accuracy": 0.7, "validation_macro_f1": 0.8, "validation_loss": 1.5}


def settings(folder: Path, **changes: Any) -> CompareRecipe:
    return CompareRecipe(output_dir=str(folder), arms=["lora", "majority"], reference="lora", **changes)


def end(watch: ComparisonProgress, job: Job, seconds: float, **record: Any) -> None:
    """End a run with a report."""
    job.folder.mkdir(parents=True)
    (job.folder / "report.json").write_text(json.dumps(REPORT))
    record = {"exit_code": 0, "seconds": seconds, "flags": job.flags, "recipe": job.recipe} | record
    path_beside(job.folder, ".json").write_text(json.dumps(record))
    watch.report(job, record)


def test_runs_are_counted_with_extra_trials_and_folds(tmp_path: Path) -> None:
    runs = expected_runs(settings(tmp_path))
    assert runs == {
        RunKind("lora", "tuning", False): 4,
        RunKind("lora", "final", True): 1,
        RunKind("lora", "final", False): 4,
        RunKind("majority", "final", True): 1,
    }
    assert expected_runs(settings(tmp_path, folds=3, tuning_seeds=2)).total() == 3 * (8 + 5 + 1)
    assert expected_runs(settings(tmp_path, trials=1, seeds=1)).total() == 2


def test_a_pipe_gets_a_line_per_run_with_the_time_left(tmp_path: Path) -> None:
    """Tuning takes 60 s in each of two places, a final run 120 s: then 3 tuning runs and 5 final ones are left."""
    cfg = settings(tmp_path)
    console = Console(file=io.StringIO(), width=200)
    with show_progress(cfg, {True: 1, False: 2}, console) as watch:
        assert watch.seconds_left() is None
        tuning = tuning_jobs(cfg, Cell("lora", None), RATES, {})
        watch.begin(tuning, tuning)
        end(watch, tuning[0], 60.0)
        # 3 tuning runs and 4 final ones in two places, two final ones alone; each as long as the only known one.
        assert watch.seconds_left() == pytest.approx(60 * (3 / 2 + 4 / 2 + 2))
        for job in tuning[1:]:
            end(watch, job, 60.0)
        finals = final_jobs(cfg, {Cell("lora", None): 1e-3, Cell("majority", None): None}, {})
        # The extra trial was not needed.
        watch.begin(finals[:2], finals[:2])
        assert (watch.done, watch.total) == (3, 9)
        end(watch, finals[0], 120.0)
        assert watch.seconds_left() == pytest.approx(120 * 4 / 2 + 120)
        end(watch, finals[1], 2.0, exit_code=1, last_lines="x\nerror: no space left")
        for job in finals[2:]:
            end(watch, job, 120.0)
        assert (watch.done, watch.total, watch.seconds_left()) == (9, 9, 0.0)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 9
    assert lines[0] == "[1/10] lora tuning-rate0.0003-seed1000: validation macro-F1 0.800 (60 s; about 6 min left)"
    assert lines[4] == "[5/9] majority final-seed0: FAILED, error: no space left (2 s; about 4 min left)"
    assert lines[-1].endswith("(120 s; about 0 s left)")


@pytest.mark.parametrize(("metric", "said"), [("accuracy", "accuracy 0.700"), ("loss", "loss 1.500")])
def test_a_line_names_the_metric_that_decides(metric: Any, said: str, tmp_path: Path) -> None:
    cfg = settings(tmp_path, train=TrainConfig(best_metric=metric))
    console = Console(file=io.StringIO(), width=200)
    with show_progress(cfg, {True: 1, False: 2}, console) as watch:
        end(watch, tuning_jobs(cfg, Cell("lora", None), RATES, {})[0], 60.0)
    assert isinstance(console.file, io.StringIO)
    assert f"validation {said} (60 s" in console.file.getvalue()


def test_runs_of_an_earlier_call_count_as_done(tmp_path: Path) -> None:
    cfg = settings(tmp_path)
    tuning = tuning_jobs(cfg, Cell("lora", None), RATES, {})
    for _ in range(2):
        with show_progress(cfg, {True: 1, False: 1}, Console(file=io.StringIO())) as watch:
            done = [job for job in tuning if job.folder.exists()]
            watch.begin(tuning, [job for job in tuning if job not in done])
            assert watch.done == len(done)
            if not done:
                end(watch, tuning[0], 30.0)
    assert watch.seconds_left() == pytest.approx(30 * 9)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_one_bar_for_the_whole_comparison(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = settings(tmp_path)
    # Rich then takes a pipe for a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: terminal)
    console = Console(file=file, width=80)
    with show_progress(cfg, {True: 1, False: 1}, console) as watch:
        tuning = tuning_jobs(cfg, Cell("lora", None), RATES, {})
        watch.begin(tuning, tuning)
        end(watch, tuning[0], 60.0)
        watch.bar.refresh()
    shown = file.getvalue()
    assert "1/10" in shown and "about 9 min left" in shown
    assert ("comparison" in shown) == ("\x1b[" in shown) == terminal


def test_final_runs_of_an_arm_without_a_rate_are_not_waited_for(tmp_path: Path) -> None:
    with show_progress(settings(tmp_path), {True: 1, False: 1}, Console(file=io.StringIO())) as watch:
        watch.leave_out({"lora"})
        assert watch.total == 1
