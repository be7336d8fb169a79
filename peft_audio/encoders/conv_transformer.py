"""Implement the families with wav2vec 2.0's anatomy: convolutions over the waveform, then a transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft_audio.encoders.base import LAYER_WEIGHTS, MASK_VECTOR, Arithmetic, Cut, EncoderFamily

if TYPE_CHECKING:
    import numpy as np
    import torch

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
        positions: Module of the encoder whose output is added to the transformer's input; empty for none.
        stem_cuts: Places before the transformer where a frozen prefix can end.
    """

    dropouts: tuple[str, ...] = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    switched_off: Mapping[str, Any] = field(default_factory=lambda: SWITCHED_OFF)
    arithmetic: Mapping[str, Arithmetic] = field(default_factory=lambda: MEASURED)
    graph_facts: tuple[str, ...] = ("sampling_rate", "minimum_samples", "do_normalize")
    padding: str = "attention mask, and group norm over valid frames"
    projection_returns_both: bool = True
    positions: str = "encoder.pos_conv_embed"
    stem_cuts: tuple[Cut, ...] = (
        Cut("convolutions", words="the convolutions"),
        Cut("projection", words="everything before the transformer"),
    )

    @property
    def unquantized(self) -> tuple[str, ...]:
        """List the head, and the feature projection, into whose output SpecAugment writes."""
        return (*self.head, f"{self.encoder}.feature_projection", *self.unquantized_linear)

    def projection(self, config: Any) -> tuple[str, ...]:
        """List the modules of the encoder between convolutions and transformer, in order of use."""
        return ("feature_projection",)

    def layer_norms(self, config: Any) -> tuple[str, str]:
        """Name the norms before the first and after the last transformer layer; empty for none."""
        norm = "encoder.layer_norm"
        return ("", norm) if getattr(config, "do_stable_layer_norm", False) else (norm, "")

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
        last_norm = self.layer_norms(model.config)[1]
        if hasattr(model, LAYER_WEIGHTS) and last_norm:
            unused += [f"{self.encoder}.{last_norm}.{part}" for part in ("weight", "bias")]
        return unused

    def make_padding_exact(self, model: Any) -> None:
        """Compute the group norm of the first convolution over each clip's own frames."""
        from peft_audio.encoders.exact_padding import make_padding_exact

        make_padding_exact(getattr(model, self.encoder))

    def describe_input(self, extractor: Any, minimum_samples: int) -> dict[str, Any]:
        """Return the `input` section of an adapter's record."""
        return {
            "kind": "waveform",
            "names": [extractor.model_input_names[0], "attention_mask"],
            "sampling_rate": extractor.sampling_rate,
            "minimum_samples": minimum_samples,
            "do_normalize": bool(extractor.do_normalize),
            "normalised": "before padding",
            "padding": self.padding,
        }

    def input_code(self, about: Mapping[str, Any]) -> str:
        """Return code that scales and pads a waveform."""
        return (
            f'values = extractor(waveform, sampling_rate={about["sampling_rate"]}, return_tensors="pt").input_values\n'
            f"values = torch.nn.functional.pad(values, (0, max(0, {about['minimum_samples']} - values.shape[1])))"
        )

    def graph_code(self, about: Mapping[str, Any]) -> str:
        """Return code that scales and pads waveforms."""
        scaled = "values = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-7)\n"
        return (
            "values = np.asarray(waveforms, np.float32)\n"
            + (scaled if about["do_normalize"] else "")
            + f"values = np.pad(values, ((0, 0), (0, max(0, {about['minimum_samples']} - values.shape[1]))))"
        )

    def prepare(self, waveform: np.ndarray, extractor: Any) -> dict[str, np.ndarray]:
        """Scale a clip to zero mean and unit variance, if the encoder was pretrained so, before it is padded."""
        import numpy as np

        features = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="np")
        return {"input_values": features["input_values"][0].astype(np.float32, copy=False)}

    def pad(self, clips: Sequence[Mapping[str, np.ndarray]], config: Any) -> dict[str, torch.Tensor]:
        """Pad waveforms with zeros to the longest, and to `minimum_samples`, which count as part of the clip.

        Returns:
            `input_values`, float32 of shape (clips, samples), and `attention_mask`, int64 of the same shape.
        """
        import torch

        shortest = self.minimum_samples(config)
        lengths = [max(len(clip["input_values"]), shortest) for clip in clips]
        values = torch.zeros(len(clips), max(lengths))
        for row, clip in zip(values, clips, strict=True):
            row[: len(clip["input_values"])] = torch.from_numpy(clip["input_values"])
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return {"input_values": values, "attention_mask": mask.long()}

    def unpadded(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Drop the mask: without one, attention and group norm have faster kernels."""
        return {"input_values": inputs["input_values"]}

    def cuts(self, config: Any) -> tuple[Cut, ...]:
        """List the cuts: after the convolutions, before the transformer, before each layer, and after the pooling."""
        count = self.layer_count(config)
        layers = (
            Cut(
                "layers",
                i,
                f"everything up to the transformer's first {i} layers"
                if i
                else "everything before the transformer's first layer",
                after_masks=True,
                hides_layers=i > 0,
            )
            for i in range(count + 1)
        )
        return (
            *self.stem_cuts,
            *layers,
            Cut("pooled", count, "the whole encoder (pooled over time)", pooled=True, after_masks=True),
        )

    def depth(self, name: str, config: Any) -> int:
        """Count the cuts before the first use of an encoder's weight, by its name in the encoder."""
        before_layers = len(self.stem_cuts) + 1
        if name.startswith(f"{self.layers}."):
            return before_layers + int(name.removeprefix(f"{self.layers}.").partition(".")[0])
        last_norm = self.layer_norms(config)[1]
        if last_norm and name.startswith(f"{last_norm}."):
            return before_layers + self.layer_count(config)
        first = name.partition(".")[0]
        if first == "feature_extractor":
            return 0
        return len(self.stem_cuts) - (first in self.projection(config))

    def kept_width(self, cut: Cut, config: Any) -> int:
        """Return the number of channels of what is kept at a cut."""
        return config.conv_dim[-1] if cut.place == "convolutions" else self.width(config)

    def pooled_states(self, cut: Cut, config: Any) -> tuple[Cut, ...]:
        """List every layer's input and the last output for a weighted sum of layers, otherwise the encoder's output."""
        if not config.use_weighted_layer_sum:
            return (cut,)
        return tuple(one for one in self.cuts(config) if one.place == "layers")

    def skip_layer(self, layer: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what a skipped transformer layer passes on: its input, in the form that transformers expects."""
        return hidden

    def valid_frames(self, config: Any, samples: torch.Tensor, frames: int) -> torch.Tensor:
        """Mark each clip's own frames among `frames` rows: bool of shape (clips, frames).

        Args:
            config: Config of the encoder.
            samples: Lengths in samples, at least `minimum_samples`, of shape (clips,).
            frames: Rows, padding included.
        """
        import torch

        counts: Any = self.count_frames(config, samples)  # type: ignore[arg-type]
        return torch.arange(frames, device=samples.device) < counts[:, None]

    def mask_of(self, lengths: torch.Tensor, frames: int, config: Any) -> torch.Tensor:
        """Return an attention mask for features that replaces the mask of their inputs.

        All that a model with convolutions reads from a mask is its sum.

        Args:
            lengths: Samples of each clip, of shape (clips,).
            frames: Rows of the features, padding included.
            config: Config of the encoder.
        """
        return lengths[:, None]

    def run_prefixes(
        self, model: Any, inputs: Mapping[str, torch.Tensor], cuts: Iterable[Cut]
    ) -> dict[Cut, torch.Tensor]:
        """Run prefixes of several lengths in one pass that ends with the longest."""
        from peft_audio.encoders.conv_prefix import run_prefixes

        return run_prefixes(self, model, inputs, cuts)

    def pool(self, model: Any, states: Sequence[torch.Tensor], samples: torch.Tensor | None) -> torch.Tensor:
        """Average states over each clip's own frames."""
        from peft_audio.encoders.conv_prefix import pool

        return pool(self, model, states, samples)

    def accept_features(self, model: Any, cut: Cut) -> Callable[[], None]:
        """Let a model take `features` and `samples` in place of waveforms, and run only what follows a cut."""
        from peft_audio.encoders.conv_prefix import accept_features

        return accept_features(self, model, cut)
