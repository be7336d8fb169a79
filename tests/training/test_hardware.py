"""What "auto" becomes, and that 16 bits end where training does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.adapt import adapt
from helpers.tiny_encoders import ENCODERS, save_encoder
from torch import nn

from peft_audio.config import ModelConfig, Recipe, TrainConfig, dotted
from peft_audio.encoders.family import encoder_of
from peft_audio.encoders.loading import load_classifier
from peft_audio.errors import UserError
from peft_audio.processes import child_environment
from peft_audio.strategies import (
    HeadOnlyRecipe,
    IA3Recipe,
    LastNLayersConfig,
    LastNLayersRecipe,
    LoraConfig,
    LoraRecipe,
)
from peft_audio.strategies.attention_heads import unfreeze_heads
from peft_audio.training import hardware as arithmetic
from peft_audio.training.frozen_weights import on_float32_encoder, store_frozen
from peft_audio.training.hardware import choose_precision, resolve_auto

ROOT = Path(__file__).parents[2]
LABELS = ("a", "b")


@pytest.fixture(autouse=True)
def _fresh_accelerator_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def units(monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("PEFT_AUDIO_AUTO_PRECISION", raising=False)
    monkeypatch.setattr(arithmetic, "device_type", lambda: "cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)


@pytest.mark.parametrize(
    ("amx", "avx512", "precision"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "no")]
)
def test_bf16_is_taken_where_the_device_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, precision: str
) -> None:
    units(monkeypatch, amx, avx512)
    assert choose_precision("auto")[0] == precision
    assert choose_precision("fp16")[0] == "fp16" and choose_precision("no")[0] == "no"


def test_what_accelerate_launch_was_asked_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    units(monkeypatch, amx=False, avx512=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert choose_precision("auto")[0] == "bf16" and choose_precision("no")[0] == "no"


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("fast", [True, False])
def test_the_environment_variable_decides_on_every_cpu(
    monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str
) -> None:
    units(monkeypatch, amx=False, avx512=fast)
    monkeypatch.setenv("PEFT_AUDIO_AUTO_PRECISION", precision)
    assert choose_precision("auto") == (precision, f"PEFT_AUDIO_AUTO_PRECISION is {precision}")
    assert choose_precision("fp16")[0] == "fp16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_precision("auto")[0] == "fp16"


@pytest.mark.parametrize("value", ["", "fp16", "auto", "float32"])
def test_another_value_of_the_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    units(monkeypatch, amx=False, avx512=True)
    monkeypatch.setenv("PEFT_AUDIO_AUTO_PRECISION", value)
    with pytest.raises(UserError, match=r"PEFT_AUDIO_AUTO_PRECISION: got .*, must be no or bf16"):
        choose_precision("auto")


# A child process in which the CPU probe of torch answers as on AMD Zen 5.
CHILD = """
import os, runpy, sys, torch
torch.cpu._is_amx_tile_supported = torch.cpu._is_avx512_bf16_supported = lambda: True
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_child_process_records_the_precision_of_the_variable(
    monkeypatch: pytest.MonkeyPatch, tiny_base: Path, tone_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PEFT_AUDIO_AUTO_PRECISION", "no")
    folder = tmp_path / "run"
    flags = ["--data.source", tone_folder, "--model.name", tiny_base, "--train.output_dir", folder]
    flags += ["--train.epochs", 1, "--train.verify_adapter", "false"]
    command = [sys.executable, "-c", CHILD, ROOT / "recipes" / "head_only.py", *flags]
    # A comparison starts its runs in this environment.
    ended = subprocess.run(
        list(map(str, command)), env=child_environment(None), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert dotted((folder / "config.yaml").read_text())["train.mixed_precision"] == "no"
    assert json.loads((folder / "report.json").read_text())["mixed_precision"] == "no"


def test_resolved_settings_are_told_and_stay(
    monkeypatch: pytest.MonkeyPatch, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units(monkeypatch, amx=True, avx512=False)
    found = resolve_auto(Recipe(model=ModelConfig(name=str(tiny_base))))
    assert (found.train.mixed_precision, found.model.attention, found.train.compile) == ("bf16", "sdpa", "no")
    assert "precision bf16 (this device has bf16 units); attention sdpa" in capsys.readouterr().out
    # On another machine, what was written down is kept.
    units(monkeypatch, amx=False, avx512=False)
    assert resolve_auto(found) == found
    assert resolve_auto(Recipe(model=ModelConfig(name=str(tiny_base), attention="eager"))).model.attention == "eager"
    wavlm = save_encoder(tmp_path / "wavlm", ENCODERS["wavlm-base"])
    assert resolve_auto(Recipe(model=ModelConfig(name=str(wavlm)))).model.attention == "sdpa"
    with pytest.raises(UserError, match=r"--model.attention: got eager, must be sdpa, the only attention of WavLM"):
        resolve_auto(Recipe(model=ModelConfig(name=str(wavlm), attention="eager")))


def test_attention_is_what_the_model_computes_with(tiny_base: Path) -> None:
    answers = []
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = load_classifier(ModelConfig(name=str(tiny_base), attention=attention), LABELS)
        assert model.config._attn_implementation == attention
        answers.append(model(torch.ones(1, 4_000)).logits)
    torch.testing.assert_close(*answers, atol=1e-6, rtol=1e-5)


STRATEGIES: dict[str, Any] = {
    "head_only": lambda model: adapt(model, HeadOnlyRecipe()),
    "last_n_layers": lambda model: adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=1))),
    "lora": lambda model: adapt(model, LoraRecipe()),
    "dora": lambda model: adapt(model, LoraRecipe(lora=LoraConfig(use_dora=True))),
    "ia3": lambda model: adapt(model, IA3Recipe()),
    "attention_heads": lambda model: unfreeze_heads(model, {1: [0]}),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frozen_weights_are_held_in_16_bits_and_given_back(tiny_base: Path, strategy: str) -> None:
    cfg = ModelConfig(name=str(tiny_base))
    torch.manual_seed(0)
    model, trained = STRATEGIES[strategy](load_classifier(cfg, LABELS))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in trained.parameters:
                weight.add_(0.01)
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        exact = model(torch.sin(torch.arange(4_000.0))[None]).logits
    store_frozen(model, cfg, "bf16")
    halved = [weight for weight in model.parameters() if weight.dtype == torch.bfloat16]
    linear = [
        module
        for name, module in encoder_of(model).named_modules()
        if type(module) is nn.Linear and "lora_" not in name
    ]
    assert halved and all(not weight.requires_grad for weight in halved)
    assert all(weight.dtype == torch.float32 for weight in model.parameters() if weight.requires_grad)
    assert {module.weight.dtype for module in linear if not module.weight.requires_grad} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.sin(torch.arange(4_000.0))[None]).logits.sum().backward()
    restored = on_float32_encoder(model, trained, cfg, LABELS)
    with torch.no_grad():
        assert torch.equal(restored(torch.sin(torch.arange(4_000.0))[None]).logits, exact)
    for name, weight in restored.named_parameters():
        # The head that PEFT's copy replaced was drawn anew, and answers nothing.
        assert "original_module" in name or torch.equal(weight, expected[name]), name
        assert weight.requires_grad == (name in trained.parameters)


def test_float32_and_random_encoders_stay_as_they_are(tiny_base: Path) -> None:
    for cfg, precision in [
        (ModelConfig(name=str(tiny_base)), "no"),
        (ModelConfig(name=str(tiny_base), pretrained=False), "bf16"),
    ]:
        model, trained = adapt(load_classifier(cfg, LABELS), HeadOnlyRecipe())
        store_frozen(model, cfg, precision)
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert on_float32_encoder(model, trained, cfg, LABELS) is model


def test_precision_of_a_run_is_never_auto() -> None:
    assert TrainConfig().mixed_precision == "auto"
    assert resolve_auto(Recipe()).train.mixed_precision in ("no", "bf16")
