"""Waveform to waveform, for training clips only; the only user of audiomentations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from peft_audio.config import AugmentConfig

Augment = Callable[[np.ndarray, Sequence[int]], np.ndarray]


def make_augment(cfg: AugmentConfig, sampling_rate: int) -> Augment | None:
    """The preset as a function of a waveform and a seed, or None where nothing is to be done.

    Args:
        cfg: The preset.
        sampling_rate: Of the waveforms, in hertz.

    Returns:
        A function that takes float32 of shape (samples,) and a seed, a sequence of numbers, and gives float32 of the
        same shape. The same seed gives the same result in any process.
    """
    if cfg.preset == "none":
        return None
    from audiomentations import AddGaussianSNR, Compose, Gain

    chain = Compose(
        [
            Gain(min_gain_db=-6.0, max_gain_db=6.0, p=0.5),
            AddGaussianSNR(min_snr_db=10.0, max_snr_db=40.0, p=0.5),
        ]
    )

    # A partial of a module's function can be pickled for worker processes that are spawned, a closure can not.
    return partial(_apply, chain, sampling_rate)


def _apply(chain: Any, sampling_rate: int, waveform: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    with _seeded(seed):
        return chain(samples=waveform, sample_rate=sampling_rate)


@contextmanager
def _seeded(seed: Sequence[int]) -> Iterator[None]:
    """Audiomentations draws from the two global generators: seed both, and put back what they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
