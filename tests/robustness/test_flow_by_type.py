"""What the program does depends on classes and exit codes of errors: all of it holds with every message replaced."""

from __future__ import annotations

import errno
import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from helpers.adapt import adapt
from helpers.tones import divide, write_tone

from peft_audio import cli
from peft_audio.audio.pyav import AudioError
from peft_audio.checks.collection import check
from peft_audio.comparison import jobs as launching
from peft_audio.comparison.jobs import Job, diverged, finished, run_jobs
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.comparison.tuning import tune
from peft_audio.config import DataConfig, ModelConfig, parse_config, run_recipe
from peft_audio.data.dataset import Clips
from peft_audio.data.loaders import Loaders, make_loaders
from peft_audio.data.splits import load_splits
from peft_audio.encoders.loading import load_classifier, load_extractor
from peft_audio.errors import DivergedError, ResumeError, Stopped, UserError
from peft_audio.feature_cache import store as feature_store
from peft_audio.feature_cache.cache import cache_frozen_prefix
from peft_audio.runs.folder import checkpoint_to_resume, on_first, path_beside
from peft_audio.strategies import LoraRecipe
from peft_audio.training.checkpointing import write_checkpoint
from peft_audio.training.hardware import resolve_auto

# Python imports this module at the start of every child process that has its folder in PYTHONPATH.
SITECUSTOMIZE = """
from peft_audio.audio.pyav import AudioError
from peft_audio.errors import Stopped, UserError
for kind in (AudioError, Stopped, UserError):
    kind.__str__ = lambda error: "x"
"""


@pytest.fixture(autouse=True)
def replaced_messages(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every message of this package by "x", here, in workers of loaders and in child processes."""
    folder = tmp_path_factory.mktemp("replaced")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for kind in (AudioError, Stopped, UserError):
        monkeypatch.setattr(kind, "__str__", lambda error: "x")


def test_messages_of_child_processes_are_replaced() -> None:
    code = "from peft_audio.errors import DivergedError; print(DivergedError('the loss became nan'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "x\n"


def test_kinds_of_check(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(3):
            write_tone(tmp_path / name / f"{i}.wav", 300 + 50 * i, seed=i)
    rate, folder = 16_000, tmp_path / "a"
    (folder / "none.wav").touch()
    soundfile.write(folder / "no_samples.wav", np.zeros(0, np.float32), rate)
    soundfile.write(folder / "zeros.wav", np.zeros(8_000, np.float32), rate)
    soundfile.write(folder / "nan.wav", np.full(8_000, np.nan, np.float32), rate, subtype="FLOAT")
    (folder / "text.wav").write_text("no recording" * 100)
    found = {finding.what: len(finding.files) for finding in check(DataConfig(source=str(tmp_path))).findings}
    faults = {"empty": 2, "silent": 1, "NaN or infinite samples": 1, "unreadable": 1}
    assert {name: found.get(name) for name in faults} == faults


@pytest.mark.slow
def test_tuning_goes_on_after_divergence(
    tone_folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "visible_gpus", list)
    tones = divide(tone_folder, tmp_path / "tones", {"train": (4, 4), "validation": (2, 2), "test": (2, 2)})
    own = "{wild: {recipe: lora, learning_rates: [1.0e+30, 1.0e-3]}}"
    flags = ["--output_dir", str(tmp_path / "compared"), "--arms", "[wild]", "--own_arms", own, "--trials", "2"]
    flags += ["--reference", "wild", "--seeds", "1", "--extra_trials", "0", "--train.epochs", "2"]
    flags += ["--data.source", str(tones), "--model.name", str(tiny_base)]
    cfg = resolve_auto(parse_config(CompareRecipe, flags))
    records: list[dict[str, Any]] = []

    def run(jobs: Sequence[Job], costs_count: bool) -> None:
        wild, good = jobs
        run_jobs([wild], 1, lambda job, record: records.append(record))
        good.folder.mkdir(parents=True)
        report = {"strategy": "lora", "validation_macro_f1": 0.5, "validation_loss": 0.5}
        (good.folder / "report.json").write_text(json.dumps(report))
        record = {"recipe": good.recipe, "flags": good.flags, "exit_code": 0, "diverged": False}
        path_beside(good.folder, ".json").write_text(json.dumps(record))
        assert [(diverged(job), finished(job)) for job in jobs] == [(True, False), (False, True)], records

    (chosen,) = tune(cfg, run, {}).values()
    assert chosen == 1e-3
    assert [record["exit_code"] for record in records] == [DivergedError.exit_code]


def prepared(tones: Path, base: Path, folder: Path, workers: int) -> tuple[Any, Loaders, Loaders]:
    """A model, its loaders, and what the feature cache makes of them."""
    flags = ["--data.source", str(tones), "--model.name", str(base), "--data.num_workers", str(workers)]
    flags += ["--prefix_cache.folder", str(folder), "--prefix_cache.use", "always", "--train.batch_size", "4"]
    cfg, accelerator = parse_config(LoraRecipe, flags), Accelerator(cpu=True)
    splits = load_splits(cfg.data)
    model = load_classifier(cfg.model, splits.labels)
    loaders = make_loaders(splits, load_extractor(cfg.model), model.config, cfg, accelerator)
    model, trained = adapt(model, cfg)
    return model, loaders, cache_frozen_prefix(model, trained, loaders, cfg, accelerator)[1]


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "x", "x")


@pytest.mark.parametrize(
    ("workers", "owner", "name"), [(0, feature_store, "write_atomically"), (1, Clips, "__getitem__")]
)
def test_training_does_without_the_feature_cache_if_the_disk_is_full(
    workers: int, owner: Any, name: str, tone_folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, full)
        _, plain, kept = prepared(tone_folder, tiny_base, tmp_path / "kept", workers)
    assert kept.prefix.reason and not kept.prefix.cached
    assert kept.train is plain.train and kept.validation is plain.validation


def settings_of(folder: Path, overwrite: bool) -> LoraRecipe:
    flags = ["--train.output_dir", str(folder), "--train.resume", "true", "--train.overwrite", str(overwrite).lower()]
    return parse_config(LoraRecipe, flags)


def test_resuming_is_refused(tmp_path: Path) -> None:
    about = {"settings": {"lora.r": 8}, "made_with": {}}
    state = {"about": about, "position": {"step": 1, "log_bytes": 0}, "run_seconds": 1.0, "best_folder": None}
    for step in (1, 2):
        write_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}", state, {"trained": {"w": torch.ones(1)}})
    (tmp_path / "checkpoints" / "step-00000002" / "state.json").write_text("{")
    found = checkpoint_to_resume(tmp_path, settings_of(tmp_path, overwrite=False), about)
    assert found is not None and found.folder.name == "step-00000001"
    other = about | {"settings": {"lora.r": 4}}
    with pytest.raises(ResumeError):
        checkpoint_to_resume(tmp_path, settings_of(tmp_path, overwrite=False), other)
    assert checkpoint_to_resume(tmp_path, settings_of(tmp_path, overwrite=True), other) is None
    (tmp_path / "checkpoints" / "step-00000001" / "state.json").write_text("{")
    with pytest.raises(ResumeError):
        checkpoint_to_resume(tmp_path, settings_of(tmp_path, overwrite=False), about)
    with pytest.raises(ResumeError):
        on_first(
            SimpleNamespace(is_main_process=True, num_processes=1),
            lambda: checkpoint_to_resume(tmp_path, settings_of(tmp_path, overwrite=False), about),
        )  # type: ignore[arg-type]


ENDINGS = [
    (UserError("a"), 2),
    (DivergedError("a"), 4),
    (ResumeError("a"), 2),
    (OSError(errno.ENOSPC, "a"), 2),
    (MemoryError(), 2),
    (KeyboardInterrupt(), 130),
]


def raising(error: BaseException) -> Callable[..., Any]:
    def run(*_: Any) -> Any:
        raise error

    return run


@pytest.mark.parametrize(("error", "code"), ENDINGS)
def test_exit_codes_of_the_command(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_audio.cli.cache.run_cache", raising(error))
    assert cli.main(["cache"]) == code


@pytest.mark.parametrize(("error", "code"), [*ENDINGS, (Stopped("a", signal.SIGTERM), 143)])
def test_exit_codes_of_a_recipe(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe"])
    with pytest.raises(SystemExit) as ended:
        run_recipe(raising(error), LoraRecipe)
    assert ended.value.code == code


@pytest.mark.parametrize(
    "error",
    [
        AudioError("a", "silent"),
        *(
            pytest.param(error, marks=pytest.mark.slow)
            for error in (DivergedError("a"), ResumeError("a"), OSError(errno.ENOSPC, "full", "here"))
        ),
    ],
)
def test_errors_keep_class_and_attributes_on_their_way_from_a_worker(
    error: Exception, tone_folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    data, encoder = DataConfig(source=str(tone_folder), num_workers=1), ModelConfig(name=str(tiny_base))
    cfg = LoraRecipe(data=data, model=encoder)
    model = load_classifier(cfg.model, ["high", "low"])
    loaders = make_loaders(load_splits(cfg.data), load_extractor(cfg.model), model.config, cfg, Accelerator(cpu=True))
    monkeypatch.setattr(Clips, "__getitem__", raising(error))
    with pytest.raises(type(error)) as caught:
        next(iter(loaders.train))
    assert caught.value.args == error.args
    assert getattr(caught.value, "fault", "") == getattr(error, "fault", "")
    assert "in DataLoader worker process 0" in caught.value.__notes__[0]
