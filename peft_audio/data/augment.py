"""Waveform to waveform, for training clips only; the only user of audiomentations."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from peft_audio.audio.decoding import PYAV_SUFFIXES, is_recording
from peft_audio.config import AugmentConfig
from peft_audio.data.folder import files_below
from peft_audio.data.scan import scan_clip
from peft_audio.errors import UserError
from peft_audio.files import expanded

Augment = Callable[[np.ndarray, Sequence[int]], np.ndarray]


def make_augment(cfg: AugmentConfig, sampling_rate: int) -> Augment | None:
    """The preset as a function of a waveform and a seed, or None where nothing is to be done.

    Args:
        cfg: The preset, and folders of your own sounds.
        sampling_rate: Of the waveforms, in hertz.

    Returns:
        A function that takes float32 of shape (samples,) and a seed, a sequence of numbers, and gives float32 of the
        same shape. The same seed gives the same result in any process.
    """
    if cfg.preset == "none" and cfg.noise_folder is None and cfg.impulse_response_folder is None:
        return None
    from audiomentations import AddBackgroundNoise, ApplyImpulseResponse, Compose

    transforms = _transforms(cfg.preset, sampling_rate)
    if cfg.impulse_response_folder is not None:
        responses = _recordings(cfg.impulse_response_folder, "augment.impulse_response_folder")
        transforms.append(ApplyImpulseResponse(ir_path=responses, leave_length_unchanged=True, p=0.5))
    if cfg.noise_folder is not None:
        noises = _recordings(cfg.noise_folder, "augment.noise_folder")
        transforms.append(AddBackgroundNoise(sounds_path=noises, min_snr_db=3.0, max_snr_db=30.0, p=0.5))
    # A partial of a module's function can be pickled for worker processes that are spawned, a closure can not.
    return partial(_apply, Compose(transforms), sampling_rate)


def _recordings(folder: str, flag: str) -> list[str]:
    """The recordings below a folder, each of which can be used; audiomentations would pass over those that cannot."""
    files = [path for path in files_below(expanded(folder)) if is_recording(path.name)]
    broken = [f"{path} {facts['error']}" for path in files if (facts := scan_clip(path))["fault"]]
    closed = [f"{path} needs PyAV" for path in files if path.suffix.lower() in PYAV_SUFFIXES]
    if broken or closed or not files:
        what = "holds no recordings" if not files else f"has {len(broken + closed)} that cannot be used here"
        more = ":\n  " + "\n  ".join((broken + closed)[:10]) if broken or closed else ""
        raise UserError(f"--{flag}: {folder} {what}; give WAV, FLAC, OGG or MP3{more}")
    return list(map(str, files))


def _transforms(preset: str, sampling_rate: int) -> list[Any]:
    """The preset's transforms, none of which changes a clip's length; strengths are our choice.

    "light" is what a microphone and a room change. "speech" stays within what one speaker says on another day or over a
    telephone. "environment" also moves events in time and drops parts, which would cut words.
    """
    import audiomentations as a

    if preset == "none":
        return []
    gain_and_noise = [
        a.Gain(min_gain_db=-6.0, max_gain_db=6.0, p=0.5),
        a.AddGaussianSNR(min_snr_db=10.0, max_snr_db=40.0, p=0.5),
    ]
    if preset == "light":
        return gain_and_noise
    if preset == "speech":
        return [
            a.TimeStretch(min_rate=0.9, max_rate=1.1, leave_length_unchanged=True, p=0.3),
            a.PitchShift(min_semitones=-2.0, max_semitones=2.0, p=0.3),
            a.LowPassFilter(min_cutoff_freq=0.15 * sampling_rate, max_cutoff_freq=0.45 * sampling_rate, p=0.3),
            *gain_and_noise,
        ]
    return [
        a.Shift(min_shift=-0.5, max_shift=0.5, rollover=True, p=0.5),
        a.TimeMask(min_band_part=0.05, max_band_part=0.2, p=0.3),
        a.TimeStretch(min_rate=0.8, max_rate=1.25, leave_length_unchanged=True, p=0.3),
        a.PitchShift(min_semitones=-4.0, max_semitones=4.0, p=0.3),
        a.SevenBandParametricEQ(min_gain_db=-6.0, max_gain_db=6.0, p=0.3),
        a.AddColorNoise(min_snr_db=5.0, max_snr_db=40.0, p=0.3),
        *gain_and_noise,
    ]


def _apply(chain: Any, sampling_rate: int, waveform: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    with _seeded(seed), warnings.catch_warnings():
        # That a sound of another rate is resampled is as it should be.
        warnings.simplefilter("ignore", UserWarning)
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
