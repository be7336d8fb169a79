"""How transformers is told to hold a frozen encoder in 8 or 4 bits."""

from __future__ import annotations

from logging import getLogger
from typing import Any

from accelerate import PartialState
from transformers import BitsAndBytesConfig

from peft_audio.config import ModelConfig
from peft_audio.encoders.family import family_of


def quantization_settings(cfg: ModelConfig, config: Any) -> dict[str, Any]:
    """What tells transformers to hold the transformer's linear layers in 8 or 4 bits; nothing where it is not asked."""
    if cfg.quantization == "none":
        return {}
    keep = list(family_of(config).unquantized)
    # bitsandbytes says at every product of every step that it computes in float16.
    getLogger("bitsandbytes.autograd._functions").setLevel("ERROR")
    eight = cfg.quantization == "int8"
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=keep
        ),
        # Accelerate moves no quantised model, and transformers would take the first GPU whatever was launched.
        "device_map": {"": PartialState().device},
    }
