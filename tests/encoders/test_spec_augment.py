"""SpecAugment: how much is hidden, from whom, and that nothing but the clip's seed decides it."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.adapt import adapt
from helpers.tiny_encoders import ENCODERS, save_encoder, tiny_config
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from peft_audio.config import AugmentConfig, ModelConfig
from peft_audio.data.collate import collate
from peft_audio.encoders.family import FAMILIES, encoder_of, family_of
from peft_audio.encoders.loading import load_classifier
from peft_audio.encoders.spec_augment import make_masks, masked
from peft_audio.strategies import LoraRecipe

ENCODER = tiny_config()
BOTH = AugmentConfig(mask_time_share=0.3, mask_time_ms=100, mask_feature_share=0.2, mask_feature_channels=4)


def test_off_unless_asked_for() -> None:
    assert make_masks(AugmentConfig(), ENCODER) is None


@pytest.mark.parametrize(("share", "length", "samples"), [(0.05, 10, 160_000), (0.3, 5, 16_000), (0.65, 10, 48_000)])
def test_as_much_is_hidden_as_transformers_hides(share: float, length: int, samples: int) -> None:
    masks = make_masks(AugmentConfig(mask_time_share=share, mask_time_ms=20 * length), ENCODER)
    ours = [masks(samples, [0, 0, i])["time_mask"] for i in range(400)]
    np.random.seed(0)
    # One call a clip, because a call rounds the number of spans alike for all of its clips.
    theirs = np.concatenate([_compute_mask_indices((1, len(ours[0])), share, length) for _ in range(400)])
    assert theirs.shape == np.shape(ours)
    assert np.mean(ours) == pytest.approx(theirs.mean(), rel=0.05)
    spans = [
        np.mean(np.diff(masks.astype(int), axis=1, prepend=0).clip(0).sum(1)) for masks in (np.array(ours), theirs)
    ]
    assert spans[0] == pytest.approx(spans[1], rel=0.1)


def test_spans_are_given_in_milliseconds_and_last_a_frame_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    def shortest(span_ms: float) -> int:
        masks = make_masks(AugmentConfig(mask_time_share=0.02, mask_time_ms=span_ms), ENCODER)
        texts = ["".join("01"[int(hidden)] for hidden in masks(160_000, [i])["time_mask"]) for i in range(20)]
        lengths = [len(span) for text in texts for span in text.split("0") if span]
        return min(lengths)

    assert [shortest(span_ms) for span_ms in (1, 20, 55, 200)] == [1, 1, 3, 10]
    family = family_of(ENCODER)
    monkeypatch.setitem(FAMILIES, family.model_type, replace(family, mask_frame_ms=10.0))
    assert shortest(55) == 6


def test_the_seed_alone_decides() -> None:
    masks = make_masks(BOTH, ENCODER)
    np.random.seed(1)
    first = masks(16_000, [0, 1, 2])
    np.random.seed(2)
    again = masks(16_000, [0, 1, 2])
    for name in ("time_mask", "feature_mask"):
        np.testing.assert_array_equal(first[name], again[name])
        others = [masks(16_000, seed)[name] for seed in ([0, 1, 3], [0, 2, 2], [1, 1, 2])]
        assert not all(np.array_equal(first[name], other) for other in others)


@pytest.mark.parametrize("samples", [1, 399, 400, 720, 1_000, 3_279, 3_280])
def test_short_clips_are_never_hidden_whole(samples: int) -> None:
    masks = make_masks(AugmentConfig(mask_time_share=0.9, mask_time_ms=200), ENCODER)
    frames = family_of(ENCODER).count_frames(ENCODER, max(samples, 400))
    found = [masks(samples, [i])["time_mask"] for i in range(100)]
    assert all(mask.shape == (frames,) for mask in found)
    if frames > 1:
        assert 0 < np.mean(found) < 1
    else:
        assert not np.any(found)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("adapted", [False, True])
def test_hidden_frames_become_the_mask_vector_and_hidden_channels_zero(
    encoder: str, adapted: bool, tmp_path: Path
) -> None:
    base = save_encoder(tmp_path / "base", ENCODERS[encoder])
    model = load_classifier(ModelConfig(name=str(base)), ("a", "b"))
    if adapted:
        model, _ = adapt(model, LoraRecipe())
    masks = make_masks(BOTH, ENCODERS[encoder])
    clips = [np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate((9_000, 5_000))]
    items = [
        {"inputs": {"input_values": clip}, "samples": len(clip), "label": 0, "index": i, "weight": 0.5}
        | masks(len(clip), [i])
        for i, clip in enumerate(clips)
    ]
    batch = collate(items, ENCODERS[encoder])
    seen: list[torch.Tensor] = []
    inside = encoder_of(model)
    inside.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model(**batch["inputs"]).logits

    def run_masked() -> Any:
        with masked(model, batch):
            # The hooks run in the order in which they were registered: look again behind the mask's.
            late = inside.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
            try:
                return run()
            finally:
                late.remove()

    plain, hidden = run(), run_masked()
    again = run()
    assert torch.equal(plain, again), "nothing of it is left"
    assert not torch.allclose(plain, hidden, atol=1e-6)
    before, _, after, _ = seen
    time, features = batch["time_mask"], batch["feature_mask"]
    assert time.any(1).all() and features.any(1).all() and not time.all(1).any()
    keep = ~features[:, None, :].expand_as(before)
    vector = inside.masked_spec_embed.expand_as(before)
    assert torch.equal(after[time[:, :, None] & keep], vector[time[:, :, None] & keep])
    assert torch.equal(after[~time[:, :, None] & keep], before[~time[:, :, None] & keep])
    assert not after[~keep].any()


def test_help_texts_name_the_encoders_whose_features_are_masked() -> None:
    entries = re.split(r"^    (?=\w+: )", inspect.cleandoc(AugmentConfig.__doc__ or ""), flags=re.MULTILINE)
    masked_features = [family for family in FAMILIES.values() if family.mask_frame_ms == 10.0]
    assert len(masked_features) == 2
    for entry in (entry for entry in entries if entry.startswith("mask_")):
        assert all(family.examples in entry for family in masked_features), entry
