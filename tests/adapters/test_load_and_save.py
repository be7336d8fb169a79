"""An adapter directory: what is in it, that others can load it, and that damage is seen."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from helpers.adapt import adapt
from helpers.bf16_units import pretend_bf16_units, without_kernel_line
from helpers.tiny_encoders import save_base
from helpers.tones import write_tone
from helpers.trained_models import LABELS, PRODUCTS, Saved, describe
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.signal import chirp
from transformers import AutoModelForAudioClassification

from peft_audio.adapters import save as saving
from peft_audio.adapters import verify
from peft_audio.adapters.load import load_adapter
from peft_audio.adapters.probes import probe_waveforms
from peft_audio.adapters.record import read_record, readme_snippet
from peft_audio.adapters.save import save_adapter
from peft_audio.config import ModelConfig
from peft_audio.encoders.loading import load_classifier, quiet_loading
from peft_audio.errors import UserError
from peft_audio.strategies import LoraConfig, LoraRecipe

PROBE_SECONDS = (0.01, 0.5, 1.0, 2.3)

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "peft_audio.json", "preprocessor_config.json"}


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Saved for real: a fresh process has reproduced its logits."""
    made = describe(tiny_base)
    folder = save_adapter(tmp_path_factory.mktemp("run"), made.model, made.trained, made.extractor, made.record)
    return dataclasses.replace(made, folder=folder, record=read_record(folder))


@pytest.fixture
def adapter(saved: Saved, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(saved.folder, tmp_path / "elsewhere")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    folder = tmp_path_factory.mktemp("clips")
    files = [write_tone(folder / f"{i}.wav", 200 + 700 * i, 0.3 + 0.4 * i, seed=i) for i in range(3)]
    return [soundfile.read(file, dtype="float32")[0] for file in files]


def test_the_directory_holds_the_promised_files_and_no_more(saved: Saved) -> None:
    assert {path.name for path in saved.folder.iterdir()} == FILES
    assert [path.name for path in saved.folder.parent.iterdir()] == ["adapter"]
    modes = {path.stat().st_mode & 0o777 for path in saved.folder.iterdir()}
    assert len(modes) == 1

    with safe_open(saved.folder / "adapter_model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
        stored = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    trained = {name: weight for name, weight in saved.model.named_parameters() if "lora_" in name or "to_save" in name}
    plain_names = {name.replace(".modules_to_save", "").replace(".default", "") for name in trained}
    assert set(stored) == plain_names
    head = {f"base_model.model.{part}.{kind}" for part in ("projector", "classifier") for kind in ("weight", "bias")}
    assert head <= set(stored)
    assert sum(value.numel() for value in stored.values()) == sum(weight.numel() for weight in trained.values())

    config = json.loads((saved.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == saved.record.base.name
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["modules_to_save"] == ["classifier", "projector"]
    record = json.loads((saved.folder / "peft_audio.json").read_text())
    assert record["labels"] == list(LABELS)
    assert record["base"]["sha256"] == saved.record.base.sha256
    assert record["input"]["minimum_samples"] == 400
    assert len(record["probes"]) == 4


def test_loading_gives_the_trained_answers(saved: Saved, adapter: Path, clips: list[np.ndarray]) -> None:
    loaded = load_adapter(adapter)
    assert loaded.labels == LABELS
    assert loaded.record == saved.record
    assert not any(module.training for module in loaded.model.modules())
    features = [saved.extractor(clip, sampling_rate=16_000, return_tensors="pt").input_values for clip in clips]
    with torch.no_grad():
        expected = torch.cat([saved.model(values).logits for values in features]).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1, "the clips must have different answers"
    np.testing.assert_allclose(loaded.logits(clips), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(loaded.logits(clips[:1]), expected[:1], rtol=0, atol=1e-5)
    assert len({tuple(probe["logits"].values()) for probe in saved.record.probes}) == 4
    assert verify.check_probes(adapter) == []


def test_probe_clips_are_scipys_chirps() -> None:
    time = np.arange(16_000) / 16_000
    tone = chirp(time, f0=150.0, t1=1.0, f1=3500.0) + 0.5 * chirp(time, f0=2000.0, t1=1.0, f1=300.0)
    np.testing.assert_allclose(
        probe_waveforms(16_000, PROBE_SECONDS)[2], 0.4 * tone * np.cos(4 * np.pi * time), atol=1e-7
    )


@pytest.mark.parametrize("strategy", [*PRODUCTS, "dora"])
def test_merged_weights_give_the_logits_of_the_saved_ones(
    strategy: str, tiny_base: Path, tmp_path: Path, clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)
    products = PRODUCTS | {"dora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(r=4, use_dora=True)))}
    made = describe(tiny_base, products[strategy], layer_weighted_sum=strategy == "lora")
    folder = save_adapter(tmp_path, made.model, made.trained, made.extractor, made.record)
    merged, saved = load_adapter(folder), load_adapter(folder, merge=False)
    expected = np.concatenate([saved.logits([clip]) for clip in clips])
    np.testing.assert_allclose(merged.logits(clips), expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the clips must have different answers"
    assert isinstance(saved.model, PeftModel) == (strategy != "full")
    plain = type(load_classifier(ModelConfig(name=str(tiny_base)), LABELS))
    assert type(merged.model) is plain and not any("lora" in name for name, _ in merged.model.named_modules())


QUICK = ("lora", "full")
README_CASES = [pytest.param(name, False, marks=[] if name in QUICK else pytest.mark.slow) for name in PRODUCTS]
README_CASES.append(pytest.param("lora", True, marks=pytest.mark.slow))


@pytest.mark.parametrize(("strategy", "bf16_units"), README_CASES)
def test_the_readme_loads_it_without_this_package(
    strategy: str,
    bf16_units: bool,
    tiny_base: Path,
    tmp_path: Path,
    clips: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)
    made = describe(tiny_base, PRODUCTS[strategy], layer_weighted_sum=strategy == "last_n_layers")
    folder = save_adapter(tmp_path / "run", made.model, made.trained, made.extractor, made.record)
    adapter = shutil.copytree(folder, tmp_path / "elsewhere")
    blocks = re.findall(r"```python\n(.*?)```", (adapter / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    assert str(tiny_base.parent) not in (adapter / "README.md").read_text(encoding="utf-8")
    base = made.record.base.sha256
    assert blocks[0].startswith(f'BASE = "PATH/TO/BASE"  # sha256 {base}\n') or strategy == "full"
    np.savez(adapter / "clips.npz", *clips)
    more = """
import json, sys
answered = []
for clip in np.load("clips.npz").values():
    values = extractor(clip, sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        answered.append(model(values).logits[0].tolist())
assert "peft_audio" not in sys.modules
json.dump({"logits": answered, "names": model.config.id2label}, open("answers.json", "w"))
"""
    snippet = blocks[0].replace("PATH/TO/BASE", str(tiny_base))
    (adapter / "snippet.py").write_text(snippet + more, encoding="utf-8")
    env = pretend_bf16_units(tmp_path) if bf16_units else None
    command = [sys.executable, "snippet.py"]
    child = subprocess.run(command, cwd=adapter, env=env, capture_output=True, text=True, check=False)
    assert (child.returncode, without_kernel_line(child.stderr)) == (0, "")
    assert child.stderr or not bf16_units, "the pretence must make bitsandbytes print its line"
    answers = json.loads((adapter / "answers.json").read_text())
    loaded = load_adapter(folder)
    np.testing.assert_allclose(answers["logits"], loaded.logits(clips), rtol=0, atol=1e-5)
    assert np.ptp(answers["logits"], axis=0).max() > 1e-3, "the clips must have different answers"
    assert list(answers["names"].values()) == list(LABELS)
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    assert child.stdout.strip() == LABELS[int(loaded.logits([tone])[0].argmax())]


def test_the_readme_takes_a_base_that_has_a_head_for_other_labels(
    tiny_base: Path, tmp_path: Path, clips: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    with quiet_loading():
        model = AutoModelForAudioClassification.from_pretrained(tiny_base, num_labels=7)
    model.save_pretrained(tmp_path / "base")
    shutil.copy(tiny_base / "preprocessor_config.json", tmp_path / "base")
    made = describe(tmp_path / "base")
    folder = save_adapter(tmp_path, made.model, made.trained, made.extractor, made.record, verify=False)
    space: dict[str, Any] = {}
    with quiet_loading():
        exec(readme_snippet(made.record, str(folder), str(tmp_path / "base")), space)
    assert capsys.readouterr().out.strip() in LABELS
    values = space["extractor"](clips[0], sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        logits = space["model"](values).logits.numpy()
    np.testing.assert_allclose(logits, load_adapter(folder).logits(clips[:1]), rtol=0, atol=1e-5)


def test_a_whole_model_is_an_ordinary_directory_that_needs_no_base(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)
    made = describe(tiny_base, PRODUCTS["full"])
    folder = save_adapter(tmp_path, made.model, made.trained, made.extractor, made.record)
    assert folder == tmp_path / "model"
    files = {path.name for path in folder.iterdir()}
    assert files == (FILES - {"adapter_config.json", "adapter_model.safetensors"}) | {
        "config.json",
        "model.safetensors",
    }
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == list(LABELS)
    assert verify.check_probes(folder) == []
    with pytest.raises(UserError, match=r"--base: got .* is a whole model and needs none"):
        load_adapter(folder, base=str(tiny_base))

    weights = load_file(folder / "model.safetensors")
    head = weights.pop("classifier.bias")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, classifier.bias first"):
        load_adapter(folder)
    save_file({**weights, "classifier.bias": head + 1e-3}, folder / "model.safetensors", metadata={"format": "pt"})
    assert any("logits differ by" in problem for problem in verify.check_probes(folder))


def test_the_folder_of_a_run_is_answered_with_what_is_in_it(saved: Saved) -> None:
    with pytest.raises(UserError, match=rf"it has no peft_audio.json. Give {re.escape(str(saved.folder))}"):
        load_adapter(saved.folder.parent)


def edit_record(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "peft_audio.json").read_text())
    (folder / "peft_audio.json").write_text(json.dumps(record | changes))


@pytest.mark.parametrize("strategy", ["bias_only", "ia3"])
def test_a_small_adapter_holds_what_trains_and_is_refused_without_a_part_of_it(
    strategy: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)
    made = describe(tiny_base, PRODUCTS[strategy])
    folder = save_adapter(tmp_path, made.model, made.trained, made.extractor, made.record)
    weights = load_file(folder / "adapter_model.safetensors")
    count = sum(w.numel() for name, w in made.model.named_parameters() if name in made.trained.parameters)
    assert sum(weight.numel() for weight in weights.values()) == count
    # 12 linear layers, 2 x 2 layer norms, and the encoder's own: norm, positions, projection and its norm.
    body = {"bias_only": 12 + 4 + 4, "ia3": 6}[strategy]
    assert len(weights) == body + 4
    assert verify.check_probes(folder) == []
    name = next(name for name in weights if "layers.1" in name)
    edit_weights(folder, lambda stored: stored.pop(name))
    with pytest.raises(UserError, match=r"weight.* (is|are) missing"):
        load_adapter(folder)
    edit_weights(folder, lambda stored: stored.update({name: weights[name], f"{name}.more": weights[name] + 1}))
    with pytest.raises(UserError, match="1 weights are missing or unknown"):
        load_adapter(folder)


def test_a_record_from_before_random_encoders_is_read(adapter: Path) -> None:
    record = json.loads((adapter / "peft_audio.json").read_text())
    assert record.pop("pretrained") is True
    (adapter / "peft_audio.json").write_text(json.dumps(record))
    assert read_record(adapter).pretrained and not read_record(adapter).whole


def test_notes_of_the_record_may_be_worded_otherwise(saved: Saved, adapter: Path) -> None:
    edit_record(adapter, input=saved.record.input | {"padding": "as in version 0.9", "normalised": "once"})
    assert load_adapter(adapter).record.input["padding"] == "as in version 0.9"


def test_a_record_without_a_part_of_its_input_is_refused(saved: Saved, adapter: Path) -> None:
    about = saved.record.input
    edit_record(adapter, input={name: value for name, value in about.items() if name != "do_normalize"})
    with pytest.raises(UserError, match=r"peft_audio.json: input lacks do_normalize; get the adapter again"):
        load_adapter(adapter)
    edit_record(adapter, input=about | {"input_seconds": 1.0})
    with pytest.raises(UserError, match=r"crop must hold window_seconds and hop_seconds"):
        load_adapter(adapter)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def test_the_fresh_process_of_a_save_says_what_is_wrong(adapter: Path, capsys: pytest.CaptureFixture) -> None:
    """The faults themselves are in test_broken.py."""
    assert verify.main(str(adapter)) == 0
    edit_weights(adapter, lambda weights: weights["base_model.model.classifier.bias"][2].add_(5e-4))
    assert verify.main(str(adapter)) == 1
    assert re.search(r"probe of 2.3 s: logits differ by (5.0e-04|4.9e-04)", capsys.readouterr().out)
    edit_record(adapter, probes=[])
    assert verify.main(str(adapter)) == 1
    edit_record(adapter, schema_version=99)
    assert verify.main(str(adapter)) == 1
    assert re.search("no probe clips\n.*upgrade peft-audio", capsys.readouterr().out)


def test_another_base_is_refused_and_a_moved_one_is_taken(
    saved: Saved, adapter: Path, tiny_base: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_base, tmp_path / "moved")
    assert verify.check_probes(adapter, base=str(moved)) == []
    changed = load_file(moved / "model.safetensors")
    changed["encoder.layers.1.feed_forward.output_dense.bias"][3] += 1e-3
    save_file(changed, moved / "model.safetensors", metadata={"format": "pt"})
    for other in (moved, save_base(tmp_path / "layer", "layer")):
        with pytest.raises(UserError, match=r"is not the one the adapter was trained on.*--base"):
            load_adapter(adapter, base=str(other))
    edit_record(adapter, base=json.loads((adapter / "peft_audio.json").read_text())["base"] | {"name": str(moved)})
    with pytest.raises(UserError, match=saved.record.base.sha256[:12]):
        load_adapter(adapter)


def test_a_save_that_does_not_reproduce_its_logits_is_none(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = describe(tiny_base)
    real = saving.save_file

    def corrupting(weights: dict[str, torch.Tensor], path: Path, **settings: Any) -> None:
        weights["base_model.model.classifier.bias"] = weights["base_model.model.classifier.bias"] + 1e-3
        real(weights, path, **settings)

    monkeypatch.setattr(saving, "save_file", corrupting)
    with pytest.raises(UserError, match=r"did not reproduce its logits:\n.*logits differ by 1.0e-03"):
        save_adapter(tmp_path, made.model, made.trained, made.extractor, made.record)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.partial"]


def test_probes_are_answered_alike_whatever_the_batch(saved: Saved) -> None:
    adapter = load_adapter(saved.folder)
    together = adapter.logits(probe_waveforms(adapter.record.sampling_rate, PROBE_SECONDS))
    for logits, probe in zip(together, adapter.record.probes, strict=True):
        largest = max(1.0, np.abs(logits).max())
        np.testing.assert_allclose(logits, [probe["logits"][label] for label in adapter.labels], atol=1e-5 * largest)


def test_a_record_of_schema_1_is_written_as_the_current_schema(tmp_path: Path) -> None:
    golden = read_record(Path(__file__).parents[1] / "golden" / "lora")
    (tmp_path / "peft_audio.json").write_text(json.dumps(dataclasses.asdict(golden)), encoding="utf-8")
    assert golden.schema_version == 2
    assert read_record(tmp_path) == golden
