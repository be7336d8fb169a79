"""The public functions against the commands that they stand for."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.tones import divide, write_tone

import peft_audio
from peft_audio.checks.collection import to_json
from peft_audio.cli import main
from peft_audio.comparison import run as comparing
from peft_audio.comparison.collect import read_comparison
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.errors import UserError
from peft_audio.inference.predict import Prediction, PredictionList
from peft_audio.inference.writers import OutputFormat, as_object
from peft_audio.publish import export as exporting

FUNCTIONS = ("check", "compare", "evaluate", "export", "fine_tune", "load_adapter", "load_adapters", "predict", "push")
HOSTILE = "<script>alert(1)</script>"
# Of a report: what differs between two runs of the same settings.
MEASURED = re.compile("second|memory|reused|wait|cached|bytes")


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of the classes that the adapter knows."""
    folder = tmp_path_factory.mktemp("letters")
    for number, label in enumerate(("a", "b", "c")):
        for i in range(4):
            write_tone(folder / label / f"{i}.wav", 300 + 400 * number + 10 * i, 0.3, seed=10 * number + i)
    return folder


@pytest.fixture(scope="module")
def tones(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train": (6, 6), "validation": (3, 3), "test": (3, 3)}
    return divide(tone_folder, tmp_path_factory.mktemp("data") / "tones", counts)


def printed(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*map(str, words)]) == code
    return json.loads(capsys.readouterr().out)


def test_functions_are_listed_and_found_without_torch() -> None:
    assert set(FUNCTIONS) <= set(dir(peft_audio)) == set(peft_audio.__all__)
    light = ", ".join(name for name in FUNCTIONS if not name.startswith("load"))
    code = f"import sys; sys.modules['torch'] = None; from peft_audio import {light}; print(check.__doc__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "peft-audio check" in done.stdout


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, []),
        ({"top_k": 2}, ["--top-k", "2"]),
        ({"threshold": 0.9}, ["--threshold", "0.9"]),
        ({"window_seconds": 0.2, "hop_seconds": 0.1, "each_window": True}, "--window-seconds .2 --hop-seconds .1"),
    ],
)
def test_predict(
    given: dict[str, Any], flags: list[str] | str, adapter_dir: Path, letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags.split(), "--each-window"] if isinstance(flags, str) else flags
    said = printed(capsys, "predict", letters, "--adapter", adapter_dir, "--json", *words)
    found = peft_audio.predict(str(adapter_dir), letters, **given)
    output = OutputFormat(
        ("a", "b", "c"), given.get("top_k"), given.get("threshold", 0.0), given.get("each_window", False)
    )
    assert [as_object(one, output) for one in found] == said
    if "top_k" in given:
        assert [list(one.probabilities) for one in found] == [[top["label"] for top in one["top"]] for one in said]
    if "threshold" in given:
        assert [one.label for one in found] == [one["label"] for one in said]


def test_predict_into_a_file(
    adapter_dir: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = peft_audio.load_adapter(adapter_dir)
    twice = [letters, letters / "a"]
    found = peft_audio.predict(adapter, twice, out=tmp_path / "api.csv")
    assert main(["predict", str(letters), "--adapter", str(adapter_dir), "--out", str(tmp_path / "command.csv")]) == 0
    assert (tmp_path / "api.csv").read_bytes() == (tmp_path / "command.csv").read_bytes()
    assert found == peft_audio.predict(adapter, letters) == peft_audio.predict(adapter, twice)
    assert {path.name for path in tmp_path.iterdir()} == {"api.csv", "command.csv"}


def test_evaluate(adapter_dir: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "evaluate", adapter_dir, letters, "--split", "test", "--json", "--data.split_seed", "1")
    found = peft_audio.evaluate(adapter_dir, letters, split="test", data={"split_seed": 1}, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == said
    html = found._repr_html_()
    assert f"{found.scores.accuracy:.3f} of" in html and "95% interval" in html
    assert "trained or validated on</th>" not in html and "do not occur" not in html
    parts = replace(found, seen_scores=found.scores, unseen_scores=found.scores, unseen=("b", HOSTILE))
    html = parts._repr_html_()
    assert "trained or validated on</th>" in html and "new</th>" in html
    assert "labels of the adapter that do not occur: b, &lt;script&gt;" in html and "<script" not in html


def test_check(letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = peft_audio.check(letters, data={"group_pattern": "([0-9])"})
    said = printed(capsys, "check", letters, "--json", "--data.group_pattern", "([0-9])", code=int(found.spoiled))
    assert json.loads(json.dumps(to_json(found))) == said
    # The notebook shows the lines of the command.
    main(["check", str(letters), "--data.group_pattern", "([0-9])"])
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match("clips|rates|groups|test", line)]
    html = found._repr_html_()
    assert len(lines) == 4 and [line for line in lines if line not in html] == []
    # A class cannot be a folder of this name.
    rows = [f"{path},{HOSTILE if path.parent.name == 'a' else 'b'}" for path in sorted(letters.rglob("*.wav"))]
    (tmp_path / "clips.csv").write_text("path,label\n" + "\n".join(rows))
    html = peft_audio.check(tmp_path / "clips.csv")._repr_html_()
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_fine_tune(tones: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train: dict[str, Any] = {"epochs": 2, "batch_size": 5, "verify_adapter": False, "mixed_precision": "no"}
    flags = [f"--train.{name}={str(value).lower()}" for name, value in train.items()]
    words = ["train", "--strategy", "head_only", *flags, "--model.name", str(tiny_base), str(tones)]
    assert main([*words, "--train.output_dir", str(tmp_path / "command")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'command'}: data.source {tones}, model.name {tiny_base}, ")
    report = peft_audio.fine_tune(
        tones, "head_only", model={"name": tiny_base}, train=train | {"output_dir": tmp_path / "api"}
    )
    stored = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("api", "command")]
    same = [{name: value for name, value in one.items() if not MEASURED.search(name)} for one in stored]
    assert same[0] == same[1] and len(same[0]) > 20
    assert report.test_accuracy == stored[0]["test_accuracy"]
    html = replace(report, strategy=HOSTILE)._repr_html_()
    assert "<script" not in html and html.count("<polyline") == 4
    assert f"{report.test_accuracy:.3f} of 6 clips" in html
    assert peft_audio.predict(report.adapter or "", tones / "test" / "low")[0].label in ("low", "high")


def test_compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[CompareRecipe] = []
    finished = read_comparison([Path(__file__).parent / "golden" / "comparison"])

    def run(cfg: CompareRecipe) -> Any:
        called.append(cfg)
        return finished

    monkeypatch.setattr(comparing, "_run_arms", run)
    found = peft_audio.compare(
        "clips", arms=["lora", "full"], minutes=5.0, output_dir=tmp_path / "out", train={"epochs": 3}
    )
    words = ["compare", "clips", "--arms", "[lora, full]", "--minutes", "5", "--output_dir", str(tmp_path / "out")]
    main([*words, "--train.epochs", "3"])
    assert called[0] == called[1] and called[0].arms == ["lora", "full"]
    hostile = replace(found, notes=(HOSTILE,))._repr_html_()
    assert "<script" not in hostile and "&lt;script&gt;" in hostile and found.arms[0].name in hostile


def test_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called: list[Any] = []

    def write(*given: Any) -> exporting.Exported:
        called.append((str(given[0]), *given[1:]))
        return exporting.Exported(tmp_path, 1, 0.0, 1e-4)

    monkeypatch.setattr(exporting, "export_adapter", write)
    peft_audio.export("adapter", tmp_path / "x", onnx=True, base="b", revision="r", overwrite=True)
    words = ["export", "adapter", str(tmp_path / "x"), "--onnx", "--base", "b", "--revision", "r", "--overwrite"]
    assert main(words) == 0
    assert called[0] == called[1] == ("adapter", tmp_path / "x", "onnx", "b", "r", True)


def test_push(adapter_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = peft_audio.push(adapter_dir, "org/name", dry_run=True)
    assert found.commit is None and "--base-id" in found.obstacle
    assert main(["push", str(adapter_dir), "org/name", "--dry-run"]) == 2
    said = capsys.readouterr()
    listed = [(line.split()[2], int(line.split()[0].replace(",", ""))) for line in said.out.splitlines()[:-1]]
    assert listed == list(found.files)
    assert found.obstacle in said.err


def test_players_hold_the_recordings(adapter_dir: Path, letters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = peft_audio.predict(adapter_dir, letters / "a")
    html = found._repr_html_()
    held = [base64.b64decode(each) for each in re.findall(r'src="data:audio/wav;base64,([^"]+)"', html)]
    assert held == [path.read_bytes() for path in sorted((letters / "a").iterdir())]
    assert "<audio" in found[0]._repr_html_()
    monkeypatch.setattr("peft_audio.inference.predict.MOST_PLAYED_BYTES", 2 * len(held[0]))
    assert found._repr_html_().count("<audio") == 2
    hostile = Prediction(HOSTILE, HOSTILE, 0.5, {HOSTILE: 0.5}, 1.0, 1.0)
    failed = Prediction("gone.wav", None, None, {}, None, None, HOSTILE)
    html = PredictionList([hostile, failed])._repr_html_()
    assert "<script" not in html and html.count("&lt;script&gt;") == 3 and "<audio" not in html


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: peft_audio.fine_tune("clips", "lorra"), "strategy: got lorra, must be one of head_only"),
    (lambda: peft_audio.fine_tune("clips", train={"epochs": 0}), "--train.epochs: got 0, must be 1 or more"),
    (lambda: peft_audio.fine_tune("clips", train={"epoch": 3}), "--train.epoch: no such setting"),
    (lambda: peft_audio.fine_tune("clips", trian={"epochs": 3}), "--trian: no such setting"),
    (lambda: peft_audio.fine_tune("clips", print_config=True), "--print_config: no such setting"),  # type: ignore[arg-type]
    (lambda: peft_audio.fine_tune("clips", train=3), "train: got int, expected a dict"),  # type: ignore[arg-type]
    (lambda: peft_audio.fine_tune("clips", data={"source": "other"}), "data: got source other, but clips"),
    (lambda: peft_audio.fine_tune(peft_audio.LoraRecipe(), train={"epochs": 3}), "train: not used with a LoraRecipe"),
    (lambda: peft_audio.fine_tune("no such folder"), "no such folder"),
    (lambda: peft_audio.compare("clips", seeds=0), "--seeds: got 0"),
    (lambda: peft_audio.check("clips", jobs=0), "--jobs: got 0"),
    (lambda: peft_audio.check("no such folder"), "no such folder"),
    (lambda: peft_audio.evaluate("no such adapter", "bundled"), "no such adapter"),
    (lambda: peft_audio.predict("no such adapter", "clips"), "no such adapter"),
    (lambda: peft_audio.predict("adapter", "clips", out="labels.txt"), "--out: got labels.txt"),
    (
        lambda: peft_audio.predict("adapter", "clips", sampling_rate=8000, out="labels.csv"),
        "sampling_rate: got 8000, but with out only files are read",
    ),
    (lambda: peft_audio.export("adapter", "out"), "expected one"),
    (lambda: peft_audio.push("adapter", "no name"), "ORG/NAME: got no name"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_errors_are_exceptions(
    call: Callable[[], Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(words)):
        call()
