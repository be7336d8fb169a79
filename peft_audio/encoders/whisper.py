"""Describe the encoder of Whisper (Radford et al., 2022, arXiv 2212.04356), whose inputs are log-mel features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft_audio.encoders.base import LOG_MEL_RATE, Cut, EncoderFamily, require_extractor, windows_code, windows_in_words
from peft_audio.errors import EncoderError, UserError, require

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

# A position is two frames of 160 samples at 16 kHz.
POSITIONS_PER_SECOND = 50
FRAMES_PER_SECOND = 100
SWITCHED_OFF = {"encoder_layerdrop": 0.0, "apply_spec_augment": False}


@dataclass(frozen=True)
class WhisperFamily(EncoderFamily):
    """Provide the encoder of Whisper under transformers' classification head.

    Every input is a fixed window, filled up with silence. The encoder sees no mask and the head averages all frames, so
    a clip's logits cannot depend on its batch. They do depend on the length of the window, which is recorded.
    """

    padding: str = "silence, up to a fixed window"
    layers: str = "layers"
    masked_module: str = "conv1"
    masked_channels_first: bool = True
    mask_frame_ms: float = 10.0
    attention_block: str = "self_attn"
    feed_forward: tuple[str, ...] = ("fc1", "fc2")
    dropouts: tuple[str, ...] = ("dropout", "attention_dropout", "activation_dropout")
    switched_off: Mapping[str, Any] = field(default_factory=lambda: SWITCHED_OFF)
    graph_facts: tuple[str, ...] = ("sampling_rate", "input_seconds")

    def head_std(self, config: Any) -> float:
        """Return the standard deviation of the weights of a fresh head."""
        return config.init_std

    def window(self, config: Any, asked: float | None = None) -> float | None:
        """Return the window in seconds: the whole seconds that the position embeddings cover, or fewer if asked.

        Raises:
            UserError: The window is no whole number of seconds, or longer than that of the directory.
        """
        own, rest = divmod(config.max_source_positions, POSITIONS_PER_SECOND)
        if rest or own < 1:
            raise EncoderError(
                f"this encoder has {config.max_source_positions} positions of 20 ms (max_source_positions); Whisper's "
                "feature extractor takes whole seconds. Give one with a multiple of 50."
            )
        usable = asked is None or (float(asked).is_integer() and 1 <= asked <= own)
        allowed = f"whole seconds, 1 to {own} (the window of this encoder)"
        require(usable, "model.input_seconds", asked, allowed, "Leave it out for all of it.")
        return own if asked is None else int(asked)

    def check_extractor(self, extractor: Any, config: Any) -> None:
        """Refuse another sampling rate, or another number of mel bands than the encoder takes.

        Raises:
            UserError: The extractor has one of them.
        """
        require_extractor(extractor, sampling_rate=LOG_MEL_RATE, feature_size=config.num_mel_bins)

    def fit_extractor(self, extractor: Any, window: float) -> None:
        """Let a feature extractor pad clips to `window` seconds, and draw no noise (`dither`)."""
        extractor.chunk_length, extractor.dither = int(window), 0.0
        extractor.n_samples = int(window) * extractor.sampling_rate
        extractor.nb_max_frames = extractor.n_samples // extractor.hop_length

    def fit_model(self, model: Any, window: float) -> None:
        """Keep the positions of the first `window` seconds, and freeze them.

        They are sinusoids, which `from_pretrained` leaves trainable.
        """
        from torch import nn

        table, count = model.encoder.embed_positions, POSITIONS_PER_SECOND * int(window)
        table.weight = nn.Parameter(table.weight.detach()[:count].clone(), requires_grad=False)
        table.num_embeddings = model.encoder.max_source_positions = model.config.max_source_positions = count

    def fit_code(self, about: Mapping[str, Any]) -> str:
        """Return code that cuts the positions of `model`."""
        seconds = int(about["input_seconds"])
        count = POSITIONS_PER_SECOND * seconds
        return (
            f"# Keep the positions of {seconds} s, the window that the adapter was trained with.\n"
            "table = model.encoder.embed_positions\n"
            f"table.num_embeddings = model.config.max_source_positions = {count}\n"
            f"table.weight = torch.nn.Parameter(table.weight[:{count}], requires_grad=False)"
        )

    def minimum_samples(self, config: Any) -> int:
        """Return 1: the window pads clips of any length."""
        return 1

    def count_frames(self, config: Any, samples: int) -> int:
        """Return the number of frames of the window, whatever the clip."""
        return config.max_source_positions

    def mask_shape(self, config: Any, samples: int) -> tuple[int, int]:
        """Return the clip's frames and bands of the log-mel features, which SpecAugment masks."""
        frames = min(samples // 160, 2 * config.max_source_positions)
        return max(1, frames), config.num_mel_bins

    def freeze_stem(self, model: Any) -> None:
        """Freeze the two convolutions; the input needs no gradient, so no graph is built through them."""
        for module in (model.encoder.conv1, model.encoder.conv2):
            module.requires_grad_(False)

    def unused_parameters(self, model: Any) -> list[str]:
        """List the positions, which are sinusoids and never train."""
        return [f"{self.encoder}.embed_positions.weight"]

    def describe_input(self, extractor: Any, minimum_samples: int) -> dict[str, Any]:
        """Return the `input` section of an adapter's record."""
        return {
            "kind": "log-mel",
            "names": ["input_features"],
            "sampling_rate": extractor.sampling_rate,
            "minimum_samples": minimum_samples,
            "input_seconds": extractor.chunk_length,
            "mels": extractor.feature_size,
            "padding": self.padding,
        }

    def input_code(self, about: Mapping[str, Any]) -> str:
        """Return code that makes the features of windows; the last one ends where the clip does."""
        return (
            f"{windows_code(about)}"
            f'values = extractor(windows, sampling_rate={about["sampling_rate"]}, return_tensors="pt").input_features'
        )

    def graph_code(self, about: Mapping[str, Any]) -> str:
        """Return code that pads waveforms to the window; the graph computes their features."""
        samples = int(about["input_seconds"]) * about["sampling_rate"]
        return (
            "values = np.asarray(waveforms, np.float32)\n"
            f'assert values.shape[1] <= {samples}, "average the probabilities of {windows_in_words(about)}"\n'
            f"values = np.pad(values, ((0, 0), (0, {samples} - values.shape[1])))"
        )

    def graph_input(self, about: Mapping[str, Any]) -> str:
        """Return "waveforms": the graph computes the features."""
        return "waveforms"

    def graph_front(self, extractor: Any) -> nn.Module:
        """Return the module that computes the features inside an ONNX graph."""
        from peft_audio.encoders.log_mel import WhisperLogMel

        return WhisperLogMel(extractor)

    def prepare(self, waveform: np.ndarray, extractor: Any) -> dict[str, np.ndarray]:
        """Compute the log-mel features of a clip, filled up with silence to the window.

        Raises:
            UserError: The clip is longer than the window; transformers would cut it without a word.
        """
        # Rounding of lengths and resampling can leave a few samples too many.
        if len(waveform) > extractor.n_samples + extractor.hop_length:
            raise UserError(
                f"a clip of {len(waveform) / extractor.sampling_rate:.2f} s is longer than the encoder's window of "
                f"{extractor.chunk_length} s; predict averages over windows."
            )
        features = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="np")
        return {"input_features": features["input_features"][0]}

    def pad(self, clips: Sequence[Mapping[str, np.ndarray]], config: Any) -> dict[str, torch.Tensor]:
        """Stack the features of clips, float32 of shape (clips, mels, frames)."""
        import torch

        return {"input_features": torch.stack([torch.from_numpy(clip["input_features"]) for clip in clips])}

    def cuts(self, config: Any) -> tuple[Cut, ...]:
        """List the cuts: before each layer, after the last, and after the pooling. SpecAugment masks the features."""
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
            *layers,
            Cut("pooled", count, "the whole encoder (pooled over time)", pooled=True, after_masks=True),
        )

    def depth(self, name: str, config: Any) -> int:
        """Count the cuts before the first use of an encoder's weight, by its name in the encoder."""
        if name.startswith(f"{self.layers}."):
            return 1 + int(name.removeprefix(f"{self.layers}.").partition(".")[0])
        return 1 + self.layer_count(config) if name.startswith("layer_norm.") else 0

    def pooled_states(self, cut: Cut, config: Any) -> tuple[Cut, ...]:
        """List every layer's input and the normalised last output for a weighted sum, otherwise that output."""
        if not config.use_weighted_layer_sum:
            return (cut,)
        return (*self.cuts(config)[: self.layer_count(config)], cut)

    def run_prefixes(
        self, model: Any, inputs: Mapping[str, torch.Tensor], cuts: Iterable[Cut]
    ) -> dict[Cut, torch.Tensor]:
        """Run prefixes of several lengths in one pass that ends with the longest."""
        from peft_audio.encoders.prefix import plain_model, run_until

        encoder = plain_model(model).encoder
        after = [*encoder.layers, encoder.layer_norm]
        wanted = set(cuts)
        before = {cut: after[cut.layers] for cut in wanted if not cut.pooled}
        return run_until(encoder, inputs, before, wanted - before.keys())

    def pool(self, model: Any, states: Sequence[torch.Tensor], samples: torch.Tensor | None) -> torch.Tensor:
        """Average states over all frames of the window."""
        import torch

        return torch.stack([state.float().mean(1) for state in states], dim=1)

    def accept_features(self, model: Any, cut: Cut) -> Callable[[], None]:
        """Let a model take `features` in place of log-mel features, and run only what follows a cut."""
        from transformers.modeling_outputs import BaseModelOutput

        from peft_audio.encoders.prefix import as_output, plain_model, replay

        plain = plain_model(model)
        encoder = plain.encoder

        def rest(hidden: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
            states = []
            for layer in encoder.layers[cut.layers :]:
                states.append(hidden)
                hidden = layer(hidden, None)
            last = encoder.layer_norm(hidden)
            return BaseModelOutput(last_hidden_state=last, hidden_states=(*states, last))

        def drop_samples(kwargs: dict[str, Any], features: torch.Tensor) -> None:
            kwargs.pop("samples", None)

        return replay(plain, [(encoder, as_output if cut.pooled else rest)], drop_samples)


WHISPER = WhisperFamily("whisper", "encoder", "Whisper")
