"""Cells of encoders x strategies: the default run takes one encoder with every strategy, `-m slow` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

QUICK_ENCODER = "wav2vec2-base"
QUICK_STRATEGY = "lora"  # with every encoder


def is_quick(encoder: str, strategy: str | None = None) -> bool:
    """Decide whether a cell belongs to the default run."""
    return encoder == QUICK_ENCODER or strategy == QUICK_STRATEGY


def encoders_by_strategies(encoders: Iterable[str], strategies: Iterable[str]) -> list[Any]:
    """List the cells for parametrize("encoder, strategy")."""
    every = list(strategies)
    return [
        pytest.param(encoder, strategy, marks=[] if is_quick(encoder, strategy) else pytest.mark.slow)
        for encoder in encoders
        for strategy in every
    ]


def first_quick(values: Iterable[Any], count: int = 1) -> list[Any]:
    """List values for parametrize, of which all but the first ones are slow."""
    return [pytest.param(value, marks=[] if i < count else pytest.mark.slow) for i, value in enumerate(values)]
