"""Define what an encoder family provides to the rest of the package.

Nothing else in the package knows module paths or config keys of a transformers model. A new family is one module with
an `EncoderFamily`, one row in `family.FAMILIES` and one test module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from peft_audio.errors import EncoderError, UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

# Weight names that transformers uses in every family: the weighted sum of layers, and the vector for masked frames.
LAYER_WEIGHTS = "layer_weights"
MASK_VECTOR = "masked_spec_embed"
# Entries of the `input` section of a record that are notes for people: their words may change between versions.
INPUT_NOTES = frozenset({"padding", "normalised"})


# Sampling rate in hertz for which log-mel families have filters and frame lengths.
LOG_MEL_RATE = 16_000


def require_extractor(extractor: Any, **expected: int) -> None:
    """Refuse a feature extractor with other settings than those of the encoder.

    Args:
        extractor: Feature extractor of transformers.
        expected: Value of each setting by name.

    Raises:
        EncoderError: A setting has another value.
    """
    for name, value in expected.items():
        found = getattr(extractor, name)
        if found != value:
            raise EncoderError(f"preprocessor_config.json: {name} is {found}, must be {value}.")


@dataclass(frozen=True)
class Arithmetic:
    """Set attention implementation and compilation for one family on one device.

    Attributes:
        attention: transformers' name of the attention implementation.
        compiled: Whether torch.compile pays for the transformer layers.
        source: The command that measured it, or the reason why there is no choice.
    """

    attention: Literal["eager", "sdpa"]
    compiled: bool
    source: str


NOT_MEASURED = Arithmetic("sdpa", False, "transformers' default; not measured for this device and family")


# Words in config keys of the head, of dropout and of a checkpoint's origin, which do not change what layers return.
NOT_IN_FROZEN_LAYERS = ("label", "dropout", "name_or_path", "version", "dtype", "classifier", "quantization")


@dataclass(frozen=True)
class Cut:
    """Mark the end of the frozen prefix: everything before it is frozen and runs in eval mode.

    Attributes:
        place: Name of the place, as the family calls it.
        layers: Number of transformer layers before it.
        words: Description for messages.
        pooled: Whether frames are averaged before they are kept, so that one row per state is left.
        after_masks: Whether SpecAugment masks something before the cut.
        hides_layers: Whether a weighted sum of layers cannot be computed from what is kept.
    """

    place: str
    layers: int = 0
    words: str = field(default="", compare=False)
    pooled: bool = field(default=False, compare=False)
    after_masks: bool = field(default=False, compare=False)
    hides_layers: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return self.words or f"{self.place} {self.layers}"


@dataclass(frozen=True)
class EncoderFamily:
    """Provide everything that differs between encoder families.

    Module names are relative to the classifier (`encoder`, `head`), to the encoder (`layers`, `masked_module`), to one
    transformer layer (`attention_block`), or are the end of a name (`attention`, `feed_forward`, ...).

    A model of the family takes the inputs that `pad` returns. After `accept_features` it also takes `features`, of
    shape (clips, rows, channels), with `samples`, the lengths in samples of shape (clips,), or None without padding.

    Attributes:
        model_type: transformers' name of the family, as in config.json.
        encoder: Attribute of the classifier that holds the encoder.
        examples: Published checkpoints of the family, for messages.
        head: Modules of the fresh head, in order of use.
        head_linear: Linear layers of the head where `head` names other modules.
        layers: List of transformer layers.
        masked_module: Module whose first argument SpecAugment masks.
        masked_channels_first: Whether it is of shape (clips, channels, frames), not (clips, frames, channels).
        mask_frame_ms: Length of a frame that SpecAugment masks, in milliseconds.
        attention_block: Attention of one layer.
        attention: Linear layers of the attention, the output projection last.
        keys_and_values: Linear layers of the attention that IA3 scales.
        feed_forward: Linear layers of the feed-forward block, the output last.
        uncalled: Linear layers whose weights transformers reads without calling them. Plain PEFT's change of one has no
            effect until it is merged; `replace_attention` must call them.
        dropouts: Config keys that set dropout in the encoder.
        switched_off: Config settings that are always overridden at load.
        unquantized_linear: Linear layers that quantisation must leave alone.
        padding: What makes a clip's logits independent of the batch that it is padded into.
        arithmetic: Measured arithmetic by device type.
        only_arithmetic: The one arithmetic that works, where there is no choice.
        probe_seconds: Lengths of the probe clips of a record; the first is shorter than `minimum_samples`. See
            `probes`.
        pipeline_caveat: Limits of the extractor of transformers in a pipeline, for the README of a merged export.
        graph_axis: Name of the second axis of an ONNX graph's input.
        graph_facts: Entries of the `input` section that an ONNX graph's metadata repeats.
    """

    model_type: str
    encoder: str
    examples: str
    head: tuple[str, ...] = ("projector", "classifier")
    head_linear: tuple[str, ...] = ()
    layers: str = "encoder.layers"
    masked_module: str = "encoder"
    masked_channels_first: bool = False
    mask_frame_ms: float = 20.0
    attention_block: str = "attention"
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    keys_and_values: tuple[str, ...] = ("k_proj", "v_proj")
    feed_forward: tuple[str, ...] = ("intermediate_dense", "output_dense")
    uncalled: tuple[str, ...] = ()
    dropouts: tuple[str, ...] = ()
    switched_off: Mapping[str, Any] = field(default_factory=dict)
    unquantized_linear: tuple[str, ...] = ()
    padding: str = "attention mask"
    arithmetic: Mapping[str, Arithmetic] = field(default_factory=dict)
    only_arithmetic: Arithmetic | None = None
    probe_seconds: tuple[float, ...] = (0.01, 0.5, 1.0, 2.3)
    pipeline_caveat: str = ""
    graph_axis: str = "samples"
    graph_facts: tuple[str, ...] = ("sampling_rate", "minimum_samples")

    @property
    def attention_paths(self) -> tuple[str, ...]:
        """List the linear layers of the attention by their names in a transformer layer."""
        block = f"{self.attention_block}."
        return tuple(f"{block}{name.removeprefix(block)}" for name in self.attention)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """List the linear layers of the transformer that LoRA can change."""
        return self.attention + self.feed_forward

    @property
    def ia3_targets(self) -> tuple[str, ...]:
        """List the linear layers that IA3 scales: keys, values and the inner activations of the feed-forward block."""
        return self.keys_and_values + self.feed_forward[-1:]

    @property
    def ia3_feed_forward(self) -> tuple[str, ...]:
        """List those of `ia3_targets` whose input is scaled instead of their output."""
        return self.feed_forward[-1:]

    @property
    def head_layers(self) -> tuple[str, ...]:
        """List the linear layers of the fresh head, in order of use; the last one has a row per label."""
        return self.head_linear or self.head

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
        """Check whether there is this attention implementation for the family."""
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

    def head_std(self, config: Any) -> float:
        """Return the standard deviation of the weights of a fresh head, as transformers draws them."""
        return config.initializer_range

    def window(self, config: Any, asked: float | None = None) -> float | None:
        """Return the fixed length of every input in seconds, or None if an input is as long as its clip.

        Args:
            config: Config of the encoder.
            asked: `model.input_seconds`; None keeps the window of the config.

        Raises:
            UserError: The encoder cannot take the length that is asked for.
        """
        if asked is not None:
            raise UserError(
                f"--model.input_seconds: got {asked:g}, but encoders of type {self.model_type} take clips of any "
                "length. Leave it out."
            )
        return None

    def check_extractor(self, extractor: Any, config: Any) -> None:
        """Refuse a feature extractor that does not fit the encoder.

        Raises:
            UserError: Its features would be silently wrong.
        """

    def fit_extractor(self, extractor: Any, window: float) -> None:
        """Let a feature extractor make inputs of `window` seconds, in place."""
        raise NotImplementedError

    def fit_model(self, model: Any, window: float) -> None:
        """Let a classifier take inputs of `window` seconds, in place: cut its positions, and change its config."""
        raise NotImplementedError

    def load_code(self, layer_weighted_sum: bool) -> str:
        """Return the argument of `from_pretrained` for the weighted sum of layers, for a README; empty without one."""
        return f"use_weighted_layer_sum={layer_weighted_sum}"

    def fit_code(self, about: Mapping[str, Any]) -> str:
        """Return Python code for a README that does what `fit_model` does to `model`; empty without a fixed window.

        Args:
            about: `input` section of the record.
        """
        return ""

    def probes(self, about: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the lengths of a record's probe clips in seconds.

        A fixed window that is shorter than the longest probe shortens all of them by the same factor.

        Args:
            about: `input` section of the record.
        """
        longest = self.probe_seconds[-1]
        factor = min(1.0, about.get("input_seconds", longest) / longest)
        return tuple(round(seconds * factor, 6) for seconds in self.probe_seconds)

    def minimum_samples(self, config: Any) -> int:
        """Return the length in samples to which shorter clips are padded."""
        raise NotImplementedError

    def count_frames(self, config: Any, samples: int) -> int:
        """Return the number of frames of a clip of `samples` samples, at least `minimum_samples`."""
        raise NotImplementedError

    def mask_shape(self, config: Any, samples: int) -> tuple[int, int]:
        """Return the frames and channels that SpecAugment masks in a clip of `samples` samples."""
        return self.count_frames(config, max(samples, self.minimum_samples(config))), self.width(config)

    def freeze_stem(self, model: Any) -> None:
        """Freeze what comes before the transformer, so that no graph is built through it."""
        raise NotImplementedError

    def unused_parameters(self, model: Any) -> list[str]:
        """List weights that can lack a gradient in a step; DDP fails if they are trainable."""
        return []

    def make_padding_exact(self, model: Any) -> None:
        """Make a clip's logits independent of the batch that it is padded into, in place."""

    def replace_attention(self, model: Any) -> None:
        """Replace an attention that does not call its linear layers by one that does, in place."""

    def restore_attention(self, model: Any) -> None:
        """Put transformers' attention back, in place."""

    def describe_input(self, extractor: Any, minimum_samples: int) -> dict[str, Any]:
        """Return the `input` section of an adapter's record: how a clip becomes the model's inputs.

        Args:
            extractor: Feature extractor of the encoder.
            minimum_samples: Length in samples to which shorter clips are padded.

        Returns:
            At least `kind`, `names`, `sampling_rate` in hertz and `minimum_samples`; with a fixed window also
            `input_seconds`.
        """
        raise NotImplementedError

    def input_code(self, about: Mapping[str, Any]) -> str:
        """Return Python code for a README that makes `values`, the inputs of a batch of one clip.

        Args:
            about: `input` section of the record, with `window_seconds` and `hop_seconds` if evaluation used shorter
                windows than `input_seconds`. The code may use `extractor`, `waveform`, `np` and `torch`.
        """
        raise NotImplementedError

    def graph_code(self, about: Mapping[str, Any]) -> str:
        """Return Python code that makes `values`, the input of an ONNX graph, without torch and transformers.

        Args:
            about: As in `input_code`. The code may use `np` and `waveforms`, of shape (clips, samples).
        """
        raise NotImplementedError

    def graph_input(self, about: Mapping[str, Any]) -> str:
        """Return the name of an ONNX graph's input."""
        return about["names"][0]

    def graph_front(self, extractor: Any) -> nn.Module | None:
        """Return a module that makes the model's first input from waveforms inside an ONNX graph.

        None where the graph takes the model's first input itself.
        """
        return None

    def prepare(self, waveform: np.ndarray, extractor: Any) -> dict[str, np.ndarray]:
        """Return one clip's model inputs, before padding.

        Args:
            waveform: float32 of shape (samples,), mono, at the extractor's sampling rate.
            extractor: Feature extractor of the encoder.
        """
        raise NotImplementedError

    def pad(self, clips: Sequence[Mapping[str, np.ndarray]], config: Any) -> dict[str, torch.Tensor]:
        """Pad what `prepare` returned into one batch of model inputs.

        Args:
            clips: Inputs of each clip.
            config: Config of the encoder.
        """
        raise NotImplementedError

    def unpadded(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Drop the inputs that only keep padding out, for a batch of clips of equal length."""
        return inputs

    def config_of_prefix(self, config: Any) -> dict[str, Any]:
        """Return the config settings that can change what the frozen layers return."""
        settings = config.to_dict()
        return {
            name: settings[name] for name in sorted(settings) if not any(word in name for word in NOT_IN_FROZEN_LAYERS)
        }

    def cuts(self, config: Any) -> tuple[Cut, ...]:
        """List the places where a frozen prefix can end, from the first to the last."""
        return ()

    def depth(self, name: str, config: Any) -> int:
        """Count the cuts before the first use of an encoder's weight, by its name in the encoder."""
        return 0

    def kept_width(self, cut: Cut, config: Any) -> int:
        """Return the number of channels of what is kept at a cut."""
        return self.width(config)

    def pooled_states(self, cut: Cut, config: Any) -> tuple[Cut, ...]:
        """List the cuts whose frames `pool` takes for a pooled cut: one per state."""
        return (cut,)

    def run_prefixes(
        self, model: Any, inputs: Mapping[str, torch.Tensor], cuts: Iterable[Cut]
    ) -> dict[Cut, torch.Tensor]:
        """Run prefixes of several lengths in one pass that ends with the longest.

        Args:
            model: Classifier in eval mode, plain or in PEFT's form.
            inputs: Model inputs of a batch.
            cuts: Ends of the prefixes.

        Returns:
            For each cut a tensor of shape (clips, frames, channels); not averaged over time at a pooled cut.
        """
        raise NotImplementedError

    def pool(self, model: Any, states: Sequence[torch.Tensor], samples: torch.Tensor | None) -> torch.Tensor:
        """Average states over each clip's own frames, as the model does before or after its head.

        Args:
            model: Classifier, plain or in PEFT's form.
            states: Tensors of shape (clips, frames, channels).
            samples: Lengths in samples, of shape (clips,); None without padding.

        Returns:
            Tensor of shape (clips, states, channels).
        """
        raise NotImplementedError

    def classify_pooled(self, model: Any, pooled: torch.Tensor) -> torch.Tensor:
        """Apply a plain classifier's head to what `pool` returned.

        The head is linear up to the average, so it gives the same for the average as the average of what it gives.

        Returns:
            Logits of shape (clips, labels).
        """
        if getattr(model.config, "use_weighted_layer_sum", False):
            values = (pooled * getattr(model, LAYER_WEIGHTS).softmax(-1)[:, None]).sum(1)
        else:
            values = pooled[:, -1]
        for name in self.head:
            values = getattr(model, name)(values)
        return values

    def accept_features(self, model: Any, cut: Cut) -> Callable[[], None]:
        """Let a model take `features` and `samples` in place of its inputs and run only what follows a cut, in place.

        Returns:
            A function that undoes it.
        """
        raise NotImplementedError


def windows_code(about: Mapping[str, Any]) -> str:
    """Return Python code that cuts `waveform` into `windows`, for a README.

    Args:
        about: `input` section of a record, with `window_seconds` and `hop_seconds` if evaluation used shorter windows.
    """
    window, hop = window_and_hop(about)
    size, step = (round(seconds * about["sampling_rate"]) for seconds in (window, hop))
    return (
        f"size, hop = {size}, {step}  # samples of a window, and between two starts; the last one ends with the clip\n"
        "starts = [*range(0, len(waveform) - size, hop), max(0, len(waveform) - size)]\n"
        "windows = [waveform[start : start + size] for start in starts]\n"
    )


def windows_in_words(about: Mapping[str, Any]) -> str:
    """Describe the windows of `windows_code`."""
    window, hop = window_and_hop(about)
    return f"windows of {window:g} s" + ("" if hop == window else f", one every {hop:g} s")


def window_and_hop(about: Mapping[str, Any]) -> tuple[float, float]:
    """Return the length of windows and the time between two starts, in seconds."""
    window = about.get("window_seconds", about.get("input_seconds"))
    return window, about.get("hop_seconds", window)
