"""`recipes/compare.py` as a user runs it: started, killed, resumed, asked again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers.forks import start_python
from helpers.tones import divide

from peft_audio import cli
from peft_audio.comparison.jobs import finished
from peft_audio.comparison.settings import ARMS, CompareRecipe
from peft_audio.comparison.tuning import check_arms, final_jobs, tune
from peft_audio.config import DataConfig, ModelConfig, TrainConfig, parse_config
from peft_audio.errors import UserError
from peft_audio.training.hardware import resolve_auto

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tones(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips to train on, 6 to validate, 6 to test."""
    counts = {"train": (6, 6), "validation": (3, 3), "test": (3, 3)}
    return divide(tone_folder, tmp_path_factory.mktemp("data") / "tones", counts)


def start(*flags: str) -> subprocess.Popen[str]:
    """A comparison in a process of its own."""
    return start_python(ROOT / "recipes" / "compare.py", *flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(*flags: str) -> tuple[int, str]:
    """Its exit code and what it printed."""
    child = start(*flags)
    said, _ = child.communicate(timeout=250)
    return child.returncode, said


def scores(folder: Path) -> list[dict[str, Any]]:
    """What a rerun must give again: everything but times and memory."""
    arms = json.loads((folder / "comparison.json").read_text())["arms"]
    kept = ("name", "test_accuracy", "test_macro_f1", "learning_rates", "trials", "difference", "curves", "seeds")
    return [{name: arm[name] for name in kept} for arm in arms]


@pytest.mark.slow
def test_a_comparison_is_killed_resumed_and_asked_again(tones: Path, tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compared"
    own = "{broken: {recipe: head_only, flags: {model.name: ./nowhere}}}"
    flags = ["--output_dir", str(folder), "--arms", "[log_mel, head_only, broken]", "--own_arms", own]
    flags += ["--reference", "head_only", "--trials", "1", "--seeds", "1"]
    flags += ["--data.source", str(tones), "--model.name", str(tiny_base), "--train.epochs", "2"]
    first = start(*flags)
    while not (folder / "runs" / "log_mel" / "final-seed0" / "report.json").exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    # After this nothing can be tidied up: the run under way goes on without its comparison.
    first.kill()
    first.communicate()
    code, said = finish(*flags)
    assert code == 1, said
    assert "broken: 1 of its runs failed." in said
    assert "no folder ./nowhere" in said
    assert "no arm's learning rate was chosen on validation" in said
    resumed = scores(folder)
    assert [(arm["name"], arm["seeds"]) for arm in resumed] == [("head_only", [0]), ("broken", []), ("log_mel", [0])]
    # Asked again: what is finished stays, what failed is tried again.
    cfg = parse_config(CompareRecipe, flags)
    cfg = resolve_auto(cfg, cfg.has_one_encoder())
    jobs = final_jobs(cfg, tune(cfg, lambda jobs, costs_count: None, {}), {})
    assert [job.arm for job in jobs if not finished(job)] == ["broken"]
    # Other settings: nothing that is finished is replaced unless asked.
    code, said = finish(*flags[:-1], "1")
    assert code == 2 and "finished runs with other settings, such as train.epochs 2 in" in said
    assert [job.arm for job in jobs if not finished(job)] == ["broken"]
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "again")]) == 1
    assert scores(tmp_path / "again") == resumed


def test_what_the_disk_refuses_is_told(tones: Path, tiny_base: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    flags = ["--output_dir", str(tmp_path), "--data.source", str(tones), "--model.name", str(tiny_base)]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "compare.py"), *flags],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16)),
    )
    assert ended.returncode == 2
    (told,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot be written" in told
    assert "Repeat the command to resume" in told
    assert "train.resume" not in told
    assert "Traceback" not in ended.stderr


def recipe(**changes: Any) -> CompareRecipe:
    return CompareRecipe(**{"arms": ["lora"], "reference": "lora"} | changes)


REFUSED = {
    "output_dir": [""],
    "overwrite": ["perhaps"],
    "arms": ["[]", "[nothing]", "[lora, lora]", "lora"],
    "own_arms": [
        "{x: {recipe: adalora}}",
        "{x: {recipe: nothing}}",
        "{x: {recipe: lora, learning_rates: [0]}}",
        "{x: {recipe: lora, learning_rates: [1e-3, 1e-3]}}",
        "{x: {recipe: lora, flags: {train.seed: 3}}}",
        "{x: {recipe: lora, control: perhaps}}",
    ],
    "reference": ["ia3"],
    "metric": ["f1", "loss"],
    "margin": ["0", "1", "nan"],
    "trials": ["0", "some"],
    "extra_trials": ["-1"],
    "tuning_seeds": ["0"],
    "seeds": ["0"],
    "folds": ["2", "true"],
    "train_seconds": ["0", "nan"],
    "jobs": ["0"],
    "minutes": ["0", "-1", "nan", "soon"],
}


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in REFUSED.items() for value in values])
def test_wrong_settings_are_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(CompareRecipe, [f"--{flag}", value])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith(f"error: --{flag}: ") and "Traceback" not in said, said


def test_every_setting_has_values_that_it_refuses() -> None:
    own = {field.name for field in fields(CompareRecipe)} - {"data", "model", "augment", "prefix_cache", "train"}
    assert own == REFUSED.keys()


def test_methods_with_a_loop_of_their_own_are_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(CompareRecipe, ["--own_arms", "{x: {recipe: AdaLoRA}}"])
    assert "needs its own training loop" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes" / "configs").glob("compare_*.yaml")), ids=lambda file: file.stem
)
def test_shipped_comparisons_are_taken_by_their_recipes(file: Path) -> None:
    cfg = parse_config(CompareRecipe, ["--config", str(file)])
    check_arms(cfg)
    if file.stem == "compare_bundled":
        assert cfg == CompareRecipe()


def test_an_arm_that_moved_into_a_yaml_file_is_looked_up_there() -> None:
    with pytest.raises(
        UserError, match=r"--arms: got full_l2, must be among .* as recipes/configs/compare_remedies.yaml"
    ):
        recipe(arms=["lora", "full_l2"])
    cfg = parse_config(CompareRecipe, ["--config", str(ROOT / "recipes" / "configs" / "compare_remedies.yaml")])
    assert cfg.own_arms["full_l2"].flags == {"train.weight_decay": 4.0}


def test_every_named_arm_is_taken_by_its_recipe() -> None:
    check_arms(CompareRecipe(arms=list(ARMS), trials=5))


def test_one_folder_takes_one_comparison_at_a_time(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        code, said = finish("--output_dir", str(tmp_path))
    assert code == 2
    assert said.strip().endswith("is in use by another comparison; wait, or give another folder.")


def test_what_the_comparison_decides_cannot_be_given() -> None:
    with pytest.raises(UserError, match=r"--train\.learning_rate: .* left to the comparison"):
        recipe(train=TrainConfig(learning_rate=0.5))
    with pytest.raises(UserError, match=r"--data\.fold"):
        recipe(data=DataConfig(fold=1))


def test_settings_that_an_arm_does_not_take_are_told_before_anything_runs() -> None:
    cfg = recipe(arms=["lora", "full"], model=ModelConfig(layer_weighted_sum=True))
    check_arms(cfg)
    wrong = CompareRecipe(arms=["full"], own_arms={}, model=ModelConfig(quantization="int8"))
    with pytest.raises(UserError, match=r"arm full: --model\.quantization"):
        check_arms(wrong)
