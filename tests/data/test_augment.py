from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.tones import write_tone
from scipy.stats import kstest

from peft_audio.config import AugmentConfig
from peft_audio.data.augment import Augment, make_augment
from peft_audio.errors import UserError

RATE = 16_000
DRAWS = 200


@pytest.fixture(scope="module")
def light() -> Augment:
    augment = make_augment(AugmentConfig(preset="light"), RATE)
    assert augment is not None
    return augment


PRESETS = ("light", "speech", "environment")
every_preset = pytest.mark.parametrize("preset", PRESETS)


def make(preset: str) -> Augment:
    augment = make_augment(AugmentConfig(preset=preset), RATE)
    assert augment is not None
    return augment


def tone(level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE)).astype(np.float32)


def gain_and_snr_db(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The gain by projection on the clip, and the power of the clip so changed over that of what else was added."""
    x, y = before.astype(np.float64), after.astype(np.float64)
    gain = (x @ y) / (x @ x)
    rest = y - gain * x
    return 20 * np.log10(gain), 10 * np.log10((gain * x) @ (gain * x) / max(rest @ rest, 1e-30))


@pytest.fixture(scope="module")
def measured(light: Augment) -> np.ndarray:
    """(gain, SNR) in dB of many draws on one clip."""
    return np.array([gain_and_snr_db(tone(), light(tone(), [0, 1, i])) for i in range(DRAWS)])


def test_none_is_none() -> None:
    assert make_augment(AugmentConfig(preset="none"), RATE) is None


@every_preset
def test_seed_decides_the_result(preset: str) -> None:
    light = make(preset)
    seeds = [[seed, epoch, clip] for seed in (0, 1) for epoch in (0, 1, 2) for clip in (0, 1, 2)]
    results = [light(tone(), seed) for seed in seeds]
    random.seed(5)
    np.random.seed(5)
    for seed, result in zip(seeds, results, strict=True):
        np.testing.assert_array_equal(light(tone(), seed), result)
    # A quarter of all draws leaves the clip alone; among 18 seeds most results must differ from one another.
    assert len({result.tobytes() for result in results}) > 9


@every_preset
def test_global_generators_are_left_as_they_were(preset: str) -> None:
    light = make(preset)
    before = random.getstate(), np.random.get_state()
    light(tone(), [0, 0, 0])
    with pytest.raises((TypeError, AttributeError)):
        light(None, [0, 0, 1])  # type: ignore[arg-type]
    assert random.getstate() == before[0]
    assert all(np.array_equal(was, now) for was, now in zip(before[1], np.random.get_state(), strict=True))


def test_added_noise_lies_between_10_and_40_db(measured: np.ndarray) -> None:
    snr = measured[:, 1]
    noisy = snr[snr < 100]  # without noise what is left is rounding, below -100 dB
    # 16,000 Gaussian samples have a power within 0.25 dB of the wanted one (five standard errors).
    assert 10 - 0.25 < noisy.min() < 11.5 and 38.5 < noisy.max() < 40 + 0.25
    assert kstest(noisy, "uniform", args=(10, 30)).pvalue > 1e-3
    assert 0.35 < len(noisy) / DRAWS < 0.65


def test_gain_lies_within_6_db_on_half_of_the_clips(measured: np.ndarray) -> None:
    gain = measured[:, 0]
    # The projection sees noise at 10 dB as up to 0.1 dB of gain.
    changed = gain[np.abs(gain) > 0.1]
    assert np.abs(gain).max() < 6.1
    assert kstest(changed, "uniform", args=(-6, 12)).pvalue > 1e-3
    assert 0.35 < len(changed) / DRAWS < 0.65


@pytest.mark.parametrize("level", [0.003, 0.9])
def test_snr_does_not_depend_on_the_level(light: Augment, measured: np.ndarray, level: float) -> None:
    seeds = np.flatnonzero(measured[:, 1] < 41)[:10]
    assert len(seeds) == 10
    for i in seeds:
        assert gain_and_snr_db(tone(level), light(tone(level), [0, 1, i])) == pytest.approx(measured[i], abs=0.02)


@every_preset
@pytest.mark.parametrize("clip", [np.zeros(1), np.zeros(4000), np.ones(333)], ids=len)
def test_length_dtype_and_input_are_kept(preset: str, clip: np.ndarray) -> None:
    light = make(preset)
    clip = clip.astype(np.float32)
    before = clip.copy()
    for i in range(20):
        result = light(clip, [0, 0, i])
        assert result.shape == clip.shape and result.dtype == np.float32 and np.isfinite(result).all()
    np.testing.assert_array_equal(clip, before)


@every_preset
def test_it_reaches_worker_processes_that_are_spawned(preset: str) -> None:
    light = make(preset)
    clip = np.sin(np.arange(1000, dtype=np.float32))
    arrived = pickle.loads(pickle.dumps(light))
    np.testing.assert_array_equal(arrived(clip, [1, 2]), light(clip, [1, 2]))


def pitch(clip: np.ndarray) -> float:
    """Frequency in hertz of the strongest of a second's Fourier components."""
    return float(np.abs(np.fft.rfft(clip * np.hanning(len(clip)), 16 * len(clip))).argmax() / 16)


def test_speech_keeps_within_two_semitones_and_environment_within_four() -> None:
    found = {}
    for preset in ("speech", "environment"):
        augment = make(preset)
        semitones = [12 * np.log2(pitch(augment(tone(), [0, i])) / 300) for i in range(DRAWS)]
        found[preset] = max(map(abs, semitones))
    assert 1 < found["speech"] < 2.1
    assert 2.5 < found["environment"] < 4.2


def test_only_environment_moves_what_is_heard_in_time() -> None:
    click = np.zeros(RATE, np.float32)
    click[2_000:2_200] = 0.5 * np.sin(np.arange(200))
    moved = {}
    for preset in PRESETS:
        augment = make(preset)
        places = [int((np.abs(augment(click, [0, i])) > 0.1).argmax()) for i in range(60)]
        moved[preset] = sum(abs(place - 2_000) > 1_000 for place in places)
    # A change of pace by a tenth moves the click by 200 samples at most.
    assert moved["light"] == moved["speech"] == 0
    assert 20 < moved["environment"] < 50


def measured_snr_db(mixed: np.ndarray, clean: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(clean**2) / np.mean((mixed - clean) ** 2)))


def test_own_noise_is_added_between_3_and_30_db_below_the_clip(tmp_path: Path) -> None:
    noise = write_tone(tmp_path / "street" / "deep" / "hum.wav", 60, 3.0, RATE)
    clean = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    augment = make_augment(AugmentConfig(noise_folder=str(tmp_path / "street")), RATE)
    assert augment is not None
    found = [augment(clean, [seed]) for seed in range(40)]
    changed = [one for one in found if not np.array_equal(one, clean)]
    assert 10 < len(changed) < 30, "half of the clips"
    snrs = [measured_snr_db(one, clean) for one in changed]
    assert min(snrs) > 2.9 and max(snrs) < 30.1 and np.std(snrs) > 3
    # What was added is a piece of that file and of nothing else.
    hum, _ = soundfile.read(noise)
    added = changed[0] - clean
    at = np.argmax(np.correlate(hum, added[:4000], "valid"))
    assert np.corrcoef(hum[at : at + 4000], added[:4000])[0, 1] > 0.99
    assert np.array_equal(augment(clean, [3]), augment(clean, [3]))


def test_own_impulse_response_is_a_convolution(tmp_path: Path) -> None:
    response = np.zeros(400)
    response[[0, 150, 399]] = (1.0, 0.5, -0.25)
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "rooms" / "hall.wav", response, RATE, subtype="FLOAT")
    augment = make_augment(AugmentConfig(impulse_response_folder=str(tmp_path / "rooms")), RATE)
    assert augment is not None
    clip = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    wanted = np.convolve(clip, response)[:RATE]
    found = [augment(clip, [seed]) for seed in range(20)]
    changed = [one for one in found if not np.array_equal(one, clip)]
    assert 3 < len(changed) < 17 and all(len(one) == len(clip) for one in changed)
    for one in changed:
        assert np.corrcoef(one, wanted)[0, 1] > 0.9999, "but for its level"


def test_own_sounds_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "noise"
    folder.mkdir()
    with pytest.raises(UserError, match=r"--augment.noise_folder: .* holds no recordings"):
        make_augment(AugmentConfig(noise_folder=str(folder)), RATE)
    write_tone(folder / "good.wav", 500)
    (folder / "bad.wav").write_text("no sound")
    with pytest.raises(
        UserError, match=r"(?s)--augment.noise_folder: .* 1 that cannot be used here.*bad.wav is not audio"
    ):
        make_augment(AugmentConfig(noise_folder=str(folder)), RATE)
