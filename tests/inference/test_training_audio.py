"""Recordings that are far from the training clips of an adapter."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from peft_audio.adapters.load import load_adapter
from peft_audio.cli import main
from peft_audio.data.training_audio import audio_quantiles, far_outside
from peft_audio.inference.predict import predict

RATE = 16_000
TRAINED = {
    "seconds": {"q01": 0.3, "q50": 0.5, "q99": 0.9},
    "level_dbfs": {"q01": -30.0, "q50": -20.0, "q99": -10.0},
    "sampling_rate": {"q01": 22_050.0, "q50": 44_100.0, "q99": 48_000.0},
}


def test_quantiles_are_numpys() -> None:
    rng = np.random.default_rng(0)
    seconds, rms = rng.uniform(0.2, 3, 500), rng.uniform(0.01, 0.5, 500)
    found = audio_quantiles(seconds, rms, np.full(500, 8_000))
    assert found["seconds"]["q99"] == pytest.approx(np.quantile(seconds, 0.99), rel=1e-3)
    assert found["level_dbfs"]["q01"] == pytest.approx(20 * np.log10(np.quantile(rms, 0.01)), abs=0.1)
    assert found["sampling_rate"] == {"q01": 8_000, "q50": 8_000, "q99": 8_000}


@pytest.mark.parametrize(
    ("seconds", "level", "rate", "far"),
    [
        (0.4, -25.0, 48_000, set()),
        (1.7, -45.0, 16_000, set()),
        (1.9, -25.0, 44_100, {"seconds"}),
        (0.1, -25.0, 44_100, {"seconds"}),
        (0.5, -55.0, 44_100, {"level_dbfs"}),
        # Above 16 kHz, nothing that the model reads depends on the rate.
        (0.5, -25.0, 96_000, set()),
        (0.5, -25.0, 8_000, {"sampling_rate"}),
        (0.5, None, None, set()),
    ],
)
def test_far_outside(seconds: float, level: float | None, rate: int | None, far: set[str]) -> None:
    assert set(far_outside(TRAINED, seconds, level, rate, RATE)) == far
    assert far_outside({}, seconds, level, rate, RATE) == {}


def test_predict_warns_and_proposes_windows_of_the_training_clips(
    adapter_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter reads 2 s of a recording; without quantiles there is no warning, and no length is proposed."""
    rng = np.random.default_rng(0)
    noise = {
        "long": (3.0, 0.1, RATE),
        "plain": (0.5, 0.1, RATE),
        "quiet": (0.5, 1e-3, RATE),
        "phone": (0.5, 0.1, 8_000),
    }
    for name, (seconds, level, rate) in noise.items():
        samples = level * rng.normal(size=int(seconds * rate))
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="FLOAT")
    paths = [str(tmp_path / f"{name}.wav") for name in noise]
    assert main(["predict", *paths, "--adapter", str(adapter_dir)]) == 0
    err = capsys.readouterr().err
    assert "warning" not in err and "give S as long as the training clips" in err

    adapter = load_adapter(adapter_dir)
    known = replace(adapter, record=replace(adapter.record, training_audio=TRAINED))
    far = [set(one.warnings) for one in predict(known, paths)]
    assert far == [{"seconds"}, set(), {"level_dbfs"}, {"sampling_rate"}]
    assert [set(one.warnings) for one in predict(known, paths[0], window_seconds=0.5)] == [set()]
    assert all(not one.warnings for one in predict(adapter, paths))

    folder = Path(shutil.copytree(adapter_dir, tmp_path / "known"))
    text = (folder / "peft_audio.json").read_text()
    assert '"training_audio": {}' in text
    written = str(TRAINED).replace("'", '"')
    (folder / "peft_audio.json").write_text(text.replace('"training_audio": {}', f'"training_audio": {written}'))
    assert main(["predict", *paths, "--adapter", str(folder)]) == 0
    err = capsys.readouterr().err
    assert "--window-seconds 0.5 reads whole recordings in windows as long as the training clips" in err
    assert "phone.wav (sampled at 8,000 Hz; training clips at 22,050 to 48,000 Hz)" in err
    assert err.count("warning: far from the training clips of the adapter: 1 recording, such as") == 3
