"""What goes wrong in a run is told in words: a few rows of tests/robustness/faults.py, and what its first run found."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from robustness import faults
from robustness.fault_stage import open_theatre
from safetensors.torch import load_file, save_file

from peft_audio import cli
from peft_audio.adapters import save as saving
from peft_audio.config import ModelConfig, run_recipe
from peft_audio.encoders.loading import load_classifier
from peft_audio.errors import UserError, explain, unloadable
from peft_audio.processes import run_python
from peft_audio.strategies import LoraRecipe
from peft_audio.training.checkpointing import keep_newest, newest_checkpoint, write_checkpoint
from peft_audio.training.hardware import resolve_auto

# A row of each kind: an input, a clip that goes, what a run goes on without, a signal, and two of those that resume.
ROWS = [
    "settings: a YAML file with a Python object in it",
    "recordings: a clip vanishes between scan and training",
    "tracker: TensorBoard's disk is away",
    "signals: SIGTERM while recordings are read",
    "resume: the newest checkpoint's state is damaged",
    "resume: pickles with a payload beside the checkpoint",
]


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HF_ASSETS_CACHE"):
            patch.setenv(name, "1")  # what the theatre sets is put back
        yield open_theatre(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("row", ROWS)
def test_a_fault_is_told(row: str, theatre: Any) -> None:
    (case,) = [case for case in faults.CASES if f"{case.group}: {case.fault}" == row]
    told, problems = faults.play(case, theatre)
    assert not problems, told


@pytest.mark.parametrize(
    "content", ['{"model_type": "wav', '{"model_type": "evil", "auto_map": {"AutoConfig": "e.E"}}']
)
def test_settings_of_an_encoder_that_cannot_be_read_or_name_code(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked to run code"))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="cannot be loaded"):
        resolve_auto(LoraRecipe(model=ModelConfig(name=str(tmp_path))))


def test_an_encoder_with_nan_in_it_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.layers.1.attention.q_proj.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"holds NaN or infinity in encoder\.layers\.1\.attention\.q_proj\.weight"):
        load_classifier(ModelConfig(name=str(tmp_path)), ["a", "b"])


def test_a_lost_connection_is_told_as_one() -> None:
    error = LocalEntryNotFoundError("we cannot find the requested files in the local cache")
    error.__cause__ = TimeoutError("timed out")
    assert "the Hub was not reached, or the connection was lost (timed out)" in str(unloadable("org/tiny", error))


def test_what_the_hub_answers_is_told() -> None:
    text = "404 Client Error.\n\nRepository Not Found for url: http://hub/org/tiny.\nPlease be authenticated."
    request = SimpleNamespace(url="http://hub/org/tiny", method="GET", headers={})
    response = SimpleNamespace(headers={}, status_code=404, request=request, url=request.url)
    told = str(unloadable("org/tiny", RepositoryNotFoundError(text, response=response)))
    assert "Repository Not Found" in told
    assert "be authenticated" in told


def test_the_reason_behind_a_heading_is_told() -> None:
    error = ValueError("Validation error for field 'hidden_size':\n    TypeError: expected int, got str\n    more")
    assert str(unloadable("x", error)).startswith(
        "--model.name: x cannot be loaded: Validation error for field 'hidden_size': TypeError: expected int, got str."
    )


def test_torchs_advice_to_unpickle_is_not_passed_on(tmp_path: Path) -> None:
    told = str(unloadable(str(tmp_path), RuntimeError("Weights only load failed. Re-running with weights_only=False")))
    assert "a pickle that holds more than weights" in told
    assert "Re-running" not in told


def test_what_the_machine_raised_is_told() -> None:
    gone = FileNotFoundError(errno.ENOENT, "No such file", "runs/x/metrics.jsonl")
    assert "runs/x/metrics.jsonl does not exist" in (explain(gone, "runs/x") or "")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert "the disk is full, most likely that of runs/x" in (explain(full, "runs/x") or "")
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    assert "another process of this run ended" in (explain(lost, "runs/x") or "")
    kernel = RuntimeError("put_ does not have a deterministic implementation, but you set ...")
    assert "--train.deterministic: torch has no deterministic kernel for an operation (put_ does" in (
        explain(kernel, "runs/x") or ""
    )
    assert explain(RuntimeError("a bug of ours"), "runs/x") is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_command_tells_that_the_disk_is_full(unbuffered: str, tmp_path: Path) -> None:
    # So little is printed that only the end of the process writes it.
    command = [sys.executable, "-m", "peft_audio.cli", "cache", "--folder", str(tmp_path)]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=env)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the disk is full")
    assert len(ended.stderr.splitlines()) == 1


def test_a_command_tells_how_to_use_less_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("peft_audio.cli.cache.run_cache", run)
    assert cli.main(["cache"]) == 2
    told = capsys.readouterr().err
    assert "memory is too small" in told
    assert "--batch-size" in told
    assert "--train." not in told


def test_a_signal_outside_of_training_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(_: LoraRecipe) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:  # what catches errors does not catch it
            pytest.fail("taken for an error")

    monkeypatch.setattr(sys, "argv", ["recipe"])
    with pytest.raises(SystemExit) as ended:
        run_recipe(main, LoraRecipe)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_damaged_checkpoint_does_not_stop_a_run_that_keeps_others(tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / f"step-{step:08d}", {"best_folder": None}, {"trained": {"w": torch.ones(1)}})
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    keep_newest(tmp_path, 2)
    found = newest_checkpoint(tmp_path, print)
    assert found is not None
    assert found.folder.name == "step-00000001"


@pytest.mark.parametrize(
    ("code", "words"),
    [("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"), ("import absent", "No module named 'absent'")],
)
def test_a_verifying_process_that_dies_is_told(
    code: str, words: str, adapter_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "run_python", lambda arguments, seconds: run_python(["-c", code], seconds))
    with pytest.raises(UserError, match=words) as told:
        saving._verify_copy(adapter_dir)
    assert "--train.verify_adapter false" in str(told.value)
    assert "Traceback" not in str(told.value)
