"""None of many broken adapters loads silently wrong, executes anything or ends in a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.adapter_faults import CODE, FAULTS, GOLDEN, LABELS, MARKER
from helpers.broken_adapters import ask, prepare, right_logits

from peft_audio.adapters import snippet, verify
from peft_audio.adapters.examine import examine, to_json
from peft_audio.adapters.load import load_adapter
from peft_audio.adapters.probes import compare_probes, measure_probes
from peft_audio.adapters.record import adapter_readme, read_record
from peft_audio.adapters.snippet import differs_from_readme
from peft_audio.cli import main

PRODUCTS = sorted(path.name for path in GOLDEN.iterdir() if (path / "peft_audio.json").exists())


@pytest.fixture(scope="module")
def right() -> dict[str, np.ndarray]:
    return {product: right_logits(product) for product in {fault.of for fault in FAULTS.values()}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    prepare(folder)
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_adapter_is_told_and_never_answers_wrongly(
    name: str, place: Path, right: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    fault = FAULTS[name]
    said = ask(name, right[fault.of])
    assert (fault.words in said.verify[1], said.verify[0]) == (True, int(fault.broken)), said.verify[1]
    if fault.loads:
        assert isinstance(said.load, float) and said.load < 1e-3, said.load
        assert said.predict[0] == 0 and said.predict[1].startswith("clip.wav\t")
    else:
        assert isinstance(said.load, str), f"loads, wrong by {said.load}"
        assert said.predict[0] == 2 and said.predict[1].startswith("error: ")
    assert not [*place.rglob(MARKER)]


@pytest.mark.parametrize("product", PRODUCTS)
def test_golden_adapters_still_give_their_logits(
    product: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(GOLDEN)
    assert main(["verify", product, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {finding["severity"] for finding in found["findings"]} == {"ok"}
    merged = load_adapter(product)
    assert list(merged.labels) == LABELS
    assert compare_probes(merged.record, measure_probes(merged), verify.TOLERANCE) == []


def snippet_finding(adapter: Path, *flags: str) -> dict[str, str]:
    return to_json("", examine(adapter, *flags, snippet=True))["findings"][-1]


def test_the_snippet_runs_as_the_record_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "golden-base", tmp_path / "golden-base")
    adapter = shutil.copytree(GOLDEN / "lora", tmp_path / "adapter")
    # Neither what stands in README.md nor a label of the record is executed.
    hostile = f'zed"]; {CODE}#'
    text = (adapter / "peft_audio.json").read_text(encoding="utf-8")
    (adapter / "peft_audio.json").write_text(text.replace('"zed"', json.dumps(hostile)), encoding="utf-8")
    (adapter / "README.md").write_text(f"```python\n{CODE}```", encoding="utf-8")
    found = snippet_finding(adapter)
    assert (found["check"], found["severity"]) == ("snippet", "warning"), found
    assert f"with BASE set to {tmp_path / 'golden-base'}, gives the recorded logits" in found["what"]
    assert "README.md itself has other code, which was not run" in found["mend"]
    assert not [*tmp_path.rglob(MARKER)]
    # The code as it stands in a new README, after the base has moved.
    record = read_record(adapter)
    (adapter / "README.md").write_text(adapter_readme(record), encoding="utf-8")
    assert not differs_from_readme(adapter, record, "adapter")
    # A download of a pushed adapter.
    (adapter / "README.md").write_text(adapter_readme(record, "org/name"), encoding="utf-8")
    assert not differs_from_readme(adapter, record, "adapter")
    (tmp_path / "golden-base").rename(tmp_path / "moved")
    monkeypatch.setattr(snippet, "run_python", lambda *call: subprocess.CompletedProcess("", 1, "", "1\nno torch"))
    found = snippet_finding(adapter, str(tmp_path / "moved"))
    assert found["severity"] == "broken" and found["what"].endswith("ended with exit code 1: no torch")
    assert snippet_finding(adapter)["severity"] == "skipped"


@pytest.mark.slow
@pytest.mark.parametrize("product", PRODUCTS)
def test_the_snippet_of_each_golden_adapter_gives_its_logits(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    found = snippet_finding(Path(product))
    assert "gives the recorded logits" in found["what"] and found["severity"] in ("ok", "warning")


def test_golden_adapters_are_small_and_of_no_machine() -> None:
    files = [path for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1.5e6
    for path in files:
        if path.suffix == ".json":
            assert not [
                value for value in _texts(json.loads(path.read_text(encoding="utf-8"))) if value.startswith("/")
            ]


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []
