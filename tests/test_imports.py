from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "peft_audio"
# What each module may import of the package (docs: the layout). A module that is not here may not exist.
MAY_IMPORT = {
    "__init__": "*",
    "hub_kernels": "",
    "terminal": "",
    "config": "terminal",
    "ffmpeg": "",
    "audio": "ffmpeg",
    "collection": "config terminal",
    "folder": "audio collection config",
    "json_text": "",
    "manifest": "collection config json_text",
    "hub_dataset": "collection config",
    "scan": "audio collection",
    "splitting": "collection config manifest",
    "windows": "collection",
    "fingerprint": "",
    "augment": "audio config folder scan",
    "anatomy": "config",
    "spec_augment": "anatomy config",
    "sources": "collection config folder hub_dataset manifest splitting",
    "data": "collection config hub_dataset scan sources splitting windows",
    "sampler": "",
    "collating": "",
    "clips": "audio augment collating collection config sampler spec_augment",
    "streaming": "audio clips config hub_dataset sampler scan",
    "batching": "anatomy augment clips collating config data sampler spec_augment streaming",
    "padding": "",
    "quantization": "anatomy config",
    "reasons": "config",
    "models": "anatomy config padding quantization reasons",
    "arithmetic": "anatomy config models reasons",
    "accelerator": "arithmetic config models",
    "strategies": "anatomy config models",
    "precision": "anatomy config models strategies",
    "metrics": "",
    "statistics": "",
    "optimizer": "config strategies",
    "tracking": "terminal",
    "evaluation": "metrics",
    "checkpoints": "config",
    "stopping": "config",
    "position": "checkpoints config strategies",
    "resuming": "checkpoints config position strategies",
    "saver": "config position resuming stopping tracking",
    "finite": "batching collection config",
    "memory": "batching config evaluation position sampler spec_augment strategies",
    "prefix": "anatomy strategies",
    "prefix_store": "config launching",
    "prefix_fill": "anatomy batching clips config prefix prefix_store sampler tracking",
    "prefix_cache": "batching collating config models prefix prefix_fill prefix_store sampler strategies",
    "attention_heads": "anatomy batching config evaluation models strategies",
    "training": "accelerator arithmetic batching config evaluation finite memory optimizer position resuming sampler "
    "saver spec_augment stopping strategies streaming tracking",
    "markdown": "terminal",
    "patterns": "",
    "adapter_files": "config json_text patterns",
    "adapter_record": "adapter_files config markdown models",
    "hub": "adapter_files adapter_record config reasons",
    "adapter": "adapter_record collating",
    "probes": "adapter adapter_record reasons",
    "adapters": "adapter adapter_files adapter_record anatomy config hub models probes reasons strategies",
    "adapter_parts": "adapter_files adapter_record adapters anatomy config models reasons strategies",
    "adapter_set": "adapter adapter_parts adapter_record adapters config hub models prefix probes strategies",
    "saving": "adapter adapter_files adapter_record config launching models probes strategies",
    "quick_start": "",
    "verify": "adapters config probes quick_start",
    "finding": "terminal",
    "doctor_base": "adapter_files adapter_record adapters anatomy config finding models reasons strategies",
    "doctor": "adapter_files adapter_record adapters config doctor_base finding hub terminal verify",
    "model_card": "adapter_record config finished hub launching markdown scores",
    "push": "adapter_files adapter_record config hub launching model_card models reasons verify",
    "export_readme": "adapter_files adapter_record hub markdown verify",
    "export": "adapter adapter_record adapters config export_readme launching models probes saving",
    "run_folder": "checkpoints config",
    "run": "checkpoints collection config data evaluation models position run_folder terminal tracking",
    "report": "anatomy config data evaluation launching models run run_folder saving sources "
    "strategies terminal training",
    "baseline": "accelerator audio collection config data evaluation models report run",
    "check": "collection config fingerprint scan sources splitting terminal",
    "search": "",
    "launching": "config",
    "finished": "config launching terminal",
    "comparison": "statistics",
    "contribution": "finished launching",
    "arms": "comparison finished search statistics",
    "rules": "comparison finished search",
    "compare": "arms comparison config contribution finished rules search statistics terminal",
    "collect": "compare comparison config finished launching terminal",
    "grid": "config launching search",
    "plan": "config grid launching",
    "recordings": "audio config folder",
    "answering": "adapter audio config folder sampler windows",
    "prediction": "adapter answering config recordings",
    "forms": "prediction terminal",
    "scores": "statistics",
    "scores_shown": "scores terminal",
    "judging": "adapter batching clips collating collection config data evaluation sampler scan scores sources "
    "splitting tracking windows",
    "unfinished": "answering config",
    "sections": "comparison terminal",
    "placing": "",
    "scatter": "comparison placing",
    "plots": "comparison scatter sections",
    "page": "comparison markdown plots sections",
    "cli": "*",
}
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "audiomentations",
    "evaluate",
    "matplotlib",
    "sklearn",
}
ENCODERS = {"torch", "transformers", "peft", "accelerate"}


def module_of(file: Path) -> str:
    """The part of the package that a file belongs to: `config/parse.py` to config."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it: `from a.b import c` gives a.b.c."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = ["peft_audio", *file.relative_to(PACKAGE).parts[:-1]]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{prefix}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_import_only_what_lies_below_them(file: Path) -> None:
    module = module_of(file)
    allowed = MAY_IMPORT[module]
    own = {name.split(".")[1] for name in imports_of(file) if name.startswith("peft_audio.")}
    assert allowed == "*" or own <= {*allowed.split(), module}
    assert "recipes" not in {name.split(".")[0] for name in imports_of(file)} | own


def test_layout_has_no_circle() -> None:
    below = {module: set(names.split()) for module, names in MAY_IMPORT.items() if names != "*"}
    while below:
        lowest = {module for module, names in below.items() if not names & below.keys()}
        assert lowest, f"a circle among {sorted(below)}"
        below = {module: names for module, names in below.items() if module not in lowest}


def test_only_augment_imports_audiomentations() -> None:
    users = {module_of(file) for file in FILES if any(name.startswith("audiomentations") for name in imports_of(file))}
    assert users == {"augment"}


def test_only_the_figure_imports_matplotlib() -> None:
    users = {module_of(file) for file in FILES if any(name.startswith("matplotlib") for name in imports_of(file))}
    assert users == {"plots", "scatter"}


@pytest.mark.parametrize(
    ("given", "modules", "unwanted"),
    [
        ("", "peft_audio", HEAVY),
        ("", "peft_audio.config", HEAVY),
        ("", "peft_audio.audio", HEAVY),
        # What `peft-audio predict` imports: labelling a clip needs nothing that collections and training need. Older
        # versions of transformers import scikit-learn themselves.
        (
            "transformers.models.auto.modeling_auto, ",
            "peft_audio.adapters, peft_audio.prediction",
            HEAVY - ENCODERS | {"pandas", "rich", "scipy.signal"},
        ),
    ],
)
def test_light_modules_load_nothing_heavy(given: str, modules: str, unwanted: set[str]) -> None:
    code = f"import {given}sys; given = set(sys.modules); import {modules}"
    code += f"; print(*sorted({unwanted!r} & sys.modules.keys() - given))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not done.stdout.split()
