from __future__ import annotations

import pytest

from peft_audio.comparison.tuning import at_edge, best_rate, first_rates, half_decade, next_rate


@pytest.mark.parametrize(("rate", "steps", "wanted"), [(3e-4, 1, 1e-3), (1e-3, -1, 3e-4), (1e-3, 2, 1e-2)])
def test_half_decades_are_round(rate: float, steps: int, wanted: float) -> None:
    assert half_decade(rate, steps) == wanted


def test_first_rates_surround_the_default() -> None:
    assert first_rates(1e-3, 3) == [3e-4, 1e-3, 3e-3]
    assert first_rates(1e-3, 1) == [1e-3]


def test_the_lower_loss_settles_a_tie() -> None:
    assert best_rate({1e-3: (0.8, -0.5), 3e-3: (0.8, -0.4), 3e-4: (0.7, -0.1)}) == 3e-3


def score_of(rate: float, optimum: float) -> tuple[float, float]:
    """A validation score that falls off on both sides of an optimum."""
    distance = abs(rate / optimum - 1) if rate > optimum else abs(optimum / rate - 1)
    return -distance, 0.0


@pytest.mark.parametrize("optimum", [2e-5, 1e-4, 1e-3, 2e-3, 0.05])
def test_the_search_walks_to_an_optimum_outside_of_its_grid(optimum: float) -> None:
    trials = {rate: score_of(rate, optimum) for rate in first_rates(1e-3, 3)}
    for _ in range(6):
        rate = next_rate(trials)
        assert rate not in trials
        trials[rate] = score_of(rate, optimum)
    assert not at_edge(trials)
    assert optimum / 2 < best_rate(trials) < optimum * 2


def test_one_trial_is_no_edge() -> None:
    assert not at_edge({1e-3: (0.5, 0.0)})
