"""Adapters to the Hub and back: pushed, fetched, used and verified in fresh processes, against a stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.hub_standin import COMMIT, TOKEN, Hub, running
from helpers.tones import write_tone
from helpers.trained_models import PRODUCTS, describe
from huggingface_hub import ModelCard
from sklearn.metrics import confusion_matrix

from peft_audio.adapters.hub import ADAPTER_FILES, COMMON_FILES, WHOLE_FILES
from peft_audio.adapters.record import read_record
from peft_audio.adapters.save import save_adapter
from peft_audio.adapters.trained_clips import write_trained_clips
from peft_audio.cli import main
from peft_audio.config import DataConfig, to_yaml
from peft_audio.publish.model_card import model_card
from peft_audio.runs.finished import NEEDED
from peft_audio.strategies import LoraRecipe

BASE, NAME = "org/tiny", "me/pitch"
SENT = {*ADAPTER_FILES, *COMMON_FILES}


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that has the base."""
    with running(Hub({BASE: tiny_base}, {}, tmp_path / "hub")) as found:
        yield found


def python(hub: Hub, home: Path, *words: str | Path, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """A fresh process with a cache of its own, that knows this Hub and no other."""
    known = {"HF_ENDPOINT": hub.url(), "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    env = os.environ | known | ({"HF_TOKEN": token} if token else {})
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=200)


def test_an_adapter_is_pushed_fetched_used_and_verified(
    adapter_dir: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, command = write_tone(tmp_path / "clip.wav", 500), ("-m", "peft_audio.cli")
    (adapter_dir / "notes.txt").write_text("not for others")
    hub.drops = 1
    try:
        sent = python(hub, tmp_path / "a", *command, "push", adapter_dir, NAME, "--base-id", BASE, "--private")
    finally:
        (adapter_dir / "notes.txt").unlink()
    assert sent.returncode == 0, sent.stderr
    assert hub.drops == 0 and sum(request.startswith("PUT /upload") for request in hub.requests) == 2
    _, (commit, folder) = hub.models[NAME].commits.items()
    assert commit in sent.stdout and hub.models[NAME].private
    assert {path.name for path in folder.iterdir()} == SENT | {".gitattributes"}
    for file in folder.iterdir():
        # Neither this machine's folders nor the token.
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content and b"/tmp" not in content and TOKEN.encode() not in content

    assert main(["predict", str(clip), "--adapter", str(adapter_dir), "--json"]) == 0
    here = capsys.readouterr().out
    predict = (*command, "predict", clip, "--adapter", NAME)
    there = python(hub, tmp_path / "b", *predict, "--revision", commit, "--json")
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout) == json.loads(here)
    stranger = python(hub, tmp_path / "c", *predict, token="")
    assert stranger.returncode == 2 and "hf auth login" in stranger.stderr
    # What the card shows to somebody without this package.
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    shown = python(hub, tmp_path / "d", "-c", snippet + "\nimport sys\nassert 'peft_audio' not in sys.modules")
    assert (shown.returncode, shown.stdout.strip() in ("a", "b", "c")) == (0, True), shown.stderr
    # It is never fetched, but others may read it.
    (folder / "adapter_model.bin").write_bytes(b"a pickle")
    verified = python(hub, tmp_path / "b", *command, "verify", NAME)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "pickles beside the weights: adapter_model.bin" in verified.stdout
    assert not any(request.endswith("adapter_model.bin") for request in hub.requests)


# Several commands in one process, because starting one takes longer than what it does here.
COMMANDS = """
import contextlib, io, json, os, sys
import huggingface_hub.utils._http as http
from peft_audio.cli import main
http.time.sleep = lambda seconds: None
found = []
for words in json.loads(sys.argv[1]):
    if words == "forget the token":
        del os.environ["HF_TOKEN"]
        continue
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(words)
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


def test_what_cannot_be_sent_changes_nothing(adapter_dir: Path, hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    made = describe(tiny_base, PRODUCTS["full"])
    model = save_adapter(tmp_path / "run", made.model, made.trained, made.extractor, made.record, verify=False)
    adapter_dir = Path(shutil.copytree(adapter_dir, tmp_path / "adapter"))
    write_trained_clips(adapter_dir, ["0123456789abcdef"])
    push = ["push", str(adapter_dir), NAME]
    from_hub = [*push, "--base-id", BASE]
    other = ["push", str(adapter_dir), "me/more", "--base-id", BASE]
    commands: list[Any] = [[*from_hub, "--dry-run"], push, [*push[:2], "pitch"], [*push, "--base-id", "org/other"]]
    more = [[*from_hub, "--private"], ["push", str(model), NAME, "--base-id", BASE]]
    more.append(["push", str(adapter_dir), BASE, "--base-id", BASE])
    # huggingface_hub tries six times.
    # Wherever a folder is taken, so is the name.
    for i, label in enumerate("abcabc"):
        write_tone(tmp_path / "tones" / label / f"{i}.wav", 300 * (1 + i))
    named = [["export", NAME, str(tmp_path / "onnx"), "--onnx"], ["evaluate", NAME, str(tmp_path / "tones")]]
    commands += [from_hub, from_hub, *named, *more, [*from_hub, "--dry-run", "--without-trained-clips"]]
    commands += ["forget the token", other]
    hub.drops = 6
    done = python(hub, tmp_path, "-c", COMMANDS, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    printed = done.stderr + "".join(err for _, _, err in answers)
    assert "Retry" not in printed and "thrown while requesting" not in printed
    assert [code for code, _, _ in answers] == [0, 2, 2, 2, 2, 0, 0, 0, 2, 0, 2, 0, 2], answers
    listed, local, name, missing, dropped, _, exported, evaluated, public, _, foreign, without, locked = answers
    assert "reproduced the recorded logits" in exported[1] and "of 6 recordings" in evaluated[1]
    assert listed[0] == 0 and set(re.findall(r"bytes  (\S+)", listed[1])) == SENT | {"trained_clips.bin"}
    assert set(re.findall(r"bytes  (\S+)", without[1])) == SENT
    assert "is a local folder that others do not have" in local[2]
    assert "ORG/NAME: got pitch" in name[2] and "org/other cannot be loaded" in missing[2]
    assert f"{NAME}: no file was sent" in dropped[2] and "hf auth login" in locked[2]
    assert f"{NAME} exists and is public" in public[2]
    assert "org/tiny holds a model that peft-audio did not push (config.json)" in foreign[2]
    # The whole model took the adapter's place; nothing of that is left beside it.
    *_, adapter, model = hub.models[NAME].commits.values()
    assert len(hub.models[NAME].commits) == 3 and "me/more" not in hub.models
    assert {path.name for path in adapter.iterdir()} == SENT | {".gitattributes", "trained_clips.bin"}
    assert {path.name for path in model.iterdir()} == {*WHOLE_FILES, *COMMON_FILES, ".gitattributes"}
    card = ModelCard((model / "README.md").read_text(encoding="utf-8"))
    assert (card.data.base_model, card.data.base_model_relation) == (BASE, "finetune")


def test_a_dry_run_lists_the_files_without_the_hub(adapter_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push = ["push", str(adapter_dir), NAME]
    assert main([*push, "--dry-run", "--base-id", BASE]) == 0
    out, err = capsys.readouterr()
    assert set(re.findall(r"bytes  (\S+)", out)) >= SENT and "nothing was sent" in out
    skipped = "note: skipped the comparison of the base with org/tiny, which a push makes"
    assert f"{skipped}: --base-id: org/tiny cannot be loaded" in err
    # What a push would refuse is said below the list.
    assert main([*push, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert set(re.findall(r"bytes  (\S+)", out)) >= SENT
    assert err.startswith("error: a push would be refused: ") and "--base-id org/name" in err
    assert main([*push, "--base-id", BASE]) == 2
    assert capsys.readouterr().err.startswith("error: --base-id: org/tiny cannot be loaded: the Hub was not reached")
    assert main([*push, "--dry-run", "--base-id", BASE, "--comparison", "absent"]) == 2
    assert "error: --comparison: absent" in capsys.readouterr().err


LABELS = ("a", "b|c", "<i>`d`")


def test_the_card_says_how_it_was_trained_and_what_it_confuses(adapter_dir: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    rows = {"id": [f"{i}.wav" for i in range(60)], "group": "", "split": "test", "label": [LABELS[i] for i in true]}
    rows |= {f"probability_{label}": (said == i) * 0.8 + 0.1 for i, label in enumerate(LABELS)}
    pd.DataFrame(rows).to_parquet(tmp_path / "predictions.parquet")
    report = dict.fromkeys(NEEDED, 1) | {"strategy": "lora", "test_accuracy": float((true == said).mean())}
    report |= {"best_epoch": 3, "steps": 24, "trainable_parameters": 1000, "total_parameters": 9000, "device": "cpu"}
    report |= {"mixed_precision": "no", "train_seconds": 1.0, "versions": {"torch": "2"}, "dataset_revision": None}
    (tmp_path / "report.json").write_text(json.dumps(report))
    cfg = LoraRecipe(data=DataConfig(source="/home/somebody/secret/birds"))
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    about = {"source": "/home/somebody/secret/birds", "encoder": "facebook/wav2vec2-base"}
    (tmp_path / "comparison.json").write_text(json.dumps(about))
    shown = f"# Comparison: {about['encoder']} on {about['source']}\n\n## Scores\n\n| arm |\n| --- |\n"
    (tmp_path / "comparison.md").write_text(f"{shown}\n## Failed runs\n\nTraceback in /home/somebody\n")
    record = read_record(adapter_dir)
    metrics = {"test_accuracy": report["test_accuracy"], "test_macro_f1": 0.25}
    record = replace(record, labels=LABELS, base=replace(record.base, name=BASE, commit=COMMIT), metrics=metrics)

    text = model_card(record, NAME, run=tmp_path, comparison=tmp_path, license="apache-2.0")
    card = ModelCard(text)
    assert card.data.base_model == BASE and card.data.base_model_relation == "adapter"
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "audio-classification")
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["accuracy"].metric_value == round(report["test_accuracy"], 4)
    assert found["f1"].dataset_name == "birds" and "secret" not in text
    expected = confusion_matrix(true, said)
    cells = [re.split(r"(?<!\\)\|", line)[2:-1] for line in text.splitlines() if line.count(" | ") == 3]
    assert [[int(cell.strip() or 0) for cell in row] for row in cells[2:]] == expected.tolist()
    # Labels stay text: no HTML, no code, no further columns.
    assert "<i>" not in re.sub(r"```.*?```|`[^`]*`", "", text.replace("\\<", ""), flags=re.DOTALL)
    assert "## Comparison: facebook/wav2vec2-base on birds\n\n### Scores" in text and "Traceback" not in text
    assert "| lora.r | 8 |" in text
    # A run that learned nothing says so beside its scores.
    assert "**Warning:**" not in text
    chance = {"recordings": 60, "balanced_accuracy": 0.33, "low": 0.21, "chance": 1 / 3, "interval": "recordings"}
    chance |= {"only_label": "b|c", "learned_nothing": True, "split": "test"}
    (tmp_path / "report.json").write_text(json.dumps(report | {"chance": chance}))
    useless = model_card(record, NAME, run=tmp_path, comparison=None, license="")
    warning = "The classifier learned nothing: it predicts 'b\\|c' for each of the 60 test clips. Try"
    assert f"\n\n**Warning:** {warning}" in useless
    # Scores that were chosen on the test clips are marked, and the Hub gets none of them.
    (tmp_path / "report.json").write_text(json.dumps(report | {"validation_is_test": True}))
    of_earlier_version = model_card(record, NAME, run=tmp_path, comparison=None, license="")
    known = model_card(replace(record, validation_is_test=True), NAME, run=None, comparison=None, license="")
    for chosen in (of_earlier_version, known):
        assert "**Warning:** The best epoch was chosen on the test clips" in chosen and "| test accuracy |" in chosen
        assert ModelCard(chosen).data.eval_results is None
    assert "chosen on the test clips" not in text and "| data.validate_on_test | False |" in text
    # A dataset of the Hub is named as such, at its commit.
    (tmp_path / "report.json").write_text(json.dumps(report | {"dataset_revision": COMMIT}))
    (tmp_path / "config.yaml").write_text(to_yaml(LoraRecipe(data=DataConfig(source="org/birds"))))
    of_hub = ModelCard(model_card(record, NAME, run=tmp_path, comparison=None, license="")).data
    assert of_hub.datasets == ["org/birds"]
    assert {(one.dataset_type, one.dataset_revision) for one in of_hub.eval_results} == {("org/birds", COMMIT)}
    compile(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], "snippet", "exec")
