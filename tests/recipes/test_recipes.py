"""The recipes as users run them: through `accelerate launch`, from recordings to a report and an adapter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from helpers.matrix import first_quick
from helpers.recipe_runs import (
    ACCELERATE,
    LAUNCH_CONFIGS,
    ONE_PROCESS,
    ROOT,
    free_port,
    launch,
    settings,
    two_processes,
)
from helpers.tones import divide, write_tone
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score

from peft_audio import fine_tune, finetune
from peft_audio.adapters import load as adapters
from peft_audio.adapters import save as saving
from peft_audio.adapters import verify
from peft_audio.config import DataConfig, ModelConfig, TrainConfig, parse_config, run_recipe
from peft_audio.data.splits import load_splits
from peft_audio.errors import UserError
from peft_audio.runs.predictions import read_predictions
from peft_audio.runs.report import RunReport
from peft_audio.strategies import STRATEGIES, LoraRecipe
from peft_audio.training.hardware import resolve_auto

RUN_FILES = {"adapter", "config.yaml", "metrics.jsonl", "predictions.parquet", "report.json", "splits.parquet"}
PROMISED = {
    "strategy": str,
    "pretrained": bool,
    "test_accuracy": float,
    "test_macro_f1": float,
    "validation_accuracy": float,
    "validation_macro_f1": float,
    "trainable_parameters": int,
    "total_parameters": int,
    "adapter_bytes": int,
    "train_seconds": float,
    "total_seconds": float,
    "inference_seconds": float,
    "samples_per_second": float,
    "peak_memory_bytes": int,
    "num_processes": int,
    "seed": int,
    "dataset_sha256": str,
    "split_sha256": str,
    "base_sha256": str,
    "encoder_drift": float,
    "versions": dict,
}


@pytest.fixture(scope="module")
def tones(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 clips to train on, 5 to validate, 7 to test: nothing divides evenly."""
    counts = {"train": (6, 6), "validation": (3, 2), "test": (3, 4)}
    return divide(tone_folder, tmp_path_factory.mktemp("data") / "tones", counts)


@pytest.fixture(scope="module")
def launched(tones: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run in one process, and what it printed."""
    folder = tmp_path_factory.mktemp("one") / "run"
    call = settings(tones, tiny_base, folder)
    printed, warned = launch(ONE_PROCESS, call, folder.parent, PYTHONHASHSEED="1")
    assert warned == "", "a run has nothing to say on stderr"
    return folder, printed


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_lora_learns_a_toy_task_and_leaves_what_it_promises(
    launched: tuple[Path, str], tones: Path, tiny_base: Path
) -> None:
    run, printed = launched
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert str(run / "adapter") in printed

    report = json.loads((run / "report.json").read_text())
    assert set(report) == {field.name for field in fields(RunReport)} - {"folder"}
    assert {name: type(report[name]) for name in PROMISED} == PROMISED
    assert report["strategy"] == "lora"
    assert report["num_processes"] == 1
    assert report["test_accuracy"] >= 0.85
    assert (report["train_clips"], report["validation_clips"], report["test_clips"]) == (12, 5, 7)
    assert report["steps"] == 24
    weights = run / "adapter" / "adapter_model.safetensors"
    assert report["adapter_bytes"] == weights.stat().st_size
    # 12 layers of rank 8 between widths 32, 32 and 64, and a head of 32 x 16 and 16 x 2 with biases.
    by_hand = 8 * 8 * (32 + 32) + 4 * 8 * (32 + 64) + (32 * 16 + 16) + (16 * 2 + 2)
    assert report["trainable_parameters"] == by_hand
    assert 0 < report["train_seconds"] < report["total_seconds"]
    assert 0 < report["inference_seconds"] < report["total_seconds"] / 5
    assert report["encoder_drift"] == 0
    assert report["samples_per_second"] == pytest.approx(8 * 12 / report["train_seconds"])
    assert len({report[f"{name}_sha256"] for name in ("dataset", "split", "base")}) == 3
    assert {"torch", "transformers", "peft", "peft-audio", "python"} <= set(report["versions"])

    cfg = parse_config(LoraRecipe, ["--config", str(run / "config.yaml")])
    assert cfg == resolve_auto(parse_config(LoraRecipe, settings(tones, tiny_base, run))) == resolve_auto(cfg)
    epochs = [line for line in read_lines(run) if "epoch" in line]
    assert [line["epoch"] for line in epochs] == list(range(1, 9))
    assert report["validation_loss"] == pytest.approx(min(line["validation_loss"] for line in epochs), abs=1e-5)


def test_predictions_hold_what_the_report_says(launched: tuple[Path, str], tones: Path) -> None:
    run, _ = launched
    report = json.loads((run / "report.json").read_text())
    table = pq.read_table(run / "predictions.parquet")
    assert table.column_names == ["id", "group", "split", "label", "logits"]
    rows, whole = table.to_pylist(), read_predictions(run / "predictions.parquet")
    assert whole.labels == ("high", "low")
    for split, count in (("validation", 5), ("test", 7)):
        of_split = [row for row in rows if row["split"] == split]
        probabilities = whole.of_split(split).probabilities
        assert probabilities.shape == (count, 2)
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=0, atol=1e-6)
        said = np.array(["high", "low"])[probabilities.argmax(1)]
        right = [row["label"] for row in of_split]
        assert report[f"{split}_accuracy"] == pytest.approx(accuracy_score(right, said))
        assert report[f"{split}_macro_f1"] == pytest.approx(f1_score(right, said, average="macro"))
        assert all(
            (tones / row["id"]).is_file() and row["id"].startswith(f"{split}/{row['label']}/") for row in of_split
        )

    splits = pq.read_table(run / "splits.parquet").to_pylist()
    assert len(splits) == len({row["id"] for row in splits}) == 24
    held_out = {(row["id"], row["split"]) for row in splits if row["split"] != "train"}
    assert {(row["id"], row["split"]) for row in rows} == held_out
    assert len(rows) == len(held_out)


def assert_the_adapter_says_what_was_predicted(run: Path, tones: Path, product: str = "adapter") -> None:
    assert verify.check_probes(run / product) == []
    adapter = adapters.load_adapter(run / product)
    expected = read_predictions(run / "predictions.parquet")
    assert expected.labels == adapter.labels
    logits = adapter.logits([soundfile.read(tones / name, dtype="float32")[0] for name in expected.clips["id"]])
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(odds, expected.probabilities, rtol=0, atol=1e-5)


def test_the_adapter_answers_as_the_predictions_say(launched: tuple[Path, str], tones: Path) -> None:
    assert_the_adapter_says_what_was_predicted(launched[0], tones)


def read_weights(run: Path) -> dict[str, torch.Tensor]:
    (product,) = {path for path in run.iterdir() if path.name in ("adapter", "model")}
    return load_file(saving.saved_weights(product))


# Biases and IA3 go through the loop as the head and LoRA do.
@pytest.mark.parametrize("strategy", first_quick(name for name in STRATEGIES if name not in ("bias_only", "ia3")))
def test_two_processes_do_what_one_does(
    strategy: str,
    launched: tuple[Path, str],
    tones: Path,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = launched[0], tmp_path / "two"
    more = settings(tones, tiny_base, two)
    if strategy != "lora":
        # LoRA alone runs without drawing dropout, whose masks are each process's own.
        more += ["--model.dropout", "0", "--train.head_learning_rate", "0.01", "--train.learning_rate", "0.003"]
        more += ["--attention_heads.count", "2"] if strategy == "attention_heads" else []
        one = tmp_path / "one"
        monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)  # a fresh process; tested elsewhere
        fine_tune(parse_config(STRATEGIES[strategy].recipe, [*more, "--train.output_dir", str(one)]))
    printed, warned = launch(
        two_processes(),
        [*more, "--train.gradient_accumulation_steps", "2"],
        tmp_path,
        strategy,
        ACCELERATE_USE_CPU="true",
        PYTHONHASHSEED="2",
    )
    assert "Warning" not in warned
    assert printed.count("epoch 8/8") == 1, "only the first process speaks"
    product = "model" if strategy == "full" else "adapter"
    assert {path.name for path in two.iterdir()} == (RUN_FILES - {"adapter"}) | {product}
    reports = [json.loads((run / "report.json").read_text()) for run in (one, two)]
    assert [report["num_processes"] for report in reports] == [1, 2]
    for name in ("strategy", "test_accuracy", "validation_macro_f1", "best_epoch", "steps", "trainable_parameters"):
        assert reports[0][name] == reports[1][name]
    assert reports[0]["strategy"] == strategy
    lines = [read_lines(run) for run in (one, two)]
    for a, b in zip(*lines, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    losses = [line["loss"] for line in lines[0] if "loss" in line]
    assert np.mean(losses[-3:]) < losses[0] - 0.05, "something was learned"
    predictions = [read_predictions(run / "predictions.parquet") for run in (one, two)]
    assert predictions[0].clips["id"].equals(predictions[1].clips["id"])
    np.testing.assert_allclose(*(each.probabilities for each in predictions), rtol=0, atol=1e-5)
    weights = [read_weights(run) for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        # AdamW turns a gradient of nothing but rounding, as a key's bias has it, into a whole step.
        allowed = 0.05 if name.endswith("k_proj.bias") else 2e-4
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=allowed)


@pytest.mark.parametrize("strategy", first_quick(["last_n_layers", "head_only", "bias_only", "full"]))
def test_a_network_from_random_weights_is_saved_whole(
    strategy: str, tones: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if strategy != "last_n_layers":
        monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)  # one fresh process is enough
    flags = [*settings(tones, tiny_base, tmp_path / "run"), "--train.epochs", "2", "--model.pretrained", "false"]
    report = fine_tune(parse_config(STRATEGIES[strategy].recipe, flags))
    assert (report.strategy, report.pretrained, report.encoder_drift) == (strategy, False, None)
    model = tmp_path / "run" / "model"
    assert {path.name for path in (tmp_path / "run").iterdir()} == (RUN_FILES - {"adapter"}) | {"model"}
    assert report.adapter_bytes == (model / "model.safetensors").stat().st_size
    assert "with random weights, a control" in (model / "README.md").read_text()
    assert_the_adapter_says_what_was_predicted(tmp_path / "run", tones, "model")


def test_sets_of_names_are_saved_in_one_order(launched: tuple[Path, str], tmp_path: Path) -> None:
    stored = json.loads((launched[0] / "adapter" / "adapter_config.json").read_text())
    for name in ("target_modules", "modules_to_save"):
        assert stored[name] == sorted(stored[name])
    show = ["-Sc", f"print(list(set({stored['target_modules']})))"]
    orders = {
        subprocess.run([sys.executable, *show], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(orders) == 2, "choose other seeds: these two order the set alike"


@pytest.mark.slow
def test_two_machines_on_loopback(tones: Path, tiny_base: Path, tmp_path: Path) -> None:
    arguments = [*settings(tones, tiny_base, tmp_path / "run"), "--train.max_steps", "4"]
    config = str(LAUNCH_CONFIGS / "several_machines.yaml")
    recipe = [str(ROOT / "recipes" / "head_only.py"), *arguments]
    shared = [ACCELERATE, "launch", "--config_file", config, "--main_process_port", free_port()]
    machines = [
        subprocess.Popen(
            [*shared, "--machine_rank", str(rank), *recipe],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [machine.communicate(timeout=200) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "adapter: " in said[0][0] and said[1][0] == "", "the first machine speaks and writes"
    assert json.loads((tmp_path / "run" / "report.json").read_text())["num_processes"] == 2


@pytest.mark.parametrize("file", sorted(LAUNCH_CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_launch_configs_are_what_accelerate_takes(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert config.mixed_precision == "no", "the recipe decides the precision"
    several = config.num_processes > 1
    assert (config.distributed_type == DistributedType.MULTI_GPU) is several
    assert (config.num_machines > 1) is (file.stem == "several_machines")
    named = re.findall(r"--config_file (\S+)", file.read_text(encoding="utf-8"))
    assert named == [str(file.relative_to(ROOT))], "the comment says how to use this very file"


def test_there_is_a_recipe_for_each_strategy() -> None:
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*.py")}
    assert {*STRATEGIES, "baseline", "compare"} == files.keys()
    for name, strategy in STRATEGIES.items():
        assert f"run_recipe(fine_tune, {strategy.recipe.__name__})" in files[name]
        assert f"recipes/{name}.py --help" in files[name]


@pytest.fixture(scope="module")
def short_runs(tones: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a run of LoRA's recipe in this process with some settings; its folder."""
    root = tmp_path_factory.mktemp("short")
    patch = pytest.MonkeyPatch()

    def make(name: str, *flags: str) -> Path:
        patch.setattr(saving, "_verify_copy", lambda folder: None)  # a fresh process; tested elsewhere
        arguments = [*settings(tones, tiny_base, root / name), "--train.epochs", "2", *flags]
        fine_tune(parse_config(LoraRecipe, arguments))
        patch.undo()
        return root / name

    return make


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines(run) if "loss" in line]


def test_each_switch_reaches_the_training(short_runs: Callable[..., Path]) -> None:
    dropout = ("--model.dropout", "0.3")
    plain, again, quiet = (losses_of(short_runs(*flags)) for flags in (("plain",), ("again",), ("quiet", *dropout)))
    assert plain == again == quiet, "frozen parts draw no dropout"
    switches = {
        "time": ("--augment.mask_time_share", "0.4", "--augment.mask_time_ms", "60"),
        "features": ("--augment.mask_feature_share", "0.4"),
        "preset": ("--augment.preset", "environment"),
        "frozen": (*dropout, "--train.frozen_dropout", "true"),
        "smoothing": ("--train.label_smoothing", "0.1"),
        "mixture": ("--model.layer_weighted_sum", "true"),
        "int8": ("--model.quantization", "int8"),
        "bf16": ("--train.mixed_precision", "bf16"),
    }
    for name, flags in switches.items():
        found = losses_of(short_runs(name, *flags))
        assert found != plain, f"{name} is read and changes nothing"


@pytest.mark.parametrize("flags", [("--model.quantization", "nf4"), ("--train.mixed_precision", "bf16")])
def test_what_is_reported_is_what_the_saved_adapter_says_in_float32(
    flags: tuple[str, str], short_runs: Callable[..., Path], tones: Path
) -> None:
    run = short_runs("-".join(flags).replace("-", "").replace(".", ""), *flags, "--train.learning_rate", "0.05")
    assert_the_adapter_says_what_was_predicted(run, tones)


def test_training_clips_are_evaluated_and_trackers_written_when_asked_for(short_runs: Callable[..., Path]) -> None:
    run = short_runs("asked", "--train.evaluate_train", "true", "--train.log_with", "[tensorboard]")
    report = json.loads((run / "report.json").read_text())
    found = read_predictions(run / "predictions.parquet").of_split("train")
    assert len(found) == report["train_clips"] == 12
    right = list(found.clips["label"])
    said = [found.labels[i] for i in found.logits.argmax(1)]
    assert report["train_accuracy"] == pytest.approx(accuracy_score(right, said))
    assert report["train_macro_f1"] == pytest.approx(f1_score(right, said, average="macro"))
    assert list((run / "tensorboard").glob("events*"))


def test_a_finished_run_is_left_as_it_is(
    launched: tuple[Path, str],
    tones: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    run, _ = launched
    before = contents(run)
    monkeypatch.setattr(sys, "argv", ["lora.py", *settings(tones, tiny_base, run)])
    with pytest.raises(SystemExit) as ended:
        run_recipe(fine_tune, LoraRecipe)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{run}: data.source ") and printed.out.count("\n") == 1
    assert printed.err.startswith(f"error: --train.output_dir: {run} already exists")
    assert "--train.overwrite true" in printed.err
    assert printed.err.count("\n") == 1
    assert contents(run) == before


def recipe(data: Path, base: Path, output: Path, **train: Any) -> LoraRecipe:
    return LoraRecipe(
        data=DataConfig(source=str(data)),
        model=ModelConfig(name=str(base)),
        train=TrainConfig(output_dir=str(output), epochs=1, batch_size=8, **train),
    )


def test_overwrite_spares_what_no_run_made(tone_folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "thesis" / "config.yaml").write_text("of another tool")
    (tmp_path / "note").write_text("a file")
    for name in ("thesis", "note"):
        before = contents(tmp_path)
        with pytest.raises(UserError, match=r"--train.overwrite: .* was not made by a run"):
            fine_tune(recipe(tone_folder, tiny_base, tmp_path / name, overwrite=True))
        assert contents(tmp_path) == before


def test_without_evaluate_test_no_test_clip_is_read(
    tone_folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "tones"

    def without_test_clips(*given: Any) -> Any:
        splits = load_splits(*given)
        for row in splits.test:
            Path(row["path"]).unlink()
        return splits

    monkeypatch.setattr(finetune, "load_splits", without_test_clips)
    monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)  # a fresh process; tested elsewhere
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "adapter.partial"):
        (run / name).write_text("of an earlier run")

    for clip in tone_folder.rglob("*.wav"):
        copy = source / clip.relative_to(tone_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(clip.read_bytes())
    report = fine_tune(recipe(source, tiny_base, run, overwrite=True, evaluate_test=False))
    assert (report.test_accuracy, report.test_macro_f1, report.test_loss) == (None, None, None)
    assert report.folder == str(run) and report.adapter == run / "adapter"
    stored = {name: value for name, value in asdict(report).items() if name != "folder"}
    assert json.loads((run / "report.json").read_text()) == json.loads(json.dumps(stored))
    assert set(pq.read_table(run / "predictions.parquet")["split"].to_pylist()) == {"validation"}
    record = json.loads((run / "adapter" / "peft_audio.json").read_text())
    assert not any(name.startswith("test") for name in record["metrics"])
    assert {path.name for path in run.iterdir()} == RUN_FILES, "and what an earlier run left is gone"

    for clip in tone_folder.rglob("*.wav"):
        (source / clip.relative_to(tone_folder)).write_bytes(clip.read_bytes())
    with pytest.raises(UserError, match="does not exist"):
        fine_tune(recipe(source, tiny_base, tmp_path / "reads-it"))


BAD_INPUTS = (
    (["--data.source", "nowhere"], "--data.source: nowhere does not exist; give"),
    (["--data.source", "ONE"], "has one class, 'dog'; a classifier needs two or more"),
    (["--data.source", "EMPTY"], "empty.wav is empty (0 bytes)"),
    (["--data.source", "TEXT"], "text.wav is not audio that can be read"),
    (["--lora.r", "0"], "--lora.r: got 0, must be a rank of 1 or more. Try 8."),
    (["--lorra.r", "4"], "--lorra.r: no such setting. Did you mean --lora.r?"),
    (["--train.learning_rate", "banana"], "--train.learning_rate: got banana, must be a finite number"),
    (["--train.learning_rate", "nan"], "--train.learning_rate: got nan, must be a finite number"),
    (["--train.epochs", "0"], "--train.epochs: got 0, must be 1 or more."),
    (["--train.batch_size", "0"], "--train.batch_size: got 0, must be 1 or more."),
    (["--data.max_seconds", "-1"], "--data.max_seconds: got -1.0, must be a number of seconds above 0."),
    (
        ["--model.name", "BERT"],
        "encoders of type 'bert' are not supported; known types: audio-spectrogram-transformer (AST",
    ),
    (["--train.output_dir", "ONE"], "already exists; give another folder, or --train.overwrite true"),
)


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUTS, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_is_answered_in_words(
    arguments: list[str],
    words: str,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder, other in (("one", None), ("empty", "empty.wav"), ("text", "text.wav")):
        write_tone(tmp_path / folder / "dog" / "a.wav", 440)
        if other:
            (tmp_path / folder / "cat").mkdir()
            (tmp_path / folder / "cat" / other).write_text("" if folder == "empty" else "not audio")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    arguments = [str(tmp_path / word.lower()) if word.isupper() else word for word in arguments]
    flags = ["--model.name", str(tiny_base), "--train.output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["lora.py", *flags, *arguments])
    with pytest.raises(SystemExit) as ended:
        run_recipe(fine_tune, LoraRecipe)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()
