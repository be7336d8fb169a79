from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from helpers.tones import write_tone
from peft import PeftModel
from scipy.special import softmax
from transformers import AutoModelForAudioClassification

from peft_audio import load_adapter, predict
from peft_audio.cli import main
from peft_audio.errors import UserError
from peft_audio.inference.predict import BATCH_SECONDS, _sort_into_batches

LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of several lengths, rates and formats, one of them in a subfolder, and files of other kinds."""
    root = tmp_path_factory.mktemp("clips")
    write_tone(root / "tiny.wav", 300, seconds=0.01)
    write_tone(root / "b" / "long.wav", 900, seconds=1.2)
    write_tone(root / "z.wav", 500, seconds=0.5, rate=8_000)
    write_tone(root / "ü with space.flac", 700, 0.3)
    (root / "notes.txt").write_text("not audio")
    return root


def plain_probabilities(base: Path, adapter: Path, path: Path) -> np.ndarray:
    """The same answer by transformers and PEFT alone, for a clip at 16 kHz of 400 samples or more."""
    model = AutoModelForAudioClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).eval()
    waveform, _ = soundfile.read(path, dtype="float32")
    values = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
    with torch.no_grad():
        return softmax(model(torch.from_numpy(values)[None]).logits[0].numpy())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_batched_prediction_equals_plain_peft_alone(clips: Path, adapter_dir: Path, tiny_base: Path) -> None:
    adapter = load_adapter(adapter_dir)
    found = {Path(prediction.path).name: prediction for prediction in predict(adapter, clips)}
    assert set(found) == {"tiny.wav", "long.wav", "z.wav", "ü with space.flac"}
    for name in ("long.wav", "ü with space.flac"):
        expected = plain_probabilities(tiny_base, adapter_dir, Path(found[name].path))
        measured = [found[name].probabilities[label] for label in LABELS]
        np.testing.assert_allclose(measured, expected, atol=1e-5)
        assert found[name].label == LABELS[int(expected.argmax())]
        assert found[name].probability == pytest.approx(expected.max(), abs=1e-5)


def test_order_is_as_given_and_batches_change_nothing(clips: Path, adapter_dir: Path) -> None:
    adapter = load_adapter(adapter_dir)
    given = [clips / "z.wav", clips / "b" / "long.wav", clips / "tiny.wav"]
    together = predict(adapter, given)
    assert [prediction.path for prediction in together] == [str(path) for path in given]
    for prediction, path in zip(together, given, strict=True):
        (alone,) = predict(adapter, path)
        assert alone.label == prediction.label
        assert alone.probabilities == pytest.approx(prediction.probabilities, abs=1e-5)


def test_batches_are_of_one_length_and_bounded() -> None:
    seconds = [0.5, 30.0, 1.0, 0.5, 1.0, 1.0, 1.0, 0.01, 2.5, 0.5, 2.5]
    batches = _sort_into_batches(seconds, 3, BATCH_SECONDS["cpu"])
    assert sorted(number for batch in batches for number in batch) == list(range(len(seconds)))
    assert max(map(len, batches)) == 3
    padded = [len(batch) * max(seconds[number] for number in batch) for batch in batches]
    assert all(total <= BATCH_SECONDS["cpu"] or len(batch) == 1 for total, batch in zip(padded, batches, strict=True))
    assert [seconds[number] for batch in batches for number in batch] == sorted(seconds)


def test_arrays_get_the_answers_of_their_files(adapter_dir: Path, clips: Path) -> None:
    adapter = load_adapter(adapter_dir)
    path = clips / "z.wav"
    samples, rate = soundfile.read(path, dtype="float32")
    (of_file,) = predict(adapter, path)
    whole = (samples * 2**15).astype(np.int16)
    found = predict(
        adapter, [samples, samples.astype(np.float64), whole, torch.from_numpy(samples)], sampling_rate=rate
    )
    assert [one.path for one in found] == [f"array {i}" for i in range(4)]
    for one in (*found, *predict(adapter, samples, sampling_rate=rate)):
        assert one.probabilities == pytest.approx(of_file.probabilities, abs=1e-5) and one.seconds == of_file.seconds
    silent, empty, nan = predict(adapter, [0 * samples, samples[:0], np.full(9000, np.nan)], sampling_rate=rate)
    assert "silent" in (silent.error or "") and "no samples" in (empty.error or "") and "NaN" in (nan.error or "")


def test_paths_of_numpy_are_paths(adapter_dir: Path, clips: Path) -> None:
    adapter = load_adapter(adapter_dir)
    path = str(clips / "z.wav")
    wanted = predict(adapter, [path])
    for sources in (np.array([path]), list(np.array([path])), np.array([Path(path)]), np.array(path)):
        assert predict(adapter, sources) == wanted


@pytest.mark.parametrize(
    ("sources", "rate", "message"),
    [
        ([np.zeros(400)], None, "sampling_rate: got none, expected a whole number of hertz"),
        ([np.zeros(400)], 0, "sampling_rate: got 0"),
        ([np.zeros(400)], "16k", "sampling_rate: got 16k, expected a whole number of hertz"),
        ([np.zeros(400)], float("nan"), "sampling_rate: got nan"),
        (np.array(["absent.wav"]), None, "absent.wav: no such file or folder"),
        ([np.zeros((2, 400))], 16_000, r"array 0: got shape \(2, 400\), expected \(samples,\)"),
        ([np.zeros(400, np.int64)], 16_000, "array 0: got int64, expected floats"),
        ([np.zeros(400), "a.wav"], 16_000, "got ndarray, str, expected only paths or only arrays"),
        ([0.5, 0.25], 16_000, "got float, expected only paths or only arrays"),
        ("a.wav", 16_000, "sampling_rate: got 16000, but files have their own"),
    ],
)
def test_arrays_are_refused_in_words(adapter_dir: Path, sources: Any, rate: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict(load_adapter(adapter_dir), sources, sampling_rate=rate)


def test_an_adapter_is_shown_in_one_line(adapter_dir: Path) -> None:
    adapter = load_adapter(adapter_dir)
    shown = repr(adapter)
    assert shown.startswith("<Adapter: lora adapter for ") and "3 labels: a, b, c" in shown and "\n" not in shown
    assert str(adapter_dir) in shown and shown == str(adapter)


def test_long_recording_is_read_from_its_start_and_noted(
    tmp_path: Path, adapter_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = write_tone(tmp_path / "long.wav", 440, 3.0)
    samples, rate = soundfile.read(long)
    soundfile.write(tmp_path / "start.wav", samples[: 2 * rate], rate)
    adapter = load_adapter(adapter_dir)
    whole, start = predict(adapter, [long, tmp_path / "start.wav"])
    assert (whole.seconds, whole.seconds_used, start.seconds_used) == (3.0, 2.0, 2.0)
    assert whole.probabilities == pytest.approx(start.probabilities, abs=1e-5)
    assert main(["predict", str(long), "--adapter", str(adapter_dir)]) == 0
    assert "longer than 2 s" in capsys.readouterr().err


def test_command_prints_text_json_and_csv_alike(
    clips: Path, adapter_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["predict", str(clips), "--adapter", str(adapter_dir)]
    expected = predict(load_adapter(adapter_dir), clips)
    capsys.readouterr()
    assert main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{p.path}\t{p.label}\t{p.probability:.3f}" for p in expected]
    assert main([*call, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["path"], row["label"]) for row in rows] == [(p.path, p.label) for p in expected]
    assert rows[0]["probabilities"] == pytest.approx(expected[0].probabilities, abs=1e-6)
    assert main([*call, "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["label"] for row in table] == [p.label for p in expected]
    assert float(table[0]["probability_b"]) == pytest.approx(expected[0].probabilities["b"], abs=1e-6)


def test_the_command_loads_only_what_labelling_needs(clips: Path, adapter_dir: Path) -> None:
    unwanted = {
        "audiomentations",
        "bitsandbytes",
        "datasets",
        "evaluate",
        "pandas",
        "sklearn",
        "torch._inductor.compile_fx",
    }
    call = ["peft-audio", "predict", str(clips / "z.wav"), "--adapter", str(adapter_dir)]
    # Older versions of transformers import scikit-learn themselves.
    code = f"import sys, transformers.models.auto.modeling_auto; given = set(sys.modules); sys.argv = {call!r}"
    code += f"; from peft_audio.cli import main; main(); print(*{unwanted!r} & sys.modules.keys() - given)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    label, loaded = done.stdout.splitlines()
    assert label.startswith(str(clips / "z.wav")) and not loaded


def test_unusable_recordings_are_listed_and_the_others_labelled(
    clips: Path, tmp_path: Path, adapter_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty.wav").touch()
    shutil.copy(clips / "z.wav", tmp_path)
    assert main(["predict", str(tmp_path), "--adapter", str(adapter_dir)]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "z.wav" in out
    assert "text.wav is not audio" in err and "empty.wav is empty" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.wav", "--adapter", "ADAPTER"], "nowhere.wav: no such file"),
        (["EMPTY", "--adapter", "ADAPTER"], "no recordings"),
        (["EMPTY", "--adapter", "EMPTY"], "no recordings"),
        (["CLIPS", "--adapter", "EMPTY"], "has no peft_audio.json"),
        (["CLIPS", "--adapter", "ADAPTER", "--batch-size", "0"], "--batch-size: got 0"),
        (["CLIPS", "--adapter", "ADAPTER", "--base", "wav2vec2-nano"], "is not the one the adapter was trained on"),
        (["CLIPS", "--adapter", "ADAPTER", "--device", "abacus"], "--device: got abacus"),
    ],
)
def test_predict_refuses_in_words(
    arguments: list[str],
    words: str,
    clips: Path,
    adapter_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"ADAPTER": adapter_dir, "CLIPS": clips, "EMPTY": tmp_path}
    assert main(["predict", *(str(places.get(word, word)) for word in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_recipe_command_prints_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "lora"]) == 0
    assert capsys.readouterr().out == (Path(__file__).parents[2] / "recipes" / "lora.py").read_text()


def test_base_command_copies_a_transformers_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["base", str(tmp_path / "nano")]) == 0
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "nano", dtype=torch.float32)
    assert 2_500_000 < sum(weight.numel() for weight in model.wav2vec2.parameters()) < 3_500_000
    assert main(["base", str(tmp_path / "nano")]) == 2
    assert "already exists" in capsys.readouterr().err


def test_public_names_survive_the_import_of_their_modules() -> None:
    code = (
        "import peft_audio.cli, peft_audio.inference.predict; from peft_audio import predict; assert callable(predict)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_adapter_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"peft_audio\.json"):
        load_adapter("no/such/folder")


def test_silence_is_listed_and_not_labelled(adapter_dir: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16_000)
    write_tone(tmp_path / "tone.wav", 400)
    silent, tone = predict(load_adapter(adapter_dir), tmp_path)
    assert silent.label is None and silent.error == "is silent"
    assert tone.label is not None and tone.error is None
