"""What one run measured, as `report.json` and on the last screen."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from peft_audio.adapters.save import saved_folder, saved_weights
from peft_audio.config import ModelConfig, Recipe
from peft_audio.data.sources import BUNDLED
from peft_audio.data.splits import Splits
from peft_audio.encoders.family import encoder_of
from peft_audio.encoders.loading import load_classifier, versions
from peft_audio.errors import UserError
from peft_audio.evaluation.chance import compare_with_chance, reported_line
from peft_audio.evaluation.run_split import Evaluation
from peft_audio.files import read_json, write_atomically
from peft_audio.runs.folder import REPLACE, REPORT, finish_folder, on_first
from peft_audio.runs.run import Run, save_skipped
from peft_audio.strategies.base import Trainable
from peft_audio.text import printable
from peft_audio.training.frozen_weights import weight_drifts
from peft_audio.training.loop import Result

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunReport:
    """One run, as `report.json` holds it.

    `test_*` and `train_*` are None where the split was not read. `total_seconds` is from the start of `fine_tune` to
    the report, saving and verifying included; `train_seconds` is time in training steps, `validation_seconds` in
    validating after each epoch, `checkpoint_seconds` in writing checkpoints, `resumes` how often the run was taken up
    again (the times are then those of what counts: work that was done twice is not in them), `data_wait_share` the
    share of it that was spent waiting for batches, `samples_per_second` the clips trained on in each of those seconds.
    `train_clips` and the like count recordings (None where they were streamed), `skipped_clips` those that were left
    out. `prefix_cached` says which frozen part of the model ran once for each clip, before `train_seconds`, and
    `prefix_seconds` what that took, an earlier run if it was `prefix_reused`; `prefix_bytes` is what was kept.
    `chance` compares the test clips (the validation clips where the test split was not read) with guessing, as
    `evaluation.chance.AgainstChance` holds it, with the name of the split; its `learned_nothing` is true where answers
    are constant or not shown to be better. It is None where fewer than two classes occur.
    `validation_is_test` says that the best epoch was chosen on the test clips. `peak_memory_bytes` is the device's peak
    allocation on CUDA, and the largest resident size of the first process, libraries included, on a CPU.
    `inference_seconds` is what a validation recording took in the last evaluation, by all processes together, decoding
    included. `encoder_drift` is the largest absolute difference between an encoder weight that was not meant to train,
    with the adapter off, and the base as loaded afresh; it must be exactly 0, and is None where there is no such base.
    `pretrained` is false where the encoder's weights were random at the start, or there is none. Without a network
    `steps`, `best_epoch` and `adapter_bytes` are 0, and `base_sha256` is empty.
    """

    strategy: str
    pretrained: bool
    test_accuracy: float | None
    test_macro_f1: float | None
    test_loss: float | None
    validation_accuracy: float
    validation_macro_f1: float
    validation_loss: float
    train_accuracy: float | None
    train_macro_f1: float | None
    best_epoch: int
    steps: int
    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    train_seconds: float
    validation_seconds: float
    checkpoint_seconds: float
    total_seconds: float
    inference_seconds: float
    samples_per_second: float
    data_wait_share: float
    prefix_cached: str
    prefix_seconds: float
    prefix_reused: bool
    prefix_bytes: int
    peak_memory_bytes: int
    num_processes: int
    micro_batches: int
    resumes: int
    mixed_precision: str
    device: str
    seed: int
    train_clips: int | None
    validation_clips: int
    test_clips: int
    skipped_clips: int
    validation_is_test: bool
    dataset_revision: str | None
    dataset_sha256: str
    split_sha256: str
    base_sha256: str
    encoder_drift: float | None
    chance: dict[str, Any] | None
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION


def count_parameters(model: nn.Module, names: tuple[str, ...]) -> tuple[int, int]:
    """Parameters that train, and all parameters once they are: PEFT keeps a frozen copy of the head, not counted."""
    weights = dict(model.named_parameters())
    total = sum(weight.numel() for name, weight in weights.items() if "original_module" not in name)
    return sum(weights[name].numel() for name in names), total


def encoder_drift(model: Any, trained: Trainable, cfg: ModelConfig, labels: Sequence[str]) -> float | None:
    """How far the encoder's frozen weights are from the base as published: exactly 0, unless something went wrong.

    Args:
        model: A trained model; adapters are left out of the comparison.
        trained: What was meant to train in it.
        cfg: How its base was loaded. It is loaded once more, in float32.
        labels: The label names in the order of the logits.

    Returns:
        The largest absolute difference of a weight, NaN where a weight is NaN; None where the encoder was drawn.
    """
    if not cfg.pretrained:
        return None
    # Factors that an adapter keeps fixed belong to it all the same.
    adapter = f".{model.base_model.prefix}" if hasattr(model, "get_base_model") else None
    meant = {
        id(weight)
        for name, weight in model.named_parameters()
        if name in trained.parameters or (adapter and adapter in name)
    }
    encoder = dict(encoder_of(model).named_parameters())
    # PEFT moves the layer that an adapter changes one level down.
    now = {name.replace(".base_layer.", "."): weight for name, weight in encoder.items() if id(weight) not in meant}
    fresh = dict(encoder_of(load_classifier(replace(cfg, quantization="none"), labels)).named_parameters())
    drifts = weight_drifts(now, fresh)
    # Python's max would drop NaN.
    return float(torch.tensor([*drifts.values()]).max()) if drifts else 0.0


def split_metrics(evaluations: dict[str, Evaluation]) -> dict[str, float]:
    """`validation_accuracy`, `test_macro_f1` and so on, for the splits that were read."""
    return {f"{split}_{name}": value for split, found in evaluations.items() for name, value in found.metrics.items()}


def finish_run(
    run: Run, model: nn.Module, trained: Trainable, result: Result, evaluations: dict[str, Evaluation]
) -> RunReport:
    """Write the report into the run's folder and print the last screen, on the first process.

    Args:
        run: What `start_run` returned; what `write_adapter` writes is in its folder by now, and appears here.
        model: What was evaluated and saved.
        trained: What the strategy trained.
        result: Of the training.
        evaluations: Of the splits that were read, by name.

    Returns:
        The report, on every process.
    """
    run.log.close()
    skipped = save_skipped(run)
    return on_first(run.accelerator, lambda: _finish(run, model, trained, result, evaluations, skipped))


def _finish(
    run: Run,
    model: nn.Module,
    trained: Trainable,
    result: Result,
    evaluations: dict[str, Evaluation],
    skipped: int,
) -> RunReport:
    assert isinstance(run.cfg, Recipe)
    product = saved_folder(run.folder, trained, run.cfg.model.pretrained)
    written = product.with_name(product.name + ".partial")
    trainable, total = count_parameters(model, trained.parameters)
    report = RunReport(
        strategy=trained.strategy,
        best_epoch=result.best_epoch,
        steps=result.steps,
        trainable_parameters=trainable,
        total_parameters=total,
        adapter_bytes=(written / saved_weights(product).name).stat().st_size,
        train_seconds=result.train_seconds,
        validation_seconds=result.validation_seconds,
        checkpoint_seconds=result.checkpoint_seconds,
        micro_batches=result.micro_batches,
        resumes=result.resumes,
        samples_per_second=result.samples_per_second,
        data_wait_share=result.data_wait_share,
        prefix_cached=result.prefix.cached,
        prefix_seconds=result.prefix.seconds,
        prefix_reused=result.prefix.reused,
        prefix_bytes=result.prefix.bytes,
        peak_memory_bytes=result.peak_memory_bytes,
        **measured(run, evaluations, skipped),
        pretrained=run.cfg.model.pretrained,
        encoder_drift=encoder_drift(model, trained, run.cfg.model, run.splits.labels),
    )
    write_report(run, report)
    finish_folder(run.folder)
    print_report(report, product, example_clip(run.splits, run.cfg.data.source))
    return report


def measured(run: Run, evaluations: dict[str, Evaluation], skipped: int) -> dict[str, Any]:
    """What a report says whatever was trained: of the splits that were read, the data, the process and the time."""
    heard, splits = evaluations["validation"], run.splits
    found: dict[str, Any] = {
        f"{split}_{name}": None for split in ("test", "train") for name in ("accuracy", "macro_f1")
    }
    found |= {"test_loss": None} | split_metrics(evaluations)
    # The gap to validation is told of accuracy and macro-F1.
    found.pop("train_loss", None)
    return found | {
        "total_seconds": time.perf_counter() - run.began,
        "inference_seconds": heard.seconds / len(heard.labels),
        "num_processes": run.accelerator.num_processes,
        "mixed_precision": run.accelerator.mixed_precision,
        "device": str(run.accelerator.device),
        "seed": run.cfg.train.seed,
        "train_clips": None if splits.stream else len(splits.recordings("train")),
        "validation_clips": len(splits.recordings("validation")),
        "test_clips": len(splits.recordings("test")),
        "skipped_clips": skipped,
        "chance": _chance(run, evaluations),
        "validation_is_test": run.cfg.data.validate_on_test,
        "dataset_revision": splits.revision,
        "dataset_sha256": splits.dataset_sha256(),
        "split_sha256": splits.split_sha256(),
        "base_sha256": run.base.sha256,
        "versions": versions(),
    }


def _chance(run: Run, evaluations: dict[str, Evaluation]) -> dict[str, Any] | None:
    """Compare the answers on the last split that was read with guessing."""
    split = "test" if "test" in evaluations else "validation"
    read, groups = evaluations[split], list(run.splits.recordings(split)["group"])
    found = compare_with_chance(run.splits.task, read.logits, read.labels, run.splits.labels, groups)
    return None if found is None else {"split": split} | found.as_json()


def write_report(run: Run, report: RunReport) -> None:
    """Write `report.json` atomically."""
    write_atomically(run.folder / REPORT, json.dumps(asdict(report), indent=2) + "\n")


def read_report(folder: Path) -> RunReport:
    """Read the report of a finished run; fields that an earlier version did not write are None.

    Raises:
        UserError: The report is damaged.
    """
    stored = read_json(folder / REPORT)
    if not stored:
        raise UserError(f"--train.resume: {folder / REPORT} cannot be read; {REPLACE}.")
    known: dict[str, Any] = {field.name: stored.get(field.name) for field in fields(RunReport)}
    return RunReport(**known)


def print_report(report: RunReport, product: Path, example: str) -> None:
    """What was measured, where the adapter (or model) is, and what to try next."""
    table = table_of_metrics(report)
    share = report.trainable_parameters / report.total_parameters
    table.add_row("kept epoch", str(report.best_epoch))
    table.add_row("trained parameters", f"{report.trainable_parameters:,} of {report.total_parameters:,} ({share:.1%})")
    table.add_row("device", report.device + (f", {n} processes" if (n := report.num_processes) > 1 else ""))
    table.add_row("training", f"{report.train_seconds:.1f} s ({report.total_seconds:.1f} s in all)")
    if report.prefix_cached:
        table.add_row("frozen prefix", f"{report.prefix_seconds:.1f} s once, {report.prefix_bytes / 1e6:,.1f} MB kept")
    table.add_row("speed", f"{report.samples_per_second:.1f} clips per second")
    table.add_row("waiting for data", f"{report.data_wait_share:.0%} of that time")
    table.add_row("peak memory", f"{report.peak_memory_bytes / 2**20:,.0f} MiB")
    table.add_row(product.name, f"{report.adapter_bytes / 1000:,.0f} kB")
    console = Console()
    console.print(table)
    print_chance(report, console)
    console.print(f"{product.name}: {product}", highlight=False, soft_wrap=True, markup=False)
    command = shlex.join(["peft-audio", "predict", example, "--adapter", str(product)])
    console.print(f"try it:  {printable(command)}", highlight=False, soft_wrap=True, markup=False)


def print_chance(report: RunReport, console: Console) -> None:
    """Print a line where the run learned nothing."""
    if (line := reported_line(report.chance)) is not None:
        console.print(printable(f"warning: {line}"), highlight=False, soft_wrap=True, markup=False)


def table_of_metrics(report: RunReport) -> Table:
    """The first rows of the last screen: how often it was right."""
    table = Table(title=f"{report.strategy}, seed {report.seed}", show_header=False, title_justify="left")
    for split in ("test", "validation", "train"):
        for metric, name in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
            value = getattr(report, f"{split}_{metric}")
            if value is not None or split == "test":
                of = f" of {getattr(report, f'{split}_clips')} clips" if metric == "accuracy" else ""
                table.add_row(f"{split} {name}", "not read" if value is None else f"{value:.3f}{of}")
    return table


def example_clip(splits: Splits, source: str) -> str:
    """A recording to try the adapter on: the first test clip, or the bundled example."""
    path = splits.test[0]["path"] or (str(BUNDLED / "example.flac") if source == "bundled" else "your_clip.wav")
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
