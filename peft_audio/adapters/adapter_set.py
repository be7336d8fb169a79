"""Many adapters on one base: switched by name, or all asked in one pass over what they share."""

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
    """Weights and settings that make an adapter of the shared base.

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
        raise UserError(f"{folder}: cannot be loaded as a PEFT adapter ({library_problem(error)}).") from error
    with _as_trained(model, record):
        own = {name: weight.shape for name, weight in model.named_parameters()}
        statistics = {name for name, _ in model.named_buffers()}
        whole = set(_whole_names(config, record, model))
        last = f"{family_of(model.config).head[-1]}."
        # The shared model's last layer has another adapter's labels.
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


def load_adapters(adapters: Mapping[str, str | Path], base: str | None = None, device: str = "cpu") -> AdapterSet:
    """Load several adapters of one base, and the base once.

    `load_adapters({"digits": "runs/lora/adapter", "animals": "org/esc10"})["digits"]` is used as what `load_adapter`
    gives, and answers as that does without merging: for each call, its own weights are put into the shared base.

    Args:
        adapters: For each name a directory made by a recipe, or `org/name` on the Hub.
        base: Where the base encoder is now, if not where the first one's record says: a Hub id or a folder.
        device: Where to run, such as "cpu" or "cuda".

    Raises:
        UserError: There is none, one cannot be loaded, or they are not all for the same base.
    """
    if not adapters:
        raise UserError("load_adapters: got no adapters; give at least one, such as {'digits': 'runs/lora/adapter'}.")
    found = {name: _find(name, where, None) for name, where in adapters.items()}
    first, (folder, record) = next(iter(found.items()))
    for name, (_, other) in found.items():
        _check_same_base(name, other, first, record.base)
    model, config = load_base(folder, replace(record, layer_weighted_sum=False), base)
    model, rate = move_to(model, device).eval(), base_rate(config)
    loaded = AdapterSet(model, replace(record.base, name=config.name), rate, device)
    for name, (folder, record) in found.items():
        loaded._add(name, folder, record)
    return loaded


@dataclass(frozen=True)
class _Member:
    """One adapter of a set, and where the base's part of it ends."""

    adapter: Adapter
    parts: Parts
    cut: Cut


class AdapterSet:
    """Adapters on one base, see `load_adapters`.

    One at a time is in the model: `adapters[name]` puts its own in for every call, so none answers for another, not
    even from several threads. The base's own weights are never written to.
    """

    def __init__(self, model: Any, base: Base, rate: int | None, device: str) -> None:
        self.base = base
        self._model, self._rate, self._device = model, rate, device
        self._members: dict[str, _Member] = {}
        self._wrappings = Wrappings()
        self._own: dict[Place, Any] = {}
        settings = classifier_settings(ModelConfig(), ["any", "other"], family_of(model.config))
        self._plain = Parts(Wrapping({}, {}, {}, {}), {}, settings, ())
        # None while it changes, and for good where that was interrupted.
        self._inside: Parts | None = self._plain
        self._lock = RLock()

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of that name, for `predict`, or to ask for logits."""
        return self._member(name).adapter

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def load(self, name: str, where: str | Path, revision: str | None = None) -> Adapter:
        """One more adapter, onto the base that is there.

        Args:
            name: By which it is asked for.
            where: A directory made by a recipe, or `org/name` on the Hub.
            revision: On the Hub, see `hub.fetch_adapter`.

        Raises:
            UserError: The name is taken, it cannot be loaded, or it is for another base.
        """
        folder, record = _find(name, where, revision)
        _check_same_base(name, record, "the adapters here", self.base)
        self._add(name, folder, record)
        return self[name]

    def _add(self, name: str, folder: Path, record: AdapterRecord) -> None:
        extractor = read_extractor(folder, record)
        # Older versions of PEFT and transformers draw random numbers, which the user's are not to notice.
        with self._lock, torch.random.fork_rng(devices=[]):
            if name in self._members:
                raise UserError(f"an adapter called {name!r} is loaded; take another name, or unload that one first.")
            check_fits(folder, record, self._model, self._rate)
            self._put_in(self._plain)
            try:
                self._members[name] = self._try(name, folder, record, extractor)
            except BaseException:
                self._put_in(self._plain)
                self._forget_places()
                raise

    def _try(self, name: str, folder: Path, record: AdapterRecord, extractor: Any) -> _Member:
        """Put a new adapter into the plain base, and ask it."""
        parts = read_parts(folder, record, self._model, self._wrappings, self._device)
        for owner, attribute in parts.values:
            self._own.setdefault((owner, attribute), getattr(owner, attribute, None))
        self._put_in(parts)
        trained = Trainable(record.strategy, parts.changed, head=(), modules=(), peft_config=None)
        cut = find_cut(self._model, trained, masked=False, head_dropout=False)
        assert cut is not None, "no adapter changes the convolutions"
        adapter = Adapter(_Switched(self, name, parts), extractor, record, folder)
        problems = check_answers(adapter, LOADING_TOLERANCE, count=1)
        if problems:
            raise UserError(f"{folder} does not answer as recorded ({problems[0]}); see: peft-audio verify {folder}")
        return _Member(adapter, parts, cut)

    def unload(self, name: str) -> None:
        """Forget an adapter; its memory is free as soon as nothing else holds it.

        Raises:
            UserError: None has that name.
        """
        with self._lock:
            parts = self._member(name).parts
            self._put_in(self._plain)
            del self._members[name]
            # Whoever still holds the adapter would else hold its weights.
            parts.values.clear()
            self._forget_places()

    def _forget_places(self) -> None:
        """Let go of places that no adapter has a value for; the plain base must be in."""
        kept = {place for member in self._members.values() for place in member.parts.values}
        self._own = {place: value for place, value in self._own.items() if place in kept}

    def switch(self, name: str) -> None:
        """Put an adapter in; every call of `adapters[name]` does so by itself.

        Raises:
            UserError: None has that name.
        """
        with self._lock:
            self._put_in(self._member(name).parts)

    def logits_of_all(
        self, waveforms: Sequence[np.ndarray], names: Iterable[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Logits of a batch of clips from each adapter, equal to 1e-5 to what each says alone.

        The base runs once, up to where the last adapter parts from it, and each adapter runs what follows its own cut:
        a head alone the head, the last layers those, LoRA everything from its first changed layer on.

        Args:
            waveforms: float32 of shape (samples,) each, mono, at the sampling rate of the base.
            names: Of the adapters; all when not given.

        Returns:
            For each name, float32 of shape (clips, labels), in the order of its labels.

        Raises:
            UserError: None has such a name, or their sampling rates differ.
        """
        # Nothing may be unloaded from here on.
        with self._lock, torch.inference_mode():
            asked = list(self) if names is None else list(names)
            members = {name: self._member(name) for name in asked}
            rates = sorted({member.adapter.record.sampling_rate for member in members.values()})
            if len(rates) > 1:
                raise UserError(f"adapters of {rates[0]} and {rates[-1]} Hz cannot hear one clip; ask them apart.")
            # Copies of one base may come with extractors that normalise differently.
            groups: dict[str, dict[str, _Member]] = {}
            for name, member in members.items():
                key = json.dumps(member.adapter.extractor.to_dict(), sort_keys=True, default=str)
                groups.setdefault(key, {})[name] = member
            logits: dict[str, np.ndarray] = {}
            for group in groups.values():
                one = next(iter(group.values())).adapter
                inputs, samples = model_inputs(waveforms, one.extractor, self._model.config)
                inputs, samples = send_to_device((inputs, samples), self._device)
                answers = self._pass(inputs, samples, group)
                logits |= {name: answer.float().cpu().numpy() for name, answer in answers.items()}
            return {name: logits[name] for name in asked}

    def _pass(
        self, inputs: dict[str, torch.Tensor], samples: torch.Tensor | None, members: dict[str, _Member]
    ) -> dict[str, torch.Tensor]:
        model, answers = self._model, {}
        family = family_of(model.config)
        # The states that each adapter's own part starts from: several where a weighted sum of layers is pooled.
        by_cut: dict[tuple[Cut, tuple[Cut, ...]], dict[str, Parts]] = {}
        for name, member in members.items():
            cut = member.cut
            states = family.pooled_states(cut, member.adapter.model.config) if cut.pooled else (cut,)
            by_cut.setdefault((cut, states), {})[name] = member.parts
        self._put_in(self._plain)
        values = family.run_prefixes(model, inputs, {state for _, states in by_cut for state in states})
        for (cut, states), group in by_cut.items():
            if cut.pooled:
                pooled = family.pool(model, [values[state] for state in states], samples)
                for name, parts in group.items():
                    self._put_in(parts)
                    answers[name] = family.classify_pooled(model, pooled)
                continue
            undo = family.accept_features(model, cut)
            try:
                for name, parts in group.items():
                    self._put_in(parts)
                    answers[name] = model(features=values[cut], samples=samples).logits
            finally:
                undo()
        return answers

    def _member(self, name: str) -> _Member:
        if name not in self._members:
            known = ", ".join(self._members) or "none"
            raise UserError(f"no adapter called {name!r} is loaded; loaded: {known}.")
        return self._members[name]

    def _put_in(self, parts: Parts) -> None:
        if parts is not self._inside:
            before, self._inside = self._inside, None
            put(parts.values, self._own, None if before is None else before.values)
            self._model.config.update(parts.settings)
            self._inside = parts


@dataclass(frozen=True)
class _Switched:
    """The shared model as one adapter's: its weights are put in before every call."""

    adapters: AdapterSet
    name: str
    parts: Parts

    def __call__(self, **inputs: torch.Tensor) -> Any:
        adapters = self.adapters
        with adapters._lock:
            if not self.parts.values:
                raise UserError(f"the adapter {self.name!r} was unloaded; load it again.")
            adapters._put_in(self.parts)
            return adapters._model(**inputs)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the shared model, whichever adapter is in it: they tell the device."""
        return self.adapters._model.parameters()

    def eval(self) -> _Switched:
        """Itself: the shared model never leaves eval mode."""
        return self

    @property
    def config(self) -> Any:
        """The shared model's, with the labels of this adapter."""
        config = copy(self.adapters._model.config)
        config.update(self.parts.settings)
        return config


def _find(name: str, where: str | Path, revision: str | None) -> tuple[Path, AdapterRecord]:
    folder = fetch_adapter(where, revision)
    record = read_record(folder)
    if record.whole:
        raise UserError(
            f"{name} ({where}) is a whole model and shares no base with others; load it on its own with load_adapter."
        )
    return folder, record


def _check_same_base(name: str, record: AdapterRecord, others: str, base: Base) -> None:
    if record.base.sha256 != base.sha256:
        raise UserError(
            f"{name} is for another base than {others}: {record.base.name} (weights {record.base.sha256[:12]}), not "
            f"{base.name} (weights {base.sha256[:12]}). Adapters of one base go together; load it with load_adapter."
        )
