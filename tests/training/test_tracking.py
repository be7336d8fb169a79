"""metrics.jsonl always; trackers beside it, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from peft_audio.training.tracking import start_log

LINES = [{"step": 1, "loss": 2.5, "learning_rate": 0.1}, {"step": 2, "loss": float("nan")}, {"step": 2, "epoch": 1}]


@pytest.fixture(autouse=True)
def _state() -> None:
    PartialState()


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_lines_by_step(tmp_path: Path) -> None:
    log = start_log(tmp_path, ["tensorboard"], {"train.epochs": 3, "lora.layers": None, "model.name": "x"}, writes=True)
    log.write(LINES)
    log.close()
    assert read(tmp_path) == [LINES[0], {"step": 2, "loss": None}, LINES[2]]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("epoch")] == [(2, 1.0)]
    assert "step" not in events.Tags()["scalars"]


class Breaks:
    """A tracker that fails in one of its methods."""

    name = "wandb"
    where = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            self.calls.append(method)
            if method == self.where:
                raise ConnectionError("no\nroute")

        return call


@pytest.mark.parametrize("where", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_nothing_is_lost(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Breaks, "where", where)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Breaks)
    log = start_log(tmp_path, ["wandb"], {}, writes=True)
    log.write(LINES[:1])
    log.write(LINES[2:])
    log.close()
    assert read(tmp_path) == [LINES[0], LINES[2]]
    said = capsys.readouterr().err
    assert said == "note: disabled tracker wandb after an error (no route); still logging to metrics.jsonl.\n"


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = start_log(tmp_path, ["tensorboard"], {}, writes=False)
    log.write(LINES)
    log.close()
    assert list(tmp_path.iterdir()) == []
