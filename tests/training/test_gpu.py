"""What only a GPU can show: memory that is really too small, the scale of fp16, the same answers as on a CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipe_runs import Go
from helpers.tones import write_tone
from robustness import chaos

from peft_audio.adapters.load import load_adapter
from peft_audio.inference.predict import predict
from peft_audio.training.checkpointing import newest_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FULL = ["--full.train_cnn", "true", "--train.mixed_precision", "no", "--train.batch_size", "16"]


@pytest.fixture(autouse=True)
def _on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


@pytest.fixture(scope="module")
def long_tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 clips of 8 s: the convolutions' activations of a step of 16 are what fills the memory."""
    root = tmp_path_factory.mktemp("long")
    for i in range(16):
        write_tone(root / "low" / f"{i}.wav", 200 + 5 * i, 8.0, seed=i)
        write_tone(root / "high" / f"{i}.wav", 1500 + 30 * i, 8.0, seed=100 + i)
    return root


@pytest.fixture
def small_memory(long_tones: Path, go: Go, tmp_path: Path) -> Iterator[list[str]]:
    """As much memory as six tenths of a step; gives the flags of that training."""
    flags = [*FULL, "--data.source", str(long_tones), "--train.epochs", "1"]
    assert go("full", tmp_path / "whole", *flags) == 0
    peak = json.loads((tmp_path / "whole" / "report.json").read_text())["peak_memory_bytes"]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / torch.cuda.get_device_properties(0).total_memory)
    yield flags
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_memory_that_is_too_small_is_told_and_micro_batches_are_found(
    small_memory: list[str],
    go: Go,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert go("full", tmp_path / "plain", *small_memory) == 2
    assert "memory is too small (CUDA out of memory" in (said := capsys.readouterr().err)
    assert "--train.auto_micro_batch" in said
    assert go("full", tmp_path / "found", *small_memory, "--train.auto_micro_batch", "true") == 0
    whole, found = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "found"))
    assert whole["micro_batches"] == 1
    assert found["micro_batches"] in (2, 4)
    assert found["peak_memory_bytes"] <= 0.6 * whole["peak_memory_bytes"]
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "found")]
    losses = [[json.loads(line)["loss"] for line in log if '"loss"' in line] for log in logs]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_the_scale_of_fp16_is_in_the_checkpoint(go: Go, tmp_path: Path) -> None:
    recipe, flags, _ = chaos.CASES["lora, fp16"]
    flags = [*flags, "--train.deterministic", "true"]
    assert go(recipe, tmp_path / "whole", *flags) == 0
    assert go(recipe, tmp_path / "one", *flags, stop=(4, 15)) == 143
    kept = newest_checkpoint(tmp_path / "one" / "checkpoints", print)
    assert kept and kept.state["scaler"]["_growth_tracker"] > 0
    assert go(recipe, tmp_path / "one", *flags) == 0
    assert chaos.unlike(tmp_path / "whole", tmp_path / "one") == []


def test_an_adapter_answers_on_a_gpu_as_on_a_cpu(adapter_dir: Path, tone_folder: Path) -> None:
    clips = sorted(tone_folder.rglob("*.wav"))[:6]
    cpu, gpu = (
        [found.probabilities for found in predict(load_adapter(adapter_dir, device=device), clips)]
        for device in ("cpu", "cuda")
    )
    for one, other in zip(cpu, gpu, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), atol=1e-5)
