"""Write the report of a run to `report.json` and print it."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from peft_audio.adapters.record import CHOSEN_ON_TEST
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
from peft_audio.pages.curves import Curves, draw_curves
from peft_audio.pages.sections import Section, render_notebook
from peft_audio.runs.finished import epochs_of
from peft_audio.runs.folder import REPLACE, REPORT, finish_folder, on_first
from peft_audio.runs.run import Run, save_skipped
from peft_audio.strategies.base import Trainable
from peft_audio.text import printable
from peft_audio.training.frozen_weights import weight_drifts
from peft_audio.training.loop import Result

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunReport:
    """Contents of `report.json`.

    Times of a resumed run do not include work that was done twice. Without a network, `steps`, `best_epoch` and
    `adapter_bytes` are 0, and `base_sha256` is empty.

    Attributes:
        strategy: Name of the strategy, or kind of the baseline.
        pretrained: False if the encoder started from random weights, or there is none.
        test_accuracy: Accuracy on the test recordings; None if they were not read.
        test_macro_f1: Macro-F1 on the test recordings; None if they were not read.
        test_loss: Mean loss on the test recordings; None if they were not read.
        validation_accuracy: Accuracy on the validation recordings.
        validation_macro_f1: Macro-F1 on the validation recordings.
        validation_loss: Mean loss on the validation recordings.
        train_accuracy: Accuracy on the training recordings, without augmentation; None if not evaluated.
        train_macro_f1: Macro-F1 on the training recordings, without augmentation; None if not evaluated.
        best_epoch: Number of the epoch whose weights were kept, from 1.
        steps: Number of optimizer steps.
        trainable_parameters: Number of parameters that trained.
        total_parameters: Number of all parameters.
        adapter_bytes: Size of the saved weights.
        train_seconds: Time of the training steps, with decoding.
        validation_seconds: Time of the validations after each epoch.
        checkpoint_seconds: Time of writing checkpoints.
        total_seconds: Time from the start of `fine_tune` to the report, with saving and verifying.
        inference_seconds: Time per validation recording in the last evaluation, by all processes together, with
            decoding.
        samples_per_second: Clips trained on per second of `train_seconds`.
        data_wait_share: Share of `train_seconds` that was spent waiting for batches.
        prefix_cached: Frozen part of the model whose output was cached; empty for none.
        prefix_seconds: Time to fill the feature cache, which is not part of `train_seconds`.
        prefix_reused: Whether an earlier run filled the cache.
        prefix_bytes: Size of the cached features.
        peak_memory_bytes: Peak memory: of the device on CUDA, of the first process with its libraries on a CPU.
        num_processes: Number of processes.
        micro_batches: Number of micro-batches per step and process.
        resumes: Number of times that the run was resumed.
        mixed_precision: Precision of the training.
        device: Name of the device in torch.
        seed: Value of `train.seed`.
        train_clips: Number of training recordings; None if they were streamed.
        validation_clips: Number of validation recordings.
        test_clips: Number of test recordings.
        skipped_clips: Number of clips that could not be used.
        validation_is_test: Whether the best epoch was chosen on the test recordings.
        dataset_revision: Commit of a Hub dataset; None for other sources.
        dataset_sha256: Hash of the recordings.
        split_sha256: Hash of the splits.
        base_sha256: Hash of the encoder.
        encoder_drift: Largest absolute difference between a frozen weight of the encoder, without the adapter, and the
            base loaded again. It must be exactly 0. None if no pretrained base exists.
        chance: Comparison with guessing, see `evaluation.chance.AgainstChance`, with the name of the split: test, or
            validation if the test split was not read. None if fewer than two classes occur.
        versions: Versions of packages.
        schema_version: Version of this format.
        folder: Folder of the run; not in `report.json`.
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
    folder: str | None = field(default=None, compare=False)

    @property
    def adapter(self) -> Path | None:
        """Return the folder of the saved adapter, or of the whole model; None where there is none."""
        places = [] if self.folder is None else [Path(self.folder, name) for name in ("adapter", "model")]
        return next((place for place in places if place.is_dir()), None)

    def _repr_html_(self) -> str:
        """Render figures and learning curves in a notebook."""
        epochs = [] if self.folder is None else epochs_of(Path(self.folder))
        numbers = [line["epoch"] for line in epochs]

        def chart(title: str, keys: dict[str, str]) -> Curves | None:
            series = {name: [line.get(key) for line in epochs] for name, key in keys.items()}
            return draw_curves(title, numbers, series, self.best_epoch)

        charts = [
            chart("loss", {"training": "train_loss", "validation": "validation_loss"}),
            chart("validation", {"accuracy": "validation_accuracy", "macro-F1": "validation_macro_f1"}),
        ]
        lines = [*([f"{self.adapter.name}: {self.adapter}"] if self.adapter else []), *warning_lines(self)]
        section = Section(
            "Report",
            header=("figure", "value"),
            rows=tuple(report_rows(self)),
            numbers=False,
            lines=tuple(lines),
            curves=tuple(drawn for drawn in charts if drawn),
        )
        return render_notebook(f"{self.strategy}, seed {self.seed}", [section])


def count_parameters(model: nn.Module, names: tuple[str, ...]) -> tuple[int, int]:
    """Return the number of trained parameters and of all parameters, without the frozen copy of the head in PEFT."""
    weights = dict(model.named_parameters())
    total = sum(weight.numel() for name, weight in weights.items() if "original_module" not in name)
    return sum(weights[name].numel() for name in names), total


def encoder_drift(model: Any, trained: Trainable, cfg: ModelConfig, labels: Sequence[str]) -> float | None:
    """Measure the largest change of a frozen encoder weight since the base was loaded; it must be exactly 0.

    Args:
        model: Trained model; the weights of adapters are not compared.
        trained: Parameters and modules that train.
        cfg: Settings of the base, from which it is loaded again in float32.
        labels: Label names in the order of the logits.

    Returns:
        The largest absolute difference, NaN if a weight holds NaN; None if the encoder started from random weights.
    """
    if not cfg.pretrained:
        return None
    # Fixed factors of an adapter are not part of the base.
    adapter = f".{model.base_model.prefix}" if hasattr(model, "get_base_model") else None
    own = {
        id(weight)
        for name, weight in model.named_parameters()
        if name in trained.parameters or (adapter and adapter in name)
    }
    encoder = dict(encoder_of(model).named_parameters())
    # PEFT puts a layer with an adapter one level down, under base_layer.
    frozen = {name.replace(".base_layer.", "."): weight for name, weight in encoder.items() if id(weight) not in own}
    fresh = dict(encoder_of(load_classifier(replace(cfg, quantization="none"), labels)).named_parameters())
    drifts = weight_drifts(frozen, fresh)
    # max of Python ignores NaN.
    return float(torch.tensor([*drifts.values()]).max()) if drifts else 0.0


def split_metrics(evaluations: dict[str, Evaluation]) -> dict[str, float]:
    """Return the metrics of all splits in one dictionary, as `validation_accuracy`, `test_macro_f1` and so on."""
    return {
        f"{split}_{name}": value
        for split, evaluation in evaluations.items()
        for name, value in evaluation.metrics.items()
    }


def finish_run(
    run: Run, model: nn.Module, trained: Trainable, result: Result, evaluations: dict[str, Evaluation]
) -> RunReport:
    """Write the report, give the saved adapter or model its final name, and print the report on the first process.

    Args:
        run: Run whose adapter or model `write_adapter` has written.
        model: Model that was evaluated and saved.
        trained: Parameters and modules that the strategy trained.
        result: Result of the training.
        evaluations: Evaluations by name of the split.

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
    """Build, write and print the report of a run, on the first process."""
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
        **shared_fields(run, evaluations, skipped),
        pretrained=run.cfg.model.pretrained,
        encoder_drift=encoder_drift(model, trained, run.cfg.model, run.splits.labels),
    )
    write_report(run, report)
    finish_folder(run.folder)
    print_report(report, product, example_clip(run.splits, run.cfg.data.source))
    return report


def shared_fields(run: Run, evaluations: dict[str, Evaluation], skipped: int) -> dict[str, Any]:
    """Return the fields of a report that runs with and without a network share: metrics, data, processes and times."""
    validation, splits = evaluations["validation"], run.splits
    metrics: dict[str, Any] = {
        f"{split}_{name}": None for split in ("test", "train") for name in ("accuracy", "macro_f1")
    }
    metrics |= {"test_loss": None} | split_metrics(evaluations)
    # Reports compare training with validation by accuracy and macro-F1 only.
    metrics.pop("train_loss", None)
    return metrics | {
        "total_seconds": time.perf_counter() - run.began,
        "inference_seconds": validation.seconds / len(validation.labels),
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
        "folder": str(run.folder),
    }


def _chance(run: Run, evaluations: dict[str, Evaluation]) -> dict[str, Any] | None:
    """Compare the predictions on the test split, or on the validation split if the test was not read, with guessing."""
    split = "test" if "test" in evaluations else "validation"
    evaluation, groups = evaluations[split], list(run.splits.recordings(split)["group"])
    chance = compare_with_chance(run.splits.task, evaluation.logits, evaluation.labels, run.splits.labels, groups)
    return None if chance is None else {"split": split} | chance.as_json()


def write_report(run: Run, report: RunReport) -> None:
    """Write `report.json` atomically."""
    stored = asdict(report)
    del stored["folder"]
    write_atomically(run.folder / REPORT, json.dumps(stored, indent=2) + "\n")


def read_report(folder: Path) -> RunReport:
    """Read the report of a finished run; fields that an earlier version did not write are None.

    Raises:
        UserError: The report is damaged.
    """
    stored = read_json(folder / REPORT)
    if not stored:
        raise UserError(f"--train.resume: {folder / REPORT} cannot be read; {REPLACE}.")
    known: dict[str, Any] = {field.name: stored.get(field.name) for field in fields(RunReport)}
    return RunReport(**known | {"folder": str(folder)})


def print_report(report: RunReport, product: Path, example: str) -> None:
    """Print the metrics and costs of a run, the folder of the adapter or model, and a command that uses it."""
    console = Console()
    console.print(as_table(report, report_rows(report)))
    print_warnings(report, console)
    console.print(f"{product.name}: {product}", highlight=False, soft_wrap=True, markup=False)
    command = shlex.join(["peft-audio", "predict", example, "--adapter", str(product)])
    console.print(f"try it:  {printable(command)}", highlight=False, soft_wrap=True, markup=False)


def report_rows(report: RunReport) -> list[tuple[str, str]]:
    """List the figures of a run, each with its name."""
    if not report.steps:
        return [
            *metric_rows(report),
            ("fitted coefficients", f"{report.trainable_parameters:,}"),
            ("fitting", f"{report.train_seconds:.1f} s ({report.total_seconds:.1f} s in all)"),
        ]
    share = report.trainable_parameters / report.total_parameters
    processes = f", {report.num_processes} processes" if report.num_processes > 1 else ""
    prefix = f"{report.prefix_seconds:.1f} s once, {report.prefix_bytes / 1e6:,.1f} MB kept"
    return [
        *metric_rows(report),
        ("kept epoch", f"{report.best_epoch}{', chosen on the test clips' if report.validation_is_test else ''}"),
        ("trained parameters", f"{report.trainable_parameters:,} of {report.total_parameters:,} ({share:.1%})"),
        ("device", report.device + processes),
        ("training", f"{report.train_seconds:.1f} s ({report.total_seconds:.1f} s in all)"),
        *([("frozen prefix", prefix)] if report.prefix_cached else []),
        ("speed", f"{report.samples_per_second:.1f} clips per second"),
        ("waiting for data", f"{report.data_wait_share:.0%} of that time"),
        ("peak memory", f"{report.peak_memory_bytes / 2**20:,.0f} MiB"),
        (report.adapter.name if report.adapter else "adapter", f"{report.adapter_bytes / 1000:,.0f} kB"),
    ]


def print_warnings(report: RunReport, console: Console) -> None:
    """Print the warnings about the figures of a run."""
    for line in warning_lines(report):
        console.print(printable(line), highlight=False, soft_wrap=True, markup=False)


def warning_lines(report: RunReport) -> list[str]:
    """Warn of scores that were chosen on the test clips, and of runs that learned nothing."""
    # A control without a network chooses no epoch, and the majority control is constant by design.
    chosen = CHOSEN_ON_TEST if report.validation_is_test and report.steps else None
    chance = None if report.strategy == "majority" else reported_line(report.chance)
    return [f"warning: {line}" for line in (chosen, chance) if line]


def as_table(report: RunReport, rows: Sequence[tuple[str, str]]) -> Table:
    """Make a table of figures."""
    table = Table(title=f"{report.strategy}, seed {report.seed}", show_header=False, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def metric_rows(report: RunReport) -> list[tuple[str, str]]:
    """List the metrics of each split that was read, test first."""
    rows = []
    for split in ("test", "validation", "train"):
        for metric, name in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
            value = getattr(report, f"{split}_{metric}")
            if value is not None or split == "test":
                of = f" of {getattr(report, f'{split}_clips')} clips" if metric == "accuracy" else ""
                rows.append((f"{split} {name}", "not read" if value is None else f"{value:.3f}{of}"))
    return rows


def example_clip(splits: Splits, source: str) -> str:
    """Return the path of a recording for an example command: the first test clip, or the bundled example."""
    path = splits.test[0]["path"] or (str(BUNDLED / "example.flac") if source == "bundled" else "your_clip.wav")
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
