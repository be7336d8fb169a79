"""The gradient of a step is that of its clips, however they are split; the best epoch is what remains."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.adapt import adapt
from helpers.tones import divide
from torch.nn.functional import cross_entropy

from peft_audio.config import DataConfig, ModelConfig, TrainConfig
from peft_audio.data.loaders import Loaders, make_loaders
from peft_audio.data.splits import Splits, load_splits
from peft_audio.encoders.loading import load_classifier, load_extractor
from peft_audio.errors import UserError
from peft_audio.evaluation.run_split import Evaluation, evaluate
from peft_audio.strategies import FullRecipe, HeadOnlyRecipe, LoraConfig, LoraRecipe
from peft_audio.strategies.base import Trainable
from peft_audio.training import loop as training
from peft_audio.training.hardware import make_accelerator
from peft_audio.training.loop import Result, _epoch_line, train
from peft_audio.training.optimizer import apply_l1, make_optimizer, make_schedule
from peft_audio.training.state import Best
from peft_audio.training.tracking import Log

STRATEGIES = {
    "lora": lambda model, cfg: adapt(model, LoraRecipe(lora=cfg.lora)),
    "head_only": lambda model, cfg: adapt(model, HeadOnlyRecipe()),
    "full": lambda model, cfg: adapt(model, FullRecipe()),
}


@dataclass
class Setup:
    cfg: LoraRecipe
    splits: Splits
    loaders: Loaders
    model: Any
    trained: Trainable
    accelerator: Accelerator
    log: Path

    def train(self) -> Result:
        return train(self.model, self.trained, self.loaders, self.cfg.train, self.accelerator, Log(self.log))

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def divided(tone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train": (7, 6), "validation": (3, 2), "test": (2, 4)}
    return divide(tone_folder, tmp_path_factory.mktemp("data") / "tones", counts)


@pytest.fixture
def set_up(tiny_base: Path, divided: Path, tmp_path: Path) -> Any:
    """A recipe's parts up to the training: 13 clips to train on, 5 to validate, 6 to test."""

    def make(
        strategy: str = "lora", lora: LoraConfig | None = None, accelerator: Accelerator | None = None, **settings: Any
    ) -> Setup:
        # Expectations here are those of float32, also where "auto" is bf16.
        usual = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2, "mixed_precision": "no"}
        cfg = LoraRecipe(
            data=DataConfig(source=str(divided)),
            model=ModelConfig(name=str(tiny_base)),
            train=TrainConfig(**usual | settings),
            lora=lora or LoraConfig(),
        )
        seeded = make_accelerator(cfg.train)
        accelerator = accelerator or seeded
        splits = load_splits(cfg.data)
        assert [len(splits[name]) for name in ("train", "validation", "test")] == [13, 5, 6]
        model = load_classifier(cfg.model, splits.labels)
        loaders = make_loaders(splits, load_extractor(cfg.model), model.config, cfg, accelerator)
        model, trained = STRATEGIES[strategy](model, cfg)
        log = tmp_path / "metrics.jsonl"
        log.unlink(missing_ok=True)
        return Setup(cfg, splits, loaders, model, trained, accelerator, log)

    return make


@pytest.fixture(autouse=True)
def _fresh_accelerator_state() -> Iterator[None]:
    """Accelerate keeps the first choice of precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Poisoned:
    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the test split was read")


def waveform(row: dict[str, Any]) -> torch.Tensor:
    """A clip as the pretrained encoder wants it, read without the package."""
    values, rate = soundfile.read(row["path"], dtype="float32")
    assert rate == 16_000
    return torch.from_numpy((values - values.mean()) / np.sqrt(values.var() + 1e-7))[None]


def plain_logits(model: Any, rows: Any) -> torch.Tensor:
    """Each clip alone, unpadded, without a mask."""
    return torch.cat([model(waveform(row)).logits for row in rows])


def record_gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, torch.Tensor]]:
    """The gradients that each optimizer step starts from, by parameter."""
    steps: list[dict[int, torch.Tensor]] = []

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        steps.append({id(weight): weight.grad.clone() for weight in weights})

    def make(*args: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(*args)
        optimizer.register_step_pre_hook(record)
        return optimizer

    monkeypatch.setattr(training, "make_optimizer", make)
    return steps


class OneOfTwo(Accelerator):
    """One of two processes, without the other: what it computes is what it would bring to the mean over both."""

    index = 0
    num_processes = property(lambda self: 2)
    process_index = property(lambda self: self.index)


# Each remedy as torch's own cross-entropy has it: 13 clips, 7 of the first class and 6 of the second.
REMEDIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "": ({}, {}),
    "class weights": ({"class_weights": "balanced"}, {"weight": torch.tensor([13 / (2 * 7), 13 / (2 * 6)])}),
    "label smoothing": ({"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("batch_size", "micro_batches", "processes", "remedy"),
    [
        *((8, 1, 1, ""), (8, 4, 1, ""), (10, 4, 1, ""), (8, 1, 2, ""), (10, 2, 2, "")),
        *((10, 2, 2, "class weights"), (8, 1, 1, "class weights"), (10, 4, 1, "label smoothing")),
    ],
)
def test_a_step_follows_the_mean_over_its_clips(
    set_up: Any,
    strategy: str,
    batch_size: int,
    micro_batches: int,
    processes: int,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, reference = REMEDIES[remedy]
    gradients, losses = [], []
    for index in range(processes):
        accelerator = Accelerator() if processes == 1 else OneOfTwo()
        accelerator.index = index
        setup = set_up(
            strategy,
            accelerator=accelerator,
            batch_size=batch_size,
            gradient_accumulation_steps=micro_batches,
            # So that one reference serves all steps.
            learning_rate=1e-30,
            weight_decay=0.0,
            max_grad_norm=1e9,
            **settings,
        )
        _without_dropout(setup.model)
        with torch.no_grad():
            for name, weight in setup.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.2)
        steps = record_gradients(monkeypatch)
        setup.train()
        names = {id(weight): name for name, weight in setup.model.named_parameters()}
        gradients.append([{names[key]: gradient for key, gradient in step.items()} for step in steps])
        losses.append([line["loss"] for line in setup.lines() if "learning_rate" in line])

    clips = setup.loaders.train_order.step_indices()
    assert sorted(len(step) for step in clips) == [13 - batch_size, batch_size]
    for found, indices, logged in zip(zip(*gradients, strict=True), clips, zip(*losses, strict=True), strict=True):
        setup.model.zero_grad()
        rows = setup.splits.train.select(indices)
        loss = cross_entropy(plain_logits(setup.model.eval(), rows), torch.tensor(rows["label"]), **reference)
        loss.backward()
        expected = {name: weight.grad for name, weight in setup.model.named_parameters() if weight.requires_grad}
        assert set(found[0]) == set(expected) == set(setup.trained.parameters)
        scale = max(gradient.abs().max() for gradient in expected.values())
        for name, gradient in expected.items():
            mean = torch.stack([share[name] for share in found]).mean(0)  # as DDP takes it
            torch.testing.assert_close(mean / scale, gradient / scale, rtol=0, atol=1e-5)
        assert sum(logged) == pytest.approx(loss.item(), abs=1e-5)


def _without_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def test_the_split_of_a_step_changes_no_weight(set_up: Any) -> None:
    found = []
    for micro_batches in (1, 4):
        setup = set_up(epochs=2, gradient_accumulation_steps=micro_batches, learning_rate=1e-3, best_metric="loss")
        before = setup.weights()
        setup.train()
        found.append(setup.weights())
    moved = max((found[0][name] - before[name]).abs().max() for name in before)
    assert moved > 1e-3
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-5)


def test_evaluate_answers_clip_by_clip_in_the_order_of_the_rows(set_up: Any) -> None:
    setup = set_up()
    rows = setup.splits.train.select(range(7))
    cfg = dataclasses.replace(setup.cfg, train=dataclasses.replace(setup.cfg.train, batch_size=3))
    splits = dataclasses.replace(setup.splits, validation=rows)
    loader = make_loaders(splits, load_extractor(cfg.model), setup.model.config, cfg, setup.accelerator).validation
    seen = torch.cat([batch["index"] for batch in loader]).tolist()
    assert len(list(loader)) == 3
    assert seen != sorted(seen), "the loader itself must go another way round"

    found = evaluate(setup.model, loader, setup.accelerator, setup.loaders.task)
    with torch.no_grad():
        expected = plain_logits(setup.model, rows)
    torch.testing.assert_close(torch.from_numpy(found.logits), expected, rtol=0, atol=1e-5)
    assert found.labels.tolist() == list(rows["label"])
    assert found.metrics["loss"] == pytest.approx(cross_entropy(expected, torch.tensor(rows["label"])).item(), abs=1e-5)
    right = expected.argmax(-1).tolist() == np.array(rows["label"])
    assert found.metrics["accuracy"] == pytest.approx(np.mean(right))


def test_the_best_epoch_on_validation_is_kept(set_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, snapshots = iter([0.3, 0.8, 0.8, 0.5]), []
    setup = set_up(epochs=4, best_metric="accuracy")
    setup = dataclasses.replace(setup, loaders=dataclasses.replace(setup.loaders, test=Poisoned()))

    def scripted(model: Any, loader: Any, *args: Any, **kwargs: Any) -> Evaluation:
        assert loader is setup.loaders.validation
        snapshots.append(setup.weights())
        metrics = {"loss": 1.0, "accuracy": next(scores), "macro_f1": 0.0}
        return Evaluation(np.zeros((5, 2)), np.zeros(5), metrics, 0.0)

    monkeypatch.setattr(training, "evaluate", scripted)
    result = setup.train()
    assert (result.best_epoch, result.steps, len(snapshots)) == (2, 8, 4)
    kept = result.model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in snapshots[1].items())
    assert all(any(not torch.equal(kept[name], old[name]) for name in kept) for old in (snapshots[0], snapshots[3]))
    assert [line["validation_accuracy"] for line in setup.lines() if "epoch" in line] == [0.3, 0.8, 0.8, 0.5]


def test_the_best_epoch_by_loss_is_the_lowest_and_never_nan(set_up: Any) -> None:
    setup = set_up()
    best, names = Best(), []
    for epoch, loss in enumerate([0.9, math.nan, 0.4, 0.7, math.nan], 1):
        best = best.better_of({"loss": loss}, -loss, epoch, setup.model, setup.trained)
        names.append(best.epoch)
    assert names == [1, 1, 3, 3, 3]


def test_training_learns_and_what_is_returned_is_what_was_measured(set_up: Any) -> None:
    setup = set_up(epochs=8, best_metric="loss", learning_rate=2e-2)
    result = setup.train()
    lines = setup.lines()
    epochs = [line for line in lines if "epoch" in line]
    measured = evaluate(result.model, setup.loaders.validation, setup.accelerator, setup.loaders.task).metrics
    best = min(epochs, key=lambda line: line["validation_loss"])
    assert best["epoch"] == result.best_epoch
    assert measured["loss"] == pytest.approx(best["validation_loss"], abs=1e-6)
    assert best["validation_loss"] < epochs[0]["validation_loss"] - 0.05
    steps = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in steps] == list(range(1, 17))
    for line in epochs:
        of_epoch = [step["loss"] for step in steps if line["step"] - 2 < step["step"] <= line["step"]]
        assert line["train_loss"] == pytest.approx(np.mean(of_epoch))


@pytest.mark.parametrize(
    ("patience", "scores", "epochs"),
    [
        (2, [0.3, 0.8, 0.8, 0.5, 0.9], 4),
        (1, [0.3, 0.2, 0.9], 2),
        (3, [0.1, 0.2, 0.3, 0.4], 4),
        (None, [0.9] + [0] * 5, 6),
    ],
)
def test_patience_ends_training_after_so_many_epochs_without_a_new_best(
    set_up: Any, patience: int | None, scores: list[float], epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, script = set_up(epochs=len(scores), best_metric="accuracy", early_stopping_patience=patience), iter(scores)

    def scripted(*args: Any, **kwargs: Any) -> Evaluation:
        metrics = {"loss": 1.0, "accuracy": next(script), "macro_f1": 0.0}
        return Evaluation(np.zeros((5, 2)), np.zeros(5), metrics, 0.0)

    monkeypatch.setattr(training, "evaluate", scripted)
    result = setup.train()
    assert [line["epoch"] for line in setup.lines() if "epoch" in line] == list(range(1, epochs + 1))
    assert result.best_epoch == 1 + max(range(epochs), key=lambda i: (scores[i], -i))


def test_l1_moves_matrices_towards_zero_and_stops_there() -> None:
    matrix = torch.nn.Parameter(torch.tensor([[0.5, -0.5, 0.004, -0.004]]))
    bias = torch.nn.Parameter(torch.tensor([0.004]))
    optimizer = torch.optim.SGD([{"params": [it], "lr": 0.1, "matrix": it is matrix} for it in (matrix, bias)])
    apply_l1(optimizer, l1=0.1)
    assert torch.equal(matrix, torch.tensor([[0.5 - 0.01, -0.5 + 0.01, 0.0, 0.0]]))
    assert torch.equal(bias, torch.tensor([0.004]))


def test_l1_reaches_what_trains_and_nothing_else(set_up: Any) -> None:
    zeros = {}
    for l1 in (0.0, 0.3):
        setup = set_up("full", epochs=4, l1=l1, learning_rate=1e-3)
        before = setup.weights()
        setup.train()
        after = setup.weights()
        frozen = set(after) - set(setup.trained.parameters)
        assert all(torch.equal(after[name], before[name]) for name in frozen)
        matrices = [after[name] for name in setup.trained.parameters if after[name].ndim > 1]
        zeros[l1] = sum(int((matrix == 0).sum()) for matrix in matrices) / sum(m.numel() for m in matrices)
    assert zeros[0.0] == 0
    assert zeros[0.3] > 1e-3


@pytest.mark.parametrize("strategy", ["lora", "head_only"])
def test_head_dropout_is_drawn_in_training_only(strategy: str, set_up: Any, tiny_base: Path) -> None:
    torch.manual_seed(0)
    model = load_classifier(ModelConfig(name=str(tiny_base), head_dropout=0.5), ("high", "low"))
    setup = set_up(strategy)
    model, trained = STRATEGIES[strategy](model, setup.cfg)
    clip = {"input_values": waveform(setup.splits.train[0])}
    with torch.no_grad():
        training.set_modes(model, trained)
        drawn = torch.cat([model(**clip).logits for _ in range(2000)])
        still = model.eval()(**clip).logits
        assert torch.equal(model(**clip).logits, still)
    assert drawn.std(0).min() > 0
    # Dropout keeps the mean of what a linear layer gives.
    assert ((drawn.mean(0) - still[0]).abs() < 5 * drawn.std(0) / math.sqrt(2000)).all()


@pytest.mark.parametrize(("max_steps", "epochs", "steps"), [(3, 4, 3), (100, 2, 4), (None, 2, 4)])
def test_max_steps_ends_training_and_schedule(set_up: Any, max_steps: int | None, epochs: int, steps: int) -> None:
    setup = set_up(epochs=epochs, max_steps=max_steps, warmup_share=0.0)
    result = setup.train()
    rates = [line["learning_rate"] for line in setup.lines() if "learning_rate" in line]
    assert result.steps == len(rates) == steps
    assert rates == pytest.approx([1e-2 * (steps - i) / steps for i in range(steps)])
    # The last line is a validation, also where max_steps cut the epoch.
    assert setup.lines()[-1]["step"] == steps


def test_head_rate_and_decay_reach_the_right_weights(set_up: Any) -> None:
    setup = set_up("full", learning_rate=1e-4, head_learning_rate=1e-2, weight_decay=0.3)
    optimizer = make_optimizer(setup.model, setup.trained, setup.cfg.train)
    names = {id(weight): name for name, weight in setup.model.named_parameters()}
    found = {
        names[id(weight)]: (group["lr"], group["weight_decay"], weight.ndim)
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    assert isinstance(optimizer, torch.optim.AdamW)
    assert set(found) == set(setup.trained.parameters)
    for name, (rate, decay, dimensions) in found.items():
        assert rate == (1e-2 if name.startswith(("projector.", "classifier.")) else 1e-4), name
        assert decay == (0.0 if name.endswith("bias") or "layer_norm" in name else 0.3), name
        assert (decay > 0) == (dimensions > 1), name


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_is_transformers_own(schedule: str) -> None:
    def rates(make: Any) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler, found = make(optimizer), []
        for _ in range(20):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    cfg = TrainConfig(schedule=schedule, warmup_share=0.25)
    reference = rates(lambda optimizer: transformers.get_scheduler(schedule, optimizer, 5, 20))
    assert rates(lambda optimizer: make_schedule(optimizer, cfg, 20)) == pytest.approx(reference)
    assert max(reference) == reference[5] == 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_each_process_draws_dropout_of_its_own(dropout: float, set_up: Any) -> None:
    losses = []
    (batch,) = set_up("full").loaders.validation
    for index in (0, 1):
        accelerator = OneOfTwo()
        accelerator.index = index
        setup = set_up("full", accelerator=accelerator, batch_size=13)
        _without_dropout(setup.model)
        setup.model.wav2vec2.encoder.dropout.p = dropout
        # The same batch for both, so that nothing else can differ.
        setup = dataclasses.replace(setup, loaders=dataclasses.replace(setup.loaders, train=[batch]))
        setup.train()
        losses.append([line["loss"] for line in setup.lines() if "loss" in line])
    assert (losses[0] == losses[1]) is (dropout == 0)


def test_a_model_of_nan_is_never_the_best(set_up: Any) -> None:
    setup = set_up()
    best = Best().better_of({"loss": math.nan, "macro_f1": 0.5}, 0.5, 1, setup.model, setup.trained)
    assert best.epoch == 0
    with pytest.raises(UserError, match=r"never a finite number; lower --train.learning_rate"):
        best.restore(setup.model)


def test_the_rates_of_body_and_head_are_logged_by_name(set_up: Any) -> None:
    for strategy, expected in (("full", (1e-2, 1e-3)), ("head_only", (1e-3, 1e-3))):
        setup = set_up(strategy, head_learning_rate=1e-3, warmup_share=0.0)
        setup.train()
        first = setup.lines()[0]
        assert (first["learning_rate"], first["head_learning_rate"]) == pytest.approx(expected)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(set_up: Any) -> None:
    found = []
    for seed in (0, 0, 1):
        setup = set_up(lora=LoraConfig(dropout=0.2), seed=seed, epochs=2, batch_size=5)
        setup.train()
        found.append({name: value for name, value in setup.weights().items() if name in setup.trained.parameters})
    first, again, other = found
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not any(torch.equal(value, other[name]) for name, value in first.items())


def test_a_loss_that_is_no_number_ends_in_words(set_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = set_up(epochs=3)
    calls, real = [], training.clip_losses

    def breaks(*args: Any) -> torch.Tensor:
        calls.append(1)
        return real(*args) * (math.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(training, "clip_losses", breaks)
    with pytest.raises(UserError, match=r"nan at step 4 \(epoch 2\).*--train.learning_rate"):
        setup.train()


def test_the_trained_model_is_handed_back_without_mixed_precision(set_up: Any) -> None:
    setup = set_up("lora", epochs=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    setup = dataclasses.replace(setup, accelerator=Accelerator(mixed_precision="bf16"))
    with torch.no_grad():
        before = plain_logits(setup.model, setup.splits.validation)
    result = setup.train()
    with torch.no_grad():
        in_float32 = plain_logits(result.model, setup.splits.validation)
        result.model.to(torch.float64)
        rows = setup.splits.validation
        exact = torch.cat([result.model(waveform(row).double()).logits for row in rows])
    assert (in_float32 - before).abs().max() > 1e-3, "nothing was trained"
    assert exact.dtype == torch.float64
    torch.testing.assert_close(in_float32.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("epochs", [1, 30, 1_000])
def test_the_line_of_an_epoch_fits_80_columns(epochs: int) -> None:
    metrics = {"train_loss": 1.3694, "validation_loss": 0.7821, "validation_accuracy": 0.7071}
    summary = metrics | {"epoch": epochs, "validation_macro_f1": 0.7004}
    line = f"epoch {epochs}/{epochs}  loss 1.369  val. loss 0.782  accuracy 0.707  macro-F1 0.700"
    assert _epoch_line(summary, epochs, "") == line and len(line) <= 80
    assert _epoch_line(summary, epochs, "patience") == f"{line}\ntraining ends here: patience"
