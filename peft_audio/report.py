"""What one run measured, as files in its folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from scipy.special import softmax
from torch import nn

from peft_audio.adapters import WEIGHTS
from peft_audio.config import LoraRecipe, TrainConfig, UserError, to_yaml
from peft_audio.data import BUNDLED, SPLITS, Splits
from peft_audio.models import Base, versions
from peft_audio.strategies import Trained
from peft_audio.training import Evaluation, Result

SCHEMA_VERSION = 1
RUN_FILES = {
    "adapter",
    "adapter.partial",
    "config.yaml",
    "metrics.jsonl",
    "predictions.parquet",
    "report.json",
    "report.json.partial",
    "splits.parquet",
}


@dataclass(frozen=True)
class RunReport:
    """One run, as `report.json` holds it.

    `test_*` are None where the test split was not read. `total_seconds` is from the start of `main` to the report,
    saving and verifying included; `train_seconds` is time in training steps. `samples_per_second` are clips trained on
    in each of the latter. `peak_memory_bytes` is the device's peak allocation on CUDA, and the largest resident size
    of the first process, libraries included, on a CPU.
    """

    strategy: str
    test_accuracy: float | None
    test_macro_f1: float | None
    test_loss: float | None
    validation_accuracy: float
    validation_macro_f1: float
    validation_loss: float
    best_epoch: int
    steps: int
    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    train_seconds: float
    total_seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    num_processes: int
    mixed_precision: str
    device: str
    seed: int
    train_clips: int
    validation_clips: int
    test_clips: int
    dataset_sha256: str
    split_sha256: str
    base_sha256: str
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION


def check_output_dir(cfg: TrainConfig, accelerator: Accelerator) -> None:
    """Refuse a folder that exists, or that cannot be made, before any work is done.

    Raises:
        UserError: It exists and may not be replaced, holds what no run wrote, or its parent cannot be written to.
    """
    folder = output_folder(cfg)
    if folder.exists() and not cfg.overwrite:
        unfinished = (folder / "config.yaml").exists() and not (folder / "report.json").exists()
        what = "exists already, from a run that did not finish" if unfinished else "exists already"
        raise UserError(f"--train.output_dir: {folder} {what}; give another, or --train.overwrite true to replace it.")
    if folder.exists() or folder.is_symlink():
        foreign = [folder] if folder.is_symlink() or not folder.is_dir() else []
        foreign += [path for path in folder.glob("*") if path.name not in RUN_FILES]
        if foreign:
            raise UserError(f"--train.overwrite: {foreign[0]} was not made by a run; move it away yourself.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--train.output_dir: cannot make {folder} ({error.strerror}); give another.") from error
    if not os.access(folder.parent, os.W_OK):
        raise UserError(f"--train.output_dir: {folder.parent} is not writable; give another folder.")
    # No process may find the folder that the first one is about to make.
    accelerator.wait_for_everyone()


def output_folder(cfg: TrainConfig) -> Path:
    """`train.output_dir`, with ~ as the user's home."""
    return Path(cfg.output_dir).expanduser()


@dataclass(frozen=True)
class Run:
    """A run under way: its folder, and what its report will say of where it started from.

    Attributes:
        folder: Of the run.
        cfg: The recipe's settings.
        splits: The rows.
        base: The encoder.
        accelerator: Where it runs.
        began: `time.perf_counter()` at its start.
    """

    folder: Path
    cfg: LoraRecipe
    splits: Splits
    base: Base
    accelerator: Accelerator
    began: float


def start_run(cfg: LoraRecipe, splits: Splits, base: Base, accelerator: Accelerator, began: float) -> Run:
    """Make the run's folder, with the resolved settings and the splits in it."""
    folder = output_folder(cfg.train)
    if accelerator.is_main_process:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
        pq.write_table(splits.table(), folder / "splits.parquet")
        counts = ", ".join(f"{len(splits[split])} {split}" for split in SPLITS)
        print(f"{len(splits.labels)} classes; clips: {counts}")
        if splits.ignored:
            print(f"ignored {len(splits.ignored)} files that are not recordings, {splits.ignored[0]} first")
    accelerator.wait_for_everyone()
    return Run(folder, cfg, splits, base, accelerator, began)


def count_parameters(model: nn.Module, names: tuple[str, ...]) -> tuple[int, int]:
    """Parameters that train, and all parameters once they are: PEFT keeps a frozen copy of the head, not counted."""
    weights = dict(model.named_parameters())
    total = sum(weight.numel() for name, weight in weights.items() if "original_module" not in name)
    return sum(weights[name].numel() for name in names), total


def peak_memory_bytes(accelerator: Accelerator) -> int:
    """The most memory that this process has held on its device so far, in bytes."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not there on Windows

    # Linux counts in kibibytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def save_predictions(run: Run, evaluations: dict[str, Evaluation]) -> None:
    """Write `predictions.parquet`: id, group, split, label and a probability for each label, a row a clip."""
    if not run.accelerator.is_main_process:
        return
    tables = []
    for split, evaluation in evaluations.items():
        rows = run.splits[split]
        columns: dict[str, Any] = {
            "id": list(rows["id"]),
            "group": list(rows["group"]),
            "split": [split] * len(rows),
            "label": [run.splits.labels[i] for i in rows["label"]],
        }
        probabilities = softmax(evaluation.logits, axis=1)
        columns |= {f"probability_{label}": probabilities[:, i] for i, label in enumerate(run.splits.labels)}
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), run.folder / "predictions.parquet")


def split_metrics(evaluations: dict[str, Evaluation]) -> dict[str, float]:
    """`validation_accuracy`, `test_macro_f1` and so on, for the splits that were read."""
    return {f"{split}_{name}": value for split, found in evaluations.items() for name, value in found.metrics.items()}


def finish_run(run: Run, trained: Trained, result: Result, evaluations: dict[str, Evaluation]) -> RunReport | None:
    """Write the report into the run's folder and print the last screen, on the first process.

    Args:
        run: What `start_run` returned; `adapter/` is in its folder by now.
        trained: What the strategy trained.
        result: Of the training.
        evaluations: Of the splits that were read, by name.

    Returns:
        The report; None on other processes, which may not see the folder.
    """
    run.accelerator.end_training()
    if not run.accelerator.is_main_process:
        return None
    trainable, total = count_parameters(result.model, trained.parameters)
    validation = evaluations["validation"].metrics
    test = evaluations["test"].metrics if "test" in evaluations else {}
    report = RunReport(
        strategy=trained.strategy,
        test_accuracy=test.get("accuracy"),
        test_macro_f1=test.get("macro_f1"),
        test_loss=test.get("loss"),
        validation_accuracy=validation["accuracy"],
        validation_macro_f1=validation["macro_f1"],
        validation_loss=validation["loss"],
        best_epoch=result.best_epoch,
        steps=result.steps,
        trainable_parameters=trainable,
        total_parameters=total,
        adapter_bytes=(run.folder / "adapter" / WEIGHTS).stat().st_size,
        train_seconds=result.train_seconds,
        total_seconds=time.perf_counter() - run.began,
        samples_per_second=result.samples_per_second,
        peak_memory_bytes=peak_memory_bytes(run.accelerator),
        num_processes=run.accelerator.num_processes,
        mixed_precision=run.accelerator.mixed_precision,
        device=str(run.accelerator.device),
        seed=run.cfg.train.seed,
        train_clips=len(run.splits.train),
        validation_clips=len(run.splits.validation),
        test_clips=len(run.splits.test),
        dataset_sha256=run.splits.dataset_sha256(),
        split_sha256=run.splits.split_sha256(),
        base_sha256=run.base.sha256,
        versions=versions(),
    )
    aside = run.folder / "report.json.partial"
    aside.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    aside.replace(run.folder / "report.json")
    print_report(report, run.folder / "adapter", example_clip(run.splits))
    return report


def example_clip(splits: Splits) -> str:
    """A recording to try the adapter on: the first test clip, or the bundled example."""
    path = splits.test[0]["audio"]["path"] or str(BUNDLED / "example.flac")
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def print_report(report: RunReport, adapter: Path, example: str) -> None:
    """The last screen: what was measured, where the adapter is, and what to try next."""
    table = Table(title=f"{report.strategy}, seed {report.seed}", show_header=False, title_justify="left")
    share = report.trainable_parameters / report.total_parameters
    tested = {
        "test accuracy": report.test_accuracy,
        "test macro-F1": report.test_macro_f1,
        "validation accuracy": report.validation_accuracy,
        "validation macro-F1": report.validation_macro_f1,
    }
    for name, value in tested.items():
        table.add_row(name, "not read" if value is None else f"{value:.3f}")
    table.add_row("kept epoch", str(report.best_epoch))
    table.add_row("trained parameters", f"{report.trainable_parameters:,} of {report.total_parameters:,} ({share:.1%})")
    table.add_row("training", f"{report.train_seconds:.1f} s ({report.total_seconds:.1f} s in all)")
    table.add_row("speed", f"{report.samples_per_second:.1f} clips per second")
    table.add_row("peak memory", f"{report.peak_memory_bytes / 2**20:,.0f} MiB")
    table.add_row("adapter", f"{report.adapter_bytes / 1000:,.0f} kB")
    console = Console()
    console.print(table)
    console.print(f"adapter: {adapter}", highlight=False, soft_wrap=True, markup=False)
    command = shlex.join(["peft-audio", "predict", example, "--adapter", str(adapter)])
    console.print(f"try it:  {command}", highlight=False, soft_wrap=True, markup=False)
