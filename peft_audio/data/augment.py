"""Augment the waveforms of training clips with audiomentations."""

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
    """Make the augmentation function of a preset.

    Args:
        cfg: Preset, and folders of noises and impulse responses.
        sampling_rate: Sampling rate of the waveforms in hertz.

    Returns:
        A function of a float32 waveform of shape (samples,) and a seed (a sequence of integers) that returns float32 of
        the same shape. Equal seeds give equal results in any process. None if nothing is to be augmented.

    Raises:
        UserError: A folder holds no recordings, or some that cannot be used.
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
    # Spawned worker processes can unpickle a partial of a module's function, but not a closure.
    return partial(_apply, Compose(transforms), sampling_rate)


def _recordings(folder: str, flag: str) -> list[str]:
    """List the recordings below a folder and refuse unusable ones, which audiomentations would skip silently."""
    files = [path for path in files_below(expanded(folder)) if is_recording(path.name)]
    broken = [f"{path} {facts['error']}" for path in files if (facts := scan_clip(path))["fault"]]
    unsupported = [f"{path} needs PyAV" for path in files if path.suffix.lower() in PYAV_SUFFIXES]
    unusable = broken + unsupported
    if unusable or not files:
        problem = "holds no recordings" if not files else f"has {len(unusable)} that cannot be used here"
        details = ":\n  " + "\n  ".join(unusable[:10]) if unusable else ""
        raise UserError(f"--{flag}: {folder} {problem}; give WAV, FLAC, OGG or MP3{details}")
    return list(map(str, files))


def _transforms(preset: str, sampling_rate: int) -> list[Any]:
    """Return the transforms of a preset; none changes the length of a clip.

    "light" imitates changes of microphone and room. "speech" imitates the same speaker on another day or over a
    telephone. "environment" also shifts events in time and masks parts, which would cut words. The strengths are this
    package's own choice.
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
        # Audiomentations warns when it resamples a noise, which is intended here.
        warnings.simplefilter("ignore", UserWarning)
        return chain(samples=waveform, sample_rate=sampling_rate)


@contextmanager
def _seeded(seed: Sequence[int]) -> Iterator[None]:
    """Seed the global generators of Python and NumPy, which audiomentations uses, and restore them afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
