"""Describe the Audio Spectrogram Transformer, AST (Gong et al., 2021, arXiv 2104.01778)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_audio.encoders.base import LOG_MEL_RATE, Cut, EncoderFamily, require_extractor, windows_code, windows_in_words
from peft_audio.errors import EncoderError, UserError, require

if TYPE_CHECKING:
    import numpy as np
    import torch

FRAMES_PER_SECOND = 100
# Of the two tokens before the patches, one is the class and one that of the distillation; the head takes their mean.
TOKENS = 2


@dataclass(frozen=True)
class ASTFamily(EncoderFamily):
    """Provide AST: patches of a log-mel spectrogram of a fixed length, and a head on two tokens.

    Every input is a fixed window, filled up as in pretraining, so a clip's logits cannot depend on its batch.
    """

    padding: str = "zeros in place of log-mel values before scaling, up to a fixed window"
    head: tuple[str, ...] = ("classifier",)
    head_linear: tuple[str, ...] = ("classifier.dense",)
    layers: str = "layers"
    masked_module: str = "embeddings"
    mask_frame_ms: float = 10.0
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    feed_forward: tuple[str, ...] = ("fc1", "fc2")
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    pipeline_caveat: str = (
        "With torchaudio installed, the extractor of transformers computes other features in quiet bands, and answers "
        "can differ from the recorded ones. An ONNX export does not depend on torchaudio."
    )
    graph_facts: tuple[str, ...] = ("sampling_rate", "input_seconds")

    def check_config(self, config: Any) -> None:
        """Refuse a weighted sum of layers, which transformers' AST does not have.

        Raises:
            UserError: The config asks for one.
        """
        if getattr(config, "use_weighted_layer_sum", False):
            raise EncoderError(
                f"--model.layer_weighted_sum: got true, must be false for {self.examples}, whose head takes the last "
                "layer's tokens. Leave it out."
            )

    def window(self, config: Any, asked: float | None = None) -> float | None:
        """Return the window in seconds: the frames of 10 ms that the positions cover, or fewer if asked.

        Raises:
            UserError: The window is longer than that of the directory, or shorter than a patch.
        """
        own, shortest = config.max_length / FRAMES_PER_SECOND, config.patch_size / FRAMES_PER_SECOND
        usable = asked is None or shortest <= asked <= own
        allowed = f"{shortest:g} to {own:g} (the window of this encoder)"
        require(usable, "model.input_seconds", asked, allowed, "Leave it out for all of it.")
        return own if asked is None else round(asked * FRAMES_PER_SECOND) / FRAMES_PER_SECOND

    def check_extractor(self, extractor: Any, config: Any) -> None:
        """Refuse another sampling rate, or another number of mel bands than the encoder takes.

        Raises:
            UserError: The extractor has one of them.
        """
        require_extractor(extractor, sampling_rate=LOG_MEL_RATE, num_mel_bins=config.num_mel_bins)

    def fit_extractor(self, extractor: Any, window: float) -> None:
        """Let a feature extractor make features of `window` seconds."""
        extractor.max_length = round(window * FRAMES_PER_SECOND)

    def fit_model(self, model: Any, window: float) -> None:
        """Keep the positions of the first `window` seconds in each band."""
        import torch

        frames, config = round(window * FRAMES_PER_SECOND), model.config
        if frames == config.max_length:
            return
        embeddings = model.audio_spectrogram_transformer.embeddings
        bands, _ = embeddings.get_shape(config)
        config.max_length = frames
        _, columns = embeddings.get_shape(config)
        table = embeddings.position_embeddings.detach()
        grid = table[:, TOKENS:].unflatten(1, (bands, -1))[:, :, :columns].flatten(1, 2)
        embeddings.position_embeddings = torch.nn.Parameter(torch.cat([table[:, :TOKENS], grid], 1))

    def load_code(self, layer_weighted_sum: bool) -> str:
        """Return nothing: transformers' AST has no weighted sum of layers."""
        return ""

    def fit_code(self, about: Mapping[str, Any]) -> str:
        """Return code that cuts the positions of `model`."""
        frames = round(about["input_seconds"] * FRAMES_PER_SECOND)
        return (
            f"# Keep the positions of {frames / FRAMES_PER_SECOND:g} s, the window that the adapter was trained with.\n"
            "part, model.config.max_length = model.audio_spectrogram_transformer.embeddings, "
            f"{frames}\n"
            "bands, columns = part.get_shape(model.config)\n"
            "grid = part.position_embeddings[:, 2:].unflatten(1, (bands, -1))[:, :, :columns].flatten(1, 2)\n"
            "part.position_embeddings = torch.nn.Parameter(torch.cat([part.position_embeddings[:, :2], grid], 1))"
        )

    def minimum_samples(self, config: Any) -> int:
        """Return the length of one frame of the features."""
        return 400

    def count_frames(self, config: Any, samples: int) -> int:
        """Return the number of tokens of the window, whatever the clip."""
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        columns = (config.max_length - config.patch_size) // config.time_stride + 1
        return bands * columns + TOKENS

    def mask_shape(self, config: Any, samples: int) -> tuple[int, int]:
        """Return the clip's frames and bands of the log-mel features, which SpecAugment masks."""
        return min((max(400, samples) - 400) // 160 + 1, config.max_length), config.num_mel_bins

    def freeze_stem(self, model: Any) -> None:
        """Freeze the convolution that makes patches; the input needs no gradient."""
        model.audio_spectrogram_transformer.embeddings.patch_embeddings.requires_grad_(False)

    def describe_input(self, extractor: Any, minimum_samples: int) -> dict[str, Any]:
        """Return the `input` section of an adapter's record."""
        return {
            "kind": "log-mel",
            "names": ["input_values"],
            "sampling_rate": extractor.sampling_rate,
            "minimum_samples": minimum_samples,
            "input_seconds": extractor.max_length / FRAMES_PER_SECOND,
            "mels": extractor.num_mel_bins,
            "mean": extractor.mean if extractor.do_normalize else 0.0,
            "std": extractor.std if extractor.do_normalize else 0.5,
            "padding": self.padding,
        }

    def _features_code(self, about: Mapping[str, Any]) -> str:
        from peft_audio.encoders.ast_features import ast_features

        source = inspect.getsource(ast_features).replace("  # type: ignore[no-untyped-def]", "")
        frames = round(about["input_seconds"] * FRAMES_PER_SECOND)
        numbers = f"{int(about['mels'])}, {frames}, {float(about['mean'])}, {float(about['std'])}"
        return f"{source}\n\nfeatures = [ast_features(clip, {numbers}) for clip in windows]\n"

    def input_code(self, about: Mapping[str, Any]) -> str:
        """Return code that makes the features of windows; the last one ends where the clip does."""
        return f"{windows_code(about)}{self._features_code(about)}values = torch.from_numpy(np.stack(features))"

    def graph_code(self, about: Mapping[str, Any]) -> str:
        """Return code that computes the features, which the graph takes."""
        samples = round(about["input_seconds"] * about["sampling_rate"])
        return (
            "windows = np.asarray(waveforms, np.float32)\n"
            f'assert windows.shape[1] <= {samples}, "average the probabilities of {windows_in_words(about)}"\n'
            f"{self._features_code(about)}"
            "values = np.stack(features)"
        )

    def prepare(self, waveform: np.ndarray, extractor: Any) -> dict[str, np.ndarray]:
        """Compute the features of a clip, filled up to the window.

        Raises:
            UserError: The clip is longer than the window; transformers would cut it without a word.
        """
        from peft_audio.encoders.ast_features import ast_features

        # Rounding of lengths and resampling can leave a few samples too many.
        window = extractor.max_length / FRAMES_PER_SECOND
        if len(waveform) > (window + 0.01) * extractor.sampling_rate:
            raise UserError(
                f"a clip of {len(waveform) / extractor.sampling_rate:.2f} s is longer than the encoder's window of "
                f"{window:g} s; predict averages over windows."
            )
        about = self.describe_input(extractor, 400)
        scale = (about["mean"], about["std"])
        return {"input_values": ast_features(waveform, extractor.num_mel_bins, extractor.max_length, *scale)}

    def pad(self, clips: Sequence[Mapping[str, np.ndarray]], config: Any) -> dict[str, torch.Tensor]:
        """Stack the features of clips, float32 of shape (clips, frames, mels)."""
        import torch

        return {"input_values": torch.stack([torch.from_numpy(clip["input_values"]) for clip in clips])}

    def cuts(self, config: Any) -> tuple[Cut, ...]:
        """List the cuts: before each layer, after the last, and the mean of the two tokens."""
        count = self.layer_count(config)
        first = "everything before the transformer's first layer"
        words = [first, *(f"everything up to the transformer's first {i} layers" for i in range(1, count + 1))]
        layers = (Cut("layers", i, text, after_masks=True) for i, text in enumerate(words))
        return (*layers, Cut("pooled", count, "the whole encoder (its two tokens)", pooled=True, after_masks=True))

    def depth(self, name: str, config: Any) -> int:
        """Count the cuts before the first use of an encoder's weight, by its name in the encoder."""
        if name.startswith(f"{self.layers}."):
            return 1 + int(name.removeprefix(f"{self.layers}.").partition(".")[0])
        return 1 + self.layer_count(config) if name.startswith("layernorm.") else 0

    def run_prefixes(
        self, model: Any, inputs: Mapping[str, torch.Tensor], cuts: Iterable[Cut]
    ) -> dict[Cut, torch.Tensor]:
        """Run prefixes of several lengths in one pass that ends with the longest."""
        from peft_audio.encoders.prefix import plain_model, run_until

        encoder = plain_model(model).audio_spectrogram_transformer
        after, wanted = [*encoder.layers, encoder.layernorm], set(cuts)
        before = {cut: after[cut.layers] for cut in wanted if not cut.pooled}
        return run_until(encoder, inputs, before, wanted - before.keys())

    def pool(self, model: Any, states: Sequence[torch.Tensor], samples: torch.Tensor | None) -> torch.Tensor:
        """Average the two tokens, as the model does before its head."""
        import torch

        return torch.stack([state[:, :TOKENS].float().mean(1) for state in states], dim=1)

    def accept_features(self, model: Any, cut: Cut) -> Callable[[], None]:
        """Let a model take `features` in place of log-mel features, and run only what follows a cut."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        from peft_audio.encoders.prefix import plain_model, replay

        plain = plain_model(model)
        encoder = plain.audio_spectrogram_transformer

        def rest(hidden: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
            if cut.pooled:
                return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden[:, 0])
            for layer in encoder.layers[cut.layers :]:
                hidden = layer(hidden, None)
            last = encoder.layernorm(hidden)
            return BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=last[:, :TOKENS].mean(1))

        def drop_samples(kwargs: dict[str, Any], features: torch.Tensor) -> None:
            kwargs.pop("samples", None)

        return replay(plain, [(encoder, rest)], drop_samples)


AST = ASTFamily("audio-spectrogram-transformer", "audio_spectrogram_transformer", "AST")
