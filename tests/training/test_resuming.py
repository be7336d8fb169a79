"""A run that is stopped anywhere and started again ends, bit for bit, as one that nobody stopped."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers.matrix import first_quick
from helpers.recipe_runs import Go
from helpers.tiny_encoders import save_base
from robustness import chaos
from safetensors.torch import load_file, save_file

from peft_audio.data.streaming import StreamLoader
from peft_audio.errors import UserError
from peft_audio.evaluation import run_split as evaluation
from peft_audio.runs import folder as run_folder
from peft_audio.runs import run
from peft_audio.runs.predictions import read_predictions
from peft_audio.strategies import LoraRecipe
from peft_audio.tasks import task_of
from peft_audio.training import loop as training
from peft_audio.training import micro_batches as memory
from peft_audio.training.checkpointing import (
    MANIFEST,
    STATE,
    discard_newer,
    keep_newest,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


CASES = [
    "lora, augmented",
    "head only",
    "last layer, accumulation",
    "full, 8-bit optimizer",
    "lora, bf16",
    "lora, workers",
]


@pytest.mark.parametrize("name", first_quick(CASES))
def test_stopped_by_signals_and_started_again_it_ends_in_the_same_bits(name: str, go: Go, tmp_path: Path) -> None:
    recipe, flags, _ = chaos.CASES[name]
    whole, one = tmp_path / "whole", tmp_path / "one"
    assert go(recipe, whole, *flags) == 0
    # In the middle of an epoch, behind its last step, and in the last one.
    for step, number in ((2, signal.SIGTERM), (6, signal.SIGUSR1), (8, signal.SIGINT)):
        assert go(recipe, one, *flags, stop=(step, number)) == 128 + number
        assert not {"adapter", "model", "report.json"} & names(one)
        kept = sorted(path.name for path in (one / "checkpoints").glob("step-*"))
        assert kept[-1] == f"step-{step:08d}"
        assert len(kept) <= 2
    assert go(recipe, one, *flags) == 0
    assert chaos.unlike(whole, one) == []
    assert json.loads((one / "report.json").read_text())["resumes"] == 3
    assert not (one / "checkpoints").exists()


@pytest.fixture(scope="module")
def stopped(tones: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was stopped after four steps, two checkpoints kept; its data and encoder stand beside it."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tones, folder / "data")
    shutil.copytree(tiny_base, folder / "base")
    return folder


@pytest.fixture
def place(stopped: Path, go: Go, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Go on with a copy of the stopped run; gives exit code and what was printed."""
    flags = ["--data.source", str(stopped / "data"), "--model.name", str(stopped / "base")]
    flags += ["--train.checkpoint_every_steps", "2"]
    if not (stopped / "run").exists():
        assert go("lora", stopped / "run", *flags, stop=(4, signal.SIGTERM)) == 143
        capsys.readouterr()

    def again(folder: Path, *more: str) -> tuple[int, str]:
        code = go("lora", folder, *flags, *more)
        said = capsys.readouterr()
        return code, said.out + said.err

    return again


def test_another_run_is_refused_and_what_differs_is_said(
    stopped: Path, place: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    run = shutil.copytree(stopped / "run", tmp_path / "run")
    code, said = place(run, "--train.learning_rate", "0.5", "--lora.r", "4")
    assert code == 2
    assert "lora.r 8 there, 4 here; train.learning_rate 0.001 there, 0.5 here" in said
    weights = stopped / "base" / "model.safetensors"
    kept, clip = weights.read_bytes(), stopped / "data" / "train" / "high" / "more.wav"
    save_base(tmp_path / "other", "group")
    changed = load_file(tmp_path / "other" / "model.safetensors")
    save_file({name: value + 0.5 for name, value in changed.items()}, weights, {"format": "pt"})
    code, said = place(run)
    weights.write_bytes(kept)
    assert (code, "encoder " in said and " there, " in said) == (2, True)
    shutil.copy(next((stopped / "data" / "test" / "high").glob("*.wav")), clip)
    code, said = place(run)
    clip.unlink()
    assert (code, "recordings " in said and "splits " in said) == (2, True)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    found = read_checkpoint(newest)
    shutil.rmtree(newest)
    about = found.state["about"] | {"device": "cuda"}
    write_checkpoint(newest, found.state | {"about": about}, found.tensors)
    code, said = place(run)
    assert (code, "device cuda there, cpu here" in said) == (2, True)
    # With train.overwrite, what does not fit is replaced.
    code, said = place(run, "--lora.r", "4", "--train.overwrite", "true")
    assert (code, "tarting from scratch" in said) == (0, True)
    assert "resuming from" not in said


def test_a_finished_run_stays_and_an_absent_one_starts_afresh(
    stopped: Path, place: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, said = place(tmp_path / "run")
    assert (code, "no checkpoint in" in said) == (0, True)
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, said = place(tmp_path / "run")
    assert (code, "is finished; nothing is left to do" in said) == (0, True)
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, said = place(tmp_path / "run", "--train.epochs", "4")
    assert (code, "is finished, with other settings (train.epochs 3 there, 4 here)" in said) == (2, True)
    # Killed between the report and the adapter's appearance.
    (tmp_path / "run" / "adapter").rename(tmp_path / "run" / "adapter.partial")
    assert place(tmp_path / "run")[0] == 0
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_processes_get_the_path_of_a_checkpoint_and_read_it_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"trained": {"weight": torch.randn(1000)}}
    write_checkpoint(tmp_path / "best-00000001", {"epoch": 1}, weights)
    write_checkpoint(tmp_path / "step-00000004", {"best_folder": "best-00000001"}, weights)
    found = read_checkpoint(tmp_path / "step-00000004")
    monkeypatch.setattr(run, "_prepare", lambda *_: found)
    sent: list[bytes] = []

    def broadcast(values: list[Any], first: bool) -> None:
        if first:
            sent.append(pickle.dumps(values))
        else:
            values[:] = pickle.loads(sent[0])

    read = []
    for first in (True, False):
        monkeypatch.setattr(run_folder, "broadcast_object_list", partial(broadcast, first=first))
        process: Any = SimpleNamespace(is_main_process=first, num_processes=2)
        nothing: Any = None
        read.append(run._prepare_on_all(tmp_path, LoraRecipe(), nothing, {}, process))
    assert len(sent[0]) < 1000, "the weights alone take 4,000 bytes"
    for each in read:
        assert each.folder == found.folder and each.state == found.state
        assert all(each.tensors[file]["weight"].equal(weights["trained"]["weight"]) for file in ("trained", "best"))


def test_damaged_checkpoints_are_passed_over_and_never_unpickled(
    stopped: Path, place: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    run = shutil.copytree(stopped / "run", tmp_path / "run")
    (old, new) = sorted((run / "checkpoints").glob("step-*"))

    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    (new / "optimizer.pt").write_bytes(pickle.dumps(Payload()))
    data = bytearray((new / "trained.safetensors").read_bytes())
    data[-1] ^= 1
    (new / "trained.safetensors").write_bytes(data)
    code, said = place(run, "--train.max_steps", "100")
    assert "trained.safetensors was changed after it was written); using the one before it" in said
    assert f"--train.resume: the run in {run} is another one (train.max_steps None there, 100 here)" in said
    (old / MANIFEST).unlink()
    code, said = place(run)
    assert (code, "all checkpoints in" in said and "--train.overwrite true" in said) == (2, True)
    assert not (tmp_path / "executed").exists()


def test_a_log_that_was_cut_is_noticed(stopped: Path, place: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    run = shutil.copytree(stopped / "run", tmp_path / "run")
    (run / "metrics.jsonl").write_text("")
    code, said = place(run)
    assert (code, "metrics.jsonl was removed or cut" in said) == (2, True)


def test_one_run_a_folder(go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(tmp_path / ".run.lock"):
        assert go("lora", tmp_path / "run") == 2
    assert "another run is using" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def write(folder: Path, step: int, best: str | None = None) -> Path:
    target = folder / f"step-{step:08d}"
    write_checkpoint(target, {"step": step, "best_folder": best}, {"trained": {"w": torch.full((3,), float(step))}})
    return target


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path, 1)
    calls = []

    def fails(handle: int) -> None:
        calls.append(handle)
        if len(calls) == broken_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("peft_audio.files.os.fsync", fails)
    for each in range(1, 5):  # each file, and the folder
        calls.clear()
        broken_at = each
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, 2)
        assert [path.name for path in tmp_path.iterdir()] == [first.name]
    found = newest_checkpoint(tmp_path, print)
    assert found and torch.equal(found.tensors["trained"]["w"], torch.ones(3))


def test_the_newest_stay_with_the_best_weights_that_they_name(tmp_path: Path) -> None:
    for epoch in (1, 2):
        write_checkpoint(tmp_path / f"best-{epoch:08d}", {}, {"trained": {"w": torch.full((3,), epoch / 2)}})
    for step, best in ((1, "best-00000001"), (2, "best-00000001"), (3, "best-00000002"), (4, "best-00000002")):
        write(tmp_path, step, best)
    (tmp_path / "step-00000005.partial").mkdir()
    keep_newest(tmp_path, 2)
    assert sorted(names(tmp_path)) == ["best-00000002", "step-00000003", "step-00000004"]
    found = newest_checkpoint(tmp_path, print)
    assert found and found.state["step"] == 4 and torch.equal(found.tensors["best"]["w"], torch.ones(3))


def test_what_stands_behind_the_checkpoint_that_is_used_goes(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        write_checkpoint(tmp_path / f"best-{epoch:08d}", {}, {"trained": {"w": torch.zeros(3)}})
    for step, best in ((4, "best-00000001"), (6, "best-00000002"), (8, "best-00000003")):
        write(tmp_path, step, best)
    # Its best weights would otherwise be taken for those of the epoch when that is made again.
    for damaged in ("step-00000008/state.json", "best-00000003/trained.safetensors"):
        (tmp_path / damaged).write_text("")
    found = newest_checkpoint(tmp_path, print)
    assert found and found.state["step"] == 6
    discard_newer(found)
    assert names(tmp_path) == {"step-00000004", "step-00000006", "best-00000001", "best-00000002"}


@pytest.mark.parametrize("best", ["../best-00000001", "best-00000009", 3, ["best-00000001"]])
def test_best_weights_are_read_from_beside_the_checkpoint_only(best: Any, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    write_checkpoint(tmp_path / "best-00000001", {}, {"trained": {}})
    write(root, 1, best)
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        newest_checkpoint(root, print)


def test_a_manifest_names_no_file_elsewhere(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoints", 1)
    (tmp_path / "secret").write_text("x")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"../../secret": manifest[STATE]}))
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(folder)


def test_a_loss_that_is_no_number_names_its_clips_and_leaves_the_last_good_state(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, steps, bad = training.clip_losses, [], []

    def breaks(model: Any, batch: Any, *args: Any) -> torch.Tensor:
        losses = real(model, batch, *args)
        steps.append(1)
        if len(steps) > 3 and len(losses) > 1 and not bad:
            bad.append(len(steps))
            losses = torch.where(torch.arange(len(losses)) == 1, math.nan, 1.0) * losses
        return losses

    monkeypatch.setattr(training, "clip_losses", breaks)
    assert go("lora", tmp_path / "run", "--train.checkpoint_every_steps", "1") == 4
    said = capsys.readouterr().err
    assert f"the loss became nan at step {bad[0]} (epoch 2); clips: train/" in said
    assert said.count(".wav") == 1
    root = tmp_path / "run" / "checkpoints"
    assert sorted(names(root))[-1] == f"step-{bad[0] - 1:08d}"
    kept = newest_checkpoint(root, print)
    assert kept and all(value.isfinite().all() for value in kept.tensors["trained"].values())


def test_auto_micro_batch_takes_the_largest_that_fits_and_changes_nothing_else(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = memory.clip_losses

    def small(model: Any, batch: Any, *args: Any) -> torch.Tensor:
        if len(batch["label"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, batch, *args)

    flags, most = ["--lora.dropout", "0.3"], 2
    given = [*flags, "--train.gradient_accumulation_steps", "4"]
    assert go("lora", tmp_path / "given", *given) == 0
    monkeypatch.setattr(memory, "clip_losses", small)
    monkeypatch.setattr(training, "clip_losses", small)
    assert go("lora", tmp_path / "found", *flags, "--train.auto_micro_batch", "true") == 0
    assert json.loads((tmp_path / "found" / "report.json").read_text())["micro_batches"] == 4
    # The runs evaluate in batches of different sizes, which may change the last bits of logits.
    assert set(chaos.unlike(tmp_path / "given", tmp_path / "found")) <= {"predictions.parquet"}
    given, found = (read_predictions(tmp_path / run / "predictions.parquet") for run in ("given", "found"))
    np.testing.assert_allclose(found.logits, given.logits, atol=1e-5)
    most = 0
    capsys.readouterr()
    assert go("lora", tmp_path / "none", "--train.auto_micro_batch", "true") == 2
    assert "one clip does not fit into memory" in capsys.readouterr().err
    assert go("lora", tmp_path / "out") == 2
    assert "memory is too small" in capsys.readouterr().err


def test_evaluation_draws_nothing_from_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "model_logits", lambda model, batch: torch.rand(len(batch["index"]), 2))
    model = SimpleNamespace(eval=lambda: None, config=SimpleNamespace(num_labels=2))
    batch = dict.fromkeys(("index", "recording", "label"), torch.zeros(3, dtype=torch.long))
    before = torch.get_rng_state()
    rows = evaluation.compute_logits(model, [batch], torch.device("cpu"), task_of())
    assert rows["logits"].shape == (3, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stream_goes_on_behind_what_was_trained_on() -> None:
    stream = SimpleNamespace(skipped={})
    batches = [({"at": torch.tensor(i)}, [(f"clip {i}", "is silent")]) for i in range(6)]
    loader = StreamLoader(batches, stream)  # type: ignore[arg-type]
    loader.skip(4)
    assert [int(batch["at"]) for batch in loader] == [4, 5]
    assert len(stream.skipped) == 6
