"""A division of the tones and a function that runs recipes on it, for the tests of training and resuming."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.recipe_runs import Go
from helpers.tones import divide

from peft_audio import fine_tune
from peft_audio.config import run_recipe
from peft_audio.strategies import STRATEGIES
from peft_audio.training.checkpointing import Saver


@pytest.fixture(scope="module")
def tones(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 clips to train on, in steps of 6, 6 and 1."""
    counts = {"train": (7, 6), "validation": (3, 2), "test": (2, 2)}
    return divide(tone_folder, tmp_path_factory.mktemp("data") / "tones", counts)


@pytest.fixture
def go(tones: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Go]:
    """Run a recipe as its command line does; a signal comes behind the step that is given. Gives the exit code."""

    def call(recipe: str, folder: Path, *flags: str, stop: tuple[int, int] | None = None) -> int:
        settings = {"data.source": tones, "model.name": tiny_base, "train.output_dir": folder, "train.epochs": 3}
        settings |= {"train.batch_size": 6, "train.resume": True, "train.verify_adapter": False}
        words = [part for name, value in settings.items() for part in (f"--{name}", str(value).replace("True", "true"))]
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *words, *flags])
        plain = Saver.save_if_due

        def signalled(saver: Saver, at: Any) -> None:
            if stop and at.step == stop[0] and at.step_in_epoch:
                signal.raise_signal(stop[1])
            plain(saver, at)

        with monkeypatch.context() as patched:
            patched.setattr(Saver, "save_if_due", signalled)
            try:
                run_recipe(fine_tune, STRATEGIES[recipe].recipe)
            except SystemExit as ended:
                return int(ended.code or 0)
        return 0

    yield call
