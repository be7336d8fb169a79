"""Families with inputs of their own, made here: every stage takes them without a change in another module."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from peft_audio import DataConfig, HeadOnlyRecipe, LoraRecipe, ModelConfig, fine_tune
from peft_audio.adapters.load import load_adapter
from peft_audio.adapters.verify import check_probes
from peft_audio.audio.decoding import load_audio
from peft_audio.config import AugmentConfig, PrefixCacheConfig, TrainConfig
from peft_audio.data.splits import load_splits
from peft_audio.encoders.base import Arithmetic, Cut, EncoderFamily
from peft_audio.encoders.family import FAMILIES
from peft_audio.encoders.loading import load_extractor
from peft_audio.errors import UserError
from peft_audio.inference.evaluate import evaluate_adapter
from peft_audio.inference.predict import predict
from peft_audio.publish.export import export_adapter
from peft_audio.runs.finished import read_run

WINDOW, BANDS = 160, 8
SPECTRUM = "np.log(np.abs(np.fft.rfft({}.reshape({}, -1, 160), axis=-1))[..., 1:9] + 1e-3).astype(np.float32)"


class DummyConfig(PreTrainedConfig):
    """Two layers on eight bands."""

    model_type = "dummy-bands"

    def __init__(self, hidden_size: int = 16, num_hidden_layers: int = 2, **kwargs: Any) -> None:
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.initializer_range = 2, 0.2
        super().__init__(**kwargs)


class Layer(nn.Module):
    """Attention over a clip's own frames, then a feed-forward block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixer = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value", "merge")})
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        mixer = self.mixer
        scores = mixer["query"](hidden) @ mixer["key"](hidden).transpose(1, 2) / hidden.shape[-1] ** 0.5
        weights = scores.masked_fill(~valid[:, None], -1e9).softmax(-1)
        hidden = hidden + mixer["merge"](weights @ mixer["value"](hidden))
        return hidden + self.outer(torch.tanh(self.inner(hidden)))


class Tower(nn.Module):
    """The encoder: a stem, then layers."""

    def __init__(self, config: DummyConfig) -> None:
        super().__init__()
        self.stem = nn.Linear(BANDS, config.hidden_size)
        self.blocks = nn.ModuleList(Layer(config.hidden_size) for _ in range(config.num_hidden_layers))


class DummyForAudioClassification(PreTrainedModel):
    """Takes `input_features`, of shape (clips, frames, bands), and `frames`, of shape (clips,)."""

    config_class = DummyConfig
    base_model_prefix = "tower"

    def __init__(self, config: DummyConfig) -> None:
        super().__init__(config)
        self.tower = Tower(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        frames: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        samples: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        if features is None:
            hidden, blocks = self.tower.stem(input_features), self.tower.blocks
        else:
            hidden, blocks = features, self.tower.blocks[self.skipped :]
            frames = None if samples is None else frames_of(samples)
        if features is None or not self.pooled:
            for block in blocks:
                hidden = block(hidden, valid_frames(hidden, frames))
            hidden = mean(hidden, frames)[:, None]
        return SequenceClassifierOutput(logits=self.classifier(hidden[:, 0]))


def frames_of(samples: torch.Tensor) -> torch.Tensor:
    return samples.clamp(min=WINDOW) // WINDOW


def valid_frames(hidden: torch.Tensor, frames: torch.Tensor | None) -> torch.Tensor:
    if frames is None:
        return torch.ones(hidden.shape[:2], dtype=torch.bool)
    return torch.arange(hidden.shape[1]) < frames[:, None]


def mean(hidden: torch.Tensor, frames: torch.Tensor | None) -> torch.Tensor:
    if frames is None:
        return hidden.mean(1)
    valid = valid_frames(hidden, frames)[:, :, None]
    return (hidden * valid).sum(1) / valid.sum(1)


@dataclass(frozen=True)
class DummyFamily(EncoderFamily):
    """The whole of what the package must know."""

    def minimum_samples(self, config: Any) -> int:
        return WINDOW

    def count_frames(self, config: Any, samples: int) -> int:
        return samples // WINDOW

    def freeze_stem(self, model: Any) -> None:
        model.tower.stem.requires_grad_(False)

    def describe_input(self, extractor: Any, minimum_samples: int) -> dict[str, Any]:
        names = {"kind": "bands", "names": ["input_features", "frames"]}
        return names | {"sampling_rate": extractor.sampling_rate, "minimum_samples": minimum_samples}

    def input_code(self, about: Mapping[str, Any]) -> str:
        return f"values = torch.from_numpy({SPECTRUM.format('waveform[: len(waveform) // 160 * 160]', 1)})"

    def graph_code(self, about: Mapping[str, Any]) -> str:
        return (
            "waveforms = np.asarray(waveforms, np.float32)\n"
            "waveforms = waveforms[:, : waveforms.shape[1] // 160 * 160]\n"
            f"values = {SPECTRUM.format('waveforms', 'len(waveforms)')}"
        )

    def prepare(self, waveform: np.ndarray, extractor: Any) -> dict[str, np.ndarray]:
        whole = np.pad(waveform, (0, max(0, WINDOW - len(waveform))))
        whole = whole[: len(whole) // WINDOW * WINDOW].reshape(-1, WINDOW)
        bands = np.log(np.abs(np.fft.rfft(whole, axis=-1))[:, 1 : BANDS + 1] + 1e-3)
        return {"input_features": bands.astype(np.float32)}

    def pad(self, clips: Sequence[Mapping[str, np.ndarray]], config: Any) -> dict[str, torch.Tensor]:
        bands = [torch.from_numpy(clip["input_features"]) for clip in clips]
        frames = torch.tensor([len(one) for one in bands])
        return {"input_features": pad_sequence(bands, batch_first=True), "frames": frames}

    def unpadded(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"input_features": inputs["input_features"]}

    def cuts(self, config: Any) -> tuple[Cut, ...]:
        blocks = [Cut("blocks", i, after_masks=i > 0) for i in range(config.num_hidden_layers)]
        return (*blocks, Cut("mean", config.num_hidden_layers, "the whole tower", pooled=True, after_masks=True))

    def depth(self, name: str, config: Any) -> int:
        return 0 if name.startswith("stem") else 1 + int(name.split(".")[1])

    def run_prefixes(
        self, model: Any, inputs: Mapping[str, torch.Tensor], cuts: Iterable[Cut]
    ) -> dict[Cut, torch.Tensor]:
        tower = plain(model).tower
        hidden, states = tower.stem(inputs["input_features"]), []
        for block in tower.blocks:
            states.append(hidden)
            hidden = block(hidden, valid_frames(hidden, inputs.get("frames")))
        return {cut: hidden if cut.pooled else states[cut.layers] for cut in cuts}

    def pool(self, model: Any, states: Sequence[torch.Tensor], samples: torch.Tensor | None) -> torch.Tensor:
        frames = None if samples is None else frames_of(samples)
        return torch.stack([mean(state, frames) for state in states], dim=1)

    def accept_features(self, model: Any, cut: Cut) -> Callable[[], None]:
        plain(model).skipped, plain(model).pooled = cut.layers, cut.pooled
        return lambda: None


def plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


DUMMY = DummyFamily(
    "dummy-bands",
    "tower",
    "none",
    head=("classifier",),
    layers="blocks",
    masked_module="blocks.0",
    attention_block="mixer",
    attention=("query", "key", "value", "merge"),
    keys_and_values=("key", "value"),
    feed_forward=("inner", "outer"),
    only_arithmetic=Arithmetic("eager", False, "it is written so"),
    graph_axis="frames",
)


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a random dummy encoder, whose family is one more row of the table."""
    AutoConfig.register("dummy-bands", DummyConfig, exist_ok=True)
    AutoModelForAudioClassification.register(DummyConfig, DummyForAudioClassification, exist_ok=True)
    monkeypatch.setitem(FAMILIES, "dummy-bands", DUMMY)
    torch.manual_seed(0)
    DummyForAudioClassification(DummyConfig()).save_pretrained(tmp_path / "base")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def run(recipe: type, base: Path, data: Path, folder: Path, **sections: Any) -> Any:
    cfg = recipe(data=DataConfig(source=str(data)), model=ModelConfig(name=str(base)), **sections)
    train = replace(cfg.train, output_dir=str(folder), epochs=2, batch_size=6, verify_adapter=False)
    return fine_tune(replace(cfg, train=replace(train, mixed_precision="no")))


@pytest.mark.parametrize(("recipe", "cached"), [(LoraRecipe, "blocks 0"), (HeadOnlyRecipe, "the whole tower")])
def test_a_new_family_is_trained_cached_saved_verified_and_exported(
    recipe: type, cached: str, base: Path, tone_folder: Path, tmp_path: Path
) -> None:
    sections = {"augment": AugmentConfig(preset="none"), "prefix_cache": PrefixCacheConfig(use="always")}
    report = run(recipe, base, tone_folder, tmp_path / "run", **sections)
    assert report.prefix_cached == cached
    sections["prefix_cache"] = PrefixCacheConfig(use="never")
    whole = run(recipe, base, tone_folder, tmp_path / "whole", **sections)
    assert report.validation_loss == pytest.approx(whole.validation_loss, rel=1e-4)
    assert read_run(tmp_path / "run") is not None

    adapter = tmp_path / "run" / "adapter"
    about = json.loads((adapter / "peft_audio.json").read_text())["input"]
    assert about == {"kind": "bands", "names": ["input_features", "frames"], "sampling_rate": 16_000} | {
        "minimum_samples": WINDOW
    }
    assert check_probes(adapter) == []
    loaded = load_adapter(adapter)
    clips = [np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate((8_000, 5_000, 99))]
    alone = np.concatenate([loaded.logits([clip]) for clip in clips])
    np.testing.assert_allclose(loaded.logits(clips), alone, atol=1e-5)
    assert export_adapter(adapter, tmp_path / "graph", "onnx").difference < 1e-4


def test_masks_end_the_cached_part_of_a_new_family(base: Path, tone_folder: Path, tmp_path: Path) -> None:
    masks = AugmentConfig(preset="none", mask_time_share=0.2)
    report = run(HeadOnlyRecipe, base, tone_folder, tmp_path / "run", augment=masks)
    assert report.prefix_cached == "blocks 0"


@dataclass(frozen=True)
class WindowedFamily(DummyFamily):
    """Bands of a fixed window: clips are padded with silence, and the model sees no lengths."""

    def window(self, config: Any, asked: float | None = None) -> float | None:
        return asked or config.window

    def fit_extractor(self, extractor: Any, window: float) -> None:
        extractor.input_seconds = window

    def fit_model(self, model: Any, window: float) -> None:
        model.config.window = window

    def describe_input(self, extractor: Any, minimum_samples: int) -> dict[str, Any]:
        about = super().describe_input(extractor, minimum_samples) | {"names": ["input_features"]}
        return about | {"input_seconds": extractor.input_seconds}

    def graph_code(self, about: Mapping[str, Any]) -> str:
        samples = round(about["input_seconds"] * about["sampling_rate"])
        padded = f"waveforms = np.pad(waveforms, ((0, 0), (0, {samples} - np.shape(waveforms)[1])))"
        return f"{padded}\n{super().graph_code(about)}"

    def prepare(self, waveform: np.ndarray, extractor: Any) -> dict[str, np.ndarray]:
        spare = round(extractor.input_seconds * extractor.sampling_rate) - len(waveform)
        assert spare >= 0, "a window must not be cut silently"
        return super().prepare(np.pad(waveform, (0, spare)), extractor)

    def pad(self, clips: Sequence[Mapping[str, np.ndarray]], config: Any) -> dict[str, torch.Tensor]:
        return self.unpadded(super().pad(clips, config))

    def count_frames(self, config: Any, samples: int) -> int:
        return round(config.window * 100)

    def pool(self, model: Any, states: Sequence[torch.Tensor], samples: torch.Tensor | None) -> torch.Tensor:
        return super().pool(model, states, None)


@pytest.fixture
def windowed(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same encoder in a family whose directory has a window of 0.4 s."""
    settings = {field.name: getattr(DUMMY, field.name) for field in fields(DUMMY)}
    monkeypatch.setitem(FAMILIES, "dummy-bands", WindowedFamily(**settings))
    stored = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(stored | {"window": 0.4}))
    return base


@pytest.mark.parametrize("use", ["always", "never"])
def test_a_fixed_window_is_cropped_at_random_and_averaged_over(
    use: Any, windowed: Path, tone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = TrainConfig(output_dir=str(tmp_path / "run"), epochs=2, batch_size=6, mixed_precision="no")
    cfg = HeadOnlyRecipe(
        data=DataConfig(source=str(tone_folder)),
        model=ModelConfig(name=str(windowed), input_seconds=0.3),
        prefix_cache=PrefixCacheConfig(use=use),
        train=replace(train, verify_adapter=False),
    )
    report = fine_tune(cfg)
    printed = capsys.readouterr().out
    assert re.search(r"\d+ of 24 clips are longer than the encoder's window of 0.3 s: training takes random", printed)

    adapter = load_adapter(tmp_path / "run" / "adapter")
    assert adapter.record.input_seconds == 0.3
    seconds = {"training_seconds": 0.3, "evaluation_seconds": 0.3, "window_seconds": 0.3, "hop_seconds": 0.3}
    assert adapter.record.crop == seconds | {"recording_seconds": 30.0}
    splits = load_splits(cfg.data, window=0.3)
    by_hand, labels = {}, []
    for row in splits.test:
        waveform = load_audio(Path(row["path"]), 16_000)
        starts = [0] if len(waveform) <= 4_800 else [0, len(waveform) - 4_800]
        windows = np.concatenate([adapter.logits([waveform[at : at + 4_800]]) for at in starts])
        by_hand[row["path"]] = softmax(windows, axis=1).mean(0)
        labels.append(row["label"])
    assert max(len(load_audio(Path(path), 16_000)) for path in by_hand) > 4_800
    answers = np.array(list(by_hand.values()))
    assert report.test_loss == pytest.approx(-np.log(answers[range(len(labels)), labels]).mean(), rel=1e-4)
    predicted = predict(adapter, list(by_hand))
    np.testing.assert_allclose([list(one.probabilities.values()) for one in predicted], answers, atol=1e-5)
    # Training clips of 9 s were read in crops of the window, so that windows are as long as they.
    lasted = {"seconds": {"q01": 9.0, "q50": 9.0, "q99": 9.0}}
    (one,) = predict(replace(adapter, record=replace(adapter.record, training_audio=lasted)), max(by_hand))
    assert one.warnings == {}
    judged = evaluate_adapter(adapter, cfg.data)
    np.testing.assert_allclose(softmax(judged.evaluation.logits, axis=1), answers, atol=1e-5)
    with pytest.raises(UserError, match=r"window-seconds: got 0.4, must be 0.3 \(the encoder.s fixed window\) or less"):
        predict(adapter, list(by_hand), window_seconds=0.4)
    assert export_adapter(tmp_path / "run" / "adapter", tmp_path / "graph", "onnx").difference < 1e-4


def test_fixed_windows_end_where_evaluation_and_controls_stop_reading(
    windowed: Path, tone_folder: Path, tmp_path: Path
) -> None:
    """Otherwise an arm with windows would read more of a recording than the other arms and the controls."""
    train = TrainConfig(output_dir=str(tmp_path / "run"), epochs=1, batch_size=6, mixed_precision="no")
    data = DataConfig(source=str(tone_folder), max_eval_seconds=0.3)
    cfg = HeadOnlyRecipe(
        data, ModelConfig(name=str(windowed), input_seconds=0.2), train=replace(train, verify_adapter=False)
    )
    report = fine_tune(cfg)
    adapter = load_adapter(tmp_path / "run" / "adapter")
    splits, logits = load_splits(data, window=0.2), []
    for row in splits.test:
        waveform = load_audio(Path(row["path"]), 16_000, 0.0, 0.3)
        assert len(waveform) <= 4_800
        starts = [0] if len(waveform) <= 3_200 else [0, len(waveform) - 3_200]
        windows = np.concatenate([adapter.logits([waveform[at : at + 3_200]]) for at in starts])
        logits.append(softmax(windows, axis=1).mean(0))
    answers = np.array(logits)
    assert max(load_audio(Path(row["path"]), 16_000).size for row in splits.test) > 4_800
    assert report.test_loss == pytest.approx(
        -np.log(answers[range(len(answers)), splits.test["label"]]).mean(), rel=1e-4
    )
    predicted = predict(adapter, [row["path"] for row in splits.test])
    np.testing.assert_allclose([list(one.probabilities.values()) for one in predicted], answers, atol=1e-5)
    judged = evaluate_adapter(adapter, data)
    np.testing.assert_allclose(softmax(judged.evaluation.logits, axis=1), answers, atol=1e-5)


def test_windows_of_the_data_fit_into_the_window_of_the_encoder(
    windowed: Path, base: Path, tone_folder: Path, tmp_path: Path
) -> None:
    cfg = HeadOnlyRecipe(
        data=DataConfig(source=str(tone_folder), window_seconds=0.5),
        model=ModelConfig(name=str(windowed)),
        train=TrainConfig(output_dir=str(tmp_path / "run")),
    )
    with pytest.raises(UserError, match=r"--data.window_seconds: got 0.5, must be 0.4 or less"):
        fine_tune(cfg)


def test_encoders_that_take_any_length_refuse_a_window(tiny_base: Path) -> None:
    with pytest.raises(UserError, match=r"--model.input_seconds: got 5, but encoders of type wav2vec2 take clips"):
        load_extractor(ModelConfig(name=str(tiny_base), input_seconds=5))
