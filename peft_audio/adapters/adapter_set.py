"""Load many adapters on one base; switch them by name, or run all of them in one pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from accelerate.utils import send_to_device
from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from peft_audio.adapters.files import WEIGHTS
from peft_audio.adapters.hub import fetch_adapter
from peft_audio.adapters.load import (
    LOADING_TOLERANCE,
    Adapter,
    base_rate,
    check_fits,
    check_peft_files,
    load_base,
    model_inputs,
    move_to,
    read_extractor,
)
from peft_audio.adapters.probes import check_answers
from peft_audio.adapters.record import AdapterRecord, read_record
from peft_audio.config import ModelConfig
from peft_audio.encoders.base import LAYER_WEIGHTS, Cut
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import Base, classifier_settings, quiet_loading
from peft_audio.errors import UserError, library_problem
from peft_audio.feature_cache.cut import find_cut
from peft_audio.strategies.base import PEFT_PREFIX, Trainable
from peft_audio.strategies.bias_only import mark_biases

# A module of the base and one of its attributes, which holds a weight or, if PEFT wraps a layer, a module.
Place = tuple[nn.Module, str]


@dataclass(frozen=True)
class Wrapping:
    """Layers that a PEFT config puts around layers of the base, without weights.

    Adapters with the same config share them, and differ in the weights at their places.

    Attributes:
        layers: Layers of PEFT, by the place of the layer that they wrap.
        weights: Places of an adapter's weights, by their names in its file.
        shapes: Shapes of these weights, by their names in the file.
        paths: Names of these weights in the model, by their names in the file.
    """

    layers: dict[Place, nn.Module]
    weights: dict[str, Place]
    shapes: dict[str, torch.Size]
    paths: dict[str, str]


# Wrappings in use, by config.
Wrappings = WeakValueDictionary[str, Wrapping]


@dataclass(frozen=True)
class Parts:
    """Weights and settings that make an adapter of the shared base.

    Attributes:
        wrapping: Layers of PEFT that the adapter needs.
        values: Weights and layers that replace those of the base, by place.
        settings: Values of the model's config, including the labels.
        changed: Names of the replaced or added weights in the model.
    """

    wrapping: Wrapping
    values: dict[Place, Any]
    settings: dict[str, Any]
    changed: tuple[str, ...]


def read_parts(folder: Path, record: AdapterRecord, model: Any, wrappings: Wrappings, device: str) -> Parts:
    """Read the weights of an adapter and find their places in a model, which does not change.

    Args:
        folder: Adapter directory.
        record: Record of the adapter.
        model: Classifier on the adapter's base without an adapter; its head can be for other labels.
        wrappings: Wrappings made so far, by config; a new one is added.
        device: Device of the weights.

    Raises:
        UserError: A part is missing, damaged, or has another shape.
    """
    check_peft_files(folder)
    try:
        with quiet_loading():
            config = PeftConfig.from_pretrained(str(folder))
            stored = {name.removeprefix(PEFT_PREFIX): value for name, value in load_file(folder / WEIGHTS).items()}
            wrapping = _wrapping(config, folder, model, wrappings)
    except Exception as error:  # PEFT raises many types of errors for unexpected settings
        raise UserError(f"{folder}: cannot be loaded as a PEFT adapter ({library_problem(error)}).") from error
    with _as_trained(model, record):
        own = {name: weight.shape for name, weight in model.named_parameters()}
        statistics = {name for name, _ in model.named_buffers()}
        whole = set(_whole_names(config, record, model))
        last = f"{family_of(model.config).head_layers[-1]}."
        # The last layer of the shared model has the labels of another adapter.
        shapes = {name: _with_labels(own[name], len(record.labels) * name.startswith(last)) for name in whole}
    shapes |= wrapping.shapes
    # Statistics of batch norms are those of the base, which no strategy changes.
    stored = {name: value for name, value in stored.items() if name not in statistics}
    if shapes.keys() != stored.keys():
        wrong = sorted(shapes.keys() ^ stored.keys())
        raise UserError(
            f"{folder}/{WEIGHTS}: {len(wrong)} weights are missing or unknown, {PEFT_PREFIX}{wrong[0]} first."
        )
    values: dict[Place, Any] = dict(wrapping.layers)
    for name, value in stored.items():
        if value.shape != shapes[name]:
            given, expected = tuple(value.shape), tuple(shapes[name])
            raise UserError(
                f"{folder}/{WEIGHTS}: {PEFT_PREFIX}{name} has shape {given}, expected {expected}; get the adapter "
                "again."
            )
        # A copy, so that the file can change or be removed.
        weight = nn.Parameter(value.to(device, torch.float32, copy=True), requires_grad=False)
        values[wrapping.weights.get(name) or _place(model, name)] = weight
    cfg = ModelConfig(layer_weighted_sum=record.layer_weighted_sum)
    settings = classifier_settings(cfg, record.labels, family_of(model.config))
    return Parts(wrapping, values, settings, tuple(wrapping.paths.get(name, name) for name in sorted(stored)))


def _wrapping(config: PeftConfig, folder: Path, model: Any, wrappings: Wrappings) -> Wrapping:
    """Return the wrapping of a PEFT config, made from the model if it is new."""
    if getattr(config, "init_lora_weights", True) is not True or getattr(config, "layer_replication", None):
        raise ValueError("its config changes the base, which other adapters share; use load_adapter")
    # Modules that train whole are handled without PEFT, whose copies would have the shapes of the shared head.
    config = copy(config)
    config.modules_to_save, config.inference_mode = None, True  # type: ignore[attr-defined]
    if hasattr(config, "bias"):
        config.bias = "none"
    about = config.to_dict() | dict.fromkeys(("base_model_name_or_path", "revision", "auto_mapping", "peft_version"))
    # The order of sets differs between adapters, so they are sorted.
    key = repr(sorted((name, sorted(value) if isinstance(value, set) else value) for name, value in about.items()))
    wrapping = wrappings.get(key)
    if wrapping is None:
        wrapping = wrappings[key] = _wrap(config, model)
    return wrapping


def _wrap(config: PeftConfig, model: Any) -> Wrapping:
    """Wrap the layers of the model by PEFT, collect the wrapping, and restore the model."""
    before = dict(model.named_modules())
    try:
        # The meta device needs no memory and no random numbers, and fails for weights that are not replaced.
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
    """Return the names of the layers of PEFT in a model."""
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _place(model: nn.Module, name: str) -> Place:
    """Return the place of a weight or module by its name."""
    owner, _, attribute = name.rpartition(".")
    return model.get_submodule(owner), attribute


@contextmanager
def _as_trained(model: Any, record: AdapterRecord) -> Iterator[None]:
    """Add a mixture of layers to the model during the block if the adapter has one."""
    if record.layer_weighted_sum:
        layers = family_of(model.config).layer_count(model.config)
        setattr(model, LAYER_WEIGHTS, nn.Parameter(torch.empty(layers + 1, device="meta")))
    try:
        yield
    finally:
        if record.layer_weighted_sum:
            delattr(model, LAYER_WEIGHTS)


def _whole_names(config: PeftConfig, record: AdapterRecord, model: Any) -> Iterator[str]:
    """Yield the names of weights of the base that the adapter replaces."""
    if record.layer_weighted_sum:
        yield LAYER_WEIGHTS
    if record.strategy == "bias_only":
        yield from mark_biases(model)
    # PEFT also matches the end of a name. With bias_only it lists all biases, more than those that train. The head
    # always belongs to the adapter.
    listed = () if record.strategy == "bias_only" else getattr(config, "modules_to_save", None) or ()
    ends = (*listed, *family_of(model.config).head)
    modules = tuple(f"{name}." for name, _ in model.named_modules() if name.endswith(ends))
    yield from (name for name, _ in model.named_parameters() if name.startswith(modules))


def _with_labels(shape: torch.Size, labels: int) -> torch.Size:
    """Replace the first dimension of a shape by the number of labels, unless that is 0."""
    return torch.Size((labels, *shape[1:])) if labels else shape


def replace_values(values: Mapping[Place, Any], own: Mapping[Place, Any], before: Mapping[Place, Any] | None) -> None:
    """Set the values at places of the base, without copying.

    Args:
        values: New values by place; other places get the values of the base.
        own: Values of the base by place; None if the base has no value there.
        before: Current values by place; None if unknown, so that all places are set.
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


def load_adapters(adapters: Mapping[str, str | Path], base: str | None = None, device: str = "cpu") -> AdapterSet:
    """Load several adapters of one base, and the base once.

    `load_adapters({"digits": "runs/lora/adapter", "animals": "org/esc10"})["digits"]` is an adapter like that of
    `load_adapter` without merging. Each call puts the adapter's weights into the shared base.

    Args:
        adapters: Directory made by a recipe, or `org/name` on the Hub, for each name.
        base: Folder or Hub id of the base encoder, if the one recorded by the first adapter is no longer valid.
        device: Device, such as "cpu" or "cuda".

    Raises:
        UserError: `adapters` is empty, an adapter cannot be loaded, or adapters have different bases.
    """
    if not adapters:
        raise UserError("load_adapters: got no adapters; give at least one, such as {'digits': 'runs/lora/adapter'}.")
    fetched = {name: _fetch(name, where, None) for name, where in adapters.items()}
    first, (folder, record) = next(iter(fetched.items()))
    for name, (_, other) in fetched.items():
        _check_same_base(name, other, first, record.base)
    model, config = load_base(folder, replace(record, layer_weighted_sum=False), base)
    model, rate = move_to(model, device).eval(), base_rate(config)
    loaded = AdapterSet(model, replace(record.base, name=config.name), rate, device)
    for name, (folder, record) in fetched.items():
        loaded._add(name, folder, record)
    return loaded


@dataclass(frozen=True)
class _Member:
    """Adapter of a set, with its parts and the cut before its first changed layer."""

    adapter: Adapter
    parts: Parts
    cut: Cut


class AdapterSet:
    """Adapters on one base, see `load_adapters`.

    The model holds one adapter at a time. Each call of `adapters[name]` puts its weights into the model under a lock,
    so that several threads can use several adapters. The weights of the base never change.
    """

    def __init__(self, model: Any, base: Base, rate: int | None, device: str) -> None:
        self.base = base
        self._model, self._rate, self._device = model, rate, device
        self._members: dict[str, _Member] = {}
        self._wrappings = Wrappings()
        self._own: dict[Place, Any] = {}
        settings = classifier_settings(ModelConfig(), ["any", "other"], family_of(model.config))
        self._plain = Parts(Wrapping({}, {}, {}, {}), {}, settings, ())
        # None during a change, and afterwards if the change was interrupted.
        self._active: Parts | None = self._plain
        self._lock = RLock()

    def __getitem__(self, name: str) -> Adapter:
        """Return the adapter of a name, for `predict` or its method `logits`."""
        return self._member(name).adapter

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def load(self, name: str, where: str | Path, revision: str | None = None) -> Adapter:
        """Load another adapter onto the base.

        Args:
            name: Name of the adapter in the set.
            where: Directory made by a recipe, or `org/name` on the Hub.
            revision: Branch, tag or commit of an adapter on the Hub.

        Raises:
            UserError: The name is in use, the adapter cannot be loaded, or it is for another base.
        """
        folder, record = _fetch(name, where, revision)
        _check_same_base(name, record, "the adapters here", self.base)
        self._add(name, folder, record)
        return self[name]

    def _add(self, name: str, folder: Path, record: AdapterRecord) -> None:
        """Load an adapter and check its logits; after an error, the set is as before."""
        extractor = read_extractor(folder, record)
        # Older versions of PEFT and transformers draw random numbers; the fork keeps the state of the user's generator.
        with self._lock, torch.random.fork_rng(devices=[]):
            if name in self._members:
                raise UserError(f"an adapter named {name!r} is loaded; use another name, or unload it first.")
            check_fits(folder, record, self._model, self._rate)
            self._activate(self._plain)
            try:
                self._members[name] = self._try(name, folder, record, extractor)
            except BaseException:
                self._activate(self._plain)
                self._forget_places()
                raise

    def _try(self, name: str, folder: Path, record: AdapterRecord, extractor: Any) -> _Member:
        """Put a new adapter into the plain base, and check its logits on a probe clip."""
        parts = read_parts(folder, record, self._model, self._wrappings, self._device)
        for owner, attribute in parts.values:
            self._own.setdefault((owner, attribute), getattr(owner, attribute, None))
        self._activate(parts)
        trained = Trainable(record.strategy, parts.changed, head=(), modules=(), peft_config=None)
        cut = find_cut(self._model, trained, masked=False, head_dropout=False)
        assert cut is not None, "no adapter changes the convolutions"
        adapter = Adapter(_Switched(self, name, parts), extractor, record, folder)
        problems = check_answers(adapter, LOADING_TOLERANCE, count=1)
        if problems:
            raise UserError(f"{folder} does not answer as recorded ({problems[0]}); see: peft-audio verify {folder}")
        return _Member(adapter, parts, cut)

    def unload(self, name: str) -> None:
        """Remove an adapter and free its memory.

        Raises:
            UserError: No adapter has this name.
        """
        with self._lock:
            parts = self._member(name).parts
            self._activate(self._plain)
            del self._members[name]
            # Variables of the user can still refer to the adapter, but must not keep its weights.
            parts.values.clear()
            self._forget_places()

    def _forget_places(self) -> None:
        """Drop places without a value of an adapter; the plain base must be active."""
        used = {place for member in self._members.values() for place in member.parts.values}
        self._own = {place: value for place, value in self._own.items() if place in used}

    def switch(self, name: str) -> None:
        """Put an adapter into the model in advance; calls of `adapters[name]` do so themselves.

        Raises:
            UserError: No adapter has this name.
        """
        with self._lock:
            self._activate(self._member(name).parts)

    def logits_of_all(
        self, waveforms: Sequence[np.ndarray], names: Iterable[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Compute the logits of a batch of clips with each adapter, equal within 1e-5 to those of the adapter alone.

        The layers of the base before the cuts of the adapters run once. Each adapter runs the layers after its own cut:
        only the head, the last layers, or with LoRA all from the first changed layer.

        Args:
            waveforms: float32 of shape (samples,) each, mono, at the sampling rate of the base.
            names: Names of the adapters; all by default.

        Returns:
            Logits by name, float32 of shape (clips, labels), in the order of the adapter's labels.

        Raises:
            UserError: No adapter has such a name, or the sampling rates of adapters differ.
        """
        # The lock prevents unloading until the end.
        with self._lock, torch.inference_mode():
            selected = list(self) if names is None else list(names)
            members = {name: self._member(name) for name in selected}
            rates = sorted({member.adapter.record.sampling_rate for member in members.values()})
            if len(rates) > 1:
                raise UserError(
                    f"adapters of {rates[0]} and {rates[-1]} Hz cannot use the same clips; run them separately."
                )
            # Adapters of one base can have extractors that normalise differently.
            groups: dict[str, dict[str, _Member]] = {}
            for name, member in members.items():
                key = json.dumps(member.adapter.extractor.to_dict(), sort_keys=True, default=str)
                groups.setdefault(key, {})[name] = member
            logits: dict[str, np.ndarray] = {}
            for group in groups.values():
                one = next(iter(group.values())).adapter
                inputs, samples = model_inputs(waveforms, one.extractor, self._model.config)
                inputs, samples = send_to_device((inputs, samples), self._device)
                outputs = self._run_all(inputs, samples, group)
                logits |= {name: output.float().cpu().numpy() for name, output in outputs.items()}
            return {name: logits[name] for name in selected}

    def _run_all(
        self, inputs: dict[str, torch.Tensor], samples: torch.Tensor | None, members: dict[str, _Member]
    ) -> dict[str, torch.Tensor]:
        """Compute the logits of each adapter, with one pass through the shared layers."""
        model, outputs = self._model, {}
        family = family_of(model.config)
        # States from which the layers of each adapter start; several if a weighted sum of layers is pooled.
        by_cut: dict[tuple[Cut, tuple[Cut, ...]], dict[str, Parts]] = {}
        for name, member in members.items():
            cut = member.cut
            states = family.pooled_states(cut, member.adapter.model.config) if cut.pooled else (cut,)
            by_cut.setdefault((cut, states), {})[name] = member.parts
        self._activate(self._plain)
        values = family.run_prefixes(model, inputs, {state for _, states in by_cut for state in states})
        for (cut, states), group in by_cut.items():
            if cut.pooled:
                pooled = family.pool(model, [values[state] for state in states], samples)
                for name, parts in group.items():
                    self._activate(parts)
                    outputs[name] = family.classify_pooled(model, pooled)
                continue
            undo = family.accept_features(model, cut)
            try:
                for name, parts in group.items():
                    self._activate(parts)
                    outputs[name] = model(features=values[cut], samples=samples).logits
            finally:
                undo()
        return outputs

    def _member(self, name: str) -> _Member:
        """Return the adapter of a name."""
        if name not in self._members:
            known = ", ".join(self._members) or "none"
            raise UserError(f"no adapter named {name!r} is loaded; loaded: {known}.")
        return self._members[name]

    def _activate(self, parts: Parts) -> None:
        """Put the parts of an adapter into the shared model."""
        if parts is not self._active:
            before, self._active = self._active, None
            replace_values(parts.values, self._own, None if before is None else before.values)
            self._model.config.update(parts.settings)
            self._active = parts


@dataclass(frozen=True)
class _Switched:
    """Shared model with the weights of one adapter, which are put in before every call."""

    adapters: AdapterSet
    name: str
    parts: Parts

    def __call__(self, **inputs: torch.Tensor) -> Any:
        adapters = self.adapters
        with adapters._lock:
            if not self.parts.values:
                raise UserError(f"the adapter {self.name!r} was unloaded; load it again.")
            adapters._activate(self.parts)
            return adapters._model(**inputs)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the shared model, from which callers read the device."""
        return self.adapters._model.parameters()

    def eval(self) -> _Switched:
        """Return self, because the shared model is always in eval mode."""
        return self

    @property
    def config(self) -> Any:
        """Return the config of the shared model with the labels of this adapter."""
        config = copy(self.adapters._model.config)
        config.update(self.parts.settings)
        return config


def _fetch(name: str, where: str | Path, revision: str | None) -> tuple[Path, AdapterRecord]:
    """Return the folder and record of an adapter, fetched from the Hub if necessary."""
    folder = fetch_adapter(where, revision)
    record = read_record(folder)
    if record.whole:
        raise UserError(f"{name} ({where}) is a whole model without a shared base; load it with load_adapter.")
    return folder, record


def _check_same_base(name: str, record: AdapterRecord, others: str, base: Base) -> None:
    """Check that an adapter is for the given base."""
    if record.base.sha256 != base.sha256:
        raise UserError(
            f"{name} is for another base than {others}: {record.base.name} (weights {record.base.sha256[:12]}), not "
            f"{base.name} (weights {base.sha256[:12]}). A set needs one base; load this adapter with load_adapter."
        )
