"""LoRA on an encoder held in 8 or 4 bits: what trains, and that the adapter is one for the float32 encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.adapt import adapt
from helpers.family_cells import batch, clips, logits
from helpers.tiny_encoders import ENCODERS, save_encoder

from peft_audio.adapters import save as saving
from peft_audio.adapters.load import load_adapter
from peft_audio.adapters.record import describe_adapter
from peft_audio.adapters.save import save_adapter
from peft_audio.config import ModelConfig, TrainConfig
from peft_audio.data.loaders import Loaders
from peft_audio.data.sampler import TrainingBatches
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.strategies import LoraRecipe
from peft_audio.training.frozen_weights import on_float32_encoder
from peft_audio.training.loop import train
from peft_audio.training.optimizer import make_optimizer
from peft_audio.training.tracking import Log

LABELS = ("a", "b", "c")
KINDS = {"int8": bitsandbytes.nn.Linear8bitLt, "nf4": bitsandbytes.nn.Linear4bit}


def quantised_layers(model: Any, kind: str) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, KINDS[kind])}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoder", ["wav2vec2-base", "hubert-large", "wavlm-base"])
def test_lora_trains_on_it_and_is_saved_for_the_float32_encoder(
    kind: str, encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_verify_copy", lambda folder: None)  # a fresh process; tested elsewhere
    base = save_encoder(tmp_path / "base", ENCODERS[encoder])
    cfg = LoraRecipe(model=ModelConfig(name=str(base), quantization=kind))  # type: ignore[arg-type]
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = load_classifier(cfg.model, LABELS)
    plain = ModelConfig(name=str(base))
    identity = identify_base(cfg.model, model)
    assert identity == identify_base(plain, load_classifier(plain, LABELS))

    repacks = {getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules()}
    assert repacks == {False}, "evaluation leaves the weights as training wants them"
    small = quantised_layers(model, kind)
    assert len(small) == 2 * (4 + 2)
    assert all(".encoder.layers." in name for name in small)

    model, trained = adapt(model, LoraRecipe())
    before = {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}
    order = TrainingBatches([1.0] * 9, 3, seed=0)
    loaders = Loaders([batch()] * 3, order, train_whole=None, validation=[batch()], test=None)
    settings = TrainConfig(epochs=1, batch_size=3, learning_rate=1e-2, warmup_share=0.0)
    result = train(model, trained, loaders, settings, accelerator, Log(tmp_path / "log.jsonl"))
    after = result.model.state_dict()
    # The zero start of B lets A and B move from the second step on; the norms' bits stay.
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == set(trained.parameters)

    finished = on_float32_encoder(result.model, trained, cfg.model, LABELS)
    assert quantised_layers(finished, kind) == set()
    weights = dict(result.model.named_parameters())
    assert all(torch.equal(value, weights[n]) for n, value in finished.named_parameters() if n in trained.parameters)
    with torch.no_grad():
        difference = (logits(finished) - logits(result.model.eval())).abs().max()
    assert 0 < difference < 0.5, "8 and 4 bits cost something, and not everything"

    record = describe_adapter(cfg, identity, LABELS, load_extractor(cfg.model), "lora", {"validation_accuracy": 0.5})
    loaded = load_adapter(save_adapter(tmp_path, finished, trained, load_extractor(cfg.model), record))
    assert loaded.record.quantization == kind
    with torch.no_grad():
        expected = torch.cat([finished(input_values=torch.from_numpy(clip)[None]).logits for clip in clips()])
    raw = [loaded.model(input_values=torch.from_numpy(clip)[None]).logits.detach() for clip in clips()]
    np.testing.assert_allclose(torch.cat(raw), expected, rtol=0, atol=1e-5)
    noise = [line for line in caplog.records if line.name.startswith("bitsandbytes")]
    assert noise == [], "nothing that a user can mend"


def test_the_8_bit_optimizer_keeps_its_state_in_8_bits() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(128, 128))
    names = tuple(name for name, _ in model.named_parameters())
    trained = type("Trainable", (), {"parameters": names, "head": ()})
    optimizer = make_optimizer(model, trained, TrainConfig(optimizer="adamw_8bit"))
    model(torch.randn(4, 128)).square().mean().backward()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert optimizer.state[model[0].weight]["state1"].dtype == torch.uint8
    reference = torch.nn.Linear(128, 128)
    reference.weight.data, reference.weight.grad = before.clone(), model[0].weight.grad
    exact = torch.optim.AdamW([reference.weight], lr=TrainConfig.learning_rate, weight_decay=TrainConfig.weight_decay)
    exact.step()
    # The first step of Adam is the rate in the gradient's direction, whatever the state is kept in.
    torch.testing.assert_close(model[0].weight, reference.weight, rtol=0, atol=1e-4)
