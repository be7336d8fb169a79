"""Choose where the frozen prefix of a model ends, and run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from peft_audio.encoders.base import MASK_VECTOR, Cut
from peft_audio.encoders.family import encoder_of, family_of
from peft_audio.strategies.base import PEFT_PREFIX, Trainable


def find_cut(model: Any, trained: Trainable, masked: bool, head_dropout: bool) -> Cut | None:
    """Find the last cut before which nothing trains.

    Args:
        model: Classifier that a strategy returned.
        trained: Parameters and modules that train.
        masked: Whether SpecAugment masks the transformer's input, so that the transformer must run.
        head_dropout: Whether the head applies dropout to each frame, so that frames must not be pooled.

    Returns:
        The cut; None if the first layers train.
    """
    family, config = family_of(model.config), model.config
    depth = min(_depth(name, model) for name in trained.parameters)
    weighted_sum = bool(getattr(config, "use_weighted_layer_sum", False))
    usable = [
        cut
        for cut in family.cuts(config)[:depth]
        if not ((masked and cut.after_masks) or (head_dropout and cut.pooled) or (weighted_sum and cut.hides_layers))
    ]
    return usable[-1] if usable else None


def _depth(name: str, model: Any) -> int:
    """Count the cuts before the first use of a weight."""
    family, config = family_of(model.config), model.config
    plain, encoder = name.removeprefix(PEFT_PREFIX), f"{family.encoder}."
    if not plain.startswith(encoder):
        return len(family.cuts(config))
    return family.depth(plain.removeprefix(encoder), config)


def prefix_weights(model: Any, cut: Cut) -> dict[str, torch.Tensor]:
    """Return the weights and buffers on which the output of the prefix depends."""
    family, config = family_of(model.config), model.config
    last = family.cuts(config).index(cut)
    state = encoder_of(model).state_dict()
    return {name: value for name, value in state.items() if name != MASK_VECTOR and family.depth(name, config) <= last}


@torch.no_grad()
def run_prefix(model: Any, batch: Mapping[str, Any], cut: Cut) -> torch.Tensor:
    """Run the frozen prefix on a batch.

    Args:
        model: Classifier in eval mode, plain or in PEFT's form.
        batch: Batch of clips with `inputs` and `samples`.
        cut: End of the prefix.

    Returns:
        Tensor of shape (clips, frames, channels). At a pooled cut, the shape is (clips, states, channels); a weighted
        sum of layers has one state per layer and one for the input.
    """
    family = family_of(model.config)
    cuts = family.pooled_states(cut, model.config) if cut.pooled else (cut,)
    states = family.run_prefixes(model, batch["inputs"], cuts)
    return family.pool(model, [states[one] for one in cuts], batch["samples"]) if cut.pooled else states[cut]
