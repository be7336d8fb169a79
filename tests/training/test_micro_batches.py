"""Orders of training clips are drawn only for the epochs that are trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from peft_audio.config import TrainConfig
from peft_audio.data.sampler import TrainingBatches
from peft_audio.training.micro_batches import largest_micro_batch

LENGTHS = np.random.default_rng(0).uniform(0.5, 8, size=100)
# A comparison with train_seconds sets as many epochs as steps.
EPOCHS = 50_000


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Collect the epochs whose order is drawn; fail where all are."""
    epochs: list[int | None] = []
    real = TrainingBatches.step_indices

    def count(self: TrainingBatches, epoch: int | None = None) -> list[list[int]]:
        epochs.append(epoch)
        assert len(epochs) < 100, "the order of every epoch is drawn"
        return real(self, epoch)

    monkeypatch.setattr(TrainingBatches, "step_indices", count)
    return epochs


def test_counting_steps_stops_at_the_limit(drawn: list[int | None]) -> None:
    batches = TrainingBatches(LENGTHS, 16, 0, batch_seconds=60.0)
    limit = 5 * batches.steps
    drawn.clear()
    assert batches.total_steps(EPOCHS, limit) == limit
    assert len(drawn) <= 6


@pytest.mark.parametrize("batch_seconds", [None, 60.0])
def test_micro_batches_are_fitted_to_the_epochs_that_are_trained(
    batch_seconds: float | None, drawn: list[int | None]
) -> None:
    order = TrainingBatches(LENGTHS, 16, 0, micro_batches=2, batch_seconds=batch_seconds)
    loaders: Any = SimpleNamespace(train_order=order)
    limit = order.total_steps(2)
    expected = largest_micro_batch(loaders, TrainConfig(epochs=2))
    drawn.clear()
    assert largest_micro_batch(loaders, TrainConfig(epochs=EPOCHS, max_steps=limit)) == expected
    assert len(drawn) <= 3
