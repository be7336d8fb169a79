"""Train vectors that scale activations (IA3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft_audio.config.recipes import Recipe
from peft_audio.config.settings import TrainConfig
from peft_audio.strategies.base import Setup, Trainable, describe_trained, wrap_in_peft


@dataclass(frozen=True)
class IA3Recipe(Recipe):
    """Fine-tune an audio classifier with the scaling vectors of IA3."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(output_dir="runs/ia3", learning_rate=3e-2, head_learning_rate=1e-3)
    )


def apply_ia3(model: Any, setup: Setup) -> tuple[Any, Trainable]:
    """Train vectors that scale keys, values and the inner activations of feed-forward blocks, and the head.

    IA3 (Liu et al., 2022, arXiv 2205.05638).

    Args:
        model: Model from `load_classifier`.
        setup: Parts of the run. IA3 has no settings.

    Returns:
        The model wrapped by PEFT, and its trained parameters.
    """
    import peft

    family = setup.family
    family.freeze_stem(model)
    peft_config = peft.IA3Config(
        target_modules=sorted(family.ia3_targets),
        # IA3 scales the input of these layers, not their output.
        feedforward_modules=list(family.ia3_feed_forward),
        modules_to_save=_head_layers(model, family.head),
    )
    adapted = wrap_in_peft(model, peft_config)
    return adapted, describe_trained("ia3", adapted, family, peft_config)


def _head_layers(model: Any, head: tuple[str, ...]) -> list[str]:
    """List the layers with weights in the head: PEFT cannot merge IA3 beside a saved module of several layers."""
    return [
        f"{name}.{layer}".rstrip(".")
        for name in head
        for layer, module in model.get_submodule(name).named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
