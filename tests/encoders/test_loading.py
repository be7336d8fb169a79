"""One clip, one answer; and published checkpoints, old ones too, arrive whole."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_encoders import save_base, tiny_config
from torch.nn.functional import group_norm
from transformers import (
    AutoModelForAudioClassification,
    BertConfig,
    HubertForCTC,
    HubertModel,
    UniSpeechSatForPreTraining,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    WavLMModel,
)

from peft_audio.config import ModelConfig
from peft_audio.encoders.exact_padding import ValidGroupNorm
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor, weights_sha256
from peft_audio.errors import UserError

LABELS = ("a", "b", "c")
LENGTHS = (400, 3_000, 7_777, 16_000)


def strong_base(folder: Path, norm: str) -> Path:
    """Freshly drawn weights make every clip look alike; larger ones make padding matter."""
    torch.manual_seed(0)
    encoder = Wav2Vec2Model(tiny_config(norm))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            elif norm == "group":
                parameter.add_(0.1 * torch.randn_like(parameter))
    encoder.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def clips() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) * (i + 1) / 2 for i, length in enumerate(LENGTHS)]


def padded(waveforms: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(w), dtype=torch.long) for w in waveforms], batch_first=True)
    return values, mask


def ask(model: Any, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(values, attention_mask=mask).logits


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_one_clip_one_answer(norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = strong_base(tmp_path / norm, norm)
    torch.manual_seed(2)
    model = load_classifier(ModelConfig(name=str(base)), LABELS)
    plain = AutoModelForAudioClassification.from_pretrained(base, num_labels=len(LABELS)).eval()
    with torch.no_grad():
        for head in ("projector", "classifier"):
            getattr(model, head).weight.mul_(8)
            getattr(plain, head).load_state_dict(getattr(model, head).state_dict())
    values, mask = padded(clips())
    together = ask(model, values, mask)
    reference = torch.cat([ask(plain, clip[None]) for clip in clips()])
    with_mask = torch.cat([ask(model, clip[None], torch.ones(1, len(clip), dtype=torch.long)) for clip in clips()])
    without_mask = torch.cat([ask(model, clip[None]) for clip in clips()])

    assert reference.abs().max() > 0.1
    assert reference.std(0).max() > 0.02, "the clips must have different answers"
    for found in (together, with_mask, without_mask):
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-5)

    # The test must be able to fail: leave out what makes it so.
    assert (ask(model, values) - reference).abs().max() > 1e-2
    if norm == "group":
        monkeypatch.setattr(ValidGroupNorm, "forward", torch.nn.GroupNorm.forward)
        assert (ask(model, values, mask) - reference).abs().max() > 1e-3


def test_the_group_norm_leaves_no_trace_of_an_earlier_batch(tmp_path: Path) -> None:
    model = load_classifier(ModelConfig(name=str(strong_base(tmp_path / "group", "group"))), LABELS)
    clip = clips()[1][None]
    before = ask(model, clip)
    ask(model, *padded(clips()[:3]))
    assert torch.equal(ask(model, clip), before)


def test_gradients_through_the_valid_group_norm_are_those_of_each_clip_alone() -> None:
    torch.manual_seed(0)
    frames, channels = (7, 12, 30), 4
    norm = ValidGroupNorm(channels, channels)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    batch = torch.randn(len(frames), channels, max(frames), requires_grad=True)
    pull = torch.randn_like(batch)  # also on the padded frames, which must not matter
    weight, bias = norm.weight.detach().requires_grad_(), norm.bias.detach().requires_grad_()
    alone = [clip[None, :, :n].detach().requires_grad_() for clip, n in zip(batch, frames, strict=True)]
    expected = [group_norm(clip, channels, weight, bias, norm.eps) for clip in alone]
    sum((out * p[None, :, : out.shape[-1]]).sum() for out, p in zip(expected, pull, strict=True)).backward()

    norm.valid_frames = torch.tensor(frames)
    valid = (torch.arange(max(frames)) < norm.valid_frames[:, None])[:, None]
    found = norm(batch)
    (found * pull * valid).sum().backward()
    for i, n in enumerate(frames):
        torch.testing.assert_close(found[i, :, :n], expected[i][0])
        torch.testing.assert_close(batch.grad[i, :, :n], alone[i].grad[0])
        assert not batch.grad[i, :, n:].any()
    torch.testing.assert_close(norm.weight.grad, weight.grad)
    torch.testing.assert_close(norm.bias.grad, bias.grad)


def published(folder: Path, model: Any, do_normalize: bool) -> Path:
    """What the Hub's wav2vec2 repositories of 2021 hold: a float16 pytorch_model.bin with old names, a tokenizer."""
    folder.mkdir()
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for name, value in model.state_dict().items():
        for new_name, old_name in old.items():
            name = name.replace(new_name, old_name)  # noqa: PLW2901
        state[name] = value.half()
    torch.save(state, folder / "pytorch_model.bin")
    config = {key: value for key, value in model.config.to_dict().items() if key != "dtype"}
    config |= {"architectures": [type(model).__name__], "gradient_checkpointing": True, "torch_dtype": "float16"}
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    extractor = {"feature_size": 1, "padding_side": "right", "padding_value": 0.0, "sampling_rate": 16000}
    files = {
        "config.json": config | {"transformers_version": "4.7.0.dev0"},
        "preprocessor_config.json": extractor | {"do_normalize": do_normalize, "return_attention_mask": False},
        "vocab.json": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "E": 5},
        "tokenizer_config.json": special | {"do_lower_case": False, "word_delimiter_token": "|"},
        "special_tokens_map.json": special,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        *(Wav2Vec2ForPreTraining, Wav2Vec2ForCTC, Wav2Vec2Model),
        *(HubertModel, HubertForCTC, WavLMModel, UniSpeechSatForPreTraining),
    ],
)
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_an_old_published_checkpoint_arrives_whole(
    kind: type, norm: str, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    source = kind(tiny_config(norm, kind.config_class))
    prefix = source.base_model_prefix
    folder = published(tmp_path / "published", source, do_normalize=norm == "group")
    stored = torch.load(folder / "pytorch_model.bin")
    assert any(key.endswith("pos_conv_embed.conv.weight_g") for key in stored)
    expected = {name: value.half().float() for name, value in getattr(source, prefix, source).state_dict().items()}
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread.name), start(thread))[1])
    capfd.readouterr()

    cfg = ModelConfig(name=str(folder))
    extractor = load_extractor(cfg)
    model = load_classifier(cfg, LABELS)

    assert capfd.readouterr() == ("", "")
    assert not any("auto_conversion" in name for name in started)
    assert sorted(path.name for path in folder.glob("*model*")) == ["pytorch_model.bin"]
    found = getattr(model, prefix).state_dict()
    assert found.keys() == expected.keys()
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert extractor.do_normalize is (norm == "group")
    assert extractor.sampling_rate == 16_000
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}


def test_the_hash_follows_values_not_files(tmp_path: Path) -> None:
    torch.manual_seed(4)
    encoder = Wav2Vec2Model(tiny_config("group")).half().float()
    exact = copy.deepcopy(encoder).half()
    published(tmp_path / "bin-half", encoder, do_normalize=True)
    encoder.save_pretrained(tmp_path / "safetensors")
    exact.save_pretrained(tmp_path / "safetensors-half")
    bases = []
    for name in ("bin-half", "safetensors", "safetensors-half"):
        cfg = ModelConfig(name=str(tmp_path / name))
        bases.append(identify_base(cfg, load_classifier(cfg, LABELS)))
    assert len({base.sha256 for base in bases}) == 1
    assert {base.model_type for base in bases} == {"wav2vec2"}

    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
    reference = weights_sha256(state)
    assert weights_sha256({"b": state["b"].half(), "a": state["a"].bfloat16()}) == reference
    changed = state["a"].clone()
    changed[1, 2] += 1e-6
    others = [{**state, "a": changed}, {**state, "a": state["a"].reshape(3, 2)}, {"c": state["a"], "b": state["b"]}]
    assert reference not in {weights_sha256(other) for other in others}


def test_the_head_is_drawn_from_the_seed_even_over_a_fine_tuned_classifier(tiny_base: Path, tmp_path: Path) -> None:
    heads = {}
    for count in (2, 3):
        config = tiny_config("group")
        config.num_labels = count
        Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path / f"tuned-{count}")
    for base in (tiny_base, tmp_path / "tuned-3", tmp_path / "tuned-2"):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            model = load_classifier(ModelConfig(name=str(base)), LABELS)
            weights = [*model.projector.parameters(), *model.classifier.parameters()]
            heads.setdefault(seed, []).append(torch.cat([weight.detach().flatten() for weight in weights]))
    assert all(torch.equal(heads[0][i], heads[0][i + 1]) for i in (0, 2, 4))
    for fresh, other in zip(heads[0][::2], heads[1], strict=True):
        assert not torch.allclose(fresh, other)


def test_the_shortest_clip_is_400_samples(tiny_base: Path) -> None:
    cfg = ModelConfig(name=str(tiny_base))
    model = load_classifier(cfg, LABELS)
    assert identify_base(cfg, model).minimum_samples == 400
    assert ask(model, torch.randn(1, 400), torch.ones(1, 400, dtype=torch.long)).isfinite().all()
    with pytest.raises(RuntimeError):
        ask(model, torch.randn(1, 399))


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def another_family(folder: Path) -> None:
    BertConfig().save_pretrained(folder)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def half_downloaded(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5_000])


def a_pointer_of_git_lfs(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def an_encoder_weight_less(folder: Path) -> None:
    encoder = Wav2Vec2Model.from_pretrained(folder)
    state = encoder.state_dict()
    state.pop("encoder.layers.1.attention.q_proj.weight")
    encoder.save_pretrained(folder, state_dict=state)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_folder, "no folder"),
        (another_family, "'bert' are not supported; known types: audio-spectrogram-transformer"),
        (no_config, "no config.json"),
        (no_weights, "cannot be loaded"),
        (half_downloaded, "cannot be loaded"),
        (a_pointer_of_git_lfs, "cannot be loaded"),
        (an_encoder_weight_less, "layers.1.attention.q_proj.weight"),
    ],
)
def test_an_unusable_base_is_refused_in_words(damage: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", "group")
    damage(folder)
    with pytest.raises(UserError, match=words) as refusal:
        load_classifier(ModelConfig(name=str(folder)), LABELS)
    message = str(refusal.value)
    assert message.startswith("--model.name: ")
    assert str(folder) in message or "bert" in message
    assert "\n" not in message


def test_an_unknown_hub_name_without_a_connection_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"--model.name: no-such-encoder cannot be loaded.*wav2vec2-nano"):
        load_extractor(ModelConfig(name="no-such-encoder"))


def test_random_weights_depend_on_the_seed_alone_and_not_on_the_checkpoint(tmp_path: Path) -> None:
    base = strong_base(tmp_path / "base", "layer")
    cfg = ModelConfig(name=str(base), pretrained=False)
    hashes = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        model = load_classifier(cfg, LABELS)
        hashes.append(identify_base(cfg, model).sha256)
    assert hashes[0] == hashes[1] != hashes[2]
    published = load_classifier(ModelConfig(name=str(base)), LABELS).wav2vec2
    matrices = [name for name, weight in model.wav2vec2.named_parameters() if weight.ndim > 1]
    assert all(not torch.equal(model.get_parameter(f"wav2vec2.{n}"), published.get_parameter(n)) for n in matrices)
    assert model.config.num_hidden_layers == published.config.num_hidden_layers and not model.training
    waveforms = clips()
    values, mask = padded(waveforms)
    with torch.no_grad():
        together = model(values, attention_mask=mask).logits
        alone = torch.cat([model(clip[None]).logits for clip in waveforms])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
