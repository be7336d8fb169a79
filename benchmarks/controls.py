"""What the bundled task can tell apart: the encoder against the same network from random weights, and simpler methods.

    python benchmarks/controls.py                      # prints the table of the bundled encoder's card
    python benchmarks/controls.py --arms "random"      # the arms whose name holds the word

For each arm that trains a network, rate and epochs are chosen on the validation speaker with one seed, from a grid that
is widened until the best is not at its edge; then three fresh seeds are trained and measured once on the test speakers.
Networks from random weights may train three times as long. Majority and log-mel are the floor.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForAudioClassification

from peft_audio.config import BaselineRecipe, FullConfig, LoraConfig, LoraRecipe, ModelConfig, TrainConfig
from peft_audio.data.clip_table import SPLITS
from peft_audio.data.loaders import make_loaders
from peft_audio.data.splits import Splits, load_splits
from peft_audio.encoders.exact_padding import make_padding_exact
from peft_audio.encoders.loading import load_classifier, load_extractor
from peft_audio.evaluation.run_split import evaluate
from peft_audio.runs.baseline import fit_baseline
from peft_audio.strategies.base import Trainable, apply_lora, freeze_all_but_head, freeze_nothing
from peft_audio.training.accelerator import make_accelerator
from peft_audio.training.loop import train
from peft_audio.training.tracking import Log

TUNING_SEED = 100
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """A network, a strategy, and the learning rates and numbers of epochs to choose among."""

    name: str
    pretrained: bool
    strategy: Callable[[Any], tuple[Any, Trainable]]
    rates: tuple[float, ...]
    epochs: tuple[int, ...] = (TrainConfig.epochs,)


def _train_everything(model: Any) -> tuple[Any, Trainable]:
    return freeze_nothing(model, FullConfig(train_cnn=True))


LONG = (TrainConfig.epochs, 3 * TrainConfig.epochs)
ARMS = (
    Arm("pretrained, head-only", True, freeze_all_but_head, (1e-3, 3e-3, 1e-2)),
    Arm("pretrained, LoRA", True, lambda model: apply_lora(model, LoraConfig()), (5e-4, 1e-3, 2e-3)),
    Arm("pretrained, full (CNN frozen)", True, lambda model: freeze_nothing(model, FullConfig()), (1e-4, 3e-4, 1e-3)),
    Arm("random weights, head-only", False, freeze_all_but_head, (1e-3, 3e-3, 1e-2), LONG),
    Arm(
        "random weights, full (all trained)",
        False,
        lambda model: freeze_nothing(model, FullConfig(train_cnn=True)),
        (3e-4, 1e-3),
        LONG,
    ),
)


def main() -> None:
    """Print one Markdown row an arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", default="", help="only those whose name holds this word")
    options = parser.parse_args()
    splits = load_splits(LoraRecipe().data)
    print("| arm | rate | epochs | validation accuracy | test accuracy, three seeds |\n|---|---|---|---|---|")
    for name, on_validation, on_test in simple_arms(splits):
        if options.arms in name:
            print(f"| {name} | | | {mean(on_validation):.3f} | {spread(on_test)} |", flush=True)
    for arm in ARMS:
        if options.arms in arm.name:
            rate, epochs = choose(arm, splits)
            found = [run_arm(arm, rate, epochs, seed, splits) for seed in SEEDS]
            validation = mean(score for score, _ in found)
            scores = spread([score for _, score in found])
            print(f"| {arm.name} | {rate:g} | {epochs} | {validation:.3f} | {scores} |", flush=True)


def choose(arm: Arm, splits: Splits) -> tuple[float, int]:
    """The rate and the epochs with the best validation accuracy for one seed; the test split is not read."""
    trials: dict[tuple[float, int], float] = {}
    for epochs in arm.epochs:
        rates = list(arm.rates)
        while rates:
            for rate in rates:
                trials[rate, epochs] = run_arm(arm, rate, epochs, TUNING_SEED, splits, test=False)[0]
            tried = sorted(rate for rate, n in trials if n == epochs)
            best = max(tried, key=lambda rate: trials[rate, epochs])
            # A best rate at the edge says that the grid was too narrow.
            rates = [tried[0] / 3] if best == tried[0] else [tried[-1] * 3] if best == tried[-1] else []
    return max(trials, key=lambda trial: trials[trial])


def run_arm(arm: Arm, rate: float, epochs: int, seed: int, splits: Splits, test: bool = True) -> tuple[float, float]:
    """Train one arm; validation and test accuracy (NaN where the test split is not read)."""
    cfg = LoraRecipe(train=TrainConfig(epochs=epochs, learning_rate=rate, seed=seed))
    accelerator = make_accelerator(cfg.train)
    model = load_classifier(cfg.model, splits.labels) if arm.pretrained else random_classifier(cfg.model, splits.labels)
    loaders = make_loaders(splits, load_extractor(cfg.model), model.config, cfg, accelerator)
    model, trained = arm.strategy(model)
    with tempfile.TemporaryDirectory() as folder:
        result = train(model, trained, loaders, cfg.train, accelerator, Log(Path(folder) / "metrics.jsonl"))
    validation = evaluate(result.model, loaders.validation, accelerator).metrics["accuracy"]
    return validation, evaluate(result.model, loaders.test, accelerator).metrics["accuracy"] if test else float("nan")


def random_classifier(cfg: ModelConfig, labels: tuple[str, ...]) -> Any:
    """The bundled encoder's architecture with weights drawn afresh."""
    model = AutoModelForAudioClassification.from_config(load_classifier(cfg, labels).config)
    make_padding_exact(model.wav2vec2)
    return model.eval()


def simple_arms(splits: Splits) -> list[tuple[str, list[float], list[float]]]:
    """Majority class, and scikit-learn on mean and deviation over time of 64 log-mel bands."""
    log_mel = fit_baseline(splits, BaselineRecipe())
    features = {split: log_mel.features(split) for split in SPLITS}
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


def spread(values: list[float]) -> str:
    """Mean, standard deviation and every value."""
    return f"{mean(values):.3f} ± {stdev(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
