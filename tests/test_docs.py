"""Run every command and snippet of the README and the documentation, and build the site.

A block that cannot run here has a line `<!-- not run: REASON -->` before it. Runs are shortened to two steps.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from helpers.forks import stand_in

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.DOTALL
)
SHORT = {
    "compare": "--trials 1 --seeds 1 --train.max_steps 2 --train.batch_size 4",
    "baseline": "",
    "": "--train.max_steps 2 --train.batch_size 4",
}
REASONS = ("needs the Hub", "needs a GPU", "needs a cluster", "installs packages")


@dataclass(frozen=True)
class Block:
    """Hold one fenced block: page, language, code and the reason not to run it."""

    page: str
    language: str
    code: str
    reason: str | None


def pages() -> list[str]:
    """List the README and the pages of the site, in the order of the navigation."""
    navigation = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2])
    return ["README.md", *(f"docs/{name}" for name in navigation)]


def blocks() -> list[Block]:
    """Collect the blocks of all pages."""
    return [
        Block(page, match["language"], match["code"], match["reason"])
        for page in pages()
        for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
    ]


def shortened(command: str) -> str:
    """Append flags to a command that trains, so that it takes seconds."""
    command = command.partition("  #")[0].rstrip()
    recipe = re.search(r"recipes/(\w+\.py)|peft-audio (train|compare)\b", command)
    if "peft-audio report" in command:
        return f"{command} || [ $? = 1 ]"
    if recipe is None or "--help" in command:
        return command
    command = f"{command} {SHORT.get((recipe[1] or recipe[2]).removesuffix('.py'), SHORT[''])}"
    # A shortened comparison is not ranked, which exit code 1 states.
    return f"{command} || [ $? = 1 ]" if "compare" in (recipe[1] or recipe[2]) else command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the repository's files, recordings of a user, the runs of other pages, and quick programs."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("recipes", "peft_audio", "scripts", "benchmarks", "tests"):
        (folder / name).symlink_to(ROOT / name)
    rows = []
    for part in ("train", "validation", "test"):
        digits = pd.read_parquet(ROOT / f"peft_audio/assets/digits/{part}.parquet")
        for number, row in enumerate(digits.groupby(["label", "group"]).head(4).itertuples()):
            path = Path("my_recordings", str(row.label), f"{row.group}_{number}.flac")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(row.audio["bytes"])
            rows.append({"path": str(path), "label": row.label, "artist": row.group})
    pd.DataFrame(rows).to_csv(folder / "clips.csv", index=False)
    shutil.copytree(folder / "my_recordings/zero", folder / "new_recordings")
    programs = folder / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(stand_in())
    (programs / "peft-audio").write_text('#!/bin/sh\nexec python -m peft_audio.cli "$@"\n')
    (programs / "peft-audio").chmod(0o755)
    run(
        "python recipes/lora.py\n"
        "python recipes/head_only.py --model.layer_weighted_sum true --train.output_dir runs/mixture\n",
        folder,
    )
    return folder


def run(code: str, folder: Path, language: str = "bash") -> None:
    """Run the code of a block in a folder."""
    if language == "bash":
        code = "\n".join(map(shortened, code.replace("\\\n", " ").splitlines()))
    words = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else ["python", "-c", code]
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_page_is_in_the_navigation() -> None:
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} == set(pages()[1:])


def test_few_blocks_are_not_run() -> None:
    found = blocks()
    skipped = [block for block in found if block.reason]
    print(f"{len(skipped)} of {len(found)} blocks are not run")
    assert all(block.reason in REASONS for block in skipped)
    assert len(skipped) <= len(found) / 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", pages())
def test_commands_and_snippets_run(page: str, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(trained, folder, symlinks=True)
    own = [block for block in blocks() if block.page == page and not block.reason]
    code = "\n".join(block.code for block in own)
    made = re.findall(r"--train.output_dir (\S+)", code) + ["runs/lora"] * bool(
        re.search(r"recipes/lora.py$", code, re.M)
    )
    for name in made:  # by the page itself
        shutil.rmtree(folder / name, ignore_errors=True)
    for block in own:
        run(block.code, folder, block.language)


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "recipes/index.html").read_text(encoding="utf-8")
    assert "--lora.r" in settings and "--train.learning_rate" in settings
    assert 'id="peft_audio.fine_tune"' in (tmp_path / "api/index.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra notebook")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra notebook")
    pytest.importorskip("ipykernel", reason="needs the extra notebook")
    notebook = nbformat.read(ROOT / "notebooks/tutorial.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if "EPOCHS = 8" in cell.source)
    settings.source = settings.source.replace("EPOCHS = 8", "EPOCHS = 1")
    nbclient.NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 5
