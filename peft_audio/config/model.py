"""Declare the settings of the pretrained encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peft_audio.config.fields import check_ranges, setting
from peft_audio.errors import require, require_package


@dataclass(frozen=True)
class ModelConfig:
    """Select a pretrained encoder, and change it before a strategy decides which weights train.

    Args:
        name: "wav2vec2-nano" (bundled, English synthetic speech), a Hub id such as facebook/wav2vec2-base or
            ntu-spml/distilhubert (a smaller one), or a folder made by save_pretrained.
        revision: Branch, tag or commit of a Hub id; the commit that was used is recorded either way.
        pretrained: False draws the encoder's weights at random by train.seed, as transformers does: a control, for what
            the architecture can do alone. The product is then a whole model, because no base exists that others have.
        layer_weighted_sum: Feed the head a learned mixture of all layers' outputs instead of the last layer's (Yang et
            al., 2021, SUPERB, arXiv 2105.01051). The mixture trains with the head and is saved with it.
        dropout: Dropout inside the encoder's transformer, in the parts that train (in all with train.frozen_dropout);
            the checkpoint's own when not given (0.1 in wav2vec2-base, 0 in wav2vec2-nano).
        head_dropout: Dropout before each linear layer of the head, in training only. 0 as in transformers' head.
        quantization: "int8" (Dettmers et al., 2022, arXiv 2208.07339) or "nf4" (Dettmers et al., 2023, arXiv
            2305.14314) holds the frozen transformer in 8 or 4 bits while LoRA trains; needs the extra `bitsandbytes`.
            The adapter is measured and saved on the float32 encoder.
        attention: How transformers computes attention: "eager", or "sdpa", which is torch's own and takes a flash
            kernel where it can; "auto" takes what was measured to be fastest for this device and family.
    """

    name: str = setting("wav2vec2-nano", "encoder")
    revision: str | None = setting(None, "encoder")
    pretrained: bool = setting(True, "encoder")
    layer_weighted_sum: bool = setting(False, "encoder", "show_on_card")
    dropout: float | None = setting(None, "training", takes="share")
    head_dropout: float = setting(0.0, "training", takes="share")
    quantization: Literal["none", "int8", "nf4"] = setting("none", "encoder", "show_on_card")
    attention: Literal["auto", "eager", "sdpa"] = setting("auto", "encoder")

    def __post_init__(self) -> None:
        require(bool(self.name), "model.name", "''", "an encoder", "Try wav2vec2-nano or facebook/wav2vec2-base.")
        check_ranges("model", self)
        if self.quantization != "none":
            require_package("model.quantization", self.quantization, "bitsandbytes")
