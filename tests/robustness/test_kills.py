"""Runs that are killed at random moments end as runs that nobody killed: every case of chaos.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from robustness import chaos


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    cases = chaos.runnable("cpu")
    assert {"lora", "two processes"} <= set(cases)
    found = chaos.chaos(chaos.open_runs(tmp_path), cases, kills=2 * len(cases), seed=0)
    assert min(tally.kills for tally in found.values()) >= 2
    assert {name: (tally.lost, tally.not_the_same) for name, tally in found.items()} == dict.fromkeys(cases, ([], []))
