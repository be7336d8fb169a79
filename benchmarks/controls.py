"""What the bundled task can tell apart: the encoder against the same network from random weights, and simpler methods.

    python benchmarks/controls.py                    # prints the table of the bundled encoder's card

For each arm that trains a network, the rate is chosen on the validation speaker with one seed, from the same number of
rates; then three fresh seeds are trained and measured once on the test speakers. Majority and log-mel are the floor.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForAudioClassification
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from peft_audio.audio import load_audio
from peft_audio.batching import make_loaders
from peft_audio.config import LoraConfig, LoraRecipe, ModelConfig, TrainConfig
from peft_audio.data import Splits, load_splits
from peft_audio.models import load_classifier, load_extractor, minimum_samples
from peft_audio.padding import make_padding_exact
from peft_audio.strategies import Trained, apply_lora, freeze_all_but_head, freeze_convolutions_only
from peft_audio.training import evaluate, make_accelerator, train

RATE = 16_000
TUNING_SEED = 100
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """A network, a strategy, and the learning rates to choose among."""

    name: str
    pretrained: bool
    strategy: Callable[[Any], tuple[Any, Trained]]
    rates: tuple[float, ...]


ARMS = (
    Arm("pretrained, head-only", True, freeze_all_but_head, (1e-3, 3e-3, 1e-2)),
    Arm("pretrained, LoRA", True, lambda model: apply_lora(model, LoraConfig()), (5e-4, 1e-3, 2e-3)),
    Arm("pretrained, full (CNN frozen)", True, freeze_convolutions_only, (1e-4, 3e-4, 1e-3)),
    Arm("random weights, head-only", False, freeze_all_but_head, (1e-3, 3e-3, 1e-2)),
    Arm("random weights, full (CNN frozen)", False, freeze_convolutions_only, (1e-4, 3e-4, 1e-3)),
)


def main() -> None:
    """Print one Markdown row an arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=TrainConfig.epochs, help="for every arm (default: %(default)s)")
    options = parser.parse_args()
    splits = load_splits(LoraRecipe().data)
    print("| arm | rate | validation accuracy | test accuracy, three seeds |\n|---|---|---|---|")
    for name, scores, test in simple_arms(splits):
        print(f"| {name} | | {mean(scores):.3f} | {spread(test)} |", flush=True)
    for arm in ARMS:
        cfg = LoraRecipe(train=TrainConfig(epochs=options.epochs, seed=TUNING_SEED))
        trials = {rate: run_arm(arm, rate, splits, cfg, test=False)[0] for rate in arm.rates}
        best = max(trials, key=lambda rate: trials[rate])
        edge = " (edge of its grid)" if best in (arm.rates[0], arm.rates[-1]) else ""
        found = [run_arm(arm, best, splits, replace(cfg, train=replace(cfg.train, seed=seed))) for seed in SEEDS]
        validation = mean(score for score, _ in found)
        print(f"| {arm.name} | {best:g}{edge} | {validation:.3f} | {spread([s for _, s in found])} |", flush=True)


def run_arm(arm: Arm, rate: float, splits: Splits, cfg: LoraRecipe, test: bool = True) -> tuple[float, float]:
    """Train one arm; validation and test accuracy (NaN where the test split is not read)."""
    cfg = replace(cfg, train=replace(cfg.train, learning_rate=rate))
    accelerator = make_accelerator(cfg.train)
    model = load_classifier(cfg.model, splits.labels) if arm.pretrained else random_classifier(cfg.model, splits.labels)
    loaders = make_loaders(splits, load_extractor(cfg.model), minimum_samples(model.config), cfg, accelerator)
    model, trained = arm.strategy(model)
    with tempfile.TemporaryDirectory() as folder:
        result = train(model, trained, loaders, cfg.train, accelerator, Path(folder) / "metrics.jsonl")
    validation = evaluate(result.model, loaders.validation, accelerator).metrics["accuracy"]
    return validation, evaluate(result.model, loaders.test, accelerator).metrics["accuracy"] if test else float("nan")


def random_classifier(cfg: ModelConfig, labels: tuple[str, ...]) -> Any:
    """The bundled encoder's architecture with weights drawn afresh."""
    model = AutoModelForAudioClassification.from_config(load_classifier(cfg, labels).config)
    make_padding_exact(model.wav2vec2)
    return model.eval()


def simple_arms(splits: Splits) -> list[tuple[str, list[float], list[float]]]:
    """Majority class, and scikit-learn on mean and deviation over time of 64 log-mel bands."""
    features = {split: np.stack([log_mel(row) for row in splits[split]]) for split in ("train", "validation", "test")}
    makers: dict[str, Callable[[int], Any]] = {
        "majority class": lambda seed: DummyClassifier(strategy="most_frequent"),
        "log-mel statistics, logistic regression": lambda seed: make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=2000)
        ),
        "log-mel statistics, random forest": lambda seed: RandomForestClassifier(500, random_state=seed),
    }
    rows = []
    for name, make in makers.items():
        models = [make(seed).fit(features["train"], splits.train["label"]) for seed in SEEDS]
        scores = {
            split: [float(model.score(features[split], splits[split]["label"])) for model in models]
            for split in ("validation", "test")
        }
        rows.append((name, scores["validation"], scores["test"]))
    return rows


def log_mel(row: dict[str, Any]) -> np.ndarray:
    """Shape (128,): mean and standard deviation over time of the log-mel spectrogram."""
    waveform = load_audio(row["audio"]["bytes"], RATE)
    filters = mel_filter_bank(201, 64, 50.0, 4000.0, RATE, norm="slaney", mel_scale="slaney")
    bands = spectrogram(waveform, window_function(400), 400, 160, fft_length=400, power=2.0, mel_filters=filters)
    bands = np.log(bands + 1e-6)
    return np.concatenate([bands.mean(axis=1), bands.std(axis=1)])


def spread(values: list[float]) -> str:
    """Mean, standard deviation and every value."""
    return f"{mean(values):.3f} ± {stdev(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
