"""Run the first part of a convolution-and-transformer classifier alone, and the rest on what that returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from peft_audio.encoders.base import Cut
from peft_audio.encoders.conv_transformer import ConvTransformerFamily
from peft_audio.encoders.prefix import as_output, plain_model, replay, run_until


def run_prefixes(
    family: ConvTransformerFamily, model: Any, inputs: Mapping[str, torch.Tensor], cuts: Iterable[Cut]
) -> dict[Cut, torch.Tensor]:
    """Run prefixes of several lengths in one pass that ends with the longest; see `EncoderFamily.run_prefixes`."""
    encoder, wanted = getattr(plain_model(model), family.encoder), set(cuts)
    layers, last_norm = encoder.get_submodule(family.layers), family.layer_norms(model.config)[1]
    places = {
        "convolutions": encoder.get_submodule(family.projection(model.config)[0]),
        "projection": encoder.get_submodule(family.masked_module),
    }
    # Without a norm after the last layer, no module takes that layer's output.
    end = {Cut("pooled", len(layers))} | (set() if last_norm else {Cut("layers", len(layers))})
    before = {}
    for cut in wanted - end:
        after_layers = layers[cut.layers] if cut.layers < len(layers) else encoder.get_submodule(last_norm)
        before[cut] = places.get(cut.place, after_layers)
    return run_until(encoder, inputs, before, wanted & end)


def pool(
    family: ConvTransformerFamily, model: Any, states: Sequence[torch.Tensor], samples: torch.Tensor | None
) -> torch.Tensor:
    """Average states over each clip's own frames; see `EncoderFamily.pool`."""
    if samples is None:
        return torch.stack([state.float().mean(1) for state in states], dim=1)
    valid = family.valid_frames(model.config, samples, states[0].shape[1])[:, :, None]
    return torch.stack([(state.float() * valid).sum(1) / valid.sum(1) for state in states], dim=1)


def accept_features(family: ConvTransformerFamily, model: Any, cut: Cut) -> Callable[[], None]:
    """Let a model take features in place of waveforms; see `EncoderFamily.accept_features`.

    transformers' own `forward` runs the rest: the modules of the prefix pass on what they are given.
    """
    plain = plain_model(model)
    shortest = family.minimum_samples(model.config)

    def rename(kwargs: dict[str, Any], features: torch.Tensor) -> None:
        samples = kwargs.pop("samples", None)
        if samples is not None:
            # What was pooled is one frame.
            lengths = torch.full_like(samples, shortest) if cut.pooled else samples.clamp(min=shortest)
            frames = 1 if cut.pooled else features.shape[1]
            kwargs["attention_mask"] = family.mask_of(lengths, frames, plain.config)

    return replay(plain, _replayed(family, getattr(plain, family.encoder), cut), rename)


def _replayed(family: ConvTransformerFamily, encoder: Any, cut: Cut) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Yield the modules of a prefix, each with the function that passes features on in its place."""
    if cut.pooled:
        yield encoder, as_output
        return
    if any(place.place == "convolutions" for place in family.stem_cuts):
        yield encoder.feature_extractor, lambda features: features.transpose(1, 2)
    if cut.place == "convolutions":
        return
    both, config = family.projection_returns_both, encoder.config
    for name in family.projection(config):
        yield encoder.get_submodule(name), lambda hidden: (hidden, hidden) if both else hidden
    if cut.place == "layers":
        if family.positions:
            yield encoder.get_submodule(family.positions), lambda hidden: hidden.new_zeros(())
        first_norm = family.layer_norms(config)[0]
        if first_norm:
            yield encoder.get_submodule(first_norm), lambda hidden: hidden
        for layer in encoder.get_submodule(family.layers)[: cut.layers]:
            yield layer, partial(family.skip_layer, layer)
