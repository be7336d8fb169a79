"""Prediction for real work: what is meant, in which form it is told, windows, threads, and a run that is killed."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from filelock import FileLock
from helpers.forks import start_python
from helpers.tones import write_tone

from peft_audio import load_adapter, predict
from peft_audio.adapters.load import Adapter
from peft_audio.audio.decoding import load_audio
from peft_audio.cli import main
from peft_audio.encoders import loading as models
from peft_audio.errors import UserError
from peft_audio.inference import predict as prediction
from peft_audio.inference.predict import Prediction
from peft_audio.inference.recordings import find_recordings
from peft_audio.inference.resume import PartialAnswers, complete_file, partial_answers
from peft_audio.inference.writers import OutputFormat, write_text


@pytest.fixture(scope="module")
def adapter(adapter_dir: Path) -> Adapter:
    return load_adapter(adapter_dir)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty recordings of 0.1 to 0.6 s in two folders, and one that is no audio."""
    root = tmp_path_factory.mktemp("many")
    for i in range(40):
        write_tone(root / str(i % 2) / f"{i:02}.wav", 200 + 40 * i, 0.1 + 0.05 * (i % 11), seed=i)
    (root / "0" / "text.wav").write_text("not audio")
    return root


def test_patterns_folders_and_lists_say_what_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", "b/c.flac", "b/d.txt", "b/.hidden.wav", "[1].wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert find_recordings(["**/*"]) == ["[1].wav", "a.wav", "b/c.flac"] == find_recordings(["."])
    assert find_recordings(["[1].wav", Path("b")]) == ["[1].wav", "b/c.flac"], "what is there goes before patterns"
    for list_of_names in (b"gone.wav\r\nb\n\n", b"gone.wav\0b\0"):
        assert find_recordings(["a.wav", "-"], io.BytesIO(list_of_names)) == ["a.wav", "gone.wav", "b/c.flac"]
    for wrong, words in (("*.mp3", "matches no recordings"), ("none", "no such file"), ("-", "no such file")):
        with pytest.raises(UserError, match=words):
            find_recordings([wrong])
    with pytest.raises(UserError, match="names no recordings"):
        find_recordings(["-"], io.BytesIO(b"\n"))


def test_list_on_stdin_is_labelled_once_each_and_odd_names_are_told(
    tmp_path: Path, adapter_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = bytes(tmp_path) + b"/\xff.wav"
    names = [bytes(write_tone(tmp_path / "line\nbreak.wav", 300, 0.2)), bytes(tmp_path / "gone.wav"), broken]
    write_tone(tmp_path / "x.wav", 300, 0.2).rename(os.fsdecode(broken))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\0".join([*names, names[0]]))))
    assert main(["predict", "-", "--adapter", str(adapter_dir)]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and out.startswith(f"{tmp_path}/line\\nbreak.wav\t")
    assert "gone.wav does not exist" in err and "\\xff.wav has a name that is not valid UTF-8" in err


def test_threads_and_chunks_change_no_bit(clips: Path, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    first = predict(adapter, clips, workers=1)
    assert len(first) == 41 and [one.path for one in first] == find_recordings([clips])
    assert predict(adapter, clips, workers=5) == first
    monkeypatch.setattr(prediction, "CHUNK_RECORDINGS", 7)
    for one, other in zip(first, predict(adapter, clips), strict=True):
        assert one.label == other.label and one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_windows_are_heard_alone_and_their_mean_is_the_answer(tmp_path: Path, adapter: Adapter) -> None:
    long = write_tone(tmp_path / "long.wav", 440, 2.3, 22_050)
    windows = predict(adapter, long, window_seconds=0.8, hop_seconds=0.5, each_window=True)
    assert [(one.start_seconds, one.end_seconds) for one in windows] == [
        pytest.approx(span) for span in ((0, 0.8), (0.5, 1.3), (1.0, 1.8), (1.5, 2.3))
    ]
    for one in windows:
        part = load_audio(long, 16_000, one.start_seconds or 0.0, 0.8)
        exp = np.exp(logits := adapter.logits([part])[0]) / np.exp(logits).sum()
        assert list(one.probabilities.values()) == pytest.approx(exp, abs=1e-5)
    (whole,) = predict(adapter, long, window_seconds=0.8, hop_seconds=0.5)
    mean = np.mean([list(one.probabilities.values()) for one in windows], axis=0)
    assert list(whole.probabilities.values()) == pytest.approx(mean, abs=1e-5) and whole.seconds_used == whole.seconds
    for wrong in ({"window_seconds": 0.001}, {"window_seconds": 1.0, "hop_seconds": 2.0}, {"hop_seconds": 1.0}):
        with pytest.raises(UserError, match="-seconds: got"):
            predict(adapter, long, **wrong)  # type: ignore[arg-type]


def test_every_form_tells_the_same(
    clips: Path, adapter_dir: Path, adapter: Adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = predict(adapter, clips)
    threshold = sorted(one.probability or 0.0 for one in expected)[20]
    call = ["predict", str(clips), "--adapter", str(adapter_dir), "--top-k", "2", "--threshold", str(threshold)]
    capsys.readouterr()
    files = {form: tmp_path / f"out.{form}" for form in ("json", "jsonl", "csv", "parquet")}
    for file in files.values():
        assert main([*call, "--out", str(file)]) == 1
    assert capsys.readouterr().out == "" and {*tmp_path.iterdir()} == {*files.values()}, "nothing else is left"
    rows = json.loads(files["json"].read_text())
    assert rows == [json.loads(line) for line in files["jsonl"].read_text().splitlines()]
    table = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    typed = pq.read_table(files["parquet"]).to_pylist()
    for one, row, line, record in zip(expected, rows, table, typed, strict=True):
        named = one.label if (one.probability or 0.0) >= threshold else None
        assert one.path == row["path"] == line["path"] == record["path"]
        assert named == row["label"] == (line["label"] or None) == record["label"]
        assert one.probability == row["probability"] == record["probability"]
        ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])[:2]
        assert [(top["label"], top["probability"]) for top in row["top"]] == [x for x in ranked if x[1] >= threshold]
        assert record["label_2"] == (line["label_2"] or None)
        assert one.error == row["error"] == record["error"] == (line["error"] or None)
    assert sum(row["label"] is None and row["error"] is None for row in rows) == 19

    assert main(["predict", str(clips), "--adapter", str(adapter_dir), "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == json.dumps(json.loads(out), indent=2, ensure_ascii=False) + "\n" and "labelling" not in err
    assert main([*call, "--out", str(files["csv"])]) == 2 and "already exists" in capsys.readouterr().err
    assert main([*call, "--out", str(tmp_path / "out.xls")]) == 2


def test_killed_run_goes_on_to_the_same_file(
    clips: Path, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["predict", str(clips), "--adapter", str(adapter_dir), "--batch-size", "4", "--out"]
    assert main([*call, str(tmp_path / "whole.json")]) == 1
    # A process that answers a group every 50 ms, so that it can be killed between two of them.
    code = "import sys, time; from peft_audio.inference import resume; add = resume.PartialAnswers.add\n"
    code += "resume.PartialAnswers.add = lambda *a: (add(*a), time.sleep(0.05))\n"
    code += f"from peft_audio.cli import main; main({[*call, str(tmp_path / 'cut.json')]!r})"
    child = start_python("-c", code)
    partial = tmp_path / "cut.json.partial"
    while child.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and not (tmp_path / "cut.json").exists()
    lines = partial.read_bytes().splitlines(keepends=True)
    before = {told["path"] for line in lines[1:-1] for told in json.loads(line) if not told["error"]}
    assert 0 < len(before) < 41
    partial.write_bytes(b"".join(lines)[:-30])  # the last line is torn as well

    capsys.readouterr()
    assert main([*call, str(tmp_path / "cut.json"), "--window-seconds", "0.3"]) == 2
    assert "window seconds was None, is 0.3" in capsys.readouterr().err
    decoded = []
    real = prediction.load_audio
    monkeypatch.setattr(prediction, "load_audio", lambda path, *rest: decoded.append(str(path)) or real(path, *rest))
    assert main([*call, str(tmp_path / "cut.json")]) == 1
    assert f"resuming: {len(before)} recordings" in capsys.readouterr().err
    assert not before & set(decoded) and len(before) + len(decoded) == 40, "text.wav fails before it is decoded"
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"cut.json", "whole.json"}


def test_errors_are_not_remembered_and_change_no_neighbours_bits(
    adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recording that cannot be read in the first run, in the midst of a batch of others, can in the second."""
    source = tmp_path / "clips"
    for i in range(9):
        write_tone(source / f"{i}.wav", 200 + 90 * i, 0.2 + 0.03 * i, seed=i)
    call = ["predict", str(source), "--adapter", str(adapter_dir), "--batch-size", "4", "--out"]
    assert main([*call, str(tmp_path / "whole.json")]) == 0
    real, decoded = prediction.load_audio, []

    def refused(path: Path, *rest: float) -> np.ndarray:
        if path.name == "1.wav":
            raise PermissionError(13, "Permission denied")
        return real(path, *rest)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prediction, "load_audio", refused)
        patched.setattr(PartialAnswers, "read", stop)
        assert main([*call, str(tmp_path / "cut.json")]) == 130
    assert "Permission denied" in (tmp_path / "cut.json.partial").read_text()
    monkeypatch.setattr(prediction, "load_audio", lambda path, *rest: decoded.append(path.name) or real(path, *rest))
    capsys.readouterr()
    assert main([*call, str(tmp_path / "cut.json")]) == 0
    assert "resuming: 8 recordings" in capsys.readouterr().err
    assert sorted(decoded) == ["0.wav", "1.wav", "2.wav", "3.wav"], "a batch is heard anew as a whole, others are not"
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()

    monkeypatch.setattr(PartialAnswers, "read", stop)
    assert main([*call, str(tmp_path / "old.json")]) == 130
    monkeypatch.undo()
    begun_with = models.version("torch")
    monkeypatch.setattr(models, "version", lambda package: "0.0.1")
    assert main([*call, str(tmp_path / "old.json")]) == 2
    err = capsys.readouterr().err
    assert f"torch was {begun_with}, is 0.0.1" in err and "peft-audio was" in err


def test_what_another_process_wrote_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    acquire = FileLock.acquire

    def late(lock: FileLock, *args: Any, **settings: Any) -> Any:
        out.write_text("theirs")
        return acquire(lock, *args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(FileLock, "acquire", late)
        with pytest.raises(UserError, match="already exists"), partial_answers(out, {}):
            pass
    assert out.read_text() == "theirs" and [*tmp_path.iterdir()] == [out]
    out.unlink()
    with pytest.raises(UserError, match="already exists"), partial_answers(out, {}):  # noqa: SIM117
        with complete_file(out, binary=False) as file:
            file.write("ours")
            out.write_text("theirs")
    assert out.read_text() == "theirs"
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}
    assert left == {"out.csv", "out.csv.partial"}, "what is known is kept, for another name or another time"


def test_control_characters_of_paths_and_labels_reach_no_terminal() -> None:
    odd = "a\tb\n\x1b[31m\x7f\x85ü"
    file = io.StringIO()
    write_text([Prediction(odd, odd, 1.0, {odd: 1.0}, 1.0, 1.0)], file, OutputFormat((odd,)))
    told = r"a\tb\n\x1b[31m\x7f\x85ü"
    assert file.getvalue() == f"{told}\t{told}\t1.000\n"


def test_changed_recordings_are_answered_anew_and_foreign_files_left_alone(
    adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "clips", tmp_path / "out.jsonl"
    one, two = write_tone(source / "1.wav", 300, 0.2), write_tone(source / "2.wav", 900, 0.2)
    call = ["predict", str(source), "--adapter", str(adapter_dir), "--out", str(out)]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PartialAnswers, "read", stop)
        assert main(call) == 130
    soundfile.write(two, soundfile.read(one)[0][:2000], 16_000)
    assert main(call) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["seconds"] for row in found] == [0.2, 0.125]

    partial = tmp_path / "other.csv.partial"
    partial.write_text("mine")
    assert main([*call[:-1], str(tmp_path / "other.csv")]) == 2
    assert (
        "does not hold the answers of an interrupted predict" in capsys.readouterr().err
        and partial.read_text() == "mine"
    )
