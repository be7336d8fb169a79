"""Which weights train. Each strategy is a function that a recipe calls on one line.

Their shared promise: afterwards `requires_grad` marks exactly what trains, the head included, and the convolutional
feature encoder is frozen for real, without a graph through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import peft
from torch import nn

from peft_audio.config import LoraConfig, UserError
from peft_audio.models import Anatomy, anatomy_of, quiet_loading


@dataclass(frozen=True)
class Trained:
    """What a strategy left trainable, and how it is to be run and saved.

    Attributes:
        strategy: Its name in reports: "lora", "head_only", "full".
        parameters: Names of the parameters that train.
        head: Those of them that belong to the fresh head, which may learn at a rate of its own.
        modules: Modules that run in train mode while training; all others stay in eval mode.
    """

    strategy: str
    parameters: tuple[str, ...]
    head: tuple[str, ...]
    modules: tuple[str, ...]


def apply_lora(model: Any, cfg: LoraConfig) -> tuple[Any, Trained]:
    """Add LoRA to linear layers of the transformer; they and the head train.

    The output of a changed layer is `W x + (alpha / r) B A x` (Hu et al., 2021, arXiv 2106.09685).

    Args:
        model: What `load_classifier` gives.
        cfg: Rank, scale and places.

    Returns:
        The model wrapped by PEFT, and what trains in it.

    Raises:
        UserError: The encoder has no such linear layers, or not so many transformer layers.
    """
    anatomy = anatomy_of(model.config.model_type)
    _freeze_convolutions(model)
    peft_config = peft.LoraConfig(
        # SEQ_CLS would save `classifier` and lose `projector`; naming both keeps the whole head.
        task_type=None,
        r=cfg.r,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        target_modules=_targets(anatomy, cfg),
        layers_to_transform=_layer_numbers(model.config.num_hidden_layers, cfg),
        layers_pattern=None if cfg.layers is None else anatomy.layers.rsplit(".", 1)[-1],
        modules_to_save=list(anatomy.head),
        use_dora=cfg.use_dora,
        use_rslora=cfg.use_rslora,
    )
    with quiet_loading():
        model = peft.get_peft_model(model, peft_config)
    return model, _trained("lora", model, anatomy)


def freeze_all_but_head(model: Any) -> tuple[Any, Trained]:
    """Only the fresh head trains, on a fixed encoder (a linear probe with one hidden projection)."""
    anatomy = anatomy_of(model.config.model_type)
    _freeze_convolutions(model)
    getattr(model, anatomy.encoder).requires_grad_(False)
    return model, _trained("head_only", model, anatomy)


def freeze_convolutions_only(model: Any) -> tuple[Any, Trained]:
    """Everything trains but the convolutional feature encoder, as wav2vec 2.0 is fine-tuned (Baevski et al., 2020)."""
    anatomy = anatomy_of(model.config.model_type)
    _freeze_convolutions(model)
    _freeze_mask_vector(model)
    return model, _trained("full", model, anatomy)


def freeze_nothing(model: Any) -> tuple[Any, Trained]:
    """Everything trains, the convolutional feature encoder too: what a network from random weights needs."""
    anatomy = anatomy_of(model.config.model_type)
    _freeze_mask_vector(model)
    return model, _trained("full", model, anatomy)


def _freeze_mask_vector(model: nn.Module) -> None:
    # Only SpecAugment reads this vector, and it is off: it would never get a gradient.
    for name, parameter in model.named_parameters():
        if name.endswith("masked_spec_embed"):
            parameter.requires_grad_(False)


def _freeze_convolutions(model: Any) -> None:
    # Frozen weights are not enough: while its private flag is set, the feature encoder sets requires_grad on its
    # input, and autograd walks the whole of it.
    model.freeze_feature_encoder()


def _trained(strategy: str, model: nn.Module, anatomy: Anatomy) -> Trained:
    parameters = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    head = tuple(name for name in parameters if set(name.split(".")) & set(anatomy.head))
    return Trained(strategy, parameters, head, _train_mode_modules(model))


def _train_mode_modules(model: nn.Module) -> tuple[str, ...]:
    """Modules whose weights all train, with all that is inside (a dropout owns no weights), and LoRA's dropouts."""
    trains = set()
    for name, module in model.named_modules():
        weights = list(module.parameters())
        whole = bool(weights) and all(weight.requires_grad for weight in weights)
        if whole or "lora_dropout" in name.split(".") or name.rpartition(".")[0] in trains:
            trains.add(name)
    return tuple(sorted(trains))


def _targets(anatomy: Anatomy, cfg: LoraConfig) -> list[str]:
    groups = {
        "all-linear": anatomy.attention + anatomy.feed_forward,
        "attention": anatomy.attention,
        "feed-forward": anatomy.feed_forward,
    }
    if isinstance(cfg.targets, str):
        return sorted(groups[cfg.targets])
    unknown = sorted(set(cfg.targets) - set(groups["all-linear"]))
    if unknown:
        raise UserError(
            f"--lora.targets: got {', '.join(unknown)}, must be among {', '.join(groups['all-linear'])}, "
            "or one of all-linear, attention, feed-forward. Correct the list."
        )
    return sorted(set(cfg.targets))


def _layer_numbers(count: int, cfg: LoraConfig) -> list[int] | None:
    if cfg.layers is not None and max(cfg.layers) >= count:
        raise UserError(
            f"--lora.layers: got {max(cfg.layers)}, must be 0 to {count - 1}: the encoder has {count} layers. "
            "Correct the list, or leave it out for all."
        )
    return None if cfg.layers is None else sorted(set(cfg.layers))
