"""Results of a comparison: arms under equal conditions, ranked if every rule holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from peft_audio.evaluation.significance import Difference, Interval
from peft_audio.files import read_json
from peft_audio.runs.finished import Finished, epochs_of, training_seconds, whole_seconds

SCHEMA_VERSION = 1
# Costs that are measured in runs that had the device to themselves, and their columns on the page.
MEASURED_COSTS = {
    "accelerator_memory_max": "peak memory, MiB",
    "train_time": "training, s",
    "total_time": "whole run, s",
    "samples_per_second": "clips/s",
    "inference_seconds": "inference, ms/clip",
}
# Test metrics that can rank arms; the first one is the default.
METRICS = ("macro_f1", "accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class Score:
    """One metric of an arm's final runs.

    Attributes:
        interval: Mean and 95% interval over seeds.
        values: Value of each seed, in the order of `Arm.seeds`; with folds, over all folds together.
    """

    interval: Interval
    values: tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """One learning rate that was tried, scored on validation.

    Attributes:
        learning_rate: Peak learning rate.
        fold: Index of the held-out fold; None without folds.
        validation: Mean over the tuning seeds of `Comparison.best_metric`; higher is better.
        seeds: Tuning seeds.
        chosen: Whether the final runs use this rate.
    """

    learning_rate: float
    fold: int | None
    validation: float
    seeds: tuple[int, ...]
    chosen: bool


@dataclass(frozen=True)
class Curve:
    """Learning curves of one final run.

    Attributes:
        seed: Seed of the run.
        fold: Index of the held-out fold; None without folds.
        train_loss: Mean training loss of each epoch.
        validation_loss: Validation loss after each epoch.
        validation_accuracy: Validation accuracy after each epoch.
        best_epoch: Number of the epoch that was kept, from 1.
    """

    seed: int
    fold: int | None
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    best_epoch: int


@dataclass(frozen=True)
class Failure:
    """A run that ended without a report.

    Attributes:
        run: Its folder, relative to that of the comparison.
        exit_code: Exit code of its process.
        last_lines: Last lines of its output.
    """

    run: str
    exit_code: int
    last_lines: str


@dataclass(frozen=True)
class ControlTest:
    """Test of an arm against a control on the test clips.

    Attributes:
        difference: Difference to the control in `Comparison.metric`, over clips and seeds.
        p_holm: Its p-value, corrected for the number of arms. Against the majority control, it also holds for the
            balanced accuracy, see `docs/statistics.md`.
        better: Whether the arm is better: the lower bound is above 0, and `p_holm` is at most 0.05.
        constant: Whether the arm gives the control's answer for every clip with every seed.
    """

    difference: Difference
    p_holm: float
    better: bool
    constant: bool = False


@dataclass(frozen=True)
class Arm:
    """One way of training and its measurements.

    Costs have the names of PEFT's method comparison. They are medians over the final runs that had the device to
    themselves, and None without such runs.

    Attributes:
        name: Name in the comparison.
        strategy: Strategy in its reports.
        control: Whether it is a control without pretrained weights or without a network. Controls are not ranked.
        rank: Rank by `Comparison.metric` on the test clips, 1 is best; None for controls, for arms that are not better
            than the majority control, or if a rule is broken.
        learning_rates: Chosen rates, distinct and ascending; empty without a choice.
        trials: All rates that were tried.
        at_edge: Whether a chosen rate is the lowest or the highest that was tried.
        seeds: Seeds of the final runs.
        test_accuracy: Accuracy on the test clips.
        test_macro_f1: Macro-F1 on the test clips.
        validation_accuracy: Validation accuracy of the kept epochs.
        train_accuracy: Accuracy on the training clips without augmentation; None if it was not measured.
        gap: Mean of training minus validation accuracy; None without training accuracy.
        difference: Difference to the reference in `Comparison.metric`, over clips and seeds; None for the reference.
        p_holm: Its p-value, corrected for the number of arms (Holm, 1979).
        claim: Sentences that the intervals support; None if the arm or the reference is not better than the majority
            control.
        num_trainable_params: Number of trained parameters.
        num_total_params: Number of all parameters.
        file_size: Bytes of the saved weights.
        accelerator_memory_max: Peak memory, bytes.
        train_time: Seconds in training steps.
        total_time: Seconds of the whole run, start-up of Python excluded.
        samples_per_second: Training clips per second.
        inference_seconds: Seconds per clip in evaluation.
        encoder_drift: Largest change of a frozen weight; a value other than 0 breaks a rule.
        front: Those of `num_trainable_params`, `train_time` and `accelerator_memory_max` for which the arm is on the
            Pareto front: no cheaper ranked arm has an equal or higher mean score.
        curves: Learning curves of the final runs.
        failures: Runs that failed.
        other_cpus: Mean number of CPUs that other programs kept busy during the runs that measured the costs; None if
            they left enough CPUs, or nobody measured it. Times are then too long.
        test_balanced_accuracy: Balanced accuracy on the test clips.
        recalls: Share of each class's test clips that are labelled correctly, mean over seeds, in the order of
            `Comparison.labels`.
        against_majority: Test against always answering the largest class; None for controls, and if the two cannot be
            paired.
        against_log_mel: Test against the log_mel control; None for controls, and without that control.
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
    other_cpus: float | None = None
    test_balanced_accuracy: Score | None = None
    recalls: tuple[float, ...] = ()
    against_majority: ControlTest | None = None
    against_log_mel: ControlTest | None = None

    def score(self, metric: str) -> Score | None:
        """Return the score on the test clips by a metric, one of `METRICS`."""
        found: Score | None = getattr(self, f"test_{metric}")
        return found

    @property
    def useless(self) -> bool:
        """Return whether the arm was tested against the majority control and is not better."""
        return self.against_majority is not None and not self.against_majority.better


@dataclass(frozen=True)
class Comparison:
    """Results of all arms.

    Attributes:
        arms: Arms by rank, then those not better than the majority control, by mean score; controls last.
        reference: Name of the arm that the others are compared with.
        margin: Smallest relevant difference in the metric (0.02 is two points).
        broken_rules: One sentence per broken rule; empty if all rules hold. Arms are not ranked if a rule is broken.
        notes: Remarks on the table.
        source: Data source.
        encoder: Base encoder.
        clips: Number of training, validation and test clips.
        groups: Number of groups, such as speakers, in the test split; None if unknown.
        folds: Number of folds, each held out once; None without folds.
        budget: Training budget of each run, in words.
        best_metric: Validation metric that chose rates and epochs.
        resolution: Largest half-width of the differences' intervals; None without differences.
        conditional: Whether intervals hold for these test groups only.
        device: Device of the final runs.
        versions: Package versions of the first final run.
        dataset_sha256: Distinct hashes of the data.
        split_sha256: Distinct hashes of the splits.
        results: Final runs in the format of PEFT's method comparison, see `peft_result`.
        metric: Test metric that ranks the arms, and of which differences are, one of `METRICS`.
        majority: Label that the majority control answers; several labels, of folds, are in quotes and joined with "or";
            None if it is unknown. Earlier versions put one label in quotes, too.
        on_controls: Sentences on the arms beside the controls.
        labels: Label names.
        label_clips: Number of test clips of each label.
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
    metric: str = "macro_f1"
    majority: str | None = None
    on_controls: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    label_clips: tuple[int, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def _repr_html_(self) -> str:
        """Render tables and claims in a notebook."""
        from peft_audio.comparison.page import sections, title_of
        from peft_audio.pages.sections import render_notebook

        return render_notebook(title_of(self), sections(self))


def in_quotes(majority: str | None) -> str:
    """Quote `Comparison.majority` for sentences."""
    majority = majority or ""
    return majority if majority.startswith("'") else f"'{majority}'"


# Packages whose versions PEFT's method comparison lists.
PACKAGES = ("peft", "transformers", "datasets", "torch", "bitsandbytes")


def peft_result(run: Finished) -> dict[str, Any]:
    """Convert a finished run to the format of PEFT's method comparison.

    Field names are those of `method_comparison/processing.py` of huggingface/peft. Values that were not measured are
    None.
    """
    report, settings = run.report, run.settings
    adapter = read_json(run.folder / "adapter" / "adapter_config.json")
    made = datetime.fromtimestamp((run.folder / "report.json").stat().st_mtime, UTC)
    losses = {epoch["epoch"]: epoch["train_loss"] for epoch in epochs_of(run.folder)}
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
