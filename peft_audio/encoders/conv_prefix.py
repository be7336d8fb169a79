"""Run the first part of a convolution-and-transformer classifier alone, and the rest on what that returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from peft_audio.encoders.base import Cut
from peft_audio.encoders.conv_transformer import ConvTransformerFamily


class _Reached(Exception):  # noqa: N818 (nothing went wrong)
    """Stop a forward pass once every cut was passed."""


@torch.no_grad()
def run_prefixes(
    family: ConvTransformerFamily, model: Any, inputs: Mapping[str, torch.Tensor], cuts: Iterable[Cut]
) -> dict[Cut, torch.Tensor]:
    """Run prefixes of several lengths in one pass that ends with the longest; see `EncoderFamily.run_prefixes`."""
    encoder, wanted = getattr(_plain(model), family.encoder), set(cuts)
    layers, last_norm = encoder.get_submodule(family.layers), family.layer_norms(model.config)[1]
    places = {
        "convolutions": encoder.get_submodule(family.projection(model.config)[0]),
        "projection": encoder.get_submodule(family.masked_module),
    }
    # Without a norm after the last layer, no module takes that layer's output.
    end = {Cut("pooled", len(layers))} | (set() if last_norm else {Cut("layers", len(layers))})
    states: dict[Cut, torch.Tensor] = {}

    def keep(cut: Cut) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            states[cut] = args[0]
            if states.keys() == wanted:
                raise _Reached

        return hook

    hooks = []
    for cut in wanted - end:
        after_layers = layers[cut.layers] if cut.layers < len(layers) else encoder.get_submodule(last_norm)
        hooks.append(places.get(cut.place, after_layers).register_forward_pre_hook(keep(cut)))
    try:
        output = encoder(**inputs)
        states |= dict.fromkeys(wanted & end, output.last_hidden_state)
    except _Reached:
        pass
    finally:
        for each in hooks:
            each.remove()
    assert states.keys() == wanted, "the model ran to its end without passing a cut"
    return states


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
    plain = _plain(model)
    encoder, state = getattr(plain, family.encoder), SimpleNamespace(replaying=False)
    shortest = family.minimum_samples(model.config)
    usual: dict[nn.Module, Any] = {}

    def replace(module: nn.Module, answer: Callable[..., Any]) -> None:
        usual[module] = vars(module).get("forward")
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return answer(*args, **kwargs) if state.replaying else inner(*args, **kwargs)

        module.forward = forward

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "features" not in kwargs:
            return None
        state.replaying = True
        features, samples = kwargs.pop("features"), kwargs.pop("samples", None)
        if samples is not None:
            # What was pooled is one frame.
            lengths = torch.full_like(samples, shortest) if cut.pooled else samples.clamp(min=shortest)
            frames = 1 if cut.pooled else features.shape[1]
            kwargs["attention_mask"] = family.mask_of(lengths, frames, plain.config)
        return (features,), kwargs

    def end(*call: Any) -> None:
        state.replaying = False

    hooks = [
        plain.register_forward_pre_hook(begin, with_kwargs=True),
        plain.register_forward_hook(end, always_call=True),
    ]
    for module, answer in _replayed(family, encoder, cut):
        replace(module, answer)

    def undo() -> None:
        for hook in hooks:
            hook.remove()
        for module, forward in usual.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward

    return undo


def _replayed(family: ConvTransformerFamily, encoder: Any, cut: Cut) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Yield the modules of a prefix, each with the function that passes features on in its place."""
    if cut.pooled:
        yield encoder, _as_output
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


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _as_output(values: torch.Tensor, *args: Any, **kwargs: Any) -> BaseModelOutput:
    states = tuple(values[:, i : i + 1] for i in range(values.shape[1]))
    return BaseModelOutput(last_hidden_state=states[-1], hidden_states=states)
