"""What many runs say together: arms under equal conditions, ranked where every rule holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from peft_audio.evaluation.significance import Difference, Interval
from peft_audio.files import read_json
from peft_audio.runs.finished import Finished, epochs_of, training_seconds, whole_seconds

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Score:
    """One metric of an arm's final runs.

    Attributes:
        interval: Mean and 95% interval over seeds.
        values: Of each seed, in the order of `Arm.seeds`; with folds, over all folds together.
    """

    interval: Interval
    values: tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """One learning rate that was tried, on validation only.

    Attributes:
        learning_rate: The peak rate.
        fold: Which fold was held out; None without folds.
        validation: Mean over the tuning seeds of the metric that chooses (`Comparison.best_metric`), higher is better.
        seeds: The tuning seeds.
        chosen: Whether the final runs use this rate.
    """

    learning_rate: float
    fold: int | None
    validation: float
    seeds: tuple[int, ...]
    chosen: bool


@dataclass(frozen=True)
class Curve:
    """One final run over its epochs.

    Attributes:
        seed: Of the run.
        fold: Which fold was held out; None without folds.
        train_loss: Mean loss of each epoch's steps.
        validation_loss: After each epoch.
        validation_accuracy: After each epoch.
        best_epoch: The one that was kept, from 1.
    """

    seed: int
    fold: int | None
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    best_epoch: int


@dataclass(frozen=True)
class Failure:
    """A run that did not end with a report.

    Attributes:
        run: Its folder, seen from the comparison's.
        exit_code: Of its process.
        last_lines: What it said last.
    """

    run: str
    exit_code: int
    last_lines: str


@dataclass(frozen=True)
class Arm:
    """One way of training, with everything that was measured of it.

    Names of costs are those of PEFT's method comparison where it has them. Costs are medians over final runs that had
    the device to themselves, None where none had.

    Attributes:
        name: In the comparison.
        strategy: Of its reports.
        control: Whether it is there to show what the task is worth: no pretrained network, or none at all. Not ranked.
        rank: 1 is best by test accuracy; None for controls, or where a rule is broken.
        learning_rates: The chosen ones, distinct, rising; empty where there is nothing to choose.
        trials: All that were tried.
        at_edge: Whether a chosen rate is still the lowest or the highest that was tried.
        seeds: Of the final runs.
        test_accuracy: On the test clips.
        test_macro_f1: Likewise.
        validation_accuracy: Of the kept epochs.
        train_accuracy: On the training clips, unaugmented; None where they were not read again.
        gap: Mean of training minus validation accuracy; None where there is no training accuracy.
        difference: To the reference in test accuracy, over clips and seeds; None for the reference itself.
        p_holm: Its p-value, corrected for the number of arms (Holm, 1979).
        claim: In one sentence what the interval allows to say.
        num_trainable_params: What trained.
        num_total_params: All parameters.
        file_size: Bytes of the saved weights.
        accelerator_memory_max: Peak memory, bytes.
        train_time: Seconds in training steps.
        total_time: Seconds of the whole run, start-up of Python excluded.
        samples_per_second: Clips trained on in each second.
        inference_seconds: Seconds a clip in evaluation.
        encoder_drift: The largest change of a weight that was not to train; anything but 0 breaks a rule.
        front: Of which of `num_trainable_params`, `train_time` and `accelerator_memory_max` no other arm has less with
            as high a mean test accuracy (the Pareto front).
        curves: Of the final runs.
        failures: Runs that failed.
    """

    name: str
    strategy: str
    control: bool
    rank: int | None
    learning_rates: tuple[float, ...]
    trials: tuple[Trial, ...]
    at_edge: bool
    seeds: tuple[int, ...]
    test_accuracy: Score | None
    test_macro_f1: Score | None
    validation_accuracy: Score | None
    train_accuracy: Score | None
    gap: float | None
    difference: Difference | None
    p_holm: float | None
    claim: str | None
    num_trainable_params: int | None
    num_total_params: int | None
    file_size: int | None
    accelerator_memory_max: float | None
    train_time: float | None
    total_time: float | None
    samples_per_second: float | None
    inference_seconds: float | None
    encoder_drift: float | None
    front: tuple[str, ...]
    curves: tuple[Curve, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Attributes:
        arms: By rank where they have one, then by mean test accuracy; controls last.
        reference: The arm that the others are held against.
        margin: What counts as a difference worth having, in accuracy (0.02 is two points).
        broken_rules: Why nothing is ranked, a sentence each; empty where all rules hold.
        notes: What a reader must know to read the table.
        source: The data source.
        encoder: The base encoder.
        clips: Training, validation and test clips.
        groups: How many groups (speakers, say) the test clips come from; None where that is unknown.
        folds: How many folds were held out, each once; None without folds.
        budget: What each run was given, in words.
        best_metric: By which rates and epochs were chosen on validation.
        resolution: The widest half-width of the differences' intervals, in accuracy; None without differences.
        conditional: Whether intervals speak of these test groups only.
        device: Where the final runs ran.
        versions: Of the packages, of the first final run.
        dataset_sha256: Of the data, distinct.
        split_sha256: Of the splits, distinct.
        results: The final runs in the form of PEFT's method comparison, see `peft_result`.
    """

    arms: tuple[Arm, ...]
    reference: str
    margin: float
    broken_rules: tuple[str, ...]
    notes: tuple[str, ...]
    source: str
    encoder: str
    clips: tuple[int, int, int]
    groups: int | None
    folds: int | None
    budget: str
    best_metric: str
    resolution: float | None
    conditional: bool
    device: str
    versions: dict[str, str]
    dataset_sha256: tuple[str, ...]
    split_sha256: tuple[str, ...]
    results: tuple[dict[str, Any], ...] = ()
    schema_version: int = SCHEMA_VERSION


# Its table names these four beside PEFT itself.
PACKAGES = ("peft", "transformers", "datasets", "torch", "bitsandbytes")


def peft_result(run: Finished) -> dict[str, Any]:
    """`run_info`, `train_info` and `meta_info` of one run, as PEFT's scripts write them."""
    report, settings = run.report, run.settings
    adapter = read_json(run.folder / "adapter" / "adapter_config.json")
    made = datetime.fromtimestamp((run.folder / "report.json").stat().st_mtime, UTC)
    losses = {epoch["epoch"]: epoch["train_loss"] for epoch in epochs_of(run)}
    return {
        "run_info": {
            "created_at": made.isoformat(timespec="seconds"),
            "total_time": whole_seconds(report),
            "experiment_name": f"{run.arm}/{settings.get('model.name')}-seed{run.seed}",
            "peft_branch": None,
            "train_config": {"model_id": settings.get("model.name"), **settings},
            "peft_config": adapter or None,
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": report.get("peak_memory_bytes") if run.alone else None,
            "accelerator_memory_reserved_99th": None,
            "train_time": training_seconds(report) if run.alone else None,
            "file_size": report.get("adapter_bytes"),
            "num_trainable_params": report.get("trainable_parameters"),
            "num_total_params": report.get("total_parameters"),
            "status": "success",
            "metrics": [
                {
                    "step": report.get("steps"),
                    "valid accuracy": report.get("validation_accuracy"),
                    "test accuracy": report.get("test_accuracy"),
                    "train loss": losses.get(report.get("best_epoch")),
                    "train samples": report.get("train_clips"),
                    "train total tokens": None,
                }
            ],
        },
        "meta_info": {
            "model_info": {"sha": report.get("base_sha256")},
            "dataset_info": {"sha": report.get("dataset_sha256")},
            "package_info": {f"{name}-version": report.get("versions", {}).get(name) for name in PACKAGES},
            "system_info": {"device": report.get("device")},
        },
    }
