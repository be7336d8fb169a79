"""Describe, run and save the trained parameters of all strategies.

A strategy is a function `(model, setup) -> (model, Trainable)`. In its result, `requires_grad` marks exactly the
parameters that train, including the head. No graph is built through a frozen convolutional feature encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from peft_audio.encoders.base import LAYER_WEIGHTS, EncoderFamily
from peft_audio.tasks import task_of
from peft_audio.tasks.task import Task

if TYPE_CHECKING:
    import peft
    import torch
    from accelerate import Accelerator
    from torch import nn

    from peft_audio.data.loaders import Loaders

PEFT_PREFIX = "base_model.model."  # of all names in files of PEFT


@dataclass(frozen=True)
class Setup:
    """Parts of a run that a strategy can use.

    Attributes:
        family: Family of the encoder.
        cfg: Settings of the run; a strategy reads its own section.
        task: Task of the classifier.
        loaders: Batches of clips; None if no clips are read.
        accelerator: Processes and device of the run; None if no clips are read.
    """

    family: EncoderFamily
    cfg: Any
    task: Task = field(default_factory=task_of)
    loaders: Loaders | None = None
    accelerator: Accelerator | None = None


@dataclass(frozen=True)
class Trainable:
    """Parameters that a strategy trains, and the form in which they run and are saved.

    Attributes:
        strategy: Name of the strategy in reports, such as "lora".
        parameters: Names of the parameters that train.
        head: Names of the trained parameters of the new head, which can have its own learning rate.
        modules: Names of modules that run in train mode during training; all others stay in eval mode.
        peft_config: PEFT config of the saved adapter; None if the whole model is saved, in the form of transformers.
    """

    strategy: str
    parameters: tuple[str, ...]
    head: tuple[str, ...]
    modules: tuple[str, ...]
    peft_config: peft.PeftConfig | None


def set_modes(model: nn.Module, trained: Trainable, frozen_dropout: bool = False) -> None:
    """Set train mode for modules that train and eval mode for frozen ones. No other function sets modes.

    Dropout in a frozen part costs time, and frozen weights cannot adapt to it. Batch norms stay in eval mode: their
    statistics would make a clip's logits depend on the other clips of its step.

    Args:
        model: Model that a strategy returned.
        trained: Parameters and modules that train.
        frozen_dropout: Whether all modules run in train mode, as in the Trainer of transformers.
    """
    model.train(frozen_dropout)
    for name in trained.modules:
        model.get_submodule(name).training = True
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.training = False


def peft_weights(model: Any, trained: Trainable) -> dict[str, torch.Tensor]:
    """Collect the trained weights under their names in files of PEFT.

    Strategies that train whole modules do so without PEFT, which would keep a second, frozen copy of each. PEFT also
    expects the buffers of these modules, such as the statistics of batch norms.
    """
    import peft

    weights = dict(model.named_parameters())
    if not hasattr(model, "get_base_model"):
        whole = tuple(f"{name}." for name in trained.modules)
        buffers = [name for name in model.state_dict().keys() - weights if name.startswith(whole)]
        state = weights | dict(model.named_buffers())
        return {f"{PEFT_PREFIX}{name}": state[name].detach() for name in (*trained.parameters, *sorted(buffers))}
    mixture = {name: weights[name].detach() for name in trained.parameters if name.endswith(LAYER_WEIGHTS)}
    return peft.get_peft_model_state_dict(model, save_embedding_layers=False) | mixture


def wrap_in_peft(model: Any, peft_config: peft.PeftConfig) -> Any:
    """Add an adapter to a model, in which the adapter, the head and the layer weights train."""
    import peft

    from peft_audio.encoders.loading import quiet_loading

    with quiet_loading():
        adapted = peft.get_peft_model(model, peft_config)
    if hasattr(model, LAYER_WEIGHTS):
        # modules_to_save of PEFT ignores parameters that are not modules.
        model.layer_weights.requires_grad_(True)
    return adapted


def save_whole_modules(names: Sequence[str], bias: Literal["none", "all"] = "none") -> peft.LoraConfig:
    """Make a PEFT config that saves whole modules and adds no LoRA."""
    import peft
    from peft.utils.constants import DUMMY_TARGET_MODULES

    # PEFT requires a target, and accepts this one although it matches nothing.
    return peft.LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=list(names), bias=bias)


def describe_trained(
    strategy: str,
    model: nn.Module,
    family: EncoderFamily,
    peft_config: peft.PeftConfig | None,
    unused: Sequence[str] = (),
) -> Trainable:
    """Describe the parameters that `requires_grad` marks in a model."""
    parameters = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    head = tuple(name for name in parameters if set(name.split(".")) & {*family.head, LAYER_WEIGHTS})
    return Trainable(strategy, parameters, head, _train_mode_modules(model, unused), peft_config)


def _train_mode_modules(model: nn.Module, unused: Sequence[str]) -> tuple[str, ...]:
    """Name the modules whose weights all train, the layers with LoRA, and all modules inside them.

    Dropout inside them has no weights, but must run in train mode. So must the frozen linear layer inside a LoRA layer:
    a quantised layer then uses its code for training, and DoRA reads the mode of the layer.
    """
    trains = set()
    for name, module in model.named_modules():
        weights = [weight for path, weight in module.named_parameters() if f"{name}.{path}" not in unused]
        whole = bool(weights) and all(weight.requires_grad for weight in weights)
        if whole or hasattr(module, "lora_dropout") or name.rpartition(".")[0] in trains:
            trains.add(name)
    return tuple(sorted(trains))
