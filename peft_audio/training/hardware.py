"""In which arithmetic a run computes: precision, attention and compilation, decided before it starts and written down.

Never by timing at run time: a resumed run, and the runs of a comparison, must compute alike.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate.utils import parse_flag_from_env
from transformers import AutoConfig

from peft_audio.config import ModelConfig
from peft_audio.encoders.base import EncoderFamily
from peft_audio.encoders.family import encoder_of, family_of
from peft_audio.encoders.loading import pin_base
from peft_audio.errors import UserError, require, unloadable

Settings = TypeVar("Settings", bound=Any)  # of a run or of a comparison


# Sets what "auto" becomes on this machine, so that CPUs with and without bf16 units compute alike.
AUTO_PRECISION = "PEFT_AUDIO_AUTO_PRECISION"


def resolve(cfg: Settings, one_encoder: bool = True) -> Settings:
    """Replace "auto" by what suits this device, and print why; `config.yaml` then holds what was used.

    Args:
        cfg: Settings of a run or of a comparison.
        one_encoder: Whether all runs have the encoder of `cfg.model`. If not, attention and compilation stay "auto" for
            each run to decide.

    Raises:
        UserError: The encoder cannot be found, or is of an unknown family.
    """
    precision, why = choose_precision(cfg.train.mixed_precision)
    tell = f"precision {'float32' if precision == 'no' else precision} ({why})"
    train, model = replace(cfg.train, mixed_precision=precision), cfg.model
    if one_encoder:
        family = _family(cfg.model)
        suits = family.suitable_arithmetic(device_type())
        allowed = f"{suits.attention} for {family.examples}, which has no other"
        accepted = family.accepts_attention(cfg.model.attention)
        require(accepted, "model.attention", cfg.model.attention, allowed, "Leave it out.")
        attention = cfg.model.attention if cfg.model.attention != "auto" else suits.attention
        compiled = suits.compiled if cfg.train.compile == "auto" else cfg.train.compile == "yes"
        tell += f"; attention {attention} ({suits.source if cfg.model.attention == 'auto' else 'as asked'})"
        tell += ", compiled" if compiled else ""
        train, model = replace(train, compile="yes" if compiled else "no"), replace(model, attention=attention)
    if os.environ.get("RANK", "0") == "0":
        print(tell)
    return replace(cfg, train=train, model=model)


def choose_precision(asked: str) -> tuple[Any, str]:
    """Resolve `train.mixed_precision`.

    "auto" becomes, in this order: what `accelerate launch` was given, the environment variable
    PEFT_AUDIO_AUTO_PRECISION, bf16 on a device with units for it, float32.

    Args:
        asked: `train.mixed_precision`.

    Returns:
        The precision and the reason for it.

    Raises:
        UserError: The environment variable is neither no nor bf16.
    """
    if asked != "auto":
        return asked, "as asked"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no":
        return launched, "as accelerate launch was asked"
    preferred = os.environ.get(AUTO_PRECISION)
    if preferred is not None:
        if preferred not in ("no", "bf16"):
            raise UserError(f"{AUTO_PRECISION}: got {preferred or repr('')}, must be no or bf16. Correct or unset it.")
        return preferred, f"{AUTO_PRECISION} is {preferred}"
    fast = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported(),
    }
    device = device_type()
    if device not in fast:
        return "no", f"bf16 was not tried on {device}"
    return ("bf16", "this device has units for it") if fast[device]() else ("no", "this device has no bf16 units")


def device_type() -> str:
    """Where Accelerate will compute, asked before it starts."""
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU") else "cpu"


def compile_layers(model: Any, wanted: str) -> None:
    """Compile each transformer layer by itself, in place: one graph serves all of them, and clips of any length.

    Args:
        model: What a strategy returned.
        wanted: `train.compile`, resolved; nothing is compiled unless it is "yes".
    """
    if wanted != "yes":
        return
    for layer in encoder_of(model).get_submodule(family_of(model.config).layers):
        layer.compile(dynamic=True)


def _family(cfg: ModelConfig) -> EncoderFamily:
    base, commit = pin_base(cfg)
    try:
        config = AutoConfig.from_pretrained(base, revision=commit, trust_remote_code=False)
    except Exception as error:  # transformers raises nearly every kind there is at files that are damaged
        raise unloadable(cfg.name, error) from error
    return family_of(config)
