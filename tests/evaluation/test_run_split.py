"""Running a split through a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from peft_audio.evaluation import run_split
from peft_audio.tasks import task_of


def test_clips_of_a_large_split_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 cannot tell 2**24 + 1 from 2**24."""
    monkeypatch.setattr(run_split, "model_logits", lambda model, batch: batch["inputs"])
    numbers = torch.tensor([2**24 + 3, 2**24 + 1, 2**24 + 2, 2**24])
    logits = (numbers - 2**24)[:, None] * torch.tensor([[1.0, 2.0]])
    batch = {"inputs": logits, "index": numbers, "recording": numbers, "label": torch.tensor([1, 0, 1, 0])}
    model: Any = SimpleNamespace(eval=lambda: None, config=SimpleNamespace(num_labels=2))
    found = run_split.evaluate(model, [batch], Accelerator(cpu=True), task_of())  # type: ignore[arg-type]
    assert found.logits[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0] and found.labels.tolist() == [0, 0, 1, 1]
