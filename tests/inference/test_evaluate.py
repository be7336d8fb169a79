"""`peft-audio evaluate`: the figures of the run itself, and of scikit-learn and a closed form."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.adapt import adapt
from helpers.tones import write_tone
from scipy.special import softmax
from sklearn.metrics import classification_report, confusion_matrix, log_loss

from peft_audio.adapters.record import describe_adapter
from peft_audio.adapters.save import save_adapter
from peft_audio.cli import main
from peft_audio.config import DataConfig, ModelConfig
from peft_audio.data.loaders import make_loaders
from peft_audio.data.splits import load_splits
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.evaluation.run_split import evaluate, evaluate_logits
from peft_audio.evaluation.scores import Scores, accuracy_interval, calibration_bins, score
from peft_audio.runs.predictions import read_predictions
from peft_audio.strategies import HeadOnlyRecipe, LoraRecipe
from peft_audio.tasks import task_of


def test_figures_are_those_of_the_adapters_own_run(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head on windows, evaluated as a recipe does it, then from its directory by the command."""
    source = tmp_path / "clips"
    rng = np.random.default_rng(0)
    for i in range(30):
        label = ("low", "mid", "high")[i % 3]
        write_tone(source / label / f"{i}.wav", 300 * (1 + i % 3), float(rng.uniform(0.2, 1.1)), 22_050, seed=i)
    data = DataConfig(source=str(source), window_seconds=0.4, hop_seconds=0.3, test_share=0.4)
    cfg = LoraRecipe(data=data, model=ModelConfig(name=str(tiny_base)))
    splits, extractor, accelerator = load_splits(data), load_extractor(cfg.model), Accelerator(cpu=True)
    model = load_classifier(cfg.model, splits.labels)
    base = identify_base(cfg.model, model)
    loaders = make_loaders(splits, extractor, model.config, cfg, accelerator)
    model, trained = adapt(model, HeadOnlyRecipe())
    # Tones get different answers from a random encoder only where the head is far from its start.
    model.classifier.weight.data.normal_(std=40.0)
    wanted = evaluate(model, loaders.test, accelerator, loaders.task)
    record = describe_adapter(cfg, base, splits.labels, extractor, trained.strategy, {})
    folder = save_adapter(tmp_path, model, trained, extractor, record, verify=False)

    (source / "low" / "broken.wav").write_text("not audio")
    # As in a terminal, with the output into a pipe: bars are drawn where it was asked whether they can be.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    capsys.readouterr()
    call = ["evaluate", str(folder), str(source), "--data.test_share", "0.4"]
    assert main([*call, "--split", "test", "--json", "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "reading every clip" in err and "evaluating" in err
    assert found == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(set(wanted.logits.argmax(1))) > 1, "the answers must differ"
    assert found["skipped"][0][0].endswith("broken.wav") and found["recordings"] == len(wanted.labels)
    for name, value in {"negative_log_likelihood": "loss", "accuracy": "accuracy", "macro_f1": "macro_f1"}.items():
        assert found[name] == pytest.approx(wanted.metrics[value], abs=1e-5)
    stored = read_predictions(tmp_path / "out" / "predictions.parquet")
    assert list(stored.clips["id"]) == list(splits.recordings("test")["id"]) and set(stored.clips["split"]) == {"test"}
    np.testing.assert_allclose(stored.probabilities, softmax(wanted.logits, axis=1), atol=1e-5)

    monkeypatch.undo()
    assert main(call) == 1
    out = capsys.readouterr().out
    assert (
        "all 30 clips" in out
        and "does not record which clips" in out
        and "--split test" in out
        and "broken.wav is not audio" in out
    )
    assert main([*call, "--split", "train", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["recordings"] == len(splits.recordings("train"))
    assert any(note.startswith("the train split") for note in told["notes"])
    check_settings(call, found["negative_log_likelihood"], capsys)
    (source / "low").rename(source / "deep")
    assert main(call) == 2 and "does not know: deep. It knows high, low, mid" in capsys.readouterr().err


def check_settings(call: list[str], loss: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the run may be given, and those of training, which nothing here reads; others are refused."""
    own = ["--data.window_seconds", "0.4", "--data.hop_seconds", "0.3", "--data.max_eval_seconds", "30"]
    assert main([*call, "--split", "test", *own, "--data.max_seconds", "3", "--data.num_workers", "2", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["negative_log_likelihood"] == loss
    for name, value, heard in (("window_seconds", 1, "0.4"), ("max_eval_seconds", 5, "30")):
        assert main([*call, f"--data.{name}", str(value)]) == 2
        assert f"--data.{name}: got {value:.1f}, must be {heard}" in capsys.readouterr().err
    assert main([*call, *own[:2], "--data.hop_seconds", "0.2"]) == 2
    assert "--data.hop_seconds: got 0.2, must be 0.3" in capsys.readouterr().err
    assert main([*call, "--data.max_train_clips", "5"]) == 2 and "must be left out" in capsys.readouterr().err


def judged(probabilities: np.ndarray, right: np.ndarray, labels: Sequence[str]) -> Scores:
    logits = torch.from_numpy(np.log(probabilities))
    task = task_of()
    found = evaluate_logits(logits, torch.from_numpy(right), torch.arange(len(right)), task, 0.0)
    return score(task, logits.numpy(), right, labels, found.metrics)


def test_loss_of_a_sure_error_is_not_clipped() -> None:
    """scikit-learn takes no probability below 2.2e-16, a loss of 36; a run's report knows more."""
    sure = np.array([[1e-30, 1.0], [1.0, 1e-30]])
    found = judged(sure, np.array([0, 0]), ("a", "b"))
    assert found.negative_log_likelihood == pytest.approx(-np.log(1e-30) / 2)


def test_scores_are_scikit_learns_and_brier_by_hand() -> None:
    rng = np.random.default_rng(0)
    probabilities, right = softmax(rng.normal(size=(200, 4)), axis=1), rng.integers(0, 3, 200)
    found = judged(probabilities, right, "abcd")
    said = probabilities.argmax(1)
    told = classification_report(
        right, said, labels=range(4), target_names=list("abcd"), output_dict=True, zero_division=0.0
    )
    for one in found.classes:
        wanted = {"precision": one.precision, "recall": one.recall, "f1-score": one.f1, "support": one.recordings}
        assert told[one.label] == pytest.approx(wanted)
    assert np.array_equal(found.confusion, confusion_matrix(right, said, labels=range(4)))
    assert found.accuracy == np.mean(said == right) and found.macro_f1 == pytest.approx(told["macro avg"]["f1-score"])
    assert found.negative_log_likelihood == pytest.approx(log_loss(right, probabilities, labels=range(4)))
    squares = [sum((p - (j == i)) ** 2 for j, p in enumerate(row)) for row, i in zip(probabilities, right, strict=True)]
    assert found.brier_score == pytest.approx(np.mean(squares))


def test_calibration_error_is_the_shift_that_was_made() -> None:
    """Two labels, and a classifier that says `p` and is right in a known share of the cases."""
    counts, says, accuracies = (100, 200, 50), (0.7, 0.9, 0.55), (0.6, 0.95, 0.0)
    rows, right = [], []
    for count, p, accuracy in zip(counts, says, accuracies, strict=True):
        rows += [[p, 1 - p]] * count
        right += [0] * round(accuracy * count) + [1] * (count - round(accuracy * count))
    found = judged(np.array(rows), np.array(right), ("yes", "no"))
    shift = sum(n * abs(p - a) for n, p, a in zip(counts, says, accuracies, strict=True)) / sum(counts)
    assert found.expected_calibration_error == pytest.approx(shift)
    # A bin takes its upper bound, as in the paper.
    edges = calibration_bins(np.array([1 / 15, 0.2, 1.0]), np.array([True, True, False]))
    assert [one.recordings for one in edges] == [1, 0, 1] + [0] * 11 + [1], (
        "a bin takes its upper bound, as in the paper"
    )
    assert edges[14].accuracy == 0.0 and edges[1].accuracy is None


def test_interval_knows_of_groups() -> None:
    correct = np.repeat([True, True, True, False, True, True, False, True, True, True], 30)
    alone = accuracy_interval(correct, [None] * 300)
    assert alone == (pytest.approx(0.751, abs=1e-3), pytest.approx(0.841, abs=1e-3), "recordings"), "Wilson's formula"
    low, high, unit = accuracy_interval(correct, [str(i // 30) for i in range(300)])
    assert unit == "groups" and low < 0.65 and high > 0.9
    low, high, unit = accuracy_interval(np.ones(300, dtype=bool), [str(i // 30) for i in range(300)])
    assert (high, unit) == (1.0, "groups") and low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-4)
    # Groups that are all as good have no spread to draw from: Wilson's formula for 8 of 10.
    low, high, unit = accuracy_interval(np.arange(300) % 5 > 0, [str(i // 30) for i in range(300)])
    assert unit == "groups" and (low, high) == pytest.approx((0.490, 0.943), abs=1e-3)
