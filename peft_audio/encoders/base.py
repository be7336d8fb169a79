"""Define what an encoder family provides to the rest of the package.

Nothing else in the package knows module paths or config keys of a transformers model. A new family is one module with
an `EncoderFamily`, one row in `family.FAMILIES` and one test module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Weight names that transformers uses in every family: the weighted sum of layers, and the vector for masked frames.
LAYER_WEIGHTS = "layer_weights"
MASK_VECTOR = "masked_spec_embed"


@dataclass(frozen=True)
class Arithmetic:
    """Attention implementation and compilation for one family on one device.

    Attributes:
        attention: transformers' name of the attention implementation.
        compiled: Whether torch.compile pays for the transformer layers.
        source: The command that measured it, or the reason why there is no choice.
    """

    attention: Literal["eager", "sdpa"]
    compiled: bool
    source: str


NOT_MEASURED = Arithmetic("sdpa", False, "transformers' default; not measured for this device and family")


@dataclass(frozen=True)
class EncoderFamily:
    """Provide everything that differs between encoder families.

    Module names are relative to the classifier (`encoder`, `head`), to the encoder (`layers`, `masked_module`), to one
    transformer layer (`attention_block`), or are the last part of a name (`attention`, `feed_forward`, ...).

    Attributes:
        model_type: transformers' name of the family, as in config.json.
        encoder: Attribute of the classifier that holds the encoder.
        examples: Published checkpoints of the family, for messages.
        head: Modules of the fresh head, in order of use.
        layers: List of transformer layers.
        masked_module: Module whose first argument SpecAugment masks.
        attention_block: Attention of one layer.
        attention: Linear layers of the attention, the output projection last.
        keys_and_values: Linear layers of the attention that IA3 scales.
        feed_forward: Linear layers of the feed-forward block, the output last.
        lora_reaches_attention: Whether the attention calls its linear layers, so that LoRA and quantisation work there.
        dropouts: Config keys that set dropout in the encoder.
        switched_off: Config settings that are always overridden at load.
        unquantized_linear: Linear layers that quantisation must leave alone.
        arithmetic: Measured arithmetic by device type.
        only_arithmetic: The one arithmetic that works, where there is no choice.
    """

    model_type: str
    encoder: str
    examples: str
    head: tuple[str, ...] = ("projector", "classifier")
    layers: str = "encoder.layers"
    masked_module: str = "encoder"
    attention_block: str = "attention"
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    keys_and_values: tuple[str, ...] = ("k_proj", "v_proj")
    feed_forward: tuple[str, ...] = ("intermediate_dense", "output_dense")
    lora_reaches_attention: bool = True
    dropouts: tuple[str, ...] = ()
    switched_off: Mapping[str, Any] = field(default_factory=dict)
    unquantized_linear: tuple[str, ...] = ()
    arithmetic: Mapping[str, Arithmetic] = field(default_factory=dict)
    only_arithmetic: Arithmetic | None = None

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """List the linear layers of the transformer that LoRA can change."""
        return (self.attention if self.lora_reaches_attention else ()) + self.feed_forward

    @property
    def ia3_targets(self) -> tuple[str, ...]:
        """List the linear layers that IA3 scales: keys, values and the inner activations of the feed-forward block."""
        return (self.keys_and_values if self.lora_reaches_attention else ()) + self.feed_forward[-1:]

    @property
    def ia3_feed_forward(self) -> tuple[str, ...]:
        """List those of `ia3_targets` whose input is scaled instead of their output."""
        return self.feed_forward[-1:]

    @property
    def unquantized(self) -> tuple[str, ...]:
        """List the modules that quantisation leaves alone; the fresh head must keep its precision."""
        return (*self.head, *self.unquantized_linear)

    def check_config(self, config: Any) -> None:
        """Refuse a variant of the family whose logits would depend on padding.

        Raises:
            UserError: The variant is not supported.
        """

    def suitable_arithmetic(self, device_type: str) -> Arithmetic:
        """Return the measured arithmetic for a device type such as "cpu", or transformers' default."""
        return self.only_arithmetic or self.arithmetic.get(device_type, NOT_MEASURED)

    def accepts_attention(self, attention: str) -> bool:
        """Check whether transformers has this attention implementation for the family."""
        return self.only_arithmetic is None or attention in ("auto", self.only_arithmetic.attention)

    def load_settings(self, dropout: float | None) -> dict[str, Any]:
        """Return the config settings that are overridden at load.

        Args:
            dropout: Share for every dropout of the encoder; None keeps those of the checkpoint.
        """
        return dict(self.switched_off) | ({} if dropout is None else dict.fromkeys(self.dropouts, dropout))

    def layer_count(self, config: Any) -> int:
        """Return the number of transformer layers."""
        return config.num_hidden_layers

    def width(self, config: Any) -> int:
        """Return the number of channels of the transformer's hidden states."""
        return config.hidden_size

    def attention_heads(self, config: Any) -> int:
        """Return the number of attention heads of each layer."""
        return config.num_attention_heads

    def minimum_samples(self, config: Any) -> int:
        """Return the length in samples to which shorter clips are padded."""
        raise NotImplementedError

    def count_frames(self, config: Any, samples: int) -> int:
        """Return the number of frames of a clip of `samples` samples, at least `minimum_samples`."""
        raise NotImplementedError

    def freeze_stem(self, model: Any) -> None:
        """Freeze what comes before the transformer, so that no graph is built through it."""
        raise NotImplementedError

    def unused_parameters(self, model: Any) -> list[str]:
        """List weights that can lack a gradient in a step; DDP fails if they are trainable."""
        return []

    def make_padding_exact(self, model: Any) -> None:
        """Make a clip's logits independent of the batch that it is padded into, in place."""
