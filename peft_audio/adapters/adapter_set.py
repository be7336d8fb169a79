"""Many adapters on one base: switched by name, or all asked in one pass over what they share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn

from peft_audio.adapters.adapter import Adapter, model_inputs
from peft_audio.adapters.hub import fetch_adapter
from peft_audio.adapters.load import LOADING_TOLERANCE, base_rate, check_fits, load_base, move_to, read_extractor
from peft_audio.adapters.parts import Parts, Place, Wrapping, Wrappings, put, read_parts
from peft_audio.adapters.probes import check_answers
from peft_audio.adapters.record import AdapterRecord, read_record
from peft_audio.config import ModelConfig
from peft_audio.encoders.base import Cut
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import Base, classifier_settings
from peft_audio.errors import UserError
from peft_audio.feature_cache.cut import find_cut
from peft_audio.strategies.base import Trainable


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
        adapter = Adapter(_Switched(self, name, parts), extractor, record)
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
