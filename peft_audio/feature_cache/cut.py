"""The frozen prefix of a model: where it ends, what it returns, and the rest of the model run on that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from peft_audio.encoders.base import MASK_VECTOR
from peft_audio.encoders.family import encoder_of, family_of
from peft_audio.strategies.base import PEFT_PREFIX, Trainable


@dataclass(frozen=True)
class Cut:
    """The end of the frozen prefix: everything before it is frozen and runs in eval mode.

    Attributes:
        place: What ends there: the "convolutions", the feature "projection", so many transformer "layers", or all of
            the encoder, "pooled" over time (each layer apart where the head takes a mixture of layers).
        layers: How many transformer layers are before it.
    """

    place: Literal["convolutions", "projection", "layers", "pooled"]
    layers: int = 0

    def __str__(self) -> str:
        if self.place == "layers" and self.layers:
            return f"everything up to the transformer's first {self.layers} layers"
        words = {"convolutions": "the convolutions", "pooled": "the whole encoder (pooled over time)"}
        words["layers"] = "everything before the transformer's first layer"
        return words.get(self.place, "everything before the transformer")


def find_cut(model: Any, trained: Trainable, masked: bool, head_dropout: bool) -> Cut | None:
    """The latest place before which nothing trains.

    Args:
        model: What a strategy returned.
        trained: What trains in it.
        masked: SpecAugment hides some of what the transformer is fed, so the transformer must run.
        head_dropout: The head drops out features of each frame, so frames must be kept apart.

    Returns:
        None where the first convolutions train.
    """
    config = model.config
    count, mixture = config.num_hidden_layers, bool(config.use_weighted_layer_sum)
    # 0: in the convolutions; 1: behind them; 2: before the transformer; 3: its first layer; last: the head.
    at = min(_depth(name, model) for name in trained.parameters)
    if masked:
        at = min(at, 2)
    if at > 3 + count and head_dropout:
        at = 3 + count
    if mixture and at <= 3 + count:
        # The head takes every layer's output, frame by frame.
        at = min(at, 3)
    if at == 0:
        return None
    if at <= 2:
        return Cut("convolutions" if at == 1 else "projection")
    return Cut("pooled", count) if at > 3 + count else Cut("layers", at - 3)


def _depth(name: str, model: Any) -> int:
    """How deep in the model a parameter is first used, in the order that `find_cut` counts."""
    family, config = family_of(model.config), model.config
    within = name.removeprefix(PEFT_PREFIX).removeprefix(f"{family.encoder}.")
    if within == name.removeprefix(PEFT_PREFIX):
        return 4 + config.num_hidden_layers
    if within.startswith(f"{family.layers}."):
        return 3 + int(within.removeprefix(f"{family.layers}.").partition(".")[0])
    if within.startswith("encoder.layer_norm.") and config.do_stable_layer_norm:
        return 3 + config.num_hidden_layers
    return {"feature_extractor": 0, "feature_projection": 1}.get(within.partition(".")[0], 2)


def prefix_weights(model: Any, cut: Cut) -> dict[str, torch.Tensor]:
    """The weights, and other state, that decide what the prefix returns."""
    config, encoder = model.config, family_of(model.config).encoder
    depth = {"convolutions": 1, "projection": 2, "pooled": 4 + config.num_hidden_layers}.get(cut.place, 3 + cut.layers)
    state = encoder_of(model).state_dict()
    return {
        name: value
        for name, value in state.items()
        if name != MASK_VECTOR and _depth(f"{encoder}.{name}", model) < depth
    }


class _Reached(Exception):  # noqa: N818 (nothing went wrong)
    """The rest of the model need not run."""


@torch.no_grad()
def run_prefix(model: Any, batch: dict[str, torch.Tensor], cut: Cut) -> torch.Tensor:
    """What the frozen prefix makes of a batch of waveforms.

    Args:
        model: In eval mode, as it is or in PEFT's form.
        batch: With `input_values` and `attention_mask` of shape (clips, samples).
        cut: Where the prefix ends.

    Returns:
        Of shape (clips, frames, channels); pooled, of shape (clips, 1, channels), or (clips, layers + 1, channels) for
        a mixture of layers.
    """
    if cut.place == "pooled":
        inputs = {name: batch[name] for name in ("input_values", "attention_mask")}
        output = encoder_of(model)(**inputs, output_hidden_states=True)
        states = output.hidden_states if model.config.use_weighted_layer_sum else (output.last_hidden_state,)
        return pool(model, states, batch["attention_mask"])
    return run_prefixes(model, batch, [cut])[cut]


@torch.no_grad()
def run_prefixes(model: Any, batch: Mapping[str, torch.Tensor], cuts: Iterable[Cut]) -> dict[Cut, torch.Tensor]:
    """What prefixes of several lengths make of a batch of waveforms, in one pass that ends with the longest.

    Args:
        model: In eval mode, as it is or in PEFT's form.
        batch: With `input_values` of shape (clips, samples), and `attention_mask` of the same shape if any is padded.
        cuts: Where the prefixes end.

    Returns:
        For each cut of shape (clips, frames, channels); where it says "pooled", the encoder's frames, not pooled yet.
    """
    encoder, wanted = encoder_of(model), set(cuts)
    layers, found = encoder.encoder.layers, {}
    places = {"convolutions": encoder.feature_projection, "projection": encoder.encoder}
    # Where no norm follows the last layer, no module is given what it returns.
    end = {Cut("pooled", len(layers))} | (set() if model.config.do_stable_layer_norm else {Cut("layers", len(layers))})

    def keep(cut: Cut) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            found[cut] = args[0]
            if found.keys() == wanted:
                raise _Reached

        return hook

    hooks = []
    for cut in wanted - end:
        after_layers = layers[cut.layers] if cut.layers < len(layers) else encoder.encoder.layer_norm
        hooks.append(places.get(cut.place, after_layers).register_forward_pre_hook(keep(cut)))
    try:
        output = encoder(**{name: batch[name] for name in ("input_values", "attention_mask") if name in batch})
        found |= dict.fromkeys(wanted & end, output.last_hidden_state)
    except _Reached:
        pass
    finally:
        for each in hooks:
            each.remove()
    assert found.keys() == wanted, "the model ran to its end without passing a cut"
    return found


def pool(model: Any, states: Sequence[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    """The mean over each clip's own frames, as the model takes it before the head.

    Args:
        model: A classifier.
        states: Of shape (clips, frames, channels) each.
        mask: Of shape (clips, samples), or with lengths in samples (clips, 1); None if nothing is padded.

    Returns:
        Of shape (clips, states, channels).
    """
    if mask is None:
        return torch.stack([state.float().mean(1) for state in states], dim=1)
    valid = _plain(model)._get_feature_vector_attention_mask(states[0].shape[1], mask)[:, :, None]
    return torch.stack([(state.float() * valid).sum(1) / valid.sum(1) for state in states], dim=1)


def answer_pooled(model: Any, pooled: torch.Tensor) -> torch.Tensor:
    """What a classifier's head says of what `pool` gives.

    The head is linear up to the mean, so that it says the same of the mean as the mean of what it says of each frame.

    Args:
        model: A classifier, not wrapped by PEFT.
        pooled: Of shape (clips, states, channels): of the last layer, or of all that a mixture of layers takes.

    Returns:
        Logits of shape (clips, labels).
    """
    if model.config.use_weighted_layer_sum:
        values = (pooled * model.layer_weights.softmax(-1)[:, None]).sum(1)
    else:
        values = pooled[:, -1]
    for name in family_of(model.config).head:
        values = getattr(model, name)(values)
    return values


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def accept_features(model: Any, cut: Cut) -> None:
    """Let a model take what `run_prefix` returned in the place of waveforms, and run only what follows; in place.

    transformers' own `forward` still runs the rest, with the prefix's modules handing on what they are given. Waveforms
    are taken as before. With features, `attention_mask` is of shape (clips, 1) and holds lengths in samples, which is
    all that the model reads from a mask.

    Args:
        model: What a strategy returned.
        cut: Where the prefix ends.
    """
    encoder, state = encoder_of(model), SimpleNamespace(replaying=False)
    if cut.place == "pooled":
        _instead(encoder, lambda values: values.dim() == 3, _as_output)
        return
    transformer, config = encoder.encoder, model.config

    def starts(values: torch.Tensor) -> bool:
        state.replaying = values.dim() == 3
        return state.replaying

    def replaying(*args: Any) -> bool:
        return state.replaying

    _instead(encoder.feature_extractor, starts, lambda values: values.transpose(1, 2))
    if cut.place == "convolutions":
        return
    both = getattr(family_of(config), "projection_returns_both", True)
    _instead(encoder.feature_projection, replaying, lambda values: (values, values) if both else values)
    if cut.place == "projection":
        return
    _instead(transformer.pos_conv_embed, replaying, lambda values: values.new_zeros(()))
    if not config.do_stable_layer_norm:
        _instead(transformer.layer_norm, replaying, lambda values: values)
    for layer in transformer.layers[: cut.layers]:
        _instead(layer, replaying, _hand_on_with_bias(layer) if config.model_type == "wavlm" else _hand_on)


@contextmanager
def features_accepted(model: Any, cut: Cut) -> Iterator[None]:
    """`accept_features` for as long as the block lasts."""
    usual = [(module, vars(module).get("forward")) for module in encoder_of(model).modules()]
    try:
        accept_features(model, cut)
        yield
    finally:
        for module, forward in usual:
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


def _instead(module: nn.Module, when: Callable[..., bool], answer: Callable[..., Any]) -> None:
    usual = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else next(iter(kwargs.values()))
        return answer(given, *args[1:], **kwargs) if when(given) else usual(*args, **kwargs)

    module.forward = forward


def _as_output(values: torch.Tensor, *args: Any, **kwargs: Any) -> BaseModelOutput:
    states = tuple(values[:, i : i + 1] for i in range(values.shape[1]))
    return BaseModelOutput(last_hidden_state=states[-1], hidden_states=states)


def _hand_on(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden


def _hand_on_with_bias(layer: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """WavLM's first layer makes the position bias that all layers share."""

    def hand_on(
        hidden: torch.Tensor, position_bias: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if position_bias is None:
            clips, frames, _ = hidden.shape
            bias = layer.attention.compute_bias(frames, frames)
            position_bias = bias.repeat(clips, 1, 1)
        return hidden, position_bias

    return hand_on


def replay_samples(lengths: list[int], cut: Cut, config: Any) -> torch.Tensor:
    """The `attention_mask` beside features, of shape (clips, 1): lengths in samples; pooled, those of one frame."""
    shortest = family_of(config).minimum_samples(config)
    return torch.tensor([[shortest if cut.place == "pooled" else max(length, shortest)] for length in lengths])
