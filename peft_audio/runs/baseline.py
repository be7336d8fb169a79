"""Fit and evaluate controls without a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from rich.console import Console
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from peft_audio.audio.decoding import AudioError, load_audio
from peft_audio.config import BaselineRecipe
from peft_audio.data.clip_table import recording_of
from peft_audio.data.splits import Splits, load_splits
from peft_audio.encoders.loading import Base
from peft_audio.errors import UserError
from peft_audio.evaluation.run_split import Evaluation, evaluate_logits
from peft_audio.runs.folder import on_first, open_folder
from peft_audio.runs.process_state import restored_process_state
from peft_audio.runs.report import (
    RunReport,
    as_table,
    print_warnings,
    read_report,
    report_rows,
    shared_fields,
    write_report,
)
from peft_audio.runs.run import Run, save_predictions, save_skipped, start_run
from peft_audio.training.hardware import LONG_TIMEOUT, peak_memory_bytes

NO_ENCODER = Base(name="", commit=None, sha256="", model_type="", minimum_samples=0)
RATE = 16_000
BANDS = 64


@dataclass(frozen=True)
class Fitted:
    """Control fitted to the training clips.

    Attributes:
        model: Model of scikit-learn with `predict_proba`.
        features: Function of the name of a split that returns its features, float of shape (clips, features).
        coefficients: Number of fitted coefficients, without those that scale the features.
        seconds: Time to fit the control, with decoding.
    """

    model: Any
    features: Callable[[str], np.ndarray]
    coefficients: int
    seconds: float


def run_baseline(cfg: BaselineRecipe) -> RunReport:
    """Fit and evaluate a control without a network, from files to a report. It saves no adapter.

    Args:
        cfg: Settings of the run.

    Returns:
        The report, on every process. A finished run (`train.resume`) returns the report that it wrote.

    Raises:
        UserError: A setting, the folder or a clip cannot be used.
    """
    began = time.perf_counter()
    with restored_process_state():
        accelerator = Accelerator(cpu=True, mixed_precision="no", kwargs_handlers=[LONG_TIMEOUT])
        with open_folder(cfg, accelerator) as folder:
            if folder.finished:
                return on_first(accelerator, lambda: read_report(folder.path))
            splits = load_splits(cfg.data, accelerator)
            run = start_run(folder, cfg, splits, NO_ENCODER, accelerator, began)
            return on_first(accelerator, lambda: _fit_and_report(run, cfg))


def _fit_and_report(run: Run, cfg: BaselineRecipe) -> RunReport:
    """Fit a control, evaluate it and write its report, on the first process."""
    fitted = fit_baseline(run.splits, cfg)
    evaluations = {"validation": evaluate_baseline(fitted, run.splits, "validation")}
    if cfg.train.evaluate_train:
        evaluations["train"] = evaluate_baseline(fitted, run.splits, "train")
    if cfg.train.evaluate_test:
        evaluations["test"] = evaluate_baseline(fitted, run.splits, "test")
    save_predictions(run, evaluations)
    return finish_baseline(run, cfg.baseline.kind, fitted, evaluations)


def fit_baseline(splits: Splits, cfg: BaselineRecipe) -> Fitted:
    """Fit the control that `cfg` names.

    Raises:
        UserError: A clip changed since the scan and cannot be decoded.
    """
    began = time.perf_counter()
    if cfg.baseline.kind == "majority":
        # The probabilities are the shares of the classes, so that the loss is finite. Shares are those of the whole
        # split, because `data.max_train_clips` draws clips evenly over the classes.
        targets = np.repeat(np.arange(len(splits.labels)), [splits.train_counts[label] for label in splits.labels])
        model = DummyClassifier(strategy="prior").fit(np.zeros((len(targets), 1)), targets)
        return Fitted(model, lambda split: np.zeros((len(splits[split]), 1)), 0, time.perf_counter() - began)
    # Bands above the lowest sampling rate would reveal the origin of clips.
    highest = min(RATE, int(np.min(splits.train["sampling_rate"]))) / 2

    def features(split: str) -> np.ndarray:
        return np.stack([log_mel(_waveform(row, splits, cfg), highest) for row in splits[split]])

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features("train"), splits.train["label"])
    count = model[-1].coef_.size + model[-1].intercept_.size
    return Fitted(model, features, count, time.perf_counter() - began)


def evaluate_baseline(fitted: Fitted, splits: Splits, split: str) -> Evaluation:
    """Evaluate a control on the recordings of a split, like `run_split.evaluate` for a network."""
    began = time.perf_counter()
    probabilities = fitted.model.predict_proba(fitted.features(split))
    logits = torch.from_numpy(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))).float()
    recordings = torch.from_numpy(pd.factorize(np.array(splits[split]["recording"], object))[0])
    targets = torch.tensor(splits[split]["label"])
    return evaluate_logits(logits, targets, recordings, splits.task, time.perf_counter() - began)


def log_mel(waveform: np.ndarray, highest_hertz: float) -> np.ndarray:
    """Compute the mean and standard deviation over time of a log-mel spectrogram, with 25 ms frames every 10 ms.

    Args:
        waveform: float32 of shape (samples,) at 16 kHz.
        highest_hertz: Upper edge of the last of the 64 bands; the first band starts at 50 Hz.

    Returns:
        float of shape (128,): the means, then the standard deviations.
    """
    filters = mel_filter_bank(201, BANDS, 50.0, highest_hertz, RATE, norm="slaney", mel_scale="slaney")
    bands = spectrogram(waveform, window_function(400), 400, 160, fft_length=400, power=2.0, mel_filters=filters)
    bands = np.log(bands + 1e-6)
    return np.concatenate([bands.mean(axis=1), bands.std(axis=1)])


def _waveform(row: dict[str, Any], splits: Splits, cfg: BaselineRecipe) -> np.ndarray:
    """Decode the part of a recording that evaluation uses."""
    limit = cfg.data.max_eval_seconds
    seconds = limit if row["end_seconds"] is None else min(limit, row["num_frames"] / row["sampling_rate"])
    try:
        return load_audio(recording_of(row, splits.stored), RATE, row["start_seconds"], seconds)
    except AudioError as error:
        raise UserError(f"{row['path'] or row['id']} {error}; repair or remove it.") from error


def finish_baseline(run: Run, kind: str, fitted: Fitted, evaluations: dict[str, Evaluation]) -> RunReport:
    """Write and print the report of a control, like `report.finish_run` for a network."""
    clips = len(run.splits.train)
    report = RunReport(
        strategy=kind,
        pretrained=False,
        best_epoch=0,
        steps=0,
        trainable_parameters=fitted.coefficients,
        total_parameters=fitted.coefficients,
        adapter_bytes=0,
        train_seconds=fitted.seconds,
        samples_per_second=clips / fitted.seconds,
        data_wait_share=0.0,
        prefix_cached="",
        prefix_seconds=0.0,
        prefix_reused=False,
        validation_seconds=0.0,
        checkpoint_seconds=0.0,
        micro_batches=0,
        resumes=0,
        prefix_bytes=0,
        peak_memory_bytes=peak_memory_bytes(run.accelerator),
        **shared_fields(run, evaluations, save_skipped(run)),
        encoder_drift=None,
    )
    write_report(run, report)
    console = Console()
    console.print(as_table(report, report_rows(report)))
    print_warnings(report, console)
    console.print(f"report: {run.folder / 'report.json'}", highlight=False, soft_wrap=True, markup=False)
    return report
