"""Exports: what stands in the end answers as the adapter did, and nothing else ever stands there."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.matrix import first_quick
from helpers.tiny_encoders import ENCODERS, save_encoder
from helpers.trained_models import LABELS, PRODUCTS, describe
from safetensors import safe_open
from scipy.special import softmax

from peft_audio import cli
from peft_audio.adapters import verify
from peft_audio.adapters.examine import examine, to_json
from peft_audio.adapters.load import load_adapter
from peft_audio.adapters.record import read_record
from peft_audio.adapters.save import save_adapter
from peft_audio.adapters.snippet import differs_from_readme
from peft_audio.errors import UserError
from peft_audio.publish import export
from peft_audio.publish.export import FORMS

COMMON = {"README.md", "config.json", "peft_audio.json", "preprocessor_config.json"}
TONE = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)


@pytest.fixture(scope="module")
def lora_dir(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = describe(tiny_base)
    run = tmp_path_factory.mktemp("run")
    return save_adapter(run, made.model, made.trained, made.extractor, made.record, verify=False)


@pytest.fixture(scope="module")
def exports(lora_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the command, each checked by a fresh process."""
    root = tmp_path_factory.mktemp("exports")
    for form in FORMS:
        assert cli.main(["export", str(lora_dir), str(root / form), f"--{form}"]) == 0
    assert {path.name for path in root.iterdir()} == {*FORMS}, "nothing is left beside them"
    for form, tolerance in (("merged", "0.0001"), ("onnx", "0.001")):
        assert f"up to {tolerance} of a clip's largest logit" in (root / form / "README.md").read_text()
        assert json.loads((root / form / "peft_audio.json").read_text())["export_tolerance"] == float(tolerance)
    return {form: root / form for form in FORMS}


def run_readme(folder: Path, more: str) -> str:
    """What the README's only block prints, in a process of its own, and `more` behind it."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    command = [sys.executable, "-P", "-c", blocks[0] + more]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_merged_is_an_ordinary_directory_for_us_too(exports: dict[str, Path], lora_dir: Path) -> None:
    folder = exports["merged"]
    assert {path.name for path in folder.iterdir()} == COMMON | {"model.safetensors"}
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
        assert not [name for name in weights.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118
    assert list(json.loads((folder / "config.json").read_text())["id2label"].values()) == [*LABELS]
    record, was = read_record(folder), read_record(lora_dir)
    assert (record.whole, record.strategy, record.probes) == (True, "lora", was.probes)
    assert verify.check_probes(folder) == []
    # Of one clip alone, and beside one of another length.
    expected = load_adapter(lora_dir, merge=False).logits([TONE, TONE[:7_000]])
    np.testing.assert_allclose(load_adapter(folder).logits([TONE, TONE[:7_000]]), expected, atol=2e-5)


def test_verify_runs_the_code_of_a_merged_exports_readme(exports: dict[str, Path], tmp_path: Path) -> None:
    found = to_json("", examine(exports["merged"], snippet=True))["findings"][-1]
    assert (found["check"], found["severity"]) == ("snippet", "ok"), found
    other = shutil.copytree(exports["merged"], tmp_path / "other")
    (other / "README.md").write_text("classify = print")
    assert differs_from_readme(other, read_record(other), ".")


def test_the_readme_of_merged_runs_with_transformers_alone(exports: dict[str, Path], lora_dir: Path) -> None:
    said = run_readme(exports["merged"], '\nimport sys\nassert not {"peft_audio", "peft"} & sys.modules.keys()\n')
    found = {answer["label"]: answer["score"] for answer in ast.literal_eval(said)}
    expected = softmax(load_adapter(lora_dir).logits([TONE])[0])
    np.testing.assert_allclose([found[label] for label in LABELS], expected, atol=1e-5)


def test_onnx_says_what_it_is_and_its_readme_runs_without_torch(exports: dict[str, Path], lora_dir: Path) -> None:
    folder = exports["onnx"]
    assert {path.name for path in folder.iterdir()} == COMMON | {"model.onnx"}
    graph = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(graph)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]
    about = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert about == {"labels": [*LABELS], "sampling_rate": 16_000, "minimum_samples": 400, "do_normalize": True}
    text = graph.SerializeToString()
    assert str(Path(export.__file__).parents[1]).encode() not in text and b"site-packages" not in text

    more = """
import sys
assert not {"peft_audio", "torch", "transformers"} & sys.modules.keys()
batches = [waveform[None], [waveform[:7000]] * 2, [waveform[:99]]]
print(json.dumps([logits_of(batch)[-1].tolist() for batch in batches]))
"""
    label, logits = run_readme(folder, more).splitlines()
    adapter = load_adapter(lora_dir)
    expected = [adapter.logits([clip])[0] for clip in (TONE, TONE[:7_000], TONE[:99])]
    np.testing.assert_allclose(json.loads(logits), expected, atol=1e-4)
    assert label == LABELS[expected[0].argmax()]
    with pytest.raises(UserError, match=r"is an export for ONNX Runtime; run it as in its README\.md"):
        load_adapter(folder)


def test_the_same_adapter_gives_the_same_bytes(exports: dict[str, Path], lora_dir: Path, tmp_path: Path) -> None:
    for form, first in exports.items():
        export.write_export(load_adapter(lora_dir), tmp_path / form, FORMS[form])
        for file in first.iterdir():
            assert file.read_bytes() == (tmp_path / form / file.name).read_bytes(), file.name


@pytest.mark.parametrize("encoder", first_quick(ENCODERS))
def test_graphs_of_every_family_take_any_length(encoder: str, tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "base", ENCODERS[encoder])
    made = describe(base, PRODUCTS["full"], layer_weighted_sum=ENCODERS[encoder].feat_extract_norm == "layer")
    adapter = export.Adapter(made.model, made.extractor, made.record)
    export.write_graph(adapter, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    answers = []
    for clips, samples in ((1, 400), (1, 719), (1, 720), (2, 8_000), (1, 50_001)):
        values = torch.randn(clips, samples, generator=torch.Generator().manual_seed(samples))
        with torch.no_grad():
            expected = made.model(values).logits.numpy()
        answers.append(session.run(["logits"], {"input_values": values.numpy()})[0])
        np.testing.assert_allclose(answers[-1], expected, atol=1e-4 * max(1, np.abs(expected).max()))
    assert np.ptp(np.concatenate(answers), axis=0).max() > 1e-3, "the clips must have different answers"


def test_a_whole_model_is_exported_as_it_is(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = describe(tiny_base, PRODUCTS["full"])
    saved = save_adapter(tmp_path, made.model, made.trained, made.extractor, made.record, verify=False)
    monkeypatch.setattr(export, "_logits_in_fresh_process", answers_of_ours)
    export.export_adapter(saved, tmp_path / "merged", "merged")
    assert (saved / "model.safetensors").read_bytes() == (tmp_path / "merged/model.safetensors").read_bytes()
    assert "from a fully trained model" in (tmp_path / "merged/README.md").read_text()


def answers_of_ours(folder: Path, form: Any, adapter: Any, batches: list[np.ndarray]) -> list[dict[str, float]]:
    """What a fresh process would say of a good export."""
    rows = np.concatenate([adapter.logits(list(batch)) for batch in batches])
    return [dict(zip(adapter.labels, row, strict=True)) for row in rows.tolist()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found[2].update(low=found[2]["low"] + 1e-3), r"by \d.\de-04|by 1.\de-03"),
        (lambda found: found[3].update(zed=np.nan), "by inf"),
        (lambda found: found[1].update(low=found[1]["zed"], zed=found[1]["low"]), "by"),
        (lambda found: found[0].pop("zed"), "by inf"),
        (lambda found: found.pop(), "by inf"),
    ],
)
def test_what_answers_otherwise_is_never_put_in_place(
    change: Any, words: str, lora_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*question: Any) -> list[dict[str, float]]:
        change(found := answers_of_ours(*question))
        return found

    monkeypatch.setattr(export, "_logits_in_fresh_process", other)
    with pytest.raises(UserError, match=rf"differs from the recorded logits {words}"):
        export.export_adapter(lora_dir, tmp_path / "out", "merged")
    assert not list(tmp_path.iterdir()), "nothing is left"


def test_only_an_export_is_replaced(
    exports: dict[str, Path], lora_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_logits_in_fresh_process", answers_of_ours)
    folder = shutil.copytree(exports["onnx"], tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        export.export_adapter(lora_dir, folder, "merged")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files too \(notes.txt first\)"):
        export.export_adapter(lora_dir, folder, "merged", overwrite=True)
    (folder / "notes.txt").unlink()
    export.export_adapter(lora_dir, folder, "merged", overwrite=True)
    assert {path.name for path in folder.iterdir()} == COMMON | {"model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    adapter = shutil.copytree(lora_dir, tmp_path / "adapter")
    with pytest.raises(UserError, match="is not an export of peft-audio and is not replaced"):
        export.export_adapter(lora_dir, adapter, "merged", overwrite=True)
    assert load_adapter(adapter).labels == LABELS


def test_what_is_not_installed_is_said_first(
    lora_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert cli.main(["export", str(lora_dir), str(tmp_path / "out"), "--onnx"]) == 2
    assert "--onnx: needs onnx and onnxruntime; install with: pip install onnx onnxruntime" in capsys.readouterr().err
