"""Where the parts of each encoder family are, and how many frames it makes of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft_audio.errors import UserError

# Names that all families share: the mixture of layers beside the head, and what SpecAugment writes over masked frames.
LAYER_WEIGHTS = "layer_weights"
MASK_VECTOR = "masked_spec_embed"


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of one encoder family are; every strategy reads them from here.

    Attributes:
        encoder: Attribute of the classifier that holds the encoder.
        examples: Published checkpoints of the family, for messages.
        lora_reaches_attention: Whether the attention calls its linear layers. WavLM's hands their weights to one torch
            function instead, so that neither LoRA nor quantisation of them would work.
        head: Modules of the fresh head, in order of use.
        layers: The list of transformer layers, seen from the encoder.
        attention_block: The attention of one layer, seen from the layer.
        attention: Linear layers of that attention, by the last part of their names.
        feed_forward: Linear layers of its feed-forward block, likewise.
        projection_returns_both: Whether the feature projection hands on what it was given beside what it made of it.
    """

    encoder: str
    examples: str
    lora_reaches_attention: bool = True
    head: tuple[str, ...] = ("projector", "classifier")
    layers: str = "encoder.layers"
    attention_block: str = "attention"
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    feed_forward: tuple[str, ...] = ("intermediate_dense", "output_dense")
    projection_returns_both: bool = True

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The linear layers of the transformer that LoRA can change."""
        return (self.attention if self.lora_reaches_attention else ()) + self.feed_forward


ANATOMIES = {
    "hubert": Anatomy("hubert", "HuBERT, DistilHuBERT", projection_returns_both=False),
    "unispeech-sat": Anatomy("unispeech_sat", "UniSpeech-SAT"),
    "wav2vec2": Anatomy("wav2vec2", "wav2vec 2.0, XLS-R"),
    "wavlm": Anatomy("wavlm", "WavLM", lora_reaches_attention=False),
}


def anatomy_of(config: Any) -> Anatomy:
    """The anatomy for a transformers config.

    Raises:
        UserError: The family is not known, or is one whose padded batches cannot be made exact.
    """
    if config.model_type not in ANATOMIES:
        known = "; ".join(f"{name} ({anatomy.examples})" for name, anatomy in sorted(ANATOMIES.items()))
        raise UserError(
            f"--model.name: encoders of type {config.model_type!r} are not supported; known types: {known}. "
            "Give one of those, for example facebook/wav2vec2-base."
        )
    if getattr(config, "conv_pos_batch_norm", False):
        raise UserError(
            "--model.name: this encoder has a batch norm before its positional convolution (conv_pos_batch_norm), "
            "which lets padding change a clip's answer; give one without, for example facebook/hubert-base-ls960."
        )
    return ANATOMIES[config.model_type]


def encoder_of(model: Any) -> Any:
    """The encoder inside a classifier, as it is or in PEFT's form."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(plain, anatomy_of(plain.config).encoder)


def minimum_samples(config: Any) -> int:
    """The shortest input, in samples, that gives the convolutions one frame; shorter clips are padded to it."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def count_frames(config: Any, samples: int) -> int:
    """How many frames the convolutions make of so many samples, at least `minimum_samples`."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples
