"""Implement the families with wav2vec 2.0's anatomy: convolutions over the waveform, then a transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft_audio.encoders.base import LAYER_WEIGHTS, MASK_VECTOR, Arithmetic, EncoderFamily
from peft_audio.errors import UserError

# docs/performance.md has the output of this command. On a CPU, eager attention is as fast on short clips and a third
# slower on clips of 30 s; compiling gains nothing within its first minutes.
MEASURED = {"cpu": Arithmetic("sdpa", False, "benchmarks/speed/arithmetic.py")}
# LayerDrop skips other layers on each process, which stops DDP. transformers' SpecAugment draws one mask for a whole
# batch and fails on short clips; ours is in spec_augment.py.
SWITCHED_OFF = {"layerdrop": 0.0, "apply_spec_augment": False}


@dataclass(frozen=True)
class ConvTransformerFamily(EncoderFamily):
    """Provide a family with a convolutional stem, a feature projection and a transformer.

    Attributes:
        projection_returns_both: Whether the feature projection returns its normalised input beside its output.
    """

    dropouts: tuple[str, ...] = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    switched_off: Mapping[str, Any] = field(default_factory=lambda: SWITCHED_OFF)
    arithmetic: Mapping[str, Arithmetic] = field(default_factory=lambda: MEASURED)
    projection_returns_both: bool = True

    @property
    def unquantized(self) -> tuple[str, ...]:
        """List the head, and the feature projection, into whose output SpecAugment writes."""
        return (*self.head, f"{self.encoder}.feature_projection", *self.unquantized_linear)

    def check_config(self, config: Any) -> None:
        """Refuse a batch norm before the positional convolution.

        Raises:
            UserError: The encoder has one.
        """
        if getattr(config, "conv_pos_batch_norm", False):
            raise UserError(
                "--model.name: this encoder has a batch norm before its positional convolution (conv_pos_batch_norm), "
                "which lets padding change a clip's answer; give one without, for example facebook/hubert-base-ls960."
            )

    def minimum_samples(self, config: Any) -> int:
        """Return the shortest input, in samples, that gives the convolutions one frame."""
        samples = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def count_frames(self, config: Any, samples: int) -> int:
        """Return the number of frames that the convolutions make of `samples` samples, at least `minimum_samples`."""
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def freeze_stem(self, model: Any) -> None:
        """Freeze the convolutions.

        Frozen weights are not enough. While its private flag is set, transformers' feature encoder sets requires_grad
        on its input, and autograd walks through all convolutions.
        """
        model.freeze_feature_encoder()

    def unused_parameters(self, model: Any) -> list[str]:
        """List the mask vector, and the last layer norm where a weighted sum of layers is taken before it."""
        unused = [f"{self.encoder}.{MASK_VECTOR}"]
        if hasattr(model, LAYER_WEIGHTS) and model.config.do_stable_layer_norm:
            unused += [f"{self.encoder}.encoder.layer_norm.{part}" for part in ("weight", "bias")]
        return unused

    def make_padding_exact(self, model: Any) -> None:
        """Compute the group norm of the first convolution over each clip's own frames."""
        from peft_audio.encoders.exact_padding import make_padding_exact

        make_padding_exact(getattr(model, self.encoder))
