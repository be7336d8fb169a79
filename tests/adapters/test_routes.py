"""Every way to load what each strategy saves: the same logits, or the reason why there is no such way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.adapt import adapt
from helpers.trained_models import LABELS, PRODUCTS, describe

from peft_audio.adapters.load import Adapter, load_adapter
from peft_audio.adapters.probes import probe_waveforms
from peft_audio.adapters.save import save_adapter
from peft_audio.publish import export
from peft_audio.publish.export import FORMS, ONNX_TOLERANCE
from peft_audio.strategies import HeadOnlyRecipe, LoraConfig, LoraRecipe
from peft_audio.strategies.attention_heads import unfreeze_heads

PROBE_SECONDS = (0.01, 0.5, 1.0, 2.3)

STRATEGIES = {
    "lora": PRODUCTS["lora"],
    "dora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(r=4, use_dora=True))),
    "head_only": lambda model: adapt(model, HeadOnlyRecipe()),
    "bias_only": PRODUCTS["bias_only"],
    "ia3": PRODUCTS["ia3"],
    "last_n_layers": PRODUCTS["last_n_layers"],
    "attention_heads": lambda model: unfreeze_heads(model, {0: [1], 1: [0, 1]}),
    "lora, layer_weighted_sum": PRODUCTS["lora"],
    "full": PRODUCTS["full"],
}
# How far logits may be from the recorded ones, relative to a clip's largest where that is above 1.
ROUTES = {
    "PeftModel": 1e-5,
    "AutoPeftModel": 1e-5,
    "AutoPeftModel without num_labels": 1e-5,
    "load_adapter": 1e-5,
    "load_adapter, merge=False": 1e-5,
    "pipeline (export --merged)": 1e-5,
    "ONNX Runtime (export --onnx)": ONNX_TOLERANCE,
}
# What somebody without this package does, in one process for all cells.
PLAIN = """
import json, sys
import numpy as np
import onnxruntime
import torch
from peft import AutoPeftModel, PeftModel
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, logging, pipeline
logging.set_verbosity_error()

def ask(model, extractor, clips):
    values = [extractor(clip, sampling_rate=16000, return_tensors="pt").input_values for clip in clips]
    with torch.no_grad():
        return [model.eval()(value).logits[0].tolist() for value in values]

def by_pipeline(folder, labels, clips):
    classify = pipeline("audio-classification", folder)
    answers = [classify(clip, top_k=None, function_to_apply="none") for clip in clips]
    return [[next(a["score"] for a in answer if a["label"] == label) for label in labels] for answer in answers]

def by_onnx(folder, extractor, clips):
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    values = [extractor(clip, sampling_rate=16000, return_tensors="np").input_values for clip in clips]
    return [session.run(["logits"], {"input_values": value})[0][0].tolist() for value in values]

answers = {}
for name, cell in json.load(open(sys.argv[1])).items():
    clips, labels, folder = [np.array(clip, np.float32) for clip in cell["clips"]], cell["labels"], cell["folder"]
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    found = answers[name] = {
        "pipeline (export --merged)": by_pipeline(cell["merged"], labels, clips),
        "ONNX Runtime (export --onnx)": by_onnx(cell["onnx"], extractor, clips),
    }
    if cell["whole"]:
        continue
    mixture = {"use_weighted_layer_sum": cell["mixture"], "dtype": torch.float32}
    settings = {"num_labels": len(labels), **mixture}
    base = AutoModelForAudioClassification.from_pretrained(cell["base"], **settings)
    found["PeftModel"] = ask(PeftModel.from_pretrained(base, folder), extractor, clips)
    found["AutoPeftModel"] = ask(AutoPeftModel.from_pretrained(folder, **settings), extractor, clips)
    try:
        model = AutoPeftModel.from_pretrained(folder, **mixture)
        found["AutoPeftModel without num_labels"] = ask(model, extractor, clips)
    except Exception as error:
        found["AutoPeftModel without num_labels"] = str(error)
assert not any(name.startswith("peft_audio") for name in sys.modules)
print(json.dumps(answers))
"""


def make_cell(strategy: str, base: Path, root: Path) -> dict[str, Any]:
    """An adapter, its two exports (the fresh process for all cells checks them), and what there is to ask."""
    mixture = "layer_weighted_sum" in strategy
    made = describe(base, STRATEGIES[strategy], layer_weighted_sum=mixture)
    folder = save_adapter(root, made.model, made.trained, made.extractor, made.record, verify=False)
    loaded = load_adapter(folder)
    for form in FORMS.values():
        export.write_export(loaded, root / form.name, form)
    probes = list(zip(probe_waveforms(16_000, PROBE_SECONDS), loaded.record.probes, strict=True))[1:]
    ours = {"load_adapter": asked(loaded, probes)}
    if not loaded.record.whole:
        ours["load_adapter, merge=False"] = asked(load_adapter(folder, merge=False), probes)
    return {
        "folder": str(folder),
        "base": str(base),
        "whole": loaded.record.whole,
        "mixture": mixture,
        "labels": LABELS,
        "clips": [clip.tolist() for clip, _ in probes],
        "recorded": [[recorded["logits"][label] for label in LABELS] for _, recorded in probes],
        "ours": ours,
        **{form: str(root / form) for form in FORMS},
    }


def asked(adapter: Adapter, probes: list[Any]) -> list[Any]:
    return [adapter.logits([clip])[0].tolist() for clip, _ in probes]


@pytest.fixture(scope="module")
def cells(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return make_cells(STRATEGIES, tiny_base, tmp_path_factory.mktemp("routes"))


def make_cells(strategies: Iterable[str], tiny_base: Path, root: Path) -> dict[str, dict[str, Any]]:
    """Save with each strategy, and ask all of them in every way."""
    made = {}
    for strategy in strategies:
        (root / strategy).mkdir()
        made[strategy] = make_cell(strategy, tiny_base, root / strategy)
    (root / "cells.json").write_text(json.dumps(made))
    command = [sys.executable, "-P", "-c", PLAIN, str(root / "cells.json")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    for strategy, found in json.loads(child.stdout).items():
        made[strategy]["answers"] = found | made[strategy]["ours"]
    return made


def difference(answers: list[list[float]], recorded: list[list[float]]) -> float:
    """The largest, relative to a clip's largest logit where that is above 1."""
    was = np.array(recorded)
    return float((np.abs(np.array(answers) - was).max(1) / np.maximum(1, np.abs(was).max(1))).max())


@pytest.mark.slow
def test_every_route_gives_the_recorded_logits_or_there_is_none(
    cells: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    table = [f"| | {' | '.join(ROUTES)} |", f"|---|{'---|' * len(ROUTES)}"]
    furthest = dict.fromkeys(ROUTES, 0.0)
    for strategy, cell in cells.items():
        row = []
        for route, tolerance in ROUTES.items():
            answers = cell["answers"].get(route)
            if answers is None:
                row.append("n/a: whole model")
            elif isinstance(answers, str):
                row.append("n/a: size mismatch" if "size mismatch" in answers else answers)
            else:
                off = difference(answers, cell["recorded"])
                furthest[route] = max(furthest[route], off)
                row.append("✓" if off <= tolerance else f"{off:.0e}")
        table.append(f"| {strategy} | {' | '.join(row)} |")
        assert np.ptp(cell["recorded"], axis=0).max() > 1e-3, "the clips must have different answers"
    printed = "\n".join(table)
    with capsys.disabled():
        print(f"\n{printed}\n\nlargest relative difference:")
        print(*(f"  {route}: {off:.0e}" for route, off in furthest.items() if off), sep="\n")
        print("AutoPeftModel without num_labels:", cells["lora"]["answers"]["AutoPeftModel without num_labels"])
    assert printed in (Path(__file__).parents[2] / "docs/routes.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_only_the_reasons_that_are_known_stand_for_a_tick(cells: dict[str, dict[str, Any]]) -> None:
    assert_routes(cells)


@pytest.mark.slow
def test_routes_of_lora(tiny_base: Path, tmp_path: Path) -> None:
    assert_routes(make_cells(["lora"], tiny_base, tmp_path))


def assert_routes(cells: dict[str, dict[str, Any]]) -> None:
    without = "AutoPeftModel without num_labels"
    for strategy, cell in cells.items():
        of_adapters = {"PeftModel", "AutoPeftModel", without, "load_adapter, merge=False"}
        assert ROUTES.keys() - cell["answers"].keys() == (of_adapters if strategy == "full" else set())
        words = {route for route, answers in cell["answers"].items() if isinstance(answers, str)}
        assert words == (set() if strategy == "full" else {without})
        far = {
            route: off
            for route, answers in cell["answers"].items()
            if route not in words and not (off := difference(answers, cell["recorded"])) <= ROUTES[route]
        }
        assert far == {}, strategy
