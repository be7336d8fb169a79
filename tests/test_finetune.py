"""`fine_tune` as a notebook calls it: several runs in one process that leave no trace in it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

import peft_audio
from peft_audio import DataConfig, HeadOnlyRecipe, LoraRecipe, ModelConfig, TrainConfig, fine_tune, finetune
from peft_audio.adapters import save as saving
from peft_audio.errors import UserError
from peft_audio.runs.process_state import restored_process_state
from peft_audio.strategies import Setup
from peft_audio.strategies.head_only import train_head

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def without_verifying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)  # a fresh process; tested elsewhere


def settings(recipe: type, data: Path, base: Path, folder: Path, **train: Any) -> Any:
    given = {"epochs": 1, "batch_size": 8, "mixed_precision": "no", "verify_adapter": False} | train
    return recipe(
        data=DataConfig(source=str(data)),
        model=ModelConfig(name=str(base)),
        train=replace(recipe().train, output_dir=str(folder), **given),
    )


def flags(cfg: Any) -> list[str]:
    named = {"data.source": cfg.data.source, "model.name": cfg.model.name}
    for name in ("output_dir", "epochs", "batch_size", "mixed_precision", "seed", "verify_adapter"):
        named[f"train.{name}"] = str(getattr(cfg.train, name)).replace("False", "false")
    return [word for name, value in named.items() for word in (f"--{name}", str(value))]


def bits(folder: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
    return {name: (folder / name).read_bytes() for name in names}


def state() -> dict[str, Any]:
    """Everything that a run is to leave as it was."""
    return {
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cudnn.allow_tf32,
        "bars": (are_progress_bars_disabled(), logging.is_progress_bar_enabled(), logging.get_verbosity()),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "accelerate": [dict(kind._shared_state) for kind in (AcceleratorState, PartialState, GradientState)],
    }


def test_runs_in_one_process_have_the_bits_of_runs_in_their_own(
    tone_folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    first = settings(LoraRecipe, tone_folder, tiny_base, tmp_path / "first", deterministic=True)
    other = settings(HeadOnlyRecipe, tone_folder, tiny_base, tmp_path / "other", mixed_precision="bf16", seed=3)
    again, alone = (
        replace(cfg, train=replace(cfg.train, output_dir=str(tmp_path / name)))
        for cfg, name in ((first, "again"), (other, "alone"))
    )
    reports = [fine_tune(cfg) for cfg in (first, other, again)]
    assert [(report.strategy, report.mixed_precision, report.seed) for report in reports] == [
        ("lora", "no", 0),
        ("head_only", "bf16", 3),
        ("lora", "no", 0),
    ]
    assert bits(tmp_path / "first") == bits(tmp_path / "again")
    command = [sys.executable, str(ROOT / "recipes" / "head_only.py"), *flags(alone)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=280)
    assert bits(tmp_path / "other") == bits(tmp_path / "alone")


def test_the_process_is_as_before(tone_folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    Accelerator(mixed_precision="no")
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = state()
    cfg = settings(LoraRecipe, tone_folder, tiny_base, tmp_path / "run", max_steps=1, deterministic=True)
    report = fine_tune(replace(cfg, data=replace(cfg.data, num_workers=1)))
    assert state() == before
    stored = json.loads((tmp_path / "run" / "report.json").read_text())
    assert stored | {"folder": str(tmp_path / "run")} == json.loads(json.dumps(report.__dict__))

    def lost(*_: Any) -> None:
        raise OSError("lost")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="lost"):
        patch.setattr(finetune, "evaluate", lost)
        fine_tune(settings(LoraRecipe, tone_folder, tiny_base, tmp_path / "lost", max_steps=1, deterministic=True))
    assert state() == before
    with pytest.raises(UserError, match="already exists"):
        fine_tune(cfg)
    assert state() == before
    # The lock of the folder is free, too.
    again = replace(cfg, train=replace(cfg.train, output_dir=str(tmp_path / "lost"), overwrite=True))
    assert fine_tune(again).steps == 1


def test_changes_of_a_run_are_undone() -> None:
    before = state()
    with pytest.raises(ZeroDivisionError), restored_process_state():
        assert not PartialState._shared_state
        Accelerator(cpu=True)
        signal.signal(signal.SIGTERM, lambda *_: None)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32
        torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
        logging.disable_progress_bar()
        warnings.simplefilter("ignore")
        os.environ["PEFT_AUDIO_NEW"] = os.environ["PATH"] = "1"
        random.random(), np.random.random(), torch.rand(1)
        raise ZeroDivisionError
    assert state() == before


def test_a_finished_run_returns_its_report(
    tone_folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = settings(HeadOnlyRecipe, tone_folder, tiny_base, tmp_path / "run", max_steps=1, resume=True)
    report = fine_tune(cfg)
    monkeypatch.setattr(finetune, "load_splits", None)  # nothing is read again
    assert fine_tune(cfg) == report


def test_a_function_can_decide_what_trains(tone_folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    given: list[Setup] = []

    def head_with_a_name(model: Any, setup: Setup) -> Any:
        given.append(setup)
        model, trained = train_head(model, setup)
        return model, replace(trained, strategy="mine")

    cfg = settings(LoraRecipe, tone_folder, tiny_base, tmp_path / "run", max_steps=1)
    report = fine_tune(cfg, head_with_a_name)
    assert report.strategy == "mine"
    assert report.trainable_parameters == 32 * 16 + 16 + 16 * 2 + 2
    assert given[0].loaders is not None and given[0].accelerator is not None
    with pytest.raises(TypeError, match="TrainConfig, expected the recipe of a strategy"):
        finetune.strategy_of(TrainConfig())


def test_the_package_lists_what_is_public() -> None:
    assert dir(peft_audio) == sorted(peft_audio.__all__)
    assert {"fine_tune", "RunReport", "LoraRecipe", "TrainConfig"} <= set(dir(peft_audio))
    for name in peft_audio.__all__:
        assert getattr(peft_audio, name).__name__ == name


OLD_RECIPE = """
import time

from {module} import make_accelerator
from peft_audio.config import LoraRecipe, run_recipe
"""


@pytest.mark.parametrize("module", ["accelerator", "arithmetic", "baseline"])
def test_a_recipe_of_an_earlier_version_is_answered_in_a_line(module: str, tmp_path: Path) -> None:
    recipe = tmp_path / "old.py"
    recipe.write_text(OLD_RECIPE.format(module=f"peft_audio.{module}"), encoding="utf-8")
    ended = subprocess.run([sys.executable, str(recipe)], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "`from peft_audio import LoraRecipe, fine_tune`" in ended.stderr
