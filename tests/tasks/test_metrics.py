"""Metrics for the evaluate library."""

from __future__ import annotations

import evaluate
import pytest

from peft_audio.tasks.metrics import evaluate_metric


def test_metrics_of_evaluate_need_no_download() -> None:
    both = evaluate.combine([evaluate_metric("accuracy"), evaluate_metric("macro_f1")])
    found = both.compute(predictions=[0, 0, 1, 1], references=[0, 0, 1, 2])
    assert found == {"accuracy": 0.75, "macro_f1": pytest.approx((1 + 2 / 3 + 0) / 3)}
