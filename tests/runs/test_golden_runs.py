"""The golden runs, made by an earlier version: this one reads them, reports on them and resumes them.

`scripts/make_golden_runs.py` made them. A change that fails here breaks the runs of users.
"""

from __future__ import annotations

import json
import math
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from peft_audio.adapters.load import load_adapter
from peft_audio.cli import main
from peft_audio.encoders.loading import versions, weights_sha256
from peft_audio.runs.finished import epochs_of, predictions_of, read_run

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
# Sentences of a comparison, whose wording may change, and the time of a file.
SENTENCES = {"broken_rules", "claim", "budget"}
# Later versions note other things.
NOT_COMPARED = {"created_at", "notes"}

Resume = Callable[..., str]


@pytest.fixture
def resume(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Resume]:
    """Resume a LoRA run with its own settings, as its command line does; return what it prints."""
    # Paths in the settings are relative to the root of the repository.
    monkeypatch.chdir(ROOT)

    def call(folder: Path) -> str:
        flags = ["--config", str(folder / "config.yaml"), "--train.output_dir", str(folder), "--train.resume", "true"]
        monkeypatch.setattr(sys, "argv", ["lora.py", *flags])
        runpy.run_path("recipes/lora.py", run_name="__main__")
        return capsys.readouterr().out

    yield call
    AcceleratorState._reset_state(reset_partial_state=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten a JSON value into paths and plain values; of a sentence remains only that it is there."""
    name = where.rpartition("/")[2]
    if isinstance(value, dict):
        for key in value.keys() - NOT_COMPARED:
            yield from leaves(value[key], f"{where}/{key}")
    elif isinstance(value, list):
        yield f"{where}/length", len(value)
        for i, each in enumerate([] if name in SENTENCES else value):
            yield from leaves(each, f"{where}/{i}")
    else:
        yield where, bool(value) if name in SENTENCES else value


def same(expected: Any, found: Any) -> bool:
    """Compare numbers up to rounding, and anything else exactly."""
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return math.isclose(expected, found, rel_tol=1e-9, abs_tol=1e-12)
    return type(expected) is type(found) and expected == found


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    run = read_run(shutil.copytree(GOLDEN / "run", tmp_path / "run"))
    assert (run.report["strategy"], run.seed, run.fold, run.learning_rate) == ("lora", 0, None, 1e-3)
    assert (run.final, run.control) == (True, False)
    assert run.settings["model.name"] == "tests/golden/golden-base"
    found = predictions_of(run)
    assert len(found) == run.report["test_clips"] == 300
    assert (found.clips["label"] == found.decided).mean() == pytest.approx(run.report["test_accuracy"])
    for metric in ("loss", "accuracy", "macro_f1"):
        assert found.metric(metric) == pytest.approx(run.report[f"test_{metric}"], abs=1e-6)
    epochs = epochs_of(run.folder)
    assert [line["epoch"] for line in epochs] == [1, 2]
    best = epochs[run.report["best_epoch"] - 1]
    assert best["validation_accuracy"] == pytest.approx(run.report["validation_accuracy"], abs=1e-6)


def test_the_adapter_of_a_finished_run_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    adapter = load_adapter(Path("tests/golden/run/adapter"))
    assert len(adapter.labels) == 10


def test_resuming_a_finished_run_leaves_it_as_it_is(resume: Resume, tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "run", tmp_path / "run")
    printed = resume(folder)
    assert "finished" in printed
    assert contents(folder) == contents(GOLDEN / "run")


def test_a_comparison_is_reported_with_the_same_figures(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "comparison", tmp_path / "comparison")
    expected = read_json(folder / "comparison.json")
    assert [arm["name"] for arm in expected["arms"] if arm["rank"]] and not expected["broken_rules"]
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    # Later versions may add fields. They do not rank these arms, which are no better than always answering one digit.
    written = read_json(tmp_path / "out" / "comparison.json")
    assert written["metric"] == "accuracy"
    assert [arm["against_majority"] and arm["against_majority"]["better"] for arm in written["arms"]][:2] == [False] * 2
    judged = ("rank", "claim", "p_holm", "front", "order", "notes/length")
    found = dict(leaves(written))
    # The settings of its runs are shown by their names of today.
    today = json.dumps(expected).replace('"augment.mask_time_frames": 10', '"augment.mask_time_ms": 200.0')
    lines = {
        where: (value, found.get(where, "missing"))
        for where, value in leaves(json.loads(today))
        if not any(name in where for name in judged)
    }
    assert {where: pair for where, pair in lines.items() if not same(*pair)} == {}


def test_a_comparison_that_lost_a_run_is_not_ranked(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "comparison", tmp_path / "comparison")
    (lost,) = (folder / "runs" / "lora").glob("final-*-seed4")
    shutil.rmtree(lost)
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 1
    found = read_json(tmp_path / "out" / "comparison.json")
    assert len(found["broken_rules"]) >= 2  # a run is missing, and four seeds are too few
    assert {arm["rank"] for arm in found["arms"]} == {None}
    lora = next(arm for arm in found["arms"] if arm["name"] == "lora")
    assert [failure["run"] for failure in lora["failures"]] == [f"runs/lora/{lost.name}"]


def test_a_checkpoint_is_resumed_to_the_recorded_figures(resume: Resume, tmp_path: Path) -> None:
    expected = read_json(GOLDEN / "uninterrupted.json")
    folder = shutil.copytree(GOLDEN / "checkpoint", tmp_path / "run")
    before = (folder / "metrics.jsonl").read_bytes()
    resume(folder)
    report = read_json(folder / "report.json")
    assert report["resumes"] == 1
    assert not (folder / "checkpoints").exists()
    assert (folder / "metrics.jsonl").read_bytes().startswith(before)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = {
        "weights_sha256": weights_sha256(load_file(folder / "adapter" / "adapter_model.safetensors")),
        "report": {name: report.get(name) for name in expected["report"]},
        "metrics": [json.loads(line) for line in lines],
    }
    processor = runpy.run_path(str(ROOT / "scripts" / "make_golden_runs.py"))["processor"]()
    if expected["versions"] == versions() and expected["processor"] == processor:
        assert found == {name: expected[name] for name in found}
        return
    # Other versions and processors add in another order.
    assert found["report"] == pytest.approx(expected["report"], abs=1e-4)
    for line, recorded in zip(found["metrics"], expected["metrics"], strict=True):
        assert line == pytest.approx(recorded, abs=1e-4)


def test_golden_runs_name_no_machine() -> None:
    local = [f"{path}/".encode() for path in (ROOT, Path.home(), Path(sys.prefix), "/work", "/tmp", "/root", "/home")]
    places = [GOLDEN / name for name in ("run", "comparison", "checkpoint", "uninterrupted.json")]
    files = [path for place in places for path in [place, *place.rglob("*")] if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1.5e6
    assert [path for path in files if any(name in path.read_bytes() for name in local)] == []


def test_a_comparison_with_arms_that_earlier_versions_described_is_reported(tmp_path: Path) -> None:
    """In version 0.1.0 `full_l2` and others were arms of the package, which comparison.yaml did not describe."""
    folder = shutil.copytree(GOLDEN / "comparison", tmp_path / "comparison")
    (folder / "runs" / "lora").rename(folder / "runs" / "full_l2")
    for path in (folder / "runs.json", *folder.glob("runs/full_l2/*.json")):
        path.write_text(
            path.read_text().replace('"arm": "lora"', '"arm": "full_l2"').replace("runs/lora/", "runs/full_l2/")
        )
    settings = yaml.safe_load((folder / "comparison.yaml").read_text())
    del settings["own_arms"]["lora"]
    settings |= {"arms": ["head_only", "full_l2", "majority"], "reference": "full_l2"}
    (folder / "comparison.yaml").write_text(yaml.safe_dump(settings))
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    found = read_json(tmp_path / "out" / "comparison.json")
    assert {arm["name"] for arm in found["arms"]} == {"head_only", "full_l2", "majority"}
    assert found["reference"] == "full_l2"
