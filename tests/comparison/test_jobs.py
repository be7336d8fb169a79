"""Runs as processes, with small scripts in the place of recipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from peft_audio.comparison import jobs as launching
from peft_audio.comparison import plan as planning
from peft_audio.comparison.jobs import Job, diverged, finished, locked, run_jobs
from peft_audio.comparison.plan import runs_at_once
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.errors import UserError
from peft_audio.files import read_json
from peft_audio.processes import child_environment, cpu_seconds, end_processes, family_cpu_seconds
from peft_audio.runs.folder import path_beside

REPORTS = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--train.output_dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "report.json").write_text(json.dumps({"strategy": "x", "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}))
"""
SCRIPTS = {
    "good": REPORTS,
    "silent": "",
    "broken": "print('reading clips'); raise SystemExit('out of memory')",
    "wild": "import sys; print('error: x'); sys.exit(4)",
    "endless": "import time; time.sleep(600)",
    "calm": REPORTS + "import time; time.sleep(2)",
}


@pytest.fixture(autouse=True)
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(launching, "RECIPES", tmp_path)
    monkeypatch.setattr(launching, "visible_gpus", list)


def job(folder: Path, recipe: str, name: str = "run", phase: str = "final", **flags: Any) -> Job:
    return Job("arm", phase, recipe, flags, folder / "runs" / "arm" / name)


def run(jobs: list[Job], at_once: int | None = None) -> list[dict[str, Any]]:
    """The records, in the order of the jobs."""
    told: dict[Path, dict[str, Any]] = {}
    run_jobs(jobs, at_once, lambda job, record: told.update({job.folder: record}))
    return [told[job.folder] for job in jobs]


def test_a_run_is_made_once_for_its_settings(tmp_path: Path) -> None:
    first = job(tmp_path, "good", epochs=3)
    (record,) = run([first])
    assert record["exit_code"] == 0 and record["alone"] and finished(first)
    written = path_beside(first.folder, ".json").stat().st_mtime_ns
    run([first])
    assert path_beside(first.folder, ".json").stat().st_mtime_ns == written
    assert not finished(job(tmp_path, "good", epochs=4))
    (first.folder / "report.json").write_text('{"strat')
    assert not finished(first)


def test_cpus_that_this_process_may_not_use_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    (record,) = run([job(tmp_path, "good")], at_once=1)
    assert record["threads"] == 1
    monkeypatch.setattr(planning, "visible_gpus", list)
    assert runs_at_once(CompareRecipe(), costs_count=False) == 1


def test_threads_that_the_user_asks_for_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "cpu_count", lambda: 8)
    shares = {None: (8, 4), "1": (1, 1), "6": (6, 4), "64": (8, 4), "3,2": (3, 3), "many": (8, 4), "0": (8, 4)}
    for asked, (alone, side_by_side) in shares.items():
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if asked is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert (launching.threads_of_run(1), launching.threads_of_run(2)) == (alone, side_by_side), asked
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (record,) = run([job(tmp_path, "good")])
    assert record["threads"] == 1


def test_threads_wait_without_spinning_unless_the_user_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spinning threads made a step 7 to 27 times as long on a busy machine as two that sleep."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert child_environment(None, 2)["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert "OMP_WAIT_POLICY" not in child_environment(None, 2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert child_environment(None, 2)["OMP_WAIT_POLICY"] == "active"


def test_a_busy_machine_is_measured_and_own_work_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 CPUs, others keep 1.5 busy: too much for a run of 4 threads, nothing for one of 2."""
    began = time.monotonic()

    def busy_seconds(own: float = 0.8) -> float:
        return (time.monotonic() - began) * (1.5 + own)

    monkeypatch.setattr(launching, "LOAD_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(launching, "cpu_seconds", busy_seconds)
    monkeypatch.setattr(launching, "family_cpu_seconds", lambda pid: busy_seconds() * 0.8 / 2.3)
    monkeypatch.setattr(launching, "usable_cpu_times", lambda: [()] * 4)
    for threads, busy in ((4, True), (2, False)):
        monkeypatch.setattr(launching, "threads_of_run", lambda at_once, threads=threads: threads)
        began = time.monotonic()
        (record,) = run([job(tmp_path, "calm", f"threads{threads}")])
        assert record["other_cpus"] == pytest.approx(1.5, abs=0.3) and record["busy"] is busy


def test_cpu_time_of_a_process_includes_its_children() -> None:
    work = "import time\nwhile time.process_time() < 0.6: pass\n"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); print(1, flush=True); input()"
    before = cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"1\n"
    assert 0.6 <= family_cpu_seconds(child.pid) <= cpu_seconds() - before + 0.1
    child.communicate(b"\n")


def test_what_failed_is_recorded_with_its_last_lines_and_the_rest_goes_on(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "broken", "a"), job(tmp_path, "silent", "b"), job(tmp_path, "good", "c")]
    broken, silent, good = run(jobs, at_once=2)
    assert (broken["exit_code"], broken["last_lines"]) == (1, "reading clips\nout of memory")
    assert (silent["exit_code"], silent["last_lines"]) == (1, "it ended without a report")
    assert good["exit_code"] == 0 and not good["alone"]
    assert read_json(path_beside(jobs[0].folder, ".json"))["last_lines"] == broken["last_lines"]


def test_a_rate_that_diverged_is_a_result_and_not_tried_again(tmp_path: Path) -> None:
    trial, final = job(tmp_path, "wild", "a", "tuning"), job(tmp_path, "wild", "b", "final")
    run([trial, final])
    assert diverged(trial) and not diverged(final)
    written = path_beside(trial.folder, ".json").stat().st_mtime_ns
    run([trial])
    assert path_beside(trial.folder, ".json").stat().st_mtime_ns == written


def test_divergence_is_read_from_records_of_version_0_1_0(tmp_path: Path) -> None:
    trial = job(tmp_path, "wild", "a", "tuning")
    (record,) = run([trial])
    said = "error: the loss became nan at step 3 (epoch 1)"
    old = {name: value for name, value in record.items() if name != "diverged"} | {"exit_code": 2, "last_lines": said}
    path_beside(trial.folder, ".json").write_text(json.dumps(old))
    assert diverged(trial)
    path_beside(trial.folder, ".json").write_text(json.dumps(old | {"diverged": False}))
    assert not diverged(trial)


def test_each_gpu_has_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "visible_gpus", lambda: ["2", "GPU-5"])
    jobs = [job(tmp_path, "good", str(i)) for i in range(6)]
    records = run(jobs)
    assert all(record["alone"] for record in records)
    assert {read_json(each.folder / "report.json")["gpu"] for each in jobs} == {"2", "GPU-5"}


def test_an_interrupt_ends_the_runs(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "good", "a"), job(tmp_path, "endless", "b")]

    def interrupt(job: Job, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 2, interrupt)
    left = read_json(path_beside(jobs[1].folder, ".json"))
    assert "exit_code" not in left and not psutil.pid_exists(left["pid"])


def test_a_killed_comparison_leaves_nothing_running_for_the_next_one(tmp_path: Path) -> None:
    endless = job(tmp_path, "endless")
    threading.Thread(target=run, args=([endless],), daemon=True).start()
    while "pid" not in read_json(path_beside(endless.folder, ".json")):
        time.sleep(0.01)
    pid = read_json(path_beside(endless.folder, ".json"))["pid"]
    assert psutil.pid_exists(pid)
    with locked(tmp_path), pytest.raises(UserError, match="in use by another comparison"), locked(tmp_path):
        pass
    assert not psutil.pid_exists(pid)


def test_what_goes_wrong_inside_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path):
        (tmp_path / "nothing").read_text()
    with locked(tmp_path):
        pass


def test_a_folder_is_locked_in_a_thread_as_well(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def handler() -> Any:
        with locked(tmp_path):
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler).result(timeout=60) == before
    assert handler() == signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_that_took_over_the_number_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    place = tmp_path / "runs" / "arm"
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps({"pid": other.pid, "created": 1.0}))
    with locked(tmp_path):
        assert other.poll() is None
    end_processes([other.pid])
    assert other.poll() is not None


def test_gpus_keep_the_names_that_the_user_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "3,5")
    assert launching.visible_gpus() == ["3", "5"]
    monkeypatch.delitem(os.environ, "CUDA_VISIBLE_DEVICES")
    assert launching.visible_gpus() == ["0", "1"]
    monkeypatch.setitem(os.environ, "RANK", "1")
    monkeypatch.setitem(os.environ, "ACCELERATE_MIXED_PRECISION", "fp16")
    first = child_environment("3", 4)
    assert (first["CUDA_VISIBLE_DEVICES"], first["OMP_NUM_THREADS"]) == ("3", "4")
    assert not {"RANK", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"} & first.keys()
    assert (
        child_environment(None)["ACCELERATE_USE_CPU"] == "true"
        and child_environment(None)["CUDA_VISIBLE_DEVICES"] == ""
    )
