"""List the encoder families, and find the family of a config or model."""

from __future__ import annotations

from typing import Any

from peft_audio.encoders.ast import AST
from peft_audio.encoders.base import EncoderFamily
from peft_audio.encoders.data2vec_audio import DATA2VEC_AUDIO
from peft_audio.encoders.hubert import HUBERT
from peft_audio.encoders.sew import SEW, SEW_D
from peft_audio.encoders.unispeech import UNISPEECH
from peft_audio.encoders.unispeech_sat import UNISPEECH_SAT
from peft_audio.encoders.wav2vec2 import WAV2VEC2
from peft_audio.encoders.wav2vec2_bert import WAV2VEC2_BERT
from peft_audio.encoders.wav2vec2_conformer import WAV2VEC2_CONFORMER
from peft_audio.encoders.wavlm import WAVLM
from peft_audio.encoders.whisper import WHISPER
from peft_audio.errors import EncoderError

FAMILIES: dict[str, EncoderFamily] = {
    "audio-spectrogram-transformer": AST,
    "data2vec-audio": DATA2VEC_AUDIO,
    "hubert": HUBERT,
    "sew": SEW,
    "sew-d": SEW_D,
    "unispeech": UNISPEECH,
    "unispeech-sat": UNISPEECH_SAT,
    "wav2vec2": WAV2VEC2,
    "wav2vec2-bert": WAV2VEC2_BERT,
    "wav2vec2-conformer": WAV2VEC2_CONFORMER,
    "wavlm": WAVLM,
    "whisper": WHISPER,
}


def family_named(model_type: str) -> EncoderFamily:
    """Return the family with transformers' name `model_type`.

    Raises:
        UserError: The family is unknown.
    """
    if model_type not in FAMILIES:
        known = "; ".join(f"{name} ({family.examples})" for name, family in sorted(FAMILIES.items()))
        raise EncoderError(
            f"encoders of type {model_type!r} are not supported; known types: {known}. "
            "Give one of those, for example facebook/wav2vec2-base."
        )
    return FAMILIES[model_type]


def family_of(config: Any) -> EncoderFamily:
    """Return the family of a transformers config.

    Raises:
        UserError: The family is unknown, or padding would change the logits of this variant.
    """
    family = family_named(config.model_type)
    family.check_config(config)
    return family


def encoder_of(model: Any) -> Any:
    """Return the encoder inside a classifier, plain or in PEFT's form."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(plain, family_of(plain.config).encoder)
