"""Stop a model after its frozen prefix, and replay the rest of it on what the prefix returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from peft_audio.encoders.base import Cut


class _Reached(Exception):  # noqa: N818 (nothing went wrong)
    """Stop a forward pass once every cut was passed."""


@torch.no_grad()
def run_until(
    encoder: nn.Module, inputs: Mapping[str, torch.Tensor], before: Mapping[Cut, nn.Module], at_end: Iterable[Cut]
) -> dict[Cut, torch.Tensor]:
    """Run an encoder up to the last of some cuts.

    Args:
        encoder: Encoder in eval mode.
        inputs: Model inputs of a batch.
        before: For each cut the module whose first argument is what is kept.
        at_end: Cuts at which the encoder's last hidden state is kept.

    Returns:
        For each cut a tensor of shape (clips, frames, channels).
    """
    states: dict[Cut, torch.Tensor] = {}
    at_end = set(at_end)

    def keep(cut: Cut) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            states[cut] = args[0]
            if not at_end and states.keys() == before.keys():
                raise _Reached

        return hook

    hooks = [module.register_forward_pre_hook(keep(cut)) for cut, module in before.items()]
    try:
        output = encoder(**inputs)
        states |= dict.fromkeys(at_end, output.last_hidden_state)
    except _Reached:
        pass
    finally:
        for each in hooks:
            each.remove()
    assert states.keys() == before.keys() | at_end, "the model ran to its end without passing a cut"
    return states


def replay(
    model: Any,
    prefix: Iterable[tuple[nn.Module, Callable[..., Any]]],
    rename: Callable[[dict[str, Any], torch.Tensor], None],
) -> Callable[[], None]:
    """Let a model take `features` and `samples` in place of its inputs, in place.

    Args:
        model: Plain classifier.
        prefix: Modules of the prefix, each with the function that passes features on in its place.
        rename: Changes the keyword arguments of a call in place; takes them, without `features`, and the features.

    Returns:
        A function that undoes it.
    """
    state = SimpleNamespace(replaying=False)
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
        features = kwargs.pop("features")
        rename(kwargs, features)
        return (features,), kwargs

    def end(*call: Any) -> None:
        state.replaying = False

    hooks = [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        model.register_forward_hook(end, always_call=True),
    ]
    for module, answer in prefix:
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


def plain_model(model: Any) -> Any:
    """Return the classifier inside PEFT's form, or the classifier itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def as_output(values: torch.Tensor, *args: Any, **kwargs: Any) -> BaseModelOutput:
    """Return pooled states, of shape (clips, states, channels), as an encoder's output: each is one frame."""
    states = tuple(values[:, i : i + 1] for i in range(values.shape[1]))
    return BaseModelOutput(last_hidden_state=states[-1], hidden_states=states)
