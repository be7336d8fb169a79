"""Describe wav2vec2-BERT 2.0 (Seamless Communication, 2023, arXiv 2312.05187), which takes log-mel features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_audio.encoders.base import LOG_MEL_RATE, Cut, require_extractor
from peft_audio.encoders.conv_transformer import ConvTransformerFamily
from peft_audio.encoders.wav2vec2_conformer import CONFORMER_DROPOUTS, drop_kept_positions
from peft_audio.errors import EncoderError

if TYPE_CHECKING:
    import numpy as np
    import torch

# Fixed in transformers' SeamlessM4TFeatureExtractor: spectra of 400 samples, 160 samples apart. Two make a frame.
SPECTRUM_SAMPLES, HOP_SAMPLES, SPECTRA = 400, 160, 2
# What that extractor computes, in NumPy.
LOG_MEL = """
values = np.asarray(waveforms, np.float64) * 2**15
values = np.pad(values, ((0, 0), (0, max(0, {minimum_samples} - values.shape[1]))))
values = np.lib.stride_tricks.sliding_window_view(values, 400, axis=1)[:, ::160]
values = values - values.mean(-1, keepdims=True)
values = np.concatenate([0.03 * values[..., :1], values[..., 1:] - 0.97 * values[..., :-1]], -1)
window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
mels, bins = 1127 * np.log1p(np.array([20, {sampling_rate} / 2]) / 700), np.arange(257) * {sampling_rate} / 512
edges, bins = np.linspace(*mels, {mel_bins} + 2), 1127 * np.log1p(bins / 700)[:, None]
rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
values = np.abs(np.fft.rfft(values * window, 512)) ** 2 @ np.maximum(0, np.minimum(rising, falling))
values = np.log(np.maximum(values, 1.192092955078125e-07))
values = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, ddof=1, keepdims=True) + 1e-7)
frames = values.shape[1] // 2
values = values[:, : 2 * frames].reshape(len(values), frames, -1).astype(np.float32)
""".strip()


@dataclass(frozen=True)
class Wav2Vec2BertFamily(ConvTransformerFamily):
    """Provide wav2vec2-BERT, which has no convolutions before its transformer, and causal ones in its layers."""

    stem_cuts: tuple[Cut, ...] = (Cut("projection", words="everything before the transformer"),)

    def check_config(self, config: Any) -> None:
        """Refuse a feed-forward block behind the transformer.

        Raises:
            UserError: The encoder has one.
        """
        if config.use_intermediate_ffn_before_adapter:
            raise EncoderError(
                "this encoder has a feed-forward block behind its transformer (use_intermediate_ffn_before_adapter); "
                "give one without, for example facebook/w2v-bert-2.0."
            )

    def check_extractor(self, extractor: Any, config: Any) -> None:
        """Refuse another sampling rate, or a frame of another number of spectra than 2.

        Raises:
            UserError: The extractor has one of them.
        """
        require_extractor(extractor, sampling_rate=LOG_MEL_RATE, stride=SPECTRA)

    def layer_norms(self, config: Any) -> tuple[str, str]:
        """Name none: the layers have their own."""
        return ("", "")

    def minimum_samples(self, config: Any) -> int:
        """Return the shortest input, in samples, that gives one frame."""
        return SPECTRUM_SAMPLES + (SPECTRA - 1) * HOP_SAMPLES

    def count_frames(self, config: Any, samples: int) -> int:
        """Return the number of frames of a clip: pairs of spectra; a last one without a second is left out."""
        return ((samples - SPECTRUM_SAMPLES) // HOP_SAMPLES + 1) // SPECTRA

    def freeze_stem(self, model: Any) -> None:
        """Freeze nothing: the features need no gradient, and no convolutions come before the projection."""

    def make_padding_exact(self, model: Any) -> None:
        """Drop kept positions; padding needs nothing, as convolutions are causal and norms are over channels."""
        drop_kept_positions(getattr(model, self.encoder).encoder)

    def describe_input(self, extractor: Any, minimum_samples: int) -> dict[str, Any]:
        """Return the `input` section of an adapter's record."""
        return {
            "kind": "log-mel",
            "names": list(extractor.model_input_names),
            "sampling_rate": extractor.sampling_rate,
            "minimum_samples": minimum_samples,
            "mel_bins": extractor.num_mel_bins,
            "spectra_per_frame": extractor.stride,
            "normalised": "each mel bin of a clip, before padding",
            "padding": self.padding,
        }

    def input_code(self, about: Mapping[str, Any]) -> str:
        """Return code that makes features of a waveform."""
        return (
            f"waveform = np.pad(waveform, (0, max(0, {about['minimum_samples']} - len(waveform))))\n"
            f'inputs = extractor(waveform, sampling_rate={about["sampling_rate"]}, return_tensors="pt")\n'
            "# The mask leaves out a last spectrum that lacks its second.\n"
            "values = inputs.input_features[:, : int(inputs.attention_mask.sum())]"
        )

    def graph_code(self, about: Mapping[str, Any]) -> str:
        """Return code that makes features of waveforms."""
        return LOG_MEL.format_map(about)

    def prepare(self, waveform: np.ndarray, extractor: Any) -> dict[str, np.ndarray]:
        """Compute log-mel features, each bin scaled to zero mean and unit variance over the clip.

        Returns:
            `input_features`, float32 of shape (frames, 2 * mel bins).
        """
        import numpy as np

        waveform = np.pad(waveform, (0, max(0, self.minimum_samples(None) - len(waveform))))
        inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="np")
        frames = int(inputs["attention_mask"].sum())
        return {"input_features": inputs["input_features"][0, :frames].astype(np.float32, copy=False)}

    def pad(self, clips: Sequence[Mapping[str, np.ndarray]], config: Any) -> dict[str, torch.Tensor]:
        """Pad features with zeros to the longest clip.

        Returns:
            `input_features`, float32 of shape (clips, frames, 2 * mel bins), and `attention_mask`, int64 of shape
            (clips, frames).
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        features = [torch.from_numpy(clip["input_features"]) for clip in clips]
        lengths = torch.tensor([len(one) for one in features])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return {"input_features": pad_sequence(features, batch_first=True), "attention_mask": mask.long()}

    def unpadded(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Drop the mask."""
        return {"input_features": inputs["input_features"]}

    def mask_of(self, lengths: torch.Tensor, frames: int, config: Any) -> torch.Tensor:
        """Return the attention mask of features: one entry per frame."""
        return self.valid_frames(config, lengths, frames).long()


WAV2VEC2_BERT = Wav2Vec2BertFamily(
    "wav2vec2-bert",
    "wav2vec2_bert",
    "wav2vec2-BERT 2.0",
    attention_block="self_attn",
    attention=("linear_q", "linear_k", "linear_v", "linear_out"),
    keys_and_values=("linear_k", "linear_v"),
    dropouts=CONFORMER_DROPOUTS,
    padding="attention mask; convolutions are causal",
    arithmetic={},
    graph_axis="frames",
    graph_facts=("sampling_rate", "minimum_samples", "mel_bins"),
    positions="",
)
