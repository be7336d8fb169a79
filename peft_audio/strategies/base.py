"""Which weights train. Each strategy is a function that a recipe calls on one line.

Their shared promise: afterwards `requires_grad` marks exactly what trains, the head included, and the convolutional
feature encoder is frozen for real, without a graph through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import peft
import torch
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from peft_audio.config import FullConfig, LastNLayersConfig, LoraConfig
from peft_audio.encoders.base import LAYER_WEIGHTS, EncoderFamily
from peft_audio.encoders.family import encoder_of, family_of
from peft_audio.encoders.loading import quiet_loading
from peft_audio.errors import UserError

PEFT_PREFIX = "base_model.model."  # of every name in PEFT's files


@dataclass(frozen=True)
class Trainable:
    """What a strategy left trainable, and how it is to be run and saved.

    Attributes:
        strategy: Its name in reports: that of its recipe, such as "lora".
        parameters: Names of the parameters that train.
        head: Those of them that belong to the fresh head, which may learn at a rate of its own.
        modules: Modules that run in train mode while training; all others stay in eval mode.
        peft_config: In whose form what trains is saved; None where the whole model is saved in transformers' form.
    """

    strategy: str
    parameters: tuple[str, ...]
    head: tuple[str, ...]
    modules: tuple[str, ...]
    peft_config: peft.PeftConfig | None


def set_modes(model: nn.Module, trained: Trainable, frozen_dropout: bool = False) -> None:
    """Train mode for what trains, eval mode for what is frozen; the only place that decides.

    Dropout in a frozen part costs time, and what it disturbs cannot adapt to it.

    Args:
        model: What a strategy returned.
        trained: What trains in it.
        frozen_dropout: Train mode for all of it, as transformers' Trainer does.
    """
    model.train(frozen_dropout)
    for name in trained.modules:
        model.get_submodule(name).training = True


def apply_lora(model: Any, cfg: LoraConfig) -> tuple[Any, Trainable]:
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
    family = family_of(model.config)
    family.freeze_stem(model)
    peft_config = peft.LoraConfig(
        # SEQ_CLS would save `classifier` and lose `projector`; naming both keeps the whole head.
        task_type=None,
        r=cfg.r,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        target_modules=_targets(family, cfg),
        layers_to_transform=_layer_numbers(family.layer_count(model.config), cfg),
        layers_pattern=None if cfg.layers is None else family.layers.rsplit(".", 1)[-1],
        modules_to_save=list(family.head),
        use_dora=cfg.use_dora,
        use_rslora=cfg.use_rslora,
    )
    adapted = _wrapped(model, peft_config)
    return adapted, describe_trained("lora", adapted, family, peft_config)


def apply_ia3(model: Any) -> tuple[Any, Trainable]:
    """Scale keys, values and the feed-forward block's inner activations by learned vectors; they and the head train.

    IA3 (Liu et al., 2022, arXiv 2205.05638). Where the attention ignores adapters, as WavLM's does, the feed-forward
    block alone is scaled.

    Args:
        model: What `load_classifier` gives.

    Returns:
        The model wrapped by PEFT, and what trains in it.
    """
    family = family_of(model.config)
    family.freeze_stem(model)
    peft_config = peft.IA3Config(
        target_modules=sorted(family.ia3_targets),
        # The input of these layers is scaled, not their output.
        feedforward_modules=list(family.ia3_feed_forward),
        modules_to_save=list(family.head),
    )
    adapted = _wrapped(model, peft_config)
    return adapted, describe_trained("ia3", adapted, family, peft_config)


def freeze_all_but_head(model: Any) -> tuple[Any, Trainable]:
    """Only the fresh head trains, on a fixed encoder (a linear probe with one hidden projection)."""
    family = family_of(model.config)
    family.freeze_stem(model)
    encoder_of(model).requires_grad_(False)
    return model, describe_trained("head_only", model, family, _whole_modules(family.head))


def freeze_all_but_biases(model: Any) -> tuple[Any, Trainable]:
    """All biases train, those of layer norms included, and the head (BitFit; Ben Zaken et al., 2022, arXiv 2106.10199).

    The convolutional feature encoder stays frozen, with its biases.
    """
    family = family_of(model.config)
    encoder_of(model).requires_grad_(False)
    unused = family.unused_parameters(model)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") and name not in unused:
            parameter.requires_grad_(True)
    family.freeze_stem(model)
    # In this form, PEFT writes biases of the base into an adapter's file, and reads them from there.
    return model, describe_trained("bias_only", model, family, _whole_modules(family.head, bias="all"))


def freeze_all_but_last_n_layers(model: Any, cfg: LastNLayersConfig) -> tuple[Any, Trainable]:
    """The last layers of the transformer and the head train.

    Args:
        model: What `load_classifier` gives.
        cfg: How many layers, and whether the whole of each or its attention.

    Returns:
        The model, and what trains in it. The layer norm after the last layer, where there is one, stays frozen.

    Raises:
        UserError: The encoder has not so many layers.
    """
    family = family_of(model.config)
    count = family.layer_count(model.config)
    if cfg.n > count:
        raise UserError(
            f"--last_n_layers.n: got {cfg.n}, must be 1 to {count}: the encoder has {count} layers. "
            "Lower it, or use recipes/full.py."
        )
    family.freeze_stem(model)
    encoder = encoder_of(model)
    encoder.requires_grad_(False)
    names = [f"{family.layers}.{i}" for i in range(count - cfg.n, count)]
    if cfg.part == "attention":
        names = [f"{name}.{family.attention_block}" for name in names]
    for name in names:
        encoder.get_submodule(name).requires_grad_(True)
    return model, describe_trained("last_n_layers", model, family, _whole_modules((*family.head, *names)))


def freeze_nothing(model: Any, cfg: FullConfig) -> tuple[Any, Trainable]:
    """Everything trains; the convolutional feature encoder only if `cfg` says so.

    Frozen convolutions are how wav2vec 2.0 is fine-tuned (Baevski et al., 2020); a network from random weights needs
    them trained.
    """
    family = family_of(model.config)
    if not cfg.train_cnn:
        family.freeze_stem(model)
    unused = family.unused_parameters(model)
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
    return model, describe_trained("full", model, family, None, unused)


def peft_weights(model: Any, trained: Trainable) -> dict[str, torch.Tensor]:
    """What trains, under the names that it has in PEFT's files.

    Modules that train whole are trained in the plain model: PEFT's form would keep a second, frozen copy of each.
    """
    weights = dict(model.named_parameters())
    if not hasattr(model, "get_base_model"):
        return {f"{PEFT_PREFIX}{name}": weights[name].detach() for name in trained.parameters}
    mixture = {name: weights[name].detach() for name in trained.parameters if name.endswith(LAYER_WEIGHTS)}
    return peft.get_peft_model_state_dict(model, save_embedding_layers=False) | mixture


def _wrapped(model: Any, peft_config: peft.PeftConfig) -> Any:
    with quiet_loading():
        adapted = peft.get_peft_model(model, peft_config)
    if hasattr(model, LAYER_WEIGHTS):
        # PEFT's modules_to_save passes over a parameter that is no module, and leaves it frozen.
        model.layer_weights.requires_grad_(True)
    return adapted


def _whole_modules(names: Sequence[str], bias: Literal["none", "all"] = "none") -> peft.LoraConfig:
    """PEFT's form for modules that are saved as they are, without LoRA in any layer."""
    # PEFT wants a target to change, and lets pass that this one matches nothing.
    return peft.LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=list(names), bias=bias)


def describe_trained(
    strategy: str,
    model: nn.Module,
    family: EncoderFamily,
    peft_config: peft.PeftConfig | None,
    unused: Sequence[str] = (),
) -> Trainable:
    """What `requires_grad` marks in a model, as a record."""
    parameters = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    head = tuple(name for name in parameters if set(name.split(".")) & {*family.head, LAYER_WEIGHTS})
    return Trainable(strategy, parameters, head, _train_mode_modules(model, unused), peft_config)


def _train_mode_modules(model: nn.Module, unused: Sequence[str]) -> tuple[str, ...]:
    """Modules whose weights all train, and layers with LoRA, each with all that is inside: a dropout owns no weights.

    The frozen linear layer inside a LoRA layer has no mode of its own; a quantised one then takes its training path,
    and DoRA asks the whole layer whether to drop out.
    """
    trains = set()
    for name, module in model.named_modules():
        weights = [weight for path, weight in module.named_parameters() if f"{name}.{path}" not in unused]
        whole = bool(weights) and all(weight.requires_grad for weight in weights)
        if whole or hasattr(module, "lora_dropout") or name.rpartition(".")[0] in trains:
            trains.add(name)
    return tuple(sorted(trains))


def _targets(family: EncoderFamily, cfg: LoraConfig) -> list[str]:
    groups = {
        "all-linear": family.lora_targets,
        "attention": family.attention,
        "feed-forward": family.feed_forward,
    }
    wanted = set(groups[cfg.targets] if isinstance(cfg.targets, str) else cfg.targets)
    unknown = sorted(wanted - set(family.lora_targets))
    if unknown:
        why = "" if family.lora_reaches_attention else f" ({family.examples}'s attention ignores LoRA)"
        raise UserError(
            f"--lora.targets: got {', '.join(unknown)}, must be among {', '.join(family.lora_targets)}{why}, "
            "or a group of them such as all-linear. Correct the list."
        )
    return sorted(wanted)


def _layer_numbers(count: int, cfg: LoraConfig) -> list[int] | None:
    if cfg.layers is not None and max(cfg.layers) >= count:
        raise UserError(
            f"--lora.layers: got {max(cfg.layers)}, must be 0 to {count - 1}: the encoder has {count} layers. "
            "Correct the list, or leave it out for all."
        )
    return None if cfg.layers is None else sorted(set(cfg.layers))
