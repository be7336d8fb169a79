"""`peft-audio train`, `--version`, `completion`, and how settings are told from a command's own words."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.recipe_runs import ACCELERATE, ONE_PROCESS, settings
from helpers.tones import divide

from peft_audio import cli
from peft_audio.strategies import STRATEGIES


def test_versions_are_those_of_the_installed_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name in ("peft-audio", "torch", "transformers", "peft", "accelerate"):
        assert f"{name} {importlib.metadata.version(name)}" in said
    assert said.count("\n") <= 2


def test_help_teaches_the_strategies_and_all_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in STRATEGIES) and "peft-audio train recordings" in said
    assert cli.main(["train", "--strategy", "ia3", "--all-settings"]) == 0
    said = capsys.readouterr().out
    assert "--train.epochs" in said and "--data.group_column" in said and "--lora.r" not in said


@pytest.mark.parametrize(
    ("line", "own", "given"),
    [
        ("train --train.epochs 3 clips", "train clips", "--train.epochs 3"),
        ("train clips --train.epochs=3 --strategy ia3", "train clips --strategy ia3", "--train.epochs=3"),
        ("--debug train --config a.yaml --lora.r 4 clips", "--debug train clips", "--config a.yaml --lora.r 4"),
        ("check --data.fold --json clips", "check --json clips", "--data.fold"),
        ("evaluate a --data.split_seed -1 b", "evaluate a b", "--data.split_seed -1"),
        ("compare --seeds 5 --jobs 2 clips", "compare clips", "--seeds 5 --jobs 2"),
        ("check clips --jobs 2", "check clips --jobs 2", ""),
        ("predict --window-seconds 0.5 a.wav", "predict --window-seconds 0.5 a.wav", ""),
        ("--version", "--version", ""),
    ],
)
def test_settings_are_split_from_words(line: str, own: str, given: str) -> None:
    assert cli.split_settings(shlex.split(line)) == (shlex.split(own), shlex.split(given))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "clips", "--train.epochs", "0"], "error: --train.epochs: got 0, must be 1 or more"),
        (
            ["train", "clips", "--train.epoch", "1"],
            "error: --train.epoch: no such setting. Did you mean --train.epochs",
        ),
        (["train", "clips", "--epochs", "1"], "error: --epochs: no such setting"),
        (["train", "clips", "--strategy", "ia3", "--lora.r", "4"], "error: --lora.r: no such setting here; it belongs"),
        (["train", "no such folder"], "error: --data.source: "),
        (["compare", "clips", "--seeds", "0"], "error: --seeds: got 0"),
    ],
)
def test_wrong_settings_end_with_the_message_of_the_recipe(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("words", ["train", "compare", "check", "evaluate adapter"])
@pytest.mark.parametrize("flag", ["--data.source other", "--data.source=other"])
def test_two_sources_are_refused(
    words: str, flag: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words.split(), "clips", *flag.split()]) == 2
    message = "error: --data.source: got other, but SOURCE is clips already. Give one of the two.\n"
    assert capsys.readouterr().err == message


@pytest.mark.slow
def test_accelerate_launches_it(tone_folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    data = divide(tone_folder, tmp_path / "tones", {"train": (6, 6), "validation": (3, 2), "test": (3, 4)})
    own = settings(data, tiny_base, tmp_path / "run")[2:]
    launcher = [ACCELERATE, "launch", *ONE_PROCESS, "-m", "peft_audio.cli"]
    command = [*launcher, "train", str(data), "--strategy", "bias_only"]
    done = subprocess.run([*command, *own], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "report.json").read_text())["strategy"] == "bias_only"
    assert (tmp_path / "run" / "adapter").is_dir()


COMPLETE = """
source ./script
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p peft-audio | sed 's/.*-F \\([^ ]*\\).*/\\1/') peft-audio
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "found", "other"),
    [
        ("peft-audio tr", "train", "check"),
        ("peft-audio train --strategy l", "lora", "full"),
        ("peft-audio train --train.ep", "--train.epochs", "--train.seed"),
        ("peft-audio train --train.class_weights b", "balanced", "none"),
        ("peft-audio compare --metric acc", "accuracy", "macro_f1"),
    ],
)
def test_bash_completes_commands_settings_and_values(
    words: str, found: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    code = COMPLETE.format(words=words)
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found in done.stdout.split() and other not in done.stdout.split(), done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_scripts_of_other_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert cli.main(["completion", shell]) == 0
    assert "train.epochs" in capsys.readouterr().out


def test_completion_names_the_package_that_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "pip install" in capsys.readouterr().err
