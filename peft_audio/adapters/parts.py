"""An adapter's own weights, and their places in a base that it shares with others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from peft_audio.adapters.files import WEIGHTS
from peft_audio.adapters.load import check_peft_files
from peft_audio.adapters.record import AdapterRecord
from peft_audio.config import ModelConfig
from peft_audio.encoders.base import LAYER_WEIGHTS
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import classifier_settings, quiet_loading
from peft_audio.errors import UserError, first_line
from peft_audio.strategies.base import PEFT_PREFIX
from peft_audio.strategies.bias_only import mark_biases

# A module of the base and one of its attributes, which holds a weight or, where PEFT wraps a layer, a module.
Place = tuple[nn.Module, str]


@dataclass(frozen=True)
class Wrapping:
    """The layers that one PEFT configuration puts around layers of the base, without weights of their own.

    Adapters of the same configuration share it: what sets them apart are the weights put into its places.

    Attributes:
        layers: PEFT's layers, by the place of what they wrap.
        weights: The places of an adapter's weights in them, by the names that they have in its file.
        shapes: Of those weights.
        paths: Their names in the model, by those in the file.
    """

    layers: dict[Place, nn.Module]
    weights: dict[str, Place]
    shapes: dict[str, torch.Size]
    paths: dict[str, str]


# Those in use, by configuration.
Wrappings = WeakValueDictionary[str, Wrapping]


@dataclass(frozen=True)
class Parts:
    """What makes an adapter of the shared base.

    Attributes:
        wrapping: PEFT's layers that it needs.
        values: What stands in which place instead of the base's own.
        settings: What the model's config says, labels among it.
        changed: Names, in the model, of the weights that are not the base's.
    """

    wrapping: Wrapping
    values: dict[Place, Any]
    settings: dict[str, Any]
    changed: tuple[str, ...]


def read_parts(folder: Path, record: AdapterRecord, model: Any, wrappings: Wrappings, device: str) -> Parts:
    """An adapter's weights from its file, each for its place; the model stays as it is.

    Args:
        folder: An adapter directory.
        record: Its record.
        model: A classifier on the adapter's base, with nothing put in; its head may be for other labels.
        wrappings: Those made so far, by configuration; a new one is added.
        device: Where the weights go.

    Raises:
        UserError: A part is missing, damaged, or of another shape.
    """
    check_peft_files(folder)
    try:
        with quiet_loading():
            config = PeftConfig.from_pretrained(str(folder))
            stored = {name.removeprefix(PEFT_PREFIX): value for name, value in load_file(folder / WEIGHTS).items()}
            wrapping = _wrapping(config, folder, model, wrappings)
    except Exception as error:  # PEFT raises nearly every kind there is at settings that it does not expect
        raise UserError(f"{folder}: cannot be loaded as a PEFT adapter ({first_line(error)}).") from error
    with _as_trained(model, record):
        own = {name: weight.shape for name, weight in model.named_parameters()}
        whole = set(_whole_names(config, record, model))
        last = f"{family_of(model.config).head[-1]}."
        # The shared model's last layer has another adapter's labels.
        shapes = {name: _with_labels(own[name], len(record.labels) * name.startswith(last)) for name in whole}
    shapes |= wrapping.shapes
    if shapes.keys() != stored.keys():
        wrong = sorted(shapes.keys() ^ stored.keys())
        raise UserError(
            f"{folder}/{WEIGHTS}: {len(wrong)} weights are missing or unknown, {PEFT_PREFIX}{wrong[0]} first."
        )
    values: dict[Place, Any] = dict(wrapping.layers)
    for name, value in stored.items():
        if value.shape != shapes[name]:
            given, wanted = tuple(value.shape), tuple(shapes[name])
            raise UserError(
                f"{folder}/{WEIGHTS}: {PEFT_PREFIX}{name} is of shape {given}, must be {wanted}; get the adapter again."
            )
        # A copy, so that the file may change or go.
        weight = nn.Parameter(value.to(device, torch.float32, copy=True), requires_grad=False)
        values[wrapping.weights.get(name) or _place(model, name)] = weight
    cfg = ModelConfig(layer_weighted_sum=record.layer_weighted_sum)
    settings = classifier_settings(cfg, record.labels, family_of(model.config))
    return Parts(wrapping, values, settings, tuple(wrapping.paths.get(name, name) for name in sorted(stored)))


def _wrapping(config: PeftConfig, folder: Path, model: Any, wrappings: Wrappings) -> Wrapping:
    if getattr(config, "init_lora_weights", True) is not True or getattr(config, "layer_replication", None):
        raise ValueError("its configuration changes the base itself, which others share: use load_adapter")
    # What is trained whole is not PEFT's matter here: its copies would have the shapes of the shared head.
    config = copy(config)
    config.modules_to_save, config.inference_mode = None, True  # type: ignore[attr-defined]
    if hasattr(config, "bias"):
        config.bias = "none"
    about = config.to_dict() | dict.fromkeys(("base_model_name_or_path", "revision", "auto_mapping", "peft_version"))
    # Sets have an order of their own in each process, but not in each adapter of one.
    key = repr(sorted((name, sorted(value) if isinstance(value, set) else value) for name, value in about.items()))
    wrapping = wrappings.get(key)
    if wrapping is None:
        wrapping = wrappings[key] = _wrap(config, model)
    return wrapping


def _wrap(config: PeftConfig, model: Any) -> Wrapping:
    """Let PEFT wrap the model's layers, and take its layers out again."""
    before = dict(model.named_modules())
    try:
        # On the meta device: no memory, no random numbers, and an error where a weight was not put in.
        inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
        model.eval()
        weights = dict(model.named_parameters())
        paths = {id(weight): name for name, weight in weights.items()}
        stored = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
        return Wrapping(
            layers={_place(model, name): model.get_submodule(name) for name in _wrapped(model)},
            weights={name: _place(model, paths[id(weight)]) for name, weight in stored.items()},
            shapes={name: weight.shape for name, weight in stored.items()},
            paths={name: paths[id(weight)] for name, weight in stored.items()},
        )
    finally:
        for name in _wrapped(model):
            owner, attribute = _place(model, name)
            setattr(owner, attribute, before[name])
        vars(model).pop("peft_config", None)


def _wrapped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _place(model: nn.Module, name: str) -> Place:
    owner, _, attribute = name.rpartition(".")
    return model.get_submodule(owner), attribute


@contextmanager
def _as_trained(model: Any, record: AdapterRecord) -> Iterator[None]:
    """The mixture of layers is a weight of the model where the adapter has one."""
    if record.layer_weighted_sum:
        layers = family_of(model.config).layer_count(model.config)
        setattr(model, LAYER_WEIGHTS, nn.Parameter(torch.empty(layers + 1, device="meta")))
    try:
        yield
    finally:
        if record.layer_weighted_sum:
            delattr(model, LAYER_WEIGHTS)


def _whole_names(config: PeftConfig, record: AdapterRecord, model: Any) -> Iterator[str]:
    """Names of the base's weights that the adapter has its own of."""
    if record.layer_weighted_sum:
        yield LAYER_WEIGHTS
    if record.strategy == "bias_only":
        yield from mark_biases(model)
    # PEFT too takes what ends so, but every bias is not what trains. The head is never the base's.
    listed = () if record.strategy == "bias_only" else getattr(config, "modules_to_save", None) or ()
    ends = (*listed, *family_of(model.config).head)
    modules = tuple(f"{name}." for name, _ in model.named_modules() if name.endswith(ends))
    yield from (name for name, _ in model.named_parameters() if name.startswith(modules))


def _with_labels(shape: torch.Size, labels: int) -> torch.Size:
    return torch.Size((labels, *shape[1:])) if labels else shape


def put(values: Mapping[Place, Any], own: Mapping[Place, Any], before: Mapping[Place, Any] | None) -> None:
    """Change what stands in the base's places; nothing is copied.

    Args:
        values: What is to stand there.
        own: What stands there in the base itself; None for nothing.
        before: What stands there now instead; None where nobody knows, so that every place is written.
    """
    for owner, attribute in (own if before is None else before).keys() - values.keys():
        value = own[owner, attribute]
        if value is not None:
            setattr(owner, attribute, value)
        elif hasattr(owner, attribute):
            delattr(owner, attribute)
    for place, value in values.items():
        if before is None or before.get(place) is not value:
            setattr(*place, value)
