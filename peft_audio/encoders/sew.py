"""Describe SEW and SEW-D (Wu et al., 2021, arXiv 2109.06870)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from peft_audio.encoders.base import LAYER_WEIGHTS, Arithmetic, Cut
from peft_audio.encoders.conv_transformer import ConvTransformerFamily
from peft_audio.errors import EncoderError


@dataclass(frozen=True)
class SEWFamily(ConvTransformerFamily):
    """Provide SEW, whose transformer works on averages of a few frames each."""

    def projection(self, config: Any) -> tuple[str, ...]:
        """List the norm, and the projection where the widths differ."""
        return ("layer_norm", "feature_projection") if config.conv_dim[-1] != config.hidden_size else ("layer_norm",)

    def minimum_samples(self, config: Any) -> int:
        """Return the shortest input, in samples, that fills one squeezed frame."""
        samples = config.squeeze_factor
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def make_padding_exact(self, model: Any) -> None:
        """Normalise over valid frames, and squeeze a clip's frames as for the clip alone.

        Raises:
            UserError: The classifier takes a weighted sum of layers.
        """
        from peft_audio.encoders.exact_padding import floor_squeezed_frames

        if hasattr(model, LAYER_WEIGHTS):
            raise EncoderError(
                f"--model.layer_weighted_sum: got true, must be false for {self.examples}, whose layers have fewer "
                "frames than transformers' head counts. Leave it out."
            )
        super().make_padding_exact(model)
        encoder = getattr(model, self.encoder)
        floor_squeezed_frames(encoder.encoder, self.squeezed_modules(encoder), model.config.squeeze_factor)

    def squeezed_modules(self, encoder: Any) -> list[Any]:
        """List the modules that take squeezed frames and their attention mask."""
        return list(encoder.get_submodule(self.layers))

    def cuts(self, config: Any) -> tuple[Cut, ...]:
        """List the cuts: after the convolutions, before the transformer, and after the pooling.

        Between layers, rows are squeezed frames, and what follows the layers could not count the frames.
        """
        return (*self.stem_cuts, super().cuts(config)[-1])

    def depth(self, name: str, config: Any) -> int:
        """Count the cuts before the first use of an encoder's weight, by its name in the encoder."""
        return min(super().depth(name, config), len(self.stem_cuts))


@dataclass(frozen=True)
class SEWDFamily(SEWFamily):
    """Provide SEW-D, which has the disentangled attention of DeBERTa."""

    def check_config(self, config: Any) -> None:
        """Refuse a convolution after the first layer, and a transformers that loses the weights of a plain encoder.

        Raises:
            UserError: The encoder has one, or transformers is older than 5.18.
        """
        if tuple(map(int, version("transformers").split(".")[:2])) < (5, 18):
            raise EncoderError("SEW-D needs transformers 5.18 or newer; install with: pip install -U transformers")
        if getattr(config, "conv_kernel_size", 0):
            raise EncoderError("this encoder has a convolution after its first layer (conv_kernel_size); give another.")

    def layer_norms(self, config: Any) -> tuple[str, str]:
        """Name none: the layers have their own."""
        return ("", "")

    def squeezed_modules(self, encoder: Any) -> list[Any]:
        """List the inner transformer, which makes one mask for all its layers."""
        return [encoder.encoder.encoder]


PADDING = "attention mask, group norm over valid frames, and no squeezed frame that is partly padding"
SEW = SEWFamily("sew", "sew", "SEW", padding=PADDING, arithmetic={}, projection_returns_both=False)
# PEFT finds modules by the end of their names, so that the feed-forward block's `output.dense` is the attention's too.
SEW_D = SEWDFamily(
    "sew-d",
    "sew_d",
    "SEW-D",
    layers="encoder.encoder.layer",
    attention=(
        "attention.self.query_proj",
        "attention.self.key_proj",
        "attention.self.value_proj",
        "attention.output.dense",
    ),
    keys_and_values=("key_proj", "value_proj"),
    feed_forward=("intermediate.dense", "output.dense"),
    padding=PADDING,
    arithmetic={},
    only_arithmetic=Arithmetic("eager", False, "transformers has no other for this family"),
    projection_returns_both=False,
)
