from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = Path(__file__).parents[1] / "peft_audio"
# Folders and top-level modules in import order: each imports only from those above it in this list.
LAYERS = (
    "text",
    "files",
    "errors",
    "processes",
    "progress",
    "audio",
    "config",
    "pages",
    "tasks",
    "encoders",
    "evaluation",
    "data",
    "checks",
    "strategies",
    "training",
    "feature_cache",
    "adapters",
    "runs",
    "inference",
    "finetune",
    "comparison",
    "publish",
    "api",
    "cli",
)
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


def layer_of(file: Path) -> str:
    """Name the folder or top-level module of a file: `config/parse.py` is in config."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def module_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").as_posix()


def imports_of(file: Path) -> set[str]:
    """Collect the dotted names that a file imports, anywhere in it: `from a.b import c` gives a.b.c."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = [*file.relative_to(PACKAGE.parent).parts[:-1]]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{prefix}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_folders_import_only_from_folders_below(file: Path) -> None:
    own = {name.split(".")[1] for name in imports_of(file) if name.startswith("peft_audio.")} - {"__version__"}
    assert "recipes" not in {name.split(".")[0] for name in imports_of(file)} | own
    if layer_of(file) == "__init__":
        return
    allowed = LAYERS[: LAYERS.index(layer_of(file)) + 1]
    assert own <= set(allowed)


def test_only_augment_imports_audiomentations() -> None:
    users = {module_of(file) for file in FILES if any(name.startswith("audiomentations") for name in imports_of(file))}
    assert users == {"data/augment"}


def test_only_plots_import_matplotlib() -> None:
    users = {module_of(file) for file in FILES if any(name.startswith("matplotlib") for name in imports_of(file))}
    assert users == {"comparison/plots"}


@pytest.mark.parametrize(
    ("given", "modules", "unwanted"),
    [
        ("", "peft_audio", HEAVY),
        ("", "peft_audio.config", HEAVY),
        ("", "peft_audio.audio.decoding", HEAVY),
        ("", "peft_audio.encoders.family, peft_audio.strategies, peft_audio.tasks", HEAVY),
        # What `peft-audio predict` imports: labelling a clip needs nothing that collections and training need. Older
        # versions of transformers import scikit-learn themselves.
        (
            "transformers.models.auto.modeling_auto, ",
            "peft_audio.adapters.load, peft_audio.inference.predict",
            HEAVY - ENCODERS | {"pandas", "rich", "scipy.signal"},
        ),
    ],
)
def test_light_modules_load_nothing_heavy(given: str, modules: str, unwanted: set[str]) -> None:
    code = f"import {given}sys; given = set(sys.modules); import {modules}"
    code += f"; print(*sorted({unwanted!r} & sys.modules.keys() - given))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not done.stdout.split()


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["-m", "peft_audio.cli", "--help"], "usage: peft-audio"),
        (["-m", "peft_audio.cli", "predict", "--help"], "usage: peft-audio predict"),
        (["recipes/lora.py", "--help"], "usage: lora.py"),
        (["recipes/lora.py", "--train.epochs", "3"], "runs/lora: train.epochs 3"),
        (["recipes/lora.py", "--train.epochs", "0"], "error: --train.epochs: got 0"),
        (["recipes/baseline.py"], "runs/baseline: default settings"),
        (["recipes/compare.py", "--help"], "usage: compare.py"),
        (["recipes/compare.py", "--seeds", "0"], "error: --seeds: got 0"),
    ],
    ids=" ".join,
)
def test_settings_are_read_before_heavy_imports(words: list[str], first: str, tmp_path: Path) -> None:
    blocked = "import sys\nfor name in " + repr(sorted(HEAVY | {"pandas", "scipy"})) + ": sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    path = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
    done = subprocess.run(
        [sys.executable, *(str(PACKAGE.parent / word) if word.endswith(".py") else word for word in words)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout or done.stderr).startswith(first), done.stderr


def test_no_test_module_imports_another() -> None:
    test_modules = {file.stem for file in TESTS.rglob("test_*.py")} | {"conftest"}
    for file in TESTS.rglob("*.py"):
        shared = {part for name in imports_of(file) for part in name.split(".")} & test_modules
        assert not shared, f"{file}: move what it takes from {shared} to tests/helpers"
